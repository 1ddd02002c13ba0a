"""The training loop, top to bottom: warm start, evaluate, then sample, score, process, learn, and evaluate again.

Rollouts go through `grpokit.process`, the loss through `grpokit.loss`; whatever tells one algorithm from another is
in the recipe and nowhere here.
"""

from __future__ import annotations

from contextlib import closing
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from . import snapshot
from .ahead import Ahead, sendable
from .alerts import Alerts
from .built_in import make_task
from .clock import Clock
from .collect import Collector
from .config import TrainConfig, stream
from .console import Console, line, samples
from .engine import Engine, InProcess
from .evaluate import Passed, evaluate
from .learn import Learner
from .models import load
from .ranked import check, console_of, directory_of
from .ranks import join
from .rewards import Given, Rewards, functions_of
from .run import Summary, uninterrupted
from .server import engine_of
from .shards import shard, whole
from .signals import Stopping
from .sinks import Sinks
from .source import Now, Source
from .tasks import Task, draw
from .warmstart import warm_start
from .weights import every

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from random import Random


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
        `resume_differs`: the run was another one. `no_steps_left`: it is at its end. Where `torchrun` has started
        several processes, and what one of them raises is raised by all: `ranks_timed_out`, `rank_lost`, `rank_failed`.
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
        self.ranks = join(config.ranks.timeout)
        check(self.config, self.recipe, self.ranks)
        self.console = console_of(self.ranks, console)
        level = self.config.async_level
        self.sent = sendable(task, functions, level) if level else None
        self.sinks = Sinks(self.config.logging.sinks if self.ranks.first else (), self.console.note)
        self.rewards = Rewards(self.task, functions, self.config.rewards, self.console.note)
        self.rewards.ranks = self.ranks
        self.run = directory_of(self.ranks, self.config, directory)
        self.alerts = Alerts(self.config, self.run, self.console, self.sinks, first=self.ranks.first)
        self.resume, self.earlier = resume, 0.0
        self.taken_up = self.ranks.agree(
            lambda: snapshot.take_up(self.run, self.config) if resume else self.run.check(overwrite=overwrite)
        )
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
        with Stopping(self.console.note) as stopping, self.rewards, closing(self._start()), self.sinks:
            if self.resume:
                self._go_on()
            self.sinks.open(self.run.path, self.config, -1 if self.taken_up is None else self.steps)
            status = "failed"
            try:
                if self.taken_up is None:
                    self._warm_start()
                    self._tell({"step": 0} | self._evaluate(0))
                    self._snapshot(0)
                stopping.gentle = True
                for step in range(self.steps + 1, self.config.steps + 1):
                    self._step(step)
                    asked = any(self.ranks.gather(bool(stopping)))
                    self._snapshot(step, last=asked)
                    if asked and step < self.config.steps:
                        stopping.stop()
                status = "finished"
            except KeyboardInterrupt:
                status = "interrupted"
                raise
            finally:
                with uninterrupted():
                    self.summary = self._close(status)
                torch.set_num_threads(threads)
        return self.summary

    def _start(self) -> Source:
        config, self.started = self.config, perf_counter()
        self.policy = shard(load(config, self._seed("weights")), self.ranks)
        self.held_out = draw(self.task, self._random("held out"), config.evaluation.prompts, held_out=True)
        # Evaluations ask it too.
        self.engine = self.make_engine()
        self.steps = self.completions = self.used = self.tokens = 0
        self.evaluations: list[Passed] = []
        self.warm_start_seconds = 0.0
        self.controllers: dict[str, dict[str, float]] = {}
        self.clock = Clock()
        if not self.resume:
            self.run.create(config, overwrite=self.overwrite)
        self.source = self.make_source()
        return self.source

    def _go_on(self) -> None:
        """From the snapshot, or from the beginning where there is none. What cannot be taken up stays as it is."""
        if self.taken_up is None:
            self.run.cut({})
            self.console.note(f"no snapshot in {self.run.path}: begins anew")
        else:
            snapshot.load(self, self.taken_up)
            self.console.note(f"goes on after step {self.steps}, in {self.run.path}")
        self.run.configure(self.config)  # there may be more steps

    def _snapshot(self, step: int, *, last: bool = False) -> None:
        every = self.config.snapshots.every
        if every and (last or step % every == 0 or step == self.config.steps):
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
        with self.ranks.phase("warm start"):
            warm_start(self.policy, self.task, config, self._random("demonstrations"), each, longest=longest)
        self.make_learner()
        self.warm_start_seconds = perf_counter() - started

    def make_engine(self) -> Engine:
        """Who samples, here."""
        if self.config.async_level:
            return InProcess(self.policy)  # a server is the rollout process's alone
        return engine_of(self.config.engine, self.policy, self.run.path / "weights")

    def make_source(self) -> Source:
        """Where a step's rollouts come from."""
        config = self.config
        if config.async_level:
            return Ahead(config, self.sent, self.rewards.functions, self.run, clock=self.clock, note=self.console.note)
        return Now(Collector(self.policy, self.engine, self.task, self.rewards, config), self.clock)

    def make_learner(self) -> None:
        """The learner of the policy as it is, which is the reference policy where there is one."""
        self.learner = Learner(self.policy, self.recipe, self.config)
        reference = self.learner.reference
        with whole(reference):
            if reference is not None and not self.run.reference.exists():
                self.run.write(self.run.reference, lambda to: save_file(every(reference), to))

    def _evaluate(self, step: int) -> dict[str, float]:
        with self.ranks.phase("evaluation"), whole(self.policy), self.clock("evaluation"):
            self.engine.load(self.policy, self.learner.updates)
            asked, config = self.held_out, self.config
            passed = evaluate(
                self.engine, self.policy, self.rewards, task=self.task, items=asked, config=config, step=step
            ).passed
        self.evaluations.append(passed)
        self.console.note(f"step {step:>4}  held-out pass@1 {passed.estimates['pass@1']}")
        return passed.metrics() | {"time/evaluation": self.clock.seconds["evaluation"]}

    def _step(self, step: int) -> None:
        config = self.config
        self.clock.begin()
        sampled = self.source.next(self.learner, self.steps)
        metrics = {"step": step} | sampled.metrics() | self.learner.learn(sampled, self.clock)
        self.controllers = self.learner.state()
        self.run.rollouts(sampled.records(step, config.logged_groups))
        if config.logging.completions and step % config.logging.completions == 0:
            self.run.completions(step, sampled.rows(step))
        self.steps, self.completions = step, self.completions + len(sampled.completions)
        self.used += int(sampled.processed.keep.sum())
        tokens = sum(len(c.prompt_ids) + c.written for c in sampled.completions)
        self.tokens += tokens
        metrics["num_tokens"] = self.tokens
        metrics |= self.clock.metrics(tokens)
        if step == config.steps or (config.evaluation.every and step % config.evaluation.every == 0):
            metrics |= self._evaluate(step)
            self.console.samples(samples(sampled.records(step), config.logging.samples))
        self._tell(metrics)
        self.console.progress(self.recipe.name, step, config.steps, line(metrics))

    def _tell(self, metrics: dict[str, float]) -> None:
        self.run.metrics(metrics)
        self.sinks.metrics(metrics)
        self.console.table(metrics)
        self.alerts.see(metrics)

    def _close(self, status: str) -> Summary:
        self.console.close()
        if status == "finished" or self.ranks.world == 1:
            # What a rank of several is in when the run stops, the others may not be in.
            with self.ranks.phase("checkpoint"), whole(self.policy):
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
            ledger=self.source.counts(),
            warm_start_seconds=self.warm_start_seconds,
            total_seconds=self.seconds,
        )
        self.run.summary(summary)
        return summary

    def _random(self, purpose: str) -> Random:
        return stream(self.config, purpose)

    def _seed(self, purpose: str) -> int:
        return self._random(purpose).getrandbits(63)
