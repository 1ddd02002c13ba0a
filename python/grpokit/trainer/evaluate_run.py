"""`grpokit eval`: a run's weights on its held-out prompts, judged as the run was.

In: a run's directory. Out: what `evaluate` found; with the run's own settings the numbers of its last evaluation.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from grpokit.errors import error

from .built_in import make_task
from .config import TrainConfig, stream
from .engine import InProcess
from .evaluate import Evaluated, evaluate
from .models import load, load_checkpoint
from .rewards import Given, Rewards, functions_of
from .run import RunDirectory
from .snapshot import DAMAGE, load_weights
from .tasks import draw

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from .config_tables import Evaluation
    from .policy import Policy
    from .tasks import Task


def evaluate_run(
    directory: str | os.PathLike[str],
    *,
    settings: Mapping[str, Any] | None = None,
    snapshot: int | None = None,
    task: Task | None = None,
    reward: Given | Sequence[Given] | None = None,
    note: Callable[[str], None] = lambda _text: None,
) -> Evaluated:
    """Evaluates what a run has learned.

    Parameters
    ----------
    directory : path
        The run's.
    settings : mapping, optional
        Fields of `Evaluation` that differ from the run's: prompts, samples, k, temperature, greedy. More prompts are
        drawn after the run's own ones where the task makes them, and anew where a file has them.
    snapshot : int, optional
        The step of a snapshot to evaluate; the run's checkpoint when not given.
    task, reward : optional
        To be given again where they were given in Python; see `Trainer`. Rewards are asked only where the task has no
        answers.
    note : callable
        Where failing reward functions are shown.

    Returns
    -------
    Evaluated

    Raises
    ------
    FileError
        `no_run`; `file_unreadable`: no checkpoint, a damaged snapshot.
    InputError
        `given_in_python`; `bad_parameter`, `unknown_parameter`: a setting, or a step without snapshot;
        `missing_extra`.
    """
    run = RunDirectory(directory)
    config = run.configuration()
    evaluation = _settled(config.evaluation, dict(settings or {}))
    if task is None:
        task = make_task(config.task, rewarded=bool(config.rewards.functions))
    functions = [] if getattr(task, "answered", True) else functions_of(config.rewards, reward)
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        policy, step = _policy(run, config, snapshot)
        items = draw(task, stream(config, "held out"), evaluation.prompts, held_out=True)
        with Rewards(task, functions, config.rewards, note) as rewards:
            return evaluate(
                InProcess(policy),
                policy,
                rewards,
                task=task,
                items=items,
                config=config,
                evaluation=evaluation,
                step=step,
            )
    finally:
        torch.set_num_threads(threads)


def _settled(evaluation: Evaluation, settings: dict[str, Any]) -> Evaluation:
    """The run's settings with those that differ."""
    if "k" not in settings:
        # Those of the run that fewer samples still allow.
        settings["k"] = [k for k in evaluation.k if k <= settings.get("samples", evaluation.samples)]
    return TrainConfig.from_dict({"evaluation": dataclasses.asdict(evaluation) | settings}).evaluation


def _policy(run: RunDirectory, config: TrainConfig, snapshot: int | None) -> tuple[Policy, int]:
    """The weights that were asked for, and the steps behind them."""
    seed = stream(config, "weights").getrandbits(63)
    if snapshot is None:
        where = run.path / "checkpoint"
        if not where.is_dir():
            reason = f"the run has not come to its end and wrote no checkpoint. Name a snapshot: {_steps(run)}"
            raise error("file_unreadable", path=where, reason=reason)
        return load_checkpoint(config, where, seed), run.steps()
    where = run.snapshots() / f"step-{snapshot:08}"
    if not where.is_dir():
        raise error("bad_parameter", owner="eval", name="--snapshot", given=snapshot, expected=_steps(run))
    if (where / "shards").is_dir():
        reason = "it is of several ranks, spread over files. Evaluate the run's checkpoint, without --snapshot"
        raise error("file_unreadable", path=where, reason=reason)
    policy = load(config, seed)
    try:
        load_weights(policy, where)
    except (*DAMAGE, OSError, KeyError, RuntimeError) as problem:
        raise error("file_unreadable", path=where, reason=repr(problem)) from problem
    return policy, snapshot


def _steps(run: RunDirectory) -> str:
    steps = [int(path.name.removeprefix("step-")) for path in sorted(run.snapshots().glob("step-*"))]
    return f"one of {', '.join(map(str, steps))}" if steps else "there is none"
