"""The command line's `grpokit report`: what a run did, as a page to look at, as JSON and as Markdown.

Nothing here imports NumPy or matplotlib before the verb runs.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli_files import add_reading, read_as
from .errors import GrpokitError, error
from .output import print_json, standard_output

if TYPE_CHECKING:
    import argparse

    from .record import Record

SUFFIXES = (".html", ".json", ".md")


def add_report(verbs: Any) -> None:
    """Adds `report` to the command line."""
    parser = verbs.add_parser(
        "report",
        help="show what a run did",
        description="""Reads a run's directory, one of TRL's trainer, or rollout files of any framework, and writes one
        HTML file without scripts that opens from the disk: findings, curves, completions, configuration. Two runs are
        laid over each other. Example: grpokit report runs/NAME -o report.html""",
    )
    add = parser.add_argument
    add(
        "runs", nargs="+", metavar="RUN", help="a run's directory, a rollout file or a pattern; a second one to compare"
    )
    add(
        "-o",
        "--output",
        metavar="FILE",
        action="append",
        default=[],
        help="what to write: .html, .json or .md; repeat it; - is Markdown on standard output",
    )
    add("--json", action="store_true", help="print the content as one JSON object")
    add("--md", action="store_true", help="print it as Markdown, for an issue")
    add_reading(parser)
    add("--overwrite", action="store_true", help="replace files that are there")
    parser.set_defaults(run=report, verb="report")


def report(typed: argparse.Namespace) -> None:
    """Runs `grpokit report`."""
    files, markdown = _outputs(typed)
    if len(typed.runs) > 2:
        expected = "one run, or two that are compared; several files are one pattern, 'dumps/*.jsonl'"
        raise error("bad_parameter", owner="report", name="RUN", given=" ".join(typed.runs), expected=expected)
    how = read_as(typed)
    from .report import content, to_html, to_markdown
    from .whole_files import whole

    with whole(files, overwrite=typed.overwrite) as places:
        records, problems = _records(typed.runs, how)
        said = content(records, command=_command(typed), problems=problems)
        made = {".html": to_html, ".md": to_markdown, ".json": _as_json}
        for path, place in zip(files, places, strict=True):
            place.write_text(made[path.suffix](said), encoding="utf-8")
    with standard_output():
        if typed.json:
            print_json(**{name: value for name, value in said.items() if name != "schema_version"})
        elif markdown:
            print(to_markdown(said), end="")
        else:
            for path in files:
                print(f"wrote {path}: {said['verdict']}")
    for problem in (*problems, *(text for record in records for text in record.problems)):
        print(f"grpokit: {problem}", file=sys.stderr)


def _outputs(typed: argparse.Namespace) -> tuple[list[Path], bool]:
    """The files, and whether Markdown goes to standard output."""
    markdown = typed.md or ("-" in typed.output and not typed.json)
    files = [Path(name) for name in typed.output if name != "-"]
    expected = None
    if typed.md and typed.json:
        expected = "one of --json and --md; -o FILE.md writes the other"
    elif not files and not typed.json and not markdown:
        expected = "a file .html, .json or .md, or --json or --md"
    elif any(path.suffix not in SUFFIXES for path in files) or len({path.absolute() for path in files}) < len(files):
        expected = "different files that end in .html, .json or .md"
    if expected is not None:
        raise error(
            "bad_parameter", owner="report", name="-o", given=", ".join(typed.output) or None, expected=expected
        )
    return files, markdown


def _records(runs: list[str], how: dict[str, Any]) -> tuple[list[Record], list[str]]:
    """What can be read; an error only where that is nothing."""
    from importlib.util import find_spec

    from .record import read_record

    if find_spec("pyarrow") is not None:
        import pyarrow as pa

        if "jemalloc" in pa.supported_memory_backends():
            # It gives memory back sooner.
            pa.set_memory_pool(pa.jemalloc_memory_pool())
    records, failed = [], []
    for run in runs:
        try:
            records.append(read_record(run, **how))
        except GrpokitError as problem:
            failed.append(problem)
    if not records:
        raise failed[0]
    return records, list(map(str, failed))


def _command(typed: argparse.Namespace) -> str:
    words = ["grpokit", "report", *typed.runs]
    for name in typed.output:
        words += ["-o", name]
    for flag in ("json", "md"):
        words += [f"--{flag}"] if getattr(typed, flag) else []
    words += ["--format", typed.format] if typed.format != "auto" else []
    for column in typed.column:
        words += ["--column", column]
    words += ["--reward", typed.reward] if typed.reward is not None else []
    words += ["--group-size", str(typed.group_size)] if typed.group_size is not None else []
    return shlex.join(words)


def _as_json(said: dict[str, Any]) -> str:
    return json.dumps(said, ensure_ascii=False, indent=1) + "\n"
