"""Snapshots: all that a run is between two steps, so that one that was killed goes on to the same bits.

weights.safetensors   what learns, by name
state.pt              the optimizer, the sampler's generator, torch's own
state.json            counters, Python's and NumPy's generators, controllers, and how long the run's files were

A snapshot is there whole or not at all. Lines that a killed run wrote after it are cut off when the run goes on: they
will be written again, as they were.
"""

from __future__ import annotations

import json
import random
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from grpokit.errors import GrpokitError, error

from .evaluate import Passed
from .tasks import Remembers

if TYPE_CHECKING:
    from pathlib import Path

    from .loop import Trainer
    from .policy import Policy

SCHEMA_VERSION = 1
DAMAGE = (SafetensorError, UnpicklingError, EOFError)
COUNTERS = ("steps", "completions", "used", "tokens", "warm_start_seconds")


def save(trainer: Trainer) -> None:
    """Writes the trainer's state as it is after its last step, and removes snapshots beyond those to keep.

    Raises
    ------
    FileError
        `file_unwritable`: the disk is full, say. The former snapshots are still there.
    """
    learner, run = trainer.learner, trainer.run
    numbers = np.random.get_state(legacy=False)  # noqa: NPY002 - rewards may use it
    state = {
        "schema_version": SCHEMA_VERSION,
        **{name: getattr(trainer, name) for name in COUNTERS},
        "seconds": trainer.seconds,
        "updates": learner.updates,
        "controllers": learner.state(),
        "evaluations": [passed.to_dict() for passed in trainer.evaluations],
        "prompts": trainer.rng.getstate(),
        "random": random.getstate(),
        "numpy": json.loads(json.dumps(numbers, default=lambda array: array.tolist())),
        "files": run.sizes(),
        "task": trainer.task.state(trainer.rng) if isinstance(trainer.task, Remembers) else None,
    }
    tensors = {
        "optimizer": learner.optimizer.state_dict(),
        "sampling": trainer.generator.get_state(),
        "torch": torch.get_rng_state(),
    }

    def write(directory: Path) -> None:
        directory.mkdir()
        save_file(_learned(trainer.policy), directory / "weights.safetensors")
        torch.save(tensors, directory / "state.pt")
        (directory / "state.json").write_text(json.dumps(state) + "\n", encoding="utf-8")

    if learner.reference is not None and not run.reference.exists():
        reference = learner.reference
        run.write(run.reference, lambda to: save_file(_all(reference), to))
    run.snapshot(trainer.steps, write, keep_last=trainer.config.snapshots.keep_last)


def load(trainer: Trainer, directory: Path) -> None:
    """Puts a trainer whose policy is built into the state of a snapshot; its learner is made here.

    Raises
    ------
    FileError
        `file_unreadable`: the snapshot is damaged, or of another version.
    StateError
        `resume_differs`: the prompts are others.
    """
    from .learn import Learner

    try:
        state = json.loads((directory / "state.json").read_text(encoding="utf-8"))
        if state["schema_version"] != SCHEMA_VERSION:
            reason = f"its schema_version is {state['schema_version']}, and this is {SCHEMA_VERSION}"
            raise error("file_unreadable", path=directory, reason=reason)
        tensors = torch.load(directory / "state.pt")
        load_weights(trainer.policy, directory)
        learner = trainer.learner = Learner(trainer.policy, trainer.recipe, trainer.config)
        if learner.reference is not None:
            _put(learner.reference, load_file(trainer.run.reference))
        learner.restore(state["updates"], state["controllers"])
        learner.optimizer.load_state_dict(tensors["optimizer"])
        trainer.generator.set_state(tensors["sampling"])
        torch.set_rng_state(tensors["torch"])
        for name in COUNTERS:
            setattr(trainer, name, state[name])
        trainer.earlier = state["seconds"]
        trainer.evaluations = [Passed.from_dict(passed) for passed in state["evaluations"]]
        trainer.rng.setstate(_python(state["prompts"]))
        random.setstate(_python(state["random"]))
        numbers = state["numpy"]
        numbers["state"]["key"] = np.array(numbers["state"]["key"], np.uint32)
        np.random.set_state(numbers)  # noqa: NPY002
        if isinstance(trainer.task, Remembers):
            was, now = state["task"].get("fingerprint"), getattr(trainer.task, "fingerprint", None)
            if was != now:
                text = f"the prompts' fingerprint was {was} and is {now}"
                raise error("resume_differs", path=trainer.run.path, differences=text)
            trainer.task.restore(trainer.rng, state["task"])
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
    _put(policy, load_file(directory / "weights.safetensors"))


def _learned(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: w.detach().contiguous() for name, w in policy.model.named_parameters() if w.requires_grad}


def _all(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: w.detach().contiguous() for name, w in policy.model.named_parameters()}


def _put(policy: Policy, weights: dict[str, torch.Tensor]) -> None:
    own = dict(policy.model.named_parameters())
    if not weights.keys() <= own.keys():
        raise KeyError(next(iter(weights.keys() - own.keys())))
    with torch.no_grad():
        for name, weight in weights.items():
            own[name].copy_(weight)


def _python(state: list[Any]) -> tuple[Any, ...]:
    version, internal, gauss = state
    return version, tuple(internal), gauss
