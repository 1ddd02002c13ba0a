"""A step's learning: the rows that the recipe kept go in, the weights move, what was measured comes out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import grpokit as gk
from grpokit.controllers import AdaptiveEntropy, AdaptiveKL, ESSLearningRate, effective_sample_size, kl_coefficient
from grpokit.errors import error

from .agreement import check_agreement, logp_gaps
from .clock import Clock
from .dealt import Measured, micro_batches, observe
from .ranks import groups_of
from .shards import full, whole

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from .collect import Sampled
    from .config import TrainConfig
    from .policy import Padded, Policy


class Learner:
    """The optimizer with what a recipe's loss reads.

    Parameters
    ----------
    policy : Policy
        Changed in place. As it is now, it is the reference policy of a recipe that has one.
    recipe : Recipe
        The loss.
    config : TrainConfig
        Learning rate, updates a step, micro-batches.

    Attributes
    ----------
    updates : int
        Optimizer updates so far: the policy's version.
    """

    def __init__(self, policy: Policy, recipe: gk.Recipe, config: TrainConfig) -> None:
        self.policy, self.recipe, self.config, self.updates = policy, recipe, config, 0
        self.reference = policy.frozen() if recipe.reads("ref_logps") or recipe.rows_read("logp_ref") else None
        self.controllers = controllers_of(recipe, config)
        lr = config.lr_control
        self.lr_control = ESSLearningRate(lr.base, lr.scale) if lr.base else None
        # foreach: one call changes all weights, so that an interrupt finds them as they were before it or after it.
        self.optimizer = torch.optim.AdamW(
            policy.trained(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.0, foreach=True
        )

    def learn(self, sampled: Sampled, clock: Clock | None = None) -> dict[str, float]:
        """The updates of one step, and the mean over them of what each measured.

        Parameters
        ----------
        sampled : Sampled
            The step's rows.
        clock : Clock, optional
            Counts the time of log-probs, backward passes and the optimizer.

        Raises
        ------
        InputError
            A gradient is not finite; the weights are left as they were.
        StateError
            `sampler_differs`.
        """
        config, clock, kept = self.config, clock or Clock(), np.flatnonzero(sampled.processed.keep)
        if not len(kept):
            return {"updates": 0}
        batch = self.policy.pad([sampled.completions[row] for row in kept])
        advantages = _advantages(sampled, kept, batch)
        off_policy = torch.tensor([sampled.completions[row].off_policy for row in kept], device=batch.targets.device)
        versions = torch.tensor([sampled.completions[row].version for row in kept], device=off_policy.device)
        group_id = sampled.group_id[kept]
        dealt = self._deal(group_id) * config.num_iterations
        seen = ref_logps = None
        with clock("logps"):
            if len(dealt) > 1 or off_policy.any() or _looks_at_all(self.recipe):
                seen = self._logps(self.policy, batch, group_id)
            if self.reference is not None and self.recipe.reads("ref_logps"):
                ref_logps, _ = self._logps(self.reference, batch, group_id)
        told = None if seen is None else self._compare(batch, *seen, versions, off_policy)
        # None: the policy that the one update sees is the old one.
        old_logps = None if seen is None else seen[0]
        columns = {"advantages": advantages, "old_logps": old_logps, "ref_logps": ref_logps, "off_policy": off_policy}
        measured = []
        with self.policy.ranks.phase("learning"):
            self.policy.ranks.meet()
            for rows in dealt:
                sizes = groups_of(group_id[rows.numpy()].tolist())
                found = self._pass_back(batch[rows], _at(columns, rows), sizes, clock)
                told = told or self._compare(batch, *found.places(batch.mask), versions, off_policy)
                measured.append(self._move(found, clock))
        means = {name: float(np.mean([each[name] for each in measured])) for name in measured[0]}
        # The age of a row, in updates, when an update sees it.
        started = self.updates - len(dealt)
        ages = torch.cat([started + at - versions[rows][~off_policy[rows]] for at, rows in enumerate(dealt)]).double()
        ages = ages if len(ages) else ages.new_zeros(1)
        assert told is not None
        return {
            **told,
            **means,
            **_extremes(measured),
            **self._steer(told["entropy"], means.get("kl", sampled.kl), len(kept)),
            "mismatch/ess_last": measured[-1]["mismatch/ess_current"],
            "learning_rate": config.learning_rate * means.get("lr_scale", 1.0),
            "staleness/mean": float(ages.mean()),
            "staleness/max": float(ages.max()),
            "updates": len(measured),
        }

    def _compare(
        self, batch: Padded, logps: Tensor, entropies: Tensor, versions: Tensor, off_policy: Tensor
    ) -> dict[str, float]:
        """What the policy's log-probs before the updates say beside the sampler's, and its entropy."""
        # The sampler has no say about demonstrations: corrections weigh them 1.
        shown = off_policy[:, None] & batch.mask
        batch.rollout_logps[shown] = logps[shown]
        sampled = batch.mask & ~shown
        gaps = logp_gaps(logps, batch.rollout_logps, self.config.how())
        gap = gaps[sampled] if sampled.any() else gaps.new_zeros(1)
        # Rows that other weights sampled differ rightly.
        current = sampled & (versions == self.updates)[:, None]
        if current.any():
            check_agreement(gaps[current], self.config.logp_gap_bound, self.updates)
        mismatch = gk.mismatch_stats(logps.cpu(), batch.rollout_logps.cpu(), sampled.cpu()).metrics()
        return {
            **{name: value for name, value in mismatch.items() if np.isfinite(value)},
            **_ratios((logps - batch.rollout_logps)[sampled]),
            "entropy": entropies[batch.mask].mean().item(),
            "sampling/sampling_logp_difference/mean": gap.mean().item(),
            "sampling/sampling_logp_difference/max": gap.max().item(),
        }

    def _steer(self, entropy: float, kl: float, rollouts: int) -> dict[str, float]:
        """Moves the controlled coefficients; the recipe of the next step has them."""
        found = {}
        for name, controller in self.controllers.items():
            # The coefficient that this step had, as its metrics were measured under it.
            found[name] = controller.coefficient
            if isinstance(controller, AdaptiveKL):
                controller.update(kl, rollouts)
            else:
                controller.update(entropy)
            self.recipe = controller.apply(self.recipe)
        return found

    def state(self) -> dict[str, dict[str, float]]:
        """What a checkpoint needs beside the weights: the controllers' states by the name of their metric."""
        states = {name: controller.state_dict() for name, controller in self.controllers.items()}
        return states | ({"lr_scale": self.lr_control.state_dict()} if self.lr_control else {})

    def restore(self, updates: int, states: dict[str, dict[str, float]]) -> None:
        """Goes on from `updates` and what `state` gave."""
        self.updates = updates
        self.recipe, self.controllers = steered(self.recipe, self.config, states)
        if self.lr_control:
            self.lr_control.load_state_dict(states["lr_scale"])

    def _logps(self, policy: Policy, batch: Padded, group_id: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies of all rows, each rank's of its own groups."""
        config, device = self.config, batch.targets.device

        def own(rows: slice) -> tuple[Tensor, Tensor]:
            found = policy.logps(batch[rows], config.temperature, config.microbatch_tokens)
            return found[0].cpu(), found[1].cpu()

        with whole(policy):
            parts = policy.ranks.spread("learning", groups_of(group_id.tolist()), own)
        logps, entropies = (torch.cat(column).to(device) for column in zip(*parts, strict=True))
        return logps, entropies

    def _deal(self, group_id: NDArray[np.int64]) -> list[Tensor]:
        """The rows of each update: whole groups, dealt evenly."""
        groups = np.unique(group_id)
        hands = np.array_split(groups, min(self.config.updates_per_step, len(groups)))
        return [torch.from_numpy(np.flatnonzero(np.isin(group_id, hand))) for hand in hands]

    def _pass_back(self, rows: Padded, columns: dict[str, Tensor | None], sizes: list[int], clock: Clock) -> Measured:
        """The gradient of an update's loss, and what the loss measured; of all ranks."""
        config, ranks = self.config, self.policy.ranks
        own = ranks.shares(sizes)[ranks.rank]
        mine = rows[own]
        batch = gk.TokenBatch(
            targets=mine.targets,
            mask=mine.mask,
            rollout_logps=mine.rollout_logps,
            inputs=mine.inputs,
            temperature=config.temperature,
            step=self.updates,
            rollout_ids=torch.arange(len(rows.targets), device=rows.targets.device)[own],
            **_at(columns, own),
        )
        if ranks.world > 1:
            batch.synchronize(self.recipe)
        parts = batch.split(max_tokens=config.microbatch_tokens)
        if batch.needs_whole(self.recipe):
            with clock("logps"):
                observe(self.policy, mine, parts, self.recipe, config)
        self.optimizer.zero_grad()
        measured = Measured(batch.live_tokens)
        with clock("backward"):
            for part in micro_batches(parts, ranks, sizes, config.microbatch_tokens):
                if part is None:
                    self.policy.no_loss(rows.inputs, rows.targets.shape[1]).sum().backward()  # type: ignore[no-untyped-call]
                elif len(part.live.lengths):
                    measured.add(self.policy.loss(part, self.recipe))
                else:
                    logits = self.policy.no_loss(rows.inputs, rows.targets.shape[1])
                    measured.add(gk.loss.from_logits(logits, part, self.recipe, kernel="eager"))
        return measured.of_all(ranks)

    def _move(self, measured: Measured, clock: Clock) -> dict[str, float]:
        """The optimizer's step, and the update's metrics."""
        config, weights = self.config, torch.cat(measured.log_weights)
        with clock("optimizer"):
            norm = full(torch.nn.utils.clip_grad_norm_(self.policy.trained(), config.max_grad_norm))
            if not norm.isfinite():
                raise error("diverged", what="the gradient's norm")
            scale = self.lr_control.update(weights) if self.lr_control else 1.0
            for group in self.optimizer.param_groups:
                group["lr"] = config.learning_rate * scale
            self.optimizer.step()
            self.updates += 1
        metrics = measured.metrics | {
            "grad_norm": norm.item(),
            "mismatch/ess_current": effective_sample_size(weights),
        }
        return metrics | ({"lr_scale": scale} if self.lr_control else {})


def _looks_at_all(recipe: gk.Recipe) -> bool:
    """Whether some of the loss may need to know of all rows, before the gradient of any, what the old policy said."""
    return any(
        term.objective.scope == "batch"
        or any(stage.scope == "batch" or term.aggregate.over == "kept" for stage in term.weigh)
        for term in recipe.terms
    )


def _at(columns: dict[str, Tensor | None], rows: Any) -> dict[str, Tensor | None]:
    return {name: x if x is None else x[rows] for name, x in columns.items()}


def steered(
    recipe: gk.Recipe, config: TrainConfig, states: dict[str, dict[str, float]]
) -> tuple[gk.Recipe, dict[str, AdaptiveKL | AdaptiveEntropy]]:
    """The recipe with its coefficients as these states of the controllers have them, and the controllers."""
    found = controllers_of(recipe, config)
    for name, controller in found.items():
        controller.load_state_dict(states[name])
        recipe = controller.apply(recipe)
    return recipe, found


def controllers_of(recipe: gk.Recipe, config: TrainConfig) -> dict[str, AdaptiveKL | AdaptiveEntropy]:
    """The controllers that the configuration asks for, by the name of their metric."""
    found: dict[str, AdaptiveKL | AdaptiveEntropy] = {}
    kl, entropy = config.kl_control, config.entropy_control
    if kl.target:
        found["kl_coef"] = AdaptiveKL(kl_coefficient(recipe) or 1.0, kl.target, kl.horizon)
    if entropy.target:
        found["entropy_coef"] = AdaptiveEntropy(entropy.target, entropy.delta, 0.0, entropy.high)
    return found


def _extremes(measured: list[dict[str, float]]) -> dict[str, float]:
    """The least and the largest clipping of an update, where TRL has those of a rank."""
    found = {}
    for name, worst in (("low_min", min), ("high_max", max)):
        mean = f"clip_ratio/{name.split('_')[0]}_mean"
        if mean in measured[0]:
            found[f"clip_ratio/{name}"] = worst(each[mean] for each in measured)
    return found


def _ratios(log_ratios: Tensor) -> dict[str, float]:
    """TRL's numbers of π_old / π_rollout, per token, before any correction."""
    ratios = log_ratios.exp()
    if not len(ratios):
        return {}
    found = {"min": ratios.min(), "mean": ratios.mean(), "max": ratios.max()}
    return {f"sampling/importance_sampling_ratio/{name}": value.item() for name, value in found.items()}


def _advantages(sampled: Sampled, kept: NDArray[np.int64], batch: Padded) -> Tensor:
    """(B,) of rows, or (B, T) where the recipe's estimator gives one a token."""
    per_token = sampled.processed.token_advantages
    if per_token is None:
        values = sampled.processed.advantages[kept]
    else:
        values = np.zeros(batch.targets.shape)
        for i, (row, own) in enumerate(zip(kept.tolist(), batch.mask.cpu().numpy(), strict=True)):
            values[i, own] = per_token[row]
    return torch.from_numpy(values).to(batch.targets.device)
