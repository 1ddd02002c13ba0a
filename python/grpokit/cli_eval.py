"""The command line's `grpokit eval`: pass@k and maj@k of a run's weights on its held-out prompts.

Nothing here imports torch before the verb runs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import error
from .offline import quieten
from .output import print_json, standard_output

if TYPE_CHECKING:
    from .trainer.evaluate import Evaluated

_SETTINGS = ("samples", "prompts", "temperature", "greedy")


def add_eval(verbs: Any) -> None:
    """Adds `eval` to the command line."""
    parser = verbs.add_parser(
        "eval",
        help="evaluate a run on its held-out prompts",
        description="""pass@k (without bias), maj@k and the greedy pass@1 of a run's checkpoint, with standard errors
        over prompts. Without options it repeats the run's last evaluation, to the digit.
        Example: grpokit eval runs/NAME --samples 64 --k 1,8,64""",
    )
    add = parser.add_argument
    add("directory", metavar="RUN", help="the run's directory")
    add("--samples", type=int, metavar="K", help="completions a prompt (default: the run's)")
    add("--k", metavar="K,...", help="the k of pass@k and maj@k (default: the run's)")
    add("--prompts", type=int, metavar="N", help="held-out prompts (default: the run's)")
    add("--temperature", type=float, metavar="T", help="of sampling (default: the run's)")
    add("--greedy", action=argparse.BooleanOptionalAction, help="the likeliest completion as well (default: the run's)")
    add("--snapshot", type=int, metavar="STEP", help="the snapshot of that step (default: the checkpoint)")
    add("-o", "--output", metavar="FILE", help="write the completions: .parquet, or JSON lines")
    add("--overwrite", action="store_true", help="replace the file")
    add("--json", action="store_true", help="print the result as one JSON object")
    parser.set_defaults(run=eval_)


def eval_(typed: argparse.Namespace) -> None:
    """Runs `grpokit eval`."""
    from .trainer.run import RunDirectory

    config = RunDirectory(typed.directory).configuration()
    # A checkpoint is whole; a snapshot and low-rank weights are what was trained of a model.
    quieten(config.model if config.lora.rank or typed.snapshot is not None else "")
    settings = {name: getattr(typed, name) for name in _SETTINGS if getattr(typed, name) is not None}
    if typed.k is not None:
        settings["k"] = _whole_numbers(typed.k)
    place = None if typed.output is None else Path(typed.output)
    try:
        from .trainer.completions import check_format, write_rows
        from .trainer.evaluate_run import evaluate_run
    except ModuleNotFoundError as missing:
        raise error("missing_extra", what="grpokit eval", package=missing.name, extra="train") from None
    from .whole_files import whole

    if place is not None:
        check_format(place)
    with whole([place] if place else [], overwrite=typed.overwrite) as places:
        found = evaluate_run(typed.directory, settings=settings, snapshot=typed.snapshot, note=_talk)
        for path in places:
            write_rows(path, found.records(), parquet=typed.output.endswith(".parquet"))
    with standard_output():
        if typed.json:
            print_json(directory=typed.directory, **_told(found))
        else:
            print(_page(typed.directory, found))


def _whole_numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        expected = "whole numbers, such as 1,8,64"
        raise error("bad_parameter", owner="eval", name="--k", given=text, expected=expected) from None


def _told(found: Evaluated) -> dict[str, Any]:
    passed = found.passed
    estimates = {name: estimate._asdict() for name, estimate in passed.estimates.items()}
    return {"step": passed.step, "prompts": found.prompts, "samples": passed.k, "estimates": estimates}


def _page(directory: str, found: Evaluated) -> str:
    passed = found.passed
    head = f"{directory}, step {passed.step}: {found.prompts} held-out prompts, {passed.k} completions each"
    return "\n".join([head, *(f"{name:<10}{estimate}" for name, estimate in passed.estimates.items())])


def _talk(text: str) -> None:
    print(text, file=sys.stderr)
