"""The command line's verbs on files: `grpokit filter` and `grpokit advantages`.

Nothing here imports NumPy or pyarrow before a verb runs.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

from .errors import GroupWarning, error
from .output import print_json, standard_output

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ._recipe import Recipe


def add_verbs(verbs: Any) -> None:
    """Adds `filter` and `advantages` to the command line."""
    filtering = """Reads Parquet or JSON lines (also .gz, .zst) and writes the kept rows, in order, with all columns.
        Example: grpokit filter rollouts.parquet -o kept.parquet --recipe dapo --set max_len=20480"""
    adding = """Writes every row, with a column `advantage` (0 for rows that the recipe drops).
        Example: grpokit advantages rollouts.jsonl -o out.jsonl --recipe rloo"""
    texts = {
        "filter": ("write the rows of rollout files that are worth training on", filtering),
        "advantages": ("add a column with the advantages to rollout files", adding),
    }
    for verb, (text, description) in texts.items():
        parser = verbs.add_parser(verb, help=text, description=description)
        add = parser.add_argument
        add("inputs", nargs="+", metavar="IN", help="files, patterns or directories; - is standard input")
        add("-o", "--output", metavar="OUT", help="the file to write; - is standard output")
        add("--recipe", help="whose stages 1 to 4 decide (default: grpo; filter: that and groups with signal)")
        add(
            "--select",
            metavar="STAGE",
            action="append",
            default=[],
            help="what drops rows, instead of the recipe's: HasSignal(), 'PassRate(low=0.2, high=0.8)'; repeat it",
        )
        add(
            "--set",
            metavar="KEY=VALUE",
            dest="settings",
            action="append",
            default=[],
            help="a parameter: max_len=20480",
        )
        add_reading(parser)
        add("--explain-format", action="store_true", help="print what the files are taken for, and do nothing")
        add("--version", type=int, help="the trainer's policy version, for staleness")
        add("--order", choices=("auto", "contiguous", "any"), default="auto", help="how the rows of a group lie")
        add(
            "--max-group-rows",
            type=int,
            default=1_000_000,
            metavar="N",
            help="refuse larger groups, where their rows lie together",
        )
        add("--keep-dropped", metavar="FILE", help="write the dropped rows there, with a column `reason`")
        add("--overwrite", action="store_true", help="replace files that are there")
        add("--dry-run", action="store_true", help="decide, and write nothing")
        add("--json", action="store_true", help="print the result as one JSON object")
        if verb == "filter":
            add("--advantages", action="store_true", help="add a column `advantage`")
        parser.set_defaults(run=filter_, verb=verb)


def filter_(typed: argparse.Namespace) -> int:
    """Runs `grpokit filter` or `advantages`."""
    import warnings

    alone = typed.dry_run or typed.explain_format
    if (typed.output is None) != alone:
        expected = "a file, or --dry-run" if typed.output is None else "no file with --dry-run or --explain-format"
        raise error("bad_parameter", owner=typed.verb, name="-o", given=typed.output, expected=expected)
    if typed.keep_dropped is not None and (alone or typed.keep_dropped == "-"):
        expected = "a file, and no --dry-run or --explain-format"
        raise error(
            "bad_parameter", owner=typed.verb, name="--keep-dropped", given=typed.keep_dropped, expected=expected
        )
    if typed.explain_format and typed.json:
        raise error(
            "bad_parameter", owner=typed.verb, name="--json", given=True, expected="no --explain-format with it"
        )
    named = read_as(typed)
    recipe = _chosen(typed)
    try:
        import pyarrow as pa

        from .io import explain, filter_files
    except ModuleNotFoundError as problem:
        what = f"grpokit {typed.verb}"
        raise error("missing_extra", what=what, package=problem.name, extra="io") from None
    if "jemalloc" in pa.supported_memory_backends():
        # It gives memory back sooner: a fifth less at the peak.
        pa.set_memory_pool(pa.jemalloc_memory_pool())
    with _as_files(typed.inputs, typed.output) as (inputs, output), warnings.catch_warnings():
        # The summary says it, with its rows.
        warnings.simplefilter("ignore", GroupWarning)
        if typed.explain_format:
            print(explain(inputs, **named))
            return 0
        found = filter_files(
            inputs,
            output,
            recipe,
            **named,
            version=typed.version,
            order=typed.order,
            keep_all=typed.verb == "advantages",
            advantages=typed.verb == "advantages" or typed.advantages,
            keep_dropped=typed.keep_dropped,
            overwrite=typed.overwrite,
            max_group_rows=typed.max_group_rows,
            progress=_progress(),
        )
    # Data and talk do not mix.
    stream = sys.stderr if typed.output == "-" else sys.stdout
    with standard_output():
        if typed.json:
            # Files that stood for - are gone.
            names = {"inputs": typed.inputs} if "-" in typed.inputs else {}
            names |= {"output": "-"} if typed.output == "-" else {}
            print_json(stream, **found.to_dict() | names)
        else:
            print(found, file=stream)
            if typed.verb == "filter" and not recipe.select:
                said = f"the recipe {recipe.name} selects nothing: --select HasSignal() drops groups of equal rewards"
                print(said, file=stream)
    return 0 if found.verdicts.counts["kept"] or typed.verb == "advantages" else 1


@contextlib.contextmanager
def _as_files(inputs: list[str], output: str | None) -> Iterator[tuple[list[str | Path], str | Path | None]]:
    """The same with files for standard input, which is read twice, and for standard output, which is given whole."""
    import shutil
    import tempfile
    from pathlib import Path

    from .child import tell

    if "-" not in (*inputs, output):
        yield list(inputs), output
        return
    with tempfile.TemporaryDirectory(prefix="grpokit-") as place:
        tell("begun", Path(place))
        spool, written = Path(place) / "standard input", Path(place) / "standard output"
        if "-" in inputs:
            if sys.stdin is None:
                raise error("file_unreadable", path="standard input", reason="it is closed")
            with spool.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
        yield [spool if given == "-" else given for given in inputs], written if output == "-" else output
        if output == "-":
            with written.open("rb") as file, standard_output():
                shutil.copyfileobj(file, sys.stdout.buffer)


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Adds how rollout files are read."""
    add = parser.add_argument
    add("--format", default="auto", help="the framework that wrote the files (default: known by their fields)")
    add("--column", metavar="WORD=NAME", action="append", default=[], help="the files' name: group_id=uid")
    add("--reward", metavar="NAME[=WEIGHT],...", help="the columns, or parts of the reward, that are added up")
    add("--group-size", type=int, metavar="N", help="N rows one after another are a group; there is no id")


def read_as(typed: argparse.Namespace) -> dict[str, Any]:
    """What these options say, as `grpokit.io.filter_files` and `grpokit.record.read_record` take it."""
    columns, reward = _columns(typed), _reward(typed)
    return {"columns": columns, "format": typed.format, "reward": reward, "group_size": typed.group_size}


def _columns(typed: argparse.Namespace) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for setting in typed.column:
        word, equals, name = setting.partition("=")
        if not (word and equals and name):
            raise error("bad_parameter", owner=typed.verb, name="--column", given=setting, expected="WORD=NAME")
        if word in columns:
            raise error("bad_parameter", owner=typed.verb, name="--column", given=setting, expected="each WORD once")
        columns[word] = name.split(",") if "," in name else name
    return columns


def _reward(typed: argparse.Namespace) -> dict[str, float] | None:
    if typed.reward is None:
        return None
    weights: dict[str, float] = {}
    for part in typed.reward.split(","):
        name, equals, weight = part.partition("=")
        again = name.strip() in weights
        try:
            weights[name.strip()] = float(weight) if equals else 1.0
        except ValueError:
            name = ""
        if again or not name.strip():
            expected = "names with weights, each once: NAME, or a=1,b=0.5"
            raise error("bad_parameter", owner=typed.verb, name="--reward", given=typed.reward, expected=expected)
    return weights


def _chosen(typed: argparse.Namespace) -> Recipe:
    """The recipe, with the stages that were asked for."""
    from grpokit import HasSignal, recipe

    from .settings import read_setting, read_stage

    chosen = recipe(typed.recipe or "grpo", **dict(map(read_setting, typed.settings)))
    if typed.select:
        return chosen.replace(select=tuple(read_stage("select", text) for text in typed.select))
    if typed.recipe is None and typed.verb == "filter":
        return chosen.replace(select=(HasSignal(),))
    return chosen


def _progress() -> Callable[[str, int], None]:
    """Says on a terminal how far things are, five times a second."""
    import time

    if sys.stderr is None or not sys.stderr.isatty():
        return lambda _what, _rows: None
    last = time.monotonic()

    def say(what: str, rows: int) -> None:
        nonlocal last
        if time.monotonic() - last > 0.2:
            last = time.monotonic()
            print(f"\r\x1b[K{what} {rows:,} rows", end="\r", file=sys.stderr, flush=True)

    return say
