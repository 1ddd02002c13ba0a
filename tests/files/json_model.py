"""What the JSON-lines reader must give for any bytes, by `json` and line by line."""

import json

import grpokit as gk
from grpokit.io import filter_files, jsonl

NAMES = ["reward", "group_id", "é"]
RLOO = gk.recipe("rloo")


class NoTextError(Exception):
    """Half of a surrogate pair, which only a reader of that field has to refuse."""


def of(value):
    """What makes two values of one column different in type."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "large" if isinstance(value, int) and not -(2**63) <= value < 2**63 else "a number"
    return "text" if isinstance(value, str) else "nested"


def record(line):
    found = json.loads(line.decode())
    if not isinstance(found, dict):
        raise ValueError  # noqa: TRY004 - as for what is no JSON
    if "\\ud" in line.decode().lower():
        try:
            json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise NoTextError from None
    return found


def expected(content):
    """The records, or the kinds of error that may come, and the line that is broken; None where nobody can tell."""
    kinds, records, bad = set(), [], None
    for number, line in enumerate(content.removeprefix(jsonl.BOM).split(b"\n"), 1):
        if not line.strip(jsonl.BLANK):
            continue
        try:
            records.append(record(line))
        except (NoTextError, RecursionError):
            return None
        except ValueError as problem:
            if "int string conversion" in str(problem):
                return None
            kinds, bad = kinds | {"bad_line"}, number
            break
    for name in NAMES:
        some = {of(found[name]) for found in records if found.get(name) is not None}
        if len(some) > 1 or some & {"large", "nested"}:
            kinds.add("column_type")
    if not records and bad is None:
        kinds.add("file_unreadable")
    return kinds, records, bad


def same(a, b):
    if isinstance(a, int | float) and isinstance(b, int | float):
        return isinstance(a, bool) == isinstance(b, bool) and (float(a) == float(b) or (a != a and b != b))
    return a == b


def check(path, content):
    """Reads a file, and fails where it is not as expected, or where anything but grpokit's errors comes out."""
    wanted = None if jsonl.codec_of(content) else expected(content)
    try:
        tables = list(jsonl.JsonLinesInput(path).read(NAMES))
    except gk.GrpokitError as problem:
        if wanted is not None:
            assert problem.kind in wanted[0], (problem, wanted)
            assert problem.kind != "bad_line" or problem.context["line"] == wanted[2], (problem, wanted)
    else:
        if wanted is not None:
            assert wanted[0] <= {"column_type"}, wanted
            rows = [row for table, _ in tables for row in table.to_pylist()]
            assert len(rows) == len(wanted[1])
            if not wanted[0]:
                for row, found in zip(rows, wanted[1], strict=True):
                    assert all(same(row[name], found.get(name)) for name in NAMES), (row, found)
    try:
        filter_files(path, None, RLOO)
    except gk.GrpokitError as problem:
        assert str(problem)
