"""Snapshots: all that a run is between two steps, so that one that was killed goes on to the same bits.

weights.safetensors   what learns, by name
state.pt              the optimizer
shards/               in the place of these two where several ranks learned: what learns and the optimizer, as
                      torch.distributed.checkpoint has it, which any number of ranks read
source/               weights of earlier steps, which what is under way was ordered with
state.json            counters, each rank's generators, groups that wait, controllers, and how long the run's files were

A snapshot is there whole or not at all. Lines that a killed run wrote after it are cut off when the run goes on: they
will be written again, as they were.
"""

from __future__ import annotations

import json
import random
import shutil
from pickle import UnpicklingError
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from grpokit.errors import GrpokitError, error

from .collect import generator_state
from .evaluate import Passed
from .shards import load_shards, save_shards, spread_state
from .tasks import Remembers
from .weights import learned, put

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from .config import TrainConfig
    from .loop import Trainer
    from .policy import Policy
    from .run import RunDirectory

SCHEMA_VERSION = 3
DAMAGE = (SafetensorError, UnpicklingError, EOFError)
COUNTERS = ("steps", "completions", "used", "tokens", "warm_start_seconds")


def save(trainer: Trainer) -> None:
    """Writes the trainer's state as it is after its last step, and removes snapshots beyond those to keep.

    Raises
    ------
    FileError
        `file_unwritable`: the disk is full, say. The former snapshots are still there.
    """
    ranks = trainer.ranks
    with ranks.phase("snapshot"):
        generators = ranks.gather(_generators())
        ranks.together(lambda: _save(trainer, generators))


def _save(trainer: Trainer, generators: list[dict[str, Any]]) -> None:
    learner, run, ranks = trainer.learner, trainer.run, trainer.ranks
    state = {
        "schema_version": SCHEMA_VERSION,
        **{name: getattr(trainer, name) for name in COUNTERS},
        "seconds": trainer.seconds,
        "updates": learner.updates,
        "controllers": learner.state(),
        "evaluations": [passed.to_dict() for passed in trainer.evaluations],
        "source": trainer.source.state(),
        "generators": generators,
        "files": run.sizes(),
    }

    def write(directory: Path) -> None:
        directory.mkdir()
        if ranks.world == 1:
            save_file(learned(trainer.policy), directory / "weights.safetensors")
            torch.save(learner.optimizer.state_dict(), directory / "state.pt")
        else:
            save_shards(trainer.policy, learner.optimizer, ranks.gather(directory)[0] / "shards")
        (directory / "source").mkdir()
        for path in trainer.source.files():
            shutil.copyfile(path, directory / "source" / path.name)
        (directory / "state.json").write_text(json.dumps(state) + "\n", encoding="utf-8")

    if ranks.first:
        run.snapshot(trainer.steps, write, keep_last=trainer.config.snapshots.keep_last)
    else:
        # Where the first one writes, until all of it is there.
        save_shards(trainer.policy, learner.optimizer, ranks.gather(run.path)[0] / "shards")


def take_up(run: RunDirectory, config: TrainConfig) -> Path | None:
    """The snapshot to go on from, or None where there is none yet.

    Raises
    ------
    FileError
        `not_a_run`.
    StateError
        `resume_differs`: the run was another one. `no_steps_left`: it is at its end.
    """
    found = run.last_snapshot()
    former = run.configuration()
    differences = {k: v for k, v in former.differences(config).items() if not k.startswith("logging.")}
    steps = differences.pop("steps", (former.steps, former.steps))
    if differences or steps[1] < steps[0]:
        told = differences or {"steps": steps}
        text = "; ".join(f"{name} was {was!r} and is {now!r}" for name, (was, now) in told.items())
        raise error("resume_differs", path=run.path, differences=text)
    if run.finished_steps() >= config.steps:
        raise error("no_steps_left", path=run.path, steps=config.steps)
    return found


def load(trainer: Trainer, directory: Path) -> None:
    """Puts a trainer whose policy is built into the state of a snapshot; its learner is made here.

    Raises
    ------
    FileError
        `file_unreadable`: the snapshot is damaged, or of another version.
    StateError
        `resume_differs`: the prompts are others.
    """
    try:
        state = json.loads((directory / "state.json").read_text(encoding="utf-8"))
        if state["schema_version"] != SCHEMA_VERSION:
            reason = f"its schema_version is {state['schema_version']}, and this is {SCHEMA_VERSION}"
            raise error("file_unreadable", path=directory, reason=reason)
        sharded = (directory / "shards").is_dir()
        optimizer = {} if sharded else torch.load(directory / "state.pt")
        if not sharded:
            load_weights(trainer.policy, directory)
        trainer.make_learner()
        learner = trainer.learner
        if sharded:
            load_shards(trainer.policy, learner.optimizer, directory / "shards", begun=state["updates"] > 0)
        else:
            learner.optimizer.load_state_dict(optimizer)
            spread_state(learner.optimizer)
        if learner.reference is not None:
            put(learner.reference, load_file(trainer.run.reference))
        learner.restore(state["updates"], state["controllers"])
        for name in COUNTERS:
            setattr(trainer, name, state[name])
        trainer.earlier = state["seconds"]
        trainer.evaluations = [Passed.from_dict(passed) for passed in state["evaluations"]]
        _set_generators(state["generators"][trainer.ranks.rank % len(state["generators"])])
        if isinstance(trainer.task, Remembers):
            was, now = (
                state["source"]["collector"]["task"].get("fingerprint"),
                getattr(trainer.task, "fingerprint", None),
            )
            if was != now:
                text = f"the prompts' fingerprint was {was} and is {now}"
                raise error("resume_differs", path=trainer.run.path, differences=text)
        trainer.source.restore(state["source"], directory / "source")
        trainer.controllers = learner.state()
        trainer.run.cut(state["files"], state["steps"])
    except GrpokitError:
        raise
    except (*DAMAGE, OSError, KeyError, ValueError, TypeError, RuntimeError) as problem:
        raise error("file_unreadable", path=directory, reason=repr(problem)) from problem


def load_weights(policy: Policy, directory: Path) -> None:
    """Gives a policy that is built the weights of a snapshot, and takes nothing else from it.

    Raises
    ------
    KeyError, RuntimeError, OSError, SafetensorError
        The file is damaged, or that of another model.
    """
    put(policy, load_file(directory / "weights.safetensors"))


def _generators() -> dict[str, Any]:
    """The states of the generators that rewards may use, ready for JSON."""
    numbers = np.random.get_state(legacy=False)  # noqa: NPY002
    return {
        "random": random.getstate(),
        "numpy": json.loads(json.dumps(numbers, default=lambda array: array.tolist())),
        "torch": torch.get_rng_state().tolist(),
    }


def _set_generators(state: dict[str, Any]) -> None:
    random.setstate(generator_state(state["random"]))
    numbers = state["numpy"]
    numbers["state"]["key"] = np.array(numbers["state"]["key"], np.uint32)
    np.random.set_state(numbers)  # noqa: NPY002
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
