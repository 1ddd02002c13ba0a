"""The command line: `grpokit train`, `filter`, `advantages`, `recipes`.

Results go to stdout, talk to stderr; `--json` prints exactly one object with a ``schema_version``. Exit codes: 0 fine,
1 it ran and
found something, 2 wrong use or unreadable input, 130 interrupted. Nothing here imports NumPy or torch before a
verb runs, so that help is instant.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from .errors import GroupWarning, GrpokitError, error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ._recipe import Recipe

SCHEMA_VERSION = 1

# Set before transformers is imported: nothing is fetched, nothing is reported, and its progress bars are noise here.
_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Parameters
    ----------
    arguments : sequence of str, optional
        What was typed after the program's name; `sys.argv` when not given. Only then are files read in a child process:
        what is called from a program stays in it.

    Returns
    -------
    int
        The exit code. An unexpected exception is not caught, so that its traceback is seen.
    """
    typed = _parser().parse_args(arguments)
    try:
        if arguments is None and typed.run is _filter:
            from .child import in_child

            ended = in_child()
            if ended is not None:
                return ended
        return typed.run(typed) or 0
    except GrpokitError as problem:
        print(f"grpokit: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("grpokit: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever reads has seen enough; nothing more can be said.
        _drop_output()
        return 141


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="grpokit", description="The GRPO family of RL algorithms.")
    verbs = parser.add_subparsers(metavar="verb", required=True)

    train = verbs.add_parser(
        "train",
        help="train a model with any recipe",
        description="Without arguments: warm-starts a tiny model on a sorting task and trains it with DAPO, offline, "
        "in less than a minute. The run's files are in runs/<name>/.",
    )
    train.add_argument("--config", metavar="FILE", help="a TOML file, such as a run's config.toml")
    train.add_argument(
        "--set",
        metavar="KEY=VALUE",
        dest="settings",
        action="append",
        default=[],
        help="change one value: recipe=grpo, recipe.low=0.2, steps=50, warm_start.steps=300",
    )
    train.add_argument("--name", help="the run's name (default: date, time, recipe and seed)")
    train.add_argument("--runs", metavar="DIR", default="runs", help="where runs are kept (default: runs)")
    train.add_argument("--overwrite", action="store_true", help="replace the run of that name")
    train.add_argument("--dry-run", action="store_true", help="print the resolved configuration and what it amounts to")
    train.add_argument("--json", action="store_true", help="print the result as one JSON object")
    train.set_defaults(run=_train)

    _add_file_verbs(verbs)

    recipes = verbs.add_parser(
        "recipes", help="list the recipes, or explain one", description="Without a name: the recipes and their papers."
    )
    recipes.add_argument(
        "name", nargs="?", help="the recipe to explain: its stages, equation, numbers and their sources"
    )
    recipes.add_argument(
        "--set", metavar="KEY=VALUE", dest="settings", action="append", default=[], help="a parameter: max_len=20480"
    )
    recipes.add_argument("--json", action="store_true", help="print one JSON object")
    recipes.set_defaults(run=_recipes)
    return parser


def _progress() -> Callable[[str, int], None]:
    """Says on a terminal how far things are, five times a second."""
    import time

    if not sys.stderr.isatty():
        return lambda _what, _rows: None
    last = time.monotonic()

    def say(what: str, rows: int) -> None:
        nonlocal last
        if time.monotonic() - last > 0.2:
            last = time.monotonic()
            print(f"\r\x1b[K{what} {rows:,} rows", end="\r", file=sys.stderr, flush=True)

    return say


def _add_file_verbs(verbs: Any) -> None:
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
        add("--format", default="auto", help="the framework that wrote them (default: known by its fields)")
        add("--explain-format", action="store_true", help="print what the files are taken for, and do nothing")
        add("--column", metavar="WORD=NAME", action="append", default=[], help="the files' name: group_id=uid")
        add("--reward", metavar="NAME[=WEIGHT],...", help="the columns, or parts of the reward, that are added up")
        add("--group-size", type=int, metavar="N", help="N rows one after another are a group; there is no id")
        add("--version", type=int, help="the trainer's policy version, for staleness")
        add("--order", choices=("auto", "contiguous", "any"), default="auto", help="how the rows of a group lie")
        add("--max-group-rows", type=int, default=1_000_000, metavar="N", help="refuse larger groups")
        add("--keep-dropped", metavar="FILE", help="write the dropped rows there, with a column `reason`")
        add("--overwrite", action="store_true", help="replace files that are there")
        add("--dry-run", action="store_true", help="decide, and write nothing")
        add("--json", action="store_true", help="print the result as one JSON object")
        if verb == "filter":
            add("--advantages", action="store_true", help="add a column `advantage`")
        parser.set_defaults(run=_filter, verb=verb)


def _filter(typed: argparse.Namespace) -> int:
    import shutil
    import tempfile
    import warnings
    from pathlib import Path

    from .child import tell

    alone = typed.dry_run or typed.explain_format
    if (typed.output is None) != alone:
        expected = "a file, or --dry-run" if typed.output is None else "no file with --dry-run or --explain-format"
        raise error("bad_parameter", owner=typed.verb, name="-o", given=typed.output, expected=expected)
    named: dict[str, Any] = {"columns": _columns(typed), "format": typed.format, "reward": _reward(typed)}
    if typed.group_size is not None and typed.group_size < 1:
        given = typed.group_size
        raise error("bad_parameter", owner=typed.verb, name="--group-size", given=given, expected="1 or more")
    named["group_size"] = typed.group_size
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
    with tempfile.TemporaryDirectory(prefix="grpokit-") as place, warnings.catch_warnings():
        # The summary says it, with its rows.
        warnings.simplefilter("ignore", GroupWarning)
        tell("begun", Path(place))
        inputs, output = list(typed.inputs), typed.output
        if "-" in inputs:
            # It is read twice, so it goes through a file.
            spool = Path(place) / "standard input"
            with spool.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
            inputs = [spool if given == "-" else given for given in inputs]
        if typed.explain_format:
            print(explain(inputs, **named))
            return 0
        if output == "-":
            output = Path(place) / "standard output"
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
        if typed.output == "-":
            with output.open("rb") as file, _standard_output():
                shutil.copyfileobj(file, sys.stdout.buffer)
    # Data and talk do not mix.
    stream = sys.stderr if typed.output == "-" else sys.stdout
    with _standard_output():
        if typed.json:
            _print_json(stream, **found.to_dict())
        else:
            print(found, file=stream, flush=True)
    if typed.verb == "filter" and not recipe.select and not typed.json:
        print(
            f"the recipe {recipe.name} selects nothing: --select HasSignal() drops groups of equal rewards",
            file=sys.stderr,
        )
    return 0 if found.verdicts.counts["kept"] or typed.verb == "advantages" else 1


def _columns(typed: argparse.Namespace) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for setting in typed.column:
        word, equals, name = setting.partition("=")
        if not (word and equals and name):
            raise error("bad_parameter", owner=typed.verb, name="--column", given=setting, expected="WORD=NAME")
        columns[word] = name.split(",") if "," in name else name
    return columns


def _reward(typed: argparse.Namespace) -> dict[str, float] | None:
    if typed.reward is None:
        return None
    weights: dict[str, float] = {}
    for part in typed.reward.split(","):
        name, equals, weight = part.partition("=")
        try:
            weights[name.strip()] = float(weight) if equals else 1.0
        except ValueError:
            name = ""
        if not name.strip():
            expected = "names with weights: NAME, or a=1,b=0.5"
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


@contextlib.contextmanager
def _standard_output() -> Iterator[None]:
    """Writes all, or says why not."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as problem:
        _drop_output()
        raise error("output_unwritable", reason=problem.strerror) from None


def _drop_output() -> None:
    """What is not written yet is not written, at exit either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _train(typed: argparse.Namespace) -> None:
    os.environ.update({name: os.environ.get(name, value) for name, value in _QUIET.items()})
    from pathlib import Path

    from .trainer import TrainConfig

    config = TrainConfig.from_file(typed.config) if typed.config else TrainConfig()
    config = config.with_settings(typed.settings).resolve()
    if typed.dry_run:
        if typed.json:
            _print_json(config=config.to_dict(), arithmetic=config.arithmetic())
        else:
            print(config.to_toml())
            for what, amount in config.arithmetic().items():
                print(f"# {what}: {amount:,}")
        return
    if typed.name is not None and (not typed.name or typed.name in (".", "..") or Path(typed.name).name != typed.name):
        raise error("bad_parameter", owner="train", name="--name", given=typed.name, expected="a name without slashes")

    from .trainer import Trainer
    from .trainer.console import show
    from .trainer.run import default_name

    directory = Path(typed.runs) / (typed.name or default_name(config))
    trainer = Trainer(config, directory=directory, overwrite=typed.overwrite)
    try:
        trainer.train()
    finally:
        if trainer.summary is not None:
            if typed.json:
                print(json.dumps(trainer.summary.to_dict()))
            else:
                show(trainer.summary, sys.stdout)


def _recipes(typed: argparse.Namespace) -> None:
    from grpokit import recipe, recipe_names

    if typed.name is None:
        names = recipe_names()
        if typed.settings:
            raise error(
                "bad_parameter",
                owner="recipes",
                name="--set",
                given=typed.settings[0],
                expected="a recipe's name first",
            )
        if typed.json:
            _print_json(recipes=names)
        else:
            for name, paper in names.items():
                print(f"{name:<12} {paper}")
        return
    from .settings import read_setting

    chosen = recipe(typed.name, **dict(map(read_setting, typed.settings)))
    if typed.json:
        _print_json(recipe=chosen.to_dict())
    else:
        print(chosen.explain())


def _print_json(stream: Any = None, **fields: Any) -> None:
    print(json.dumps({"schema_version": SCHEMA_VERSION, **fields}, ensure_ascii=False), file=stream, flush=True)
