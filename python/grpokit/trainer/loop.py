"""The training loop, top to bottom: warm start, evaluate, then sample, score, process, learn, and evaluate again.

Rollouts go through `grpokit.process`, the loss through `grpokit.loss`; whatever tells one algorithm from another is
in the recipe and nowhere here.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from random import Random
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import grpokit as gk

from ..errors import error
from .collect import Sampled, collect
from .config import TrainConfig
from .console import Console, console_for, line
from .evaluate import Passed, evaluate
from .policy import Padded, Policy
from .rewards import Reward
from .run import RunDirectory, Summary, default_name, uninterrupted
from .tasks import Sorting, Task, draw
from .warmstart import warm_start


class Trainer:
    """One run.

    Parameters
    ----------
    config : TrainConfig, optional
        The numbers; the tiny offline run when not given.
    task : Task, optional
        `prompts(rng, n)` and `score(completion, item)`; `Sorting` when not given. Its score is pass@1.
    reward : callable, optional
        What is trained on instead of the task's score, called as TRL does: ``f(prompts, completions, **columns)``
        returns a number or None (could not be scored: the row is dropped) for each completion.
    directory : path, optional
        Where the run's files go; ``runs/<date-time>-<recipe>-seed<seed>`` when not given.
    overwrite : bool
        Replace the run that is there.
    console : Console, optional
        Where it talks to; stderr when not given.

    Attributes
    ----------
    summary : Summary or None
        How the run ended, an interrupted one too.

    Raises
    ------
    InputError
        The recipe is not known or does not take its parameters.
    FileError
        The directory is taken.
    """

    def __init__(
        self,
        config: TrainConfig | None = None,
        *,
        task: Task | None = None,
        reward: Reward | None = None,
        directory: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        console: Console | None = None,
    ) -> None:
        self.config = (config or TrainConfig()).resolve()
        self.recipe = self.config.make_recipe()
        self.task, self.reward, self.overwrite, self.console = task or Sorting(), reward, overwrite, console
        self.run = RunDirectory(directory or Path("runs") / default_name(self.config))
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
            The reward function raised, or returned what is no reward; the policy diverged.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(self.config.threads)
        self._start()
        status = "failed"
        try:
            self._warm_start()
            self.run.metrics({"step": 0} | self._evaluate(0))
            for step in range(1, self.config.steps + 1):
                self._step(step)
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
        self.policy = Policy.tiny(config.tiny, self._seed("weights"))
        self.held_out = draw(self.task, self._random("held out"), config.evaluation.prompts, held_out=True)
        self.rng = self._random("prompts")
        self.generator = torch.Generator(self.policy.model.device).manual_seed(self._seed("sampling"))
        # foreach: one call changes all weights, so that an interrupt finds them as they were before it or after it.
        self.optimizer = torch.optim.AdamW(
            self.policy.model.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.0, foreach=True
        )
        self.steps = self.updates = self.completions = self.used = self.tokens = 0
        self.evaluations: list[Passed] = []
        self.warm_start_seconds = 0.0
        self.run.create(config, overwrite=self.overwrite)
        self.console = self.console or console_for(sys.stderr)
        weights = sum(p.numel() for p in self.policy.model.parameters())
        self.console.note(f"{self.recipe.name}, seed {config.seed}, {weights:,} weights, in {self.run.path}")

    def _warm_start(self) -> None:
        config, started = self.config.warm_start, perf_counter()

        def each(step: int, loss: float) -> None:
            self.console.progress("warm start", step, config.steps, f"loss {loss:.3f}")

        warm_start(self.policy, self.task, config, self._random("demonstrations"), each)
        self.reference = self.policy.frozen() if self.recipe.reads("ref_logps") else None
        self.warm_start_seconds = perf_counter() - started

    def _evaluate(self, step: int) -> dict[str, float]:
        passed = evaluate(
            self.policy,
            self.task,
            self.held_out,
            self.config.evaluation.samples,
            max_completion_length=self.config.max_completion_length,
            seed=self._seed("evaluation"),
            step=step,
        )
        self.evaluations.append(passed)
        self.console.note(f"step {step:>4}  held-out pass@1 {passed.pass_1:.3f} ± {passed.stderr:.3f}")
        return passed.metrics()

    def _step(self, step: int) -> None:
        config, started = self.config, perf_counter()
        sampled = collect(self.policy, self.task, self.reward, self.recipe, config, self.rng, self.generator)
        self.run.rollouts(sampled.records(step, self.updates, config.logged_groups))
        metrics = {"step": step} | sampled.metrics() | self._learn(sampled)
        self.steps, self.completions = step, self.completions + len(sampled.completions)
        self.used += int(sampled.processed.keep.sum())
        self.tokens += sum(len(c.prompt_ids) + len(c.token_ids) for c in sampled.completions)
        metrics["num_tokens"] = self.tokens
        metrics["step_time"] = perf_counter() - started
        if step == config.steps or (config.evaluation.every and step % config.evaluation.every == 0):
            metrics |= self._evaluate(step)
        self.run.metrics(metrics)
        self.console.progress(self.recipe.name, step, config.steps, line(metrics))

    def _learn(self, sampled: Sampled) -> dict[str, float]:
        """The step's updates on the rows that the recipe kept, and what they measured."""
        config, kept = self.config, np.flatnonzero(sampled.processed.keep)
        if not len(kept):
            return {"updates": 0}
        batch = self.policy.pad([sampled.completions[row] for row in kept])
        advantages = torch.from_numpy(sampled.processed.advantages[kept]).to(batch.targets.device)
        old_logps, entropies = self.policy.logps(batch, config.temperature, self._rows(batch))
        gap = (old_logps - batch.rollout_logps).abs()[batch.mask]
        measured: list[dict[str, float]] = []
        for rows in self._deal(sampled.group_id[kept]):
            measured.append(self._update(batch[rows], advantages[rows], old_logps[rows]))
        self.updates += len(measured)
        return {
            **{name: float(np.mean([m[name] for m in measured])) for name in measured[0]},
            "entropy": entropies[batch.mask].mean().item(),
            "sampling/sampling_logp_difference/mean": gap.mean().item(),
            "sampling/sampling_logp_difference/max": gap.max().item(),
            "learning_rate": config.learning_rate,
            "updates": len(measured),
        }

    def _update(self, rows: Padded, advantages: Tensor, old_logps: Tensor) -> dict[str, float]:
        """One optimizer step."""
        config, width = self.config, rows.targets.shape[1]
        reference = self.reference and self.reference.logps(rows, config.temperature, self._rows(rows))[0]
        batch = gk.TokenBatch(
            targets=rows.targets,
            mask=rows.mask,
            advantages=advantages,
            old_logps=old_logps,
            rollout_logps=rows.rollout_logps,
            ref_logps=reference,
            inputs=rows.inputs,
            temperature=config.temperature,
        )
        parts = batch.split(max_tokens=config.microbatch_tokens)
        if batch.needs_whole(self.recipe):
            for part in parts:
                with torch.no_grad():
                    gk.loss.observe(self.policy.logits(part.inputs, width), part, recipe=self.recipe)
        self.optimizer.zero_grad()
        metrics: dict[str, float] = {}
        for part in parts:
            out = gk.loss.from_logits(self.policy.logits(part.inputs, width), part, recipe=self.recipe)
            out.loss.backward()
            for name, value in ({"loss": out.loss} | out.metrics).items():
                metrics[name] = metrics.get(name, 0.0) + value.item()
        norm = torch.nn.utils.clip_grad_norm_(self.policy.model.parameters(), config.max_grad_norm)
        if not norm.isfinite():
            raise error("diverged", what="the gradient's norm")
        self.optimizer.step()
        return metrics | {"grad_norm": norm.item()}

    def _deal(self, group_id: NDArray[np.int64]) -> list[Tensor]:
        """The rows of each update: whole groups, dealt evenly."""
        groups = np.unique(group_id)
        hands = np.array_split(groups, min(self.config.updates_per_step, len(groups)))
        return [torch.from_numpy(np.flatnonzero(np.isin(group_id, hand))) for hand in hands]

    def _rows(self, batch: Padded) -> int:
        return max(1, self.config.microbatch_tokens // batch.targets.shape[1])

    def _close(self, status: str) -> Summary:
        self.console.close()
        self.run.checkpoint(self.policy)
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
            total_seconds=perf_counter() - self.started,
        )
        self.run.summary(summary)
        return summary

    def _random(self, purpose: str) -> Random:
        """A stream of its own for each purpose, so that a change to one leaves the others as they were."""
        return Random(f"{self.config.seed} {purpose}")

    def _seed(self, purpose: str) -> int:
        return self._random(purpose).getrandbits(63)
