"""Faults planted in our own code, and the mistake that each of them is."""

import dataclasses
import inspect
import re
import sys
import types
from pathlib import Path

import grpokit as gk
from grpokit.testing import ours

from . import textbook

PACKAGE = Path(gk.__file__).parent


def module_with(file, old, new):
    """A module of the package with a fault in it, beside the sound one."""
    source = (PACKAGE / file).read_text()
    assert source.count(old) == 1, (file, old, source.count(old))
    source = re.sub(r"^@register\(.*\)\n", "", source.replace(old, new), flags=re.MULTILINE)
    module = types.ModuleType(f"faulty_{abs(hash((file, old, new)))}")
    module.__package__ = ".".join(["grpokit", *Path(file).parts[:-1]])
    module.__file__ = file
    sys.modules[module.__name__] = module
    exec(compile(source, file, "exec"), module.__dict__)
    return module


def objective(file, recipe, old, new, **settings):
    """A recipe of ours whose policy term has a fault; what it is held against is the sound one."""
    made = gk.recipe(recipe, **settings)
    faulty = getattr(module_with(f"objective/{file}.py", old, new), type(made.objective).__name__)
    fields = {f.name: getattr(made.objective, f.name) for f in dataclasses.fields(made.objective)}
    return ours.loss_of(made.replace(objective=faulty(**fields))), "loss", recipe, settings


def kl_term(old, new):
    made = gk.recipe("grpo")
    faulty = module_with("objective/kl.py", old, new).KL("k3")
    return (
        ours.loss_of(made.replace(extra=(gk.Term(faulty, 0.04, (), gk.SequenceMean(over="rows")),))),
        "loss",
        "grpo",
        {},
    )


def kl(kind, old, new):
    return ours.kl_of(module_with("objective/kl.py", old, new).KL(kind)), "kl", kind, {}


def aggregate(name, old, new):
    stage = getattr(module_with("aggregate.py", old, new), name)
    held = f"{name}(7.0)" if name == "Constant" else f"{name}()"
    return ours.aggregate_of(stage(7.0) if name == "Constant" else stage()), "aggregate", held, {}


def correction(recipe, old, new):
    made = gk.recipe(recipe)
    faulty = getattr(module_with("mismatch.py", old, new), type(made.correct[0]).__name__)
    fields = {f.name: getattr(made.correct[0], f.name) for f in dataclasses.fields(made.correct[0])}
    return ours.loss_of(made.replace(correct=(faulty(**fields),))), "loss", recipe, {}


def estimator(name, stage, old, new):
    """A formula of the reference, over all groups."""
    module = module_with("reference/advantage.py", old, new)
    fields = {f.name: getattr(stage, f.name) for f in dataclasses.fields(stage)}

    def advantage(rewards, group_ids):
        R, ids = rewards.tolist(), group_ids.tolist()
        live = [True] * len(R)
        return module.by_group(ids, R, live, live, lambda group: getattr(module, name)(group, **fields))

    return advantage, "advantage", repr(stage), {}


def selection(stage, old, new):
    module = module_with("reference/selection.py", old, new)

    def keeps(rewards, group_ids):
        chosen = module.Selection(group_ids.tolist(), rewards.tolist())
        chosen.has_signal() if isinstance(stage, gk.HasSignal) else chosen.pass_rate(stage.low, stage.high)
        return chosen.keep()

    return keeps, "filter", repr(stage), {}


def book(function, old, new):
    source = inspect.getsource(function)
    assert source.count(old) == 1, (function, old, source.count(old))
    space = dict(vars(textbook))
    exec(source.replace(old, new), space)
    return space[function.__name__], *textbook.HELD_AGAINST[function]


S = gk.GroupNorm()
MUTANTS = [
    # losses: ours
    ("clip_bounds", objective, "clip", "dapo", "log_bounds(self.low, self.high)", "log_bounds(self.low, self.low)", {"max_len": 100}),
    ("clip_side", objective, "clip", "grpo", "clip(d, low, dual), clip(d, None, high)", "clip(d, low, high), clip(d, low, high)", {}),
    ("clip_bounds", objective, "clip", "dapo", "clip(d, low, dual), clip(d, None, high)", "clip(d, None, dual), clip(d, None, high)", {"max_len": 100}),
    ("sequence_ratio", objective, "sequence_clip", "gspo", "return tokens.mean(tokens.log_ratio)", "return tokens.total(tokens.log_ratio)", {}),
    ("stop_gradient_missing", objective, "clipped_weight", "cispo", "-stop(weight) * tokens", "-weight * tokens", {"high": 4.0}),
    ("gate_temperature", objective, "soft_gate", "sapo", "A > 0, self.positive", "A < 0, self.positive", {}),
    ("gate_temperature", objective, "soft_gate", "sapo", "* 4 / tau *", "* 4 *", {}),
    ("geometric_mean", objective, "geometric_clip", "gmpo", "clip(d, low, None), clip(d, None, self.high)", "clip(d, low, self.high), clip(d, low, self.high)", {}),
    ("stop_gradient_missing", objective, "gaussian_gate", "maspo", "stop(where(", "(where(", {}),
    ("stop_gradient_missing", objective, "sequence_clip", "gspo_token", "stop(tokens.mean(d)) + (d - stop(d))", "tokens.mean(d)", {}),
    ("", objective, "gamma_weight", "vespo", "k * log_W - lam * log_W.expm1()", "k * log_W - lam * log_W.exp()", {}),
    ("", objective, "regression", "oapl", "tokens.total(", "tokens.mean(", {}),
    # corrections
    ("scale_by_group_size", book, textbook.leave_one_out, "n / (n - 1) * (R - R.mean())", "(n / (n - 1)) ** 2 * (R - R.mean())"),
    ("correction", correction, "decoupled_ppo", '(tokens.old_logps if self.policy == "old" else tokens.logps) - tokens.rollout_logps', "tokens.rollout_logps - tokens.old_logps"),
    # KL terms and estimators
    ("kl_direction", kl_term, "(-x).expm1() + x", "x.expm1() - x"),
    ("kl_coefficient", kl_term, "(-x).expm1() + x", "2 * ((-x).expm1() + x)"),
    ("kl_estimator", kl_term, "(-x).expm1() + x", "x * x / 2"),
    ("kl_estimator", kl_term, "(-x).expm1() + x", "x"),
    ("kl_direction", kl, "k3", "(-x).expm1() + x", "x.expm1() - x"),
    ("kl_constant", kl, "k3", "(-x).expm1() + x", "(-x).exp() + x"),
    ("kl_coefficient", kl, "k2", "return x * x / 2", "return x * x"),
    ("ratio_not_differentiated", kl, "k3", "(-x).expm1() + x", "((-x).expm1() + x).detach()"),
    # aggregations
    ("denominator", aggregate, "TokenMean", "counts.tokens + 0", "counts.sequences + 0"),
    ("denominator", aggregate, "SequenceMean", "counts.sequences * lengths_T", "counts.tokens + 0 * lengths_T"),
    ("denominator", aggregate, "SequenceSum", "return counts.sequences + 0", "return counts.tokens + 0"),
    ("scaled", aggregate, "Constant", "counts.sequences * self.length", "counts.sequences * (self.length + 1)"),
    # advantages
    ("ddof", estimator, "group_norm", S, "s = std(R, ddof)", "s = std(R, 0)"),
    ("eps", estimator, "group_norm", S, "[(r - mean(R)) / (s + eps) for r in R]", "[(r - mean(R)) / (s + 1e-6) for r in R]"),
    ("eps_in_root", estimator, "group_norm", S, "[(r - mean(R)) / (s + eps) for r in R]", "[(r - mean(R)) / math.sqrt(s * s + eps) for r in R]"),
    ("std_missing", estimator, "group_norm", S, "[(r - mean(R)) / (s + eps) for r in R]", "[r - mean(R) for r in R]"),
    ("std_kind", estimator, "group_norm", S, "[(r - mean(R)) / (s + eps) for r in R]", "[(r - mean(R)) / (s * s + eps) for r in R]"),
    ("baseline", estimator, "mean_baseline", gk.MeanBaseline(), "[r - mean(R) for r in R] if", "[r - (sorted(R)[len(R) // 2] + sorted(R)[(len(R) - 1) // 2]) / 2 for r in R] if"),
    ("mean_of_equal_rewards", estimator, "mean_baseline", gk.MeanBaseline(), "[r - mean(R) for r in R] if has_signal(R) else [0.0] * len(R)", "[r - sum(R) / len(R) for r in R]"),
    ("baseline", estimator, "leave_one_out", gk.LeaveOneOut(), "for j, other in enumerate(R) if j != i])", "for j, other in enumerate(R)])"),
    # filters
    ("std_of_equal_rewards", selection, gk.HasSignal(), "max(outcomes) - min(outcomes) > tolerance", "sum((x - sum(outcomes) / len(outcomes)) ** 2 for x in outcomes) > tolerance"),
    ("inverted", selection, gk.HasSignal(), "max(outcomes) - min(outcomes) > tolerance", "max(outcomes) - min(outcomes) <= tolerance"),
    ("band_ends", selection, gk.PassRate(0.25, 0.75), "not low <= mean(self.counted(g)) <= high", "not low + 1e-9 < mean(self.counted(g)) < high - 1e-9"),
    ("band_ends", selection, gk.PassRate(0.25, 0.75), "not low <= mean(self.counted(g)) <= high", "not low <= mean(self.counted(g))"),
    # as somebody writes them down
    ("masked_tokens_counted", book, textbook.dapo, "mask.sum().clamp(min=1)", "mask.numel()"),
    ("masked_tokens_counted", book, textbook.grpo, "(per_token.sum(1) / lengths.clamp(min=1)).mean()", "per_token.mean(1).mean()"),
    ("denominator", book, textbook.grpo, "(per_token.sum(1) / lengths.clamp(min=1)).mean()", "per_token.sum() / mask.sum().clamp(min=1)"),
    ("ratio_not_differentiated", book, textbook.grpo, "ratio = log_ratio.exp()", "ratio = log_ratio.exp().detach()"),
    ("ratio_reversed", book, textbook.grpo, "ratio = log_ratio.exp()", "ratio = (-log_ratio).exp()"),
    ("log_for_ratio", book, textbook.grpo, "ratio = log_ratio.exp()", "ratio = 1 + log_ratio"),
    ("micro_batch_counts", book, textbook.dapo_of_a_step, "max(num_items_in_batch, 1)", "mask.sum().clamp(min=1)"),
    ("entropy_term", book, textbook.with_entropy, "- 0.01 * masked", "+ 0.01 * masked"),
    ("ratio_not_differentiated", book, textbook.with_entropy, "- 0.01 * masked(entropies, mask)", "- 0.01 * masked(entropies, mask).detach()"),
    ("sign", book, textbook.dapo, "masked(-clipped * advantages, mask)", "masked(clipped * advantages, mask)"),
    ("sequence_ratio", book, textbook.gspo, "s = log_s.exp()", "s = masked(log_ratio.exp(), mask).sum(1, keepdim=True) / lengths"),
    ("sequence_ratio", book, textbook.gspo, "log_s = log_ratio.sum(1, keepdim=True) / lengths", "log_s = log_ratio.mean(1, keepdim=True)"),
    ("stop_gradient_missing", book, textbook.cispo, ".clamp(max=1 + 4.0).detach()", ".clamp(max=1 + 4.0)"),
    ("clip_bounds", book, textbook.cispo, ".clamp(max=1 + 4.0).detach()", ".clamp(max=4.0).detach()"),
    ("empty_denominator", book, textbook.dapo, "mask.sum().clamp(min=1)", "mask.sum()"),
    ("nan_times_zero", book, textbook.dapo, "log_ratios(logps, old_logps, mask).exp()", "((logps.float() - old_logps.float()) * mask).exp()"),
    ("subtracted_in_bf16", book, textbook.dapo, "per_token.sum() / mask.sum().clamp(min=1)", "per_token.to(logps.dtype).sum() / mask.sum().clamp(min=1)"),
    ("random", book, textbook.dapo, "per_token.sum() /", "(per_token * (1 + 1e-9 * torch.rand_like(per_token))).sum() /"),
    ("mutates", book, textbook.dapo, "    ratio =", "    old_logps[~mask] = 0\n    ratio ="),
    ("advantages_whitened", book, textbook.dapo, "    ratio =", "    A = advantages[mask]\n    advantages = (advantages - A.mean()) / (A.std() + 1e-8) if len(A) > 1 and A.std() > 0 else advantages\n    ratio ="),
    ("groups_by_position", book, textbook.group_norm, "    advantages = np.zeros_like(rewards)\n", "    advantages = np.zeros_like(rewards)\n    group_ids = np.arange(len(rewards)) // (group_ids == group_ids[0]).sum()\n"),
    ("std_of_equal_rewards", book, textbook.group_norm, "R.max() > R.min()", "R.std() > 0"),
    ("singleton_raw", book, textbook.group_norm, "        elif not", "        elif len(R) == 1:\n            advantages[rows] = R\n        elif not"),
    ("nan_spreads", book, textbook.leave_one_out, "R.max() != R.min()", "(R.max() != R.min()) and (rewards == rewards).all()"),
    ("one_pass_variance", book, textbook.group_norm, "R.std(ddof=1)", "np.sqrt(np.maximum((R * R).mean() - R.mean() ** 2, 0) * len(R) / (len(R) - 1))"),
    ("batch_statistics", book, textbook.group_norm, "R.std(ddof=1)", "rewards.std(ddof=1)"),
    ("mean_range", book, textbook.has_signal, "R.max() > R.min()", "0 < R.mean() < 1"),
    ("threshold", book, textbook.has_signal, "R.max() > R.min()", "R.std() > 0.05"),
    ("rows_not_groups", book, textbook.has_signal, "R.max() > R.min()", "(R.max() > R.min()) & (R != 0)"),
    ("groups_by_position", book, textbook.has_signal, "    keep = np.zeros(len(rewards), bool)\n", "    keep = np.zeros(len(rewards), bool)\n    group_ids = np.cumsum(np.diff(group_ids, prepend=group_ids[:1]) != 0)\n"),
    ("shaped_reward", book, textbook.has_signal_of_outcomes, "return has_signal(rewards, group_ids)", "return has_signal(shaped_rewards, group_ids)"),
    ("band_ends", book, textbook.pass_rate, "<= 0.75 + 1e-9", "< 0.75 - 1e-9"),
    ("masked_tokens_counted", book, textbook.sequence_mean, "masked(values, mask).sum(1) / lengths.clamp(min=1)", "masked(values, mask).mean(1)"),
    ("mask_ignored", book, textbook.token_mean, "masked(values, mask).sum()", "values.sum()"),
    ("empty_denominator", book, textbook.sequence_mean, "masked(values, mask).sum(1) / lengths.clamp(min=1)", "masked(values, mask).sum(1) / lengths"),
]  # fmt: skip


def planted(mutant):
    """The mistake's name, the faulty function, and what it is held against."""
    mistake, plant, *arguments = mutant
    if plant is objective:
        *arguments, settings = arguments
        return mistake, *plant(*arguments, **settings)
    return mistake, *plant(*arguments)
