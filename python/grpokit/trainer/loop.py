"""The training loop, top to bottom: warm start, evaluate, then sample, score, process, learn, and evaluate again.

Rollouts go through `grpokit.process`, the loss through `grpokit.loss`; whatever tells one algorithm from another is
in the recipe and nowhere here.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from random import Random
from time import perf_counter
from typing import TYPE_CHECKING

import torch

from grpokit.errors import error

from . import snapshot
from .built_in import make_task
from .collect import Collector
from .config import TrainConfig
from .console import Console, console_for, line
from .evaluate import Passed, evaluate
from .learn import Learner
from .models import load
from .rewards import Given, Rewards, functions_of
from .run import RunDirectory, Summary, default_name, uninterrupted
from .server import engine_of
from .tasks import Task, draw, progress
from .warmstart import warm_start

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from .engine import Engine


class Trainer:
    """One run.

    Parameters
    ----------
    config : TrainConfig, optional
        The numbers; the tiny offline run when not given.
    task : Task, optional
        `prompts(rng, n)` and `score(completion, item)`; the configuration's when not given. Its score is pass@1.
    reward : callable, str, or list of these or of pairs with a weight, optional
        What is trained on instead of the task's score or the configuration's functions, called as TRL does:
        ``f(prompts, completions, **columns)`` returns a number or None (could not be scored: the row is dropped) for
        each completion. It is called in processes of its own with a time limit, see `RewardConfig`; what another
        process cannot import (a lambda, a closure, what a script or notebook defines) in this one without a limit.
    directory : path, optional
        Where the run's files go; ``runs/<date-time>-<recipe>-seed<seed>`` when not given.
    overwrite : bool
        Replace the run that is there.
    console : Console, optional
        Where it talks to; stderr when not given.
    resume : bool
        Goes on with the run that is in `directory`, from its last snapshot; `config` must be that run's, but for more
        `steps`. Task and reward are to be the same ones.

    Attributes
    ----------
    summary : Summary or None
        How the run ended, an interrupted one too.

    Raises
    ------
    InputError
        The recipe is not known or does not take its parameters.
    FileError
        The directory is taken, or with `resume` holds no run.
    StateError
        `resume_differs`: the run was another one. `no_steps_left`: it is at its end.
    """

    def __init__(
        self,
        config: TrainConfig | None = None,
        *,
        task: Task | None = None,
        reward: Given | Sequence[Given] | None = None,
        directory: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        console: Console | None = None,
        resume: bool = False,
    ) -> None:
        config = (TrainConfig() if config is None else config).resolve()
        functions = functions_of(config.rewards, reward)
        self.task = make_task(config.task, rewarded=bool(functions)) if task is None else task
        self.config = config.with_given(task, None if reward is None else functions)
        self.recipe, self.overwrite = self.config.make_recipe(), overwrite
        self.console = console_for(sys.stderr) if console is None else console
        self.rewards = Rewards(self.task, functions, self.config.rewards, self.console.note)
        self.run = RunDirectory(directory or Path("runs") / default_name(self.config))
        self.taken_up = self._take_up() if resume else None
        self.resume, self.earlier = resume, 0.0
        if not resume:
            self.run.check(overwrite=overwrite)
        self.summary: Summary | None = None

    def train(self) -> Summary:
        """Runs to the end and says how it went.

        Ctrl-C and errors pass through, after the run directory has been completed with the weights of that moment.

        Returns
        -------
        Summary

        Raises
        ------
        InputError
            A reward function cannot be had, failed on too many completions, or returned what is no reward; the policy
            diverged.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(self.config.threads)
        with self.rewards:
            self._start()
            if self.resume:
                self._go_on()
            status = "failed"
            try:
                if self.taken_up is None:
                    self._warm_start()
                    self.run.metrics({"step": 0} | self._evaluate(0))
                    self._snapshot(0)
                for step in range(self.steps + 1, self.config.steps + 1):
                    self._step(step)
                    self._snapshot(step)
                status = "finished"
            except KeyboardInterrupt:
                status = "interrupted"
                raise
            finally:
                with uninterrupted():
                    self.summary = self._close(status)
                torch.set_num_threads(threads)
        return self.summary

    def _start(self) -> None:
        config, self.started = self.config, perf_counter()
        self.policy = load(config, self._seed("weights"))
        self.held_out = draw(self.task, self._random("held out"), config.evaluation.prompts, held_out=True)
        self.engine = self.make_engine()
        self.collector = Collector(self.policy, self.engine, self.task, self.rewards, config)
        self.steps = self.completions = self.used = self.tokens = 0
        self.evaluations: list[Passed] = []
        self.warm_start_seconds = 0.0
        self.controllers: dict[str, dict[str, float]] = {}
        if not self.resume:
            self.run.create(config, overwrite=self.overwrite)

    def _take_up(self) -> Path | None:
        """The snapshot to go on from, if the run is this one."""
        found = self.run.last_snapshot()
        former = TrainConfig.from_file(self.run.path / "config.toml")
        differences = former.differences(self.config)
        steps = differences.pop("steps", (former.steps, former.steps))
        if differences or steps[1] < steps[0]:
            told = differences or {"steps": steps}
            text = "; ".join(f"{name} was {was!r} and is {now!r}" for name, (was, now) in told.items())
            raise error("resume_differs", path=self.run.path, differences=text)
        if self.run.finished_steps() >= self.config.steps:
            raise error("no_steps_left", path=self.run.path, steps=self.config.steps)
        return found

    def _go_on(self) -> None:
        """From the snapshot, or from the beginning where there is none. What cannot be taken up stays as it is."""
        if self.taken_up is None:
            self.run.cut({})
            self.console.note(f"no snapshot in {self.run.path}: begins anew")
        else:
            snapshot.load(self, self.taken_up)
            self.console.note(f"goes on after step {self.steps}, in {self.run.path}")
        self.run.configure(self.config)  # there may be more steps

    def _snapshot(self, step: int) -> None:
        every = self.config.snapshots.every
        if every and (step % every == 0 or step == self.config.steps):
            snapshot.save(self)

    @property
    def seconds(self) -> float:
        """Wall time of the run so far, that of earlier processes too."""
        return self.earlier + perf_counter() - self.started

    def _warm_start(self) -> None:
        config, started = self.config.warm_start, perf_counter()
        weights = sum(p.numel() for p in self.policy.model.parameters())
        self.console.note(f"{self.recipe.name}, seed {self.config.seed}, {weights:,} weights, in {self.run.path}")

        def each(step: int, loss: float) -> None:
            self.console.progress("warm start", step, config.steps, f"loss {loss:.3f}")

        longest = self.config.max_completion_length
        warm_start(self.policy, self.task, config, self._random("demonstrations"), each, longest=longest)
        self.make_learner()
        self.warm_start_seconds = perf_counter() - started

    def make_engine(self) -> Engine:
        """Who samples."""
        return engine_of(self.config.engine, self.policy, self.run.path / "weights")

    def make_learner(self) -> None:
        """The learner of the policy as it is, which is the reference policy where there is one."""
        self.learner = Learner(self.policy, self.recipe, self.config)
        self.collector.reference = self.learner.reference

    def _evaluate(self, step: int) -> dict[str, float]:
        self.engine.load(self.policy, self.learner.updates)
        passed = evaluate(
            self.engine,
            self.policy,
            self.rewards,
            self.held_out,
            self.config.evaluation.samples,
            sampling=dataclasses.replace(self.config.how(1.0), top_p=1.0, top_k=0),
            seed=self._seed("evaluation"),
            step=step,
        )
        self.evaluations.append(passed)
        self.console.note(f"step {step:>4}  held-out pass@1 {passed.pass_1:.3f} ± {passed.stderr:.3f}")
        return passed.metrics()

    def _step(self, step: int) -> None:
        config, started = self.config, perf_counter()
        self.engine.load(self.policy, self.learner.updates)
        sampled = self.collector.collect(self.learner.recipe)
        metrics = {"step": step} | sampled.metrics() | self.learner.learn(sampled)
        self.controllers = self.learner.state()
        self.run.rollouts(sampled.records(step, config.logged_groups))
        self.steps, self.completions = step, self.completions + len(sampled.completions)
        self.used += int(sampled.processed.keep.sum())
        self.tokens += sum(len(c.prompt_ids) + len(c.token_ids) for c in sampled.completions)
        metrics["num_tokens"] = self.tokens
        metrics |= progress(self.task, self.collector.rng)
        metrics["step_time"] = perf_counter() - started
        if step == config.steps or (config.evaluation.every and step % config.evaluation.every == 0):
            metrics |= self._evaluate(step)
        self.run.metrics(metrics)
        self.console.progress(self.recipe.name, step, config.steps, line(metrics))

    def _close(self, status: str) -> Summary:
        self.console.close()
        self.engine.close()
        self.run.checkpoint(self.policy, self.controllers)
        summary = Summary(
            status=status,
            directory=str(self.run.path),
            recipe=self.recipe.name,
            seed=self.config.seed,
            steps=self.steps,
            before=self.evaluations[0] if self.evaluations else None,
            after=self.evaluations[-1] if len(self.evaluations) > 1 else None,
            completions=self.completions,
            used=self.used,
            warm_start_seconds=self.warm_start_seconds,
            total_seconds=self.seconds,
        )
        self.run.summary(summary)
        return summary

    def _random(self, purpose: str) -> Random:
        """A stream of its own for each purpose, so that a change to one leaves the others as they were."""
        return Random(f"{self.config.seed} {purpose}")

    def _seed(self, purpose: str) -> int:
        return self._random(purpose).getrandbits(63)
