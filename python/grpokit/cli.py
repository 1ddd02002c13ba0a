"""The command line: `grpokit train`, `eval`, `report`, `doctor`, `filter`, `advantages`, `conform`, `recipes`, `tune`.

Results go to stdout, talk to stderr; `--json` prints exactly one object with a ``schema_version``. Exit codes: 0 fine,
1 it ran and found something, 2 wrong use or unreadable input, 130 interrupted (143 by SIGTERM). Nothing here imports
NumPy or torch before a verb runs, so that help is instant.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from typing import TYPE_CHECKING

from .cli_conform import add_verb
from .cli_doctor import add_doctor
from .cli_eval import add_eval
from .cli_files import add_verbs, filter_
from .cli_recipes import add_recipes
from .cli_report import add_report
from .errors import GrpokitError, error
from .offline import quieten
from .output import drop_output, print_json

if TYPE_CHECKING:
    from collections.abc import Sequence


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
        if arguments is None and typed.run is filter_:
            from .child import in_child

            ended = in_child()
            if ended is not None:
                return ended
        return typed.run(typed) or 0
    except GrpokitError as problem:
        print(f"grpokit: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as problem:
        print("grpokit: interrupted", file=sys.stderr)
        return 128 + int(getattr(problem, "signal", signal.SIGINT))
    except BrokenPipeError:
        # Whoever reads has seen enough; nothing more can be said.
        drop_output()
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
    train.add_argument("--resume", metavar="DIR", help="go on with a run that was stopped, from its last snapshot")
    train.add_argument("--dry-run", action="store_true", help="print the resolved configuration and what it amounts to")
    train.add_argument("--json", action="store_true", help="print the result as one JSON object")
    train.set_defaults(run=_train)

    add_eval(verbs)
    add_doctor(verbs)
    add_report(verbs)
    add_verbs(verbs)
    add_verb(verbs)

    tune = verbs.add_parser(
        "tune",
        help="time the Triton kernels on this GPU",
        description="Times block sizes and warps of the Triton kernels on this GPU and writes the fastest to a file "
        "that the environment variable GRPOKIT_KERNEL_TABLE may name. Without it a static table is used.",
    )
    tune.add_argument("-o", dest="output", metavar="FILE", required=True, help="the table, a JSON file")
    tune.add_argument("--rows", type=int, default=4096, metavar="N", help="tokens (default: 4096)")
    tune.add_argument("--vocabulary", type=int, default=151_936, metavar="V", help="columns (default: 151936)")
    tune.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16", help="of the logits")
    tune.add_argument("--device", default="cuda", help="where (default: cuda)")
    tune.add_argument("--overwrite", action="store_true", help="replace the file")
    tune.add_argument("--json", action="store_true", help="print table and times as one JSON object")
    tune.set_defaults(run=_tune)

    add_recipes(verbs)
    return parser


def _train(typed: argparse.Namespace) -> None:
    from pathlib import Path

    from .trainer import TrainConfig

    if typed.resume and (typed.name is not None or typed.overwrite):
        given = "--name" if typed.name is not None else "--overwrite"
        raise error("bad_parameter", owner="train", name="--resume", given=typed.resume, expected=f"no {given} with it")
    source = typed.config
    if typed.resume and not source:
        source = Path(typed.resume) / "config.toml"
        if not source.is_file():
            raise error("not_a_run", path=typed.resume)
    config = TrainConfig.from_file(source) if source else TrainConfig()
    config = config.with_settings(typed.settings).resolve()
    quieten(config.model)
    if typed.dry_run:
        from .trainer.models import memory

        held = memory(config)
        if typed.json:
            print_json(config=config.to_dict(), arithmetic=config.arithmetic(), memory=held)
        else:
            print(config.to_toml())
            for what, amount in config.arithmetic().items():
                print(f"# {what}: {amount:,}")
            for what, size in held.items():
                print(f"# bytes of {what}: {size:,}")
        return
    if typed.name is not None and (not typed.name or typed.name in (".", "..") or Path(typed.name).name != typed.name):
        raise error("bad_parameter", owner="train", name="--name", given=typed.name, expected="a name without slashes")

    from .trainer import Trainer
    from .trainer.console import show
    from .trainer.run import default_name

    directory = Path(typed.runs) / (typed.name or default_name(config))
    trainer = Trainer(config, directory=typed.resume or directory, overwrite=typed.overwrite, resume=bool(typed.resume))
    try:
        trainer.train()
    finally:
        if trainer.summary is not None and trainer.ranks.first:
            if typed.json:
                print(json.dumps(trainer.summary.to_dict()))
            else:
                show(trainer.summary, sys.stdout)


def _tune(typed: argparse.Namespace) -> None:
    from pathlib import Path

    import torch

    from .tune import tune
    from .whole_files import whole

    with whole([Path(typed.output)], overwrite=typed.overwrite) as (place,):
        found = tune(typed.rows, typed.vocabulary, getattr(torch, typed.dtype), typed.device)
        place.write_text(json.dumps(found["table"], indent=1) + "\n", encoding="utf-8")
    if typed.json:
        print_json(**found)
        return
    for kernel, candidates in found["times"].items():
        for number, one in enumerate(sorted(candidates, key=lambda x: x["seconds"])[:3]):
            how = f"block {one['block']}, {one['warps']} warps, {one['stages']} stages"
            print(f"{kernel if not number else '':<9} {one['seconds'] * 1e3:9.3f} ms  {how}")
