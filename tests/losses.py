"""One optimizer step in every form that the loss takes: padded, packed, ragged lists for the reference."""

from __future__ import annotations

import math

import torch

from grpokit import Recipe, Term
from grpokit import loss as losses
from grpokit.advantage import Given
from grpokit.aggregate import Constant, SequenceMean, SequenceSum, TokenMean
from grpokit.batch import TokenBatch
from grpokit.compat.kl import CorrectedKL, LimitedKL
from grpokit.compat.masks import BinaryKLMask, FlooredMask, FP32TopEntropy, TokenSum
from grpokit.compat.ratios import PlainSoftGate, UnlimitedClip, UnlimitedGeometricClip, UnlimitedSequenceClip
from grpokit.compat.weights import CappedWeight, LimitedGammaWeight
from grpokit.drift import OPSM, DPPOMask, M2POMask
from grpokit.mismatch import MIS, TIS, IcePop, KPop
from grpokit.objective import (
    KL,
    Clip,
    ClippedWeight,
    Divergence,
    Entropy,
    GammaWeight,
    GaussianGate,
    GeometricClip,
    MixedPolicy,
    Regression,
    Reinforce,
    SequenceClip,
    SequenceClipToken,
    SoftGate,
)
from grpokit.objective.columns import LIMIT, log_bounds
from grpokit.rejection import WTRS, GeometricMask, SequenceMask, TrustRegionMask, Veto
from grpokit.stages import REGISTRY, load
from grpokit.token_selection import ClipCov, M2POClip, S2TMask, TopCovariance, TopEntropy

V, TEMPERATURE = 13, 0.8
CONSTANTS = ("advantages", "old_logps", "rollout_logps", "ref_logps", "off_policy")


def recipe(objective=None, correct=(), aggregate=None, extra=(), ratio="old", dropped="removed"):
    return Recipe(
        name="test",
        advantage=Given(),
        objective=objective or Clip(),
        correct=correct,
        aggregate=aggregate or TokenMean(),
        extra=extra,
        ratio=ratio,
        dropped=dropped,
    )


OBJECTIVES = {
    "clip": Clip(0.2, 0.28),
    "clip_dual": Clip(0.2, 0.2, 3.0),
    "clip_dual_below_high": Clip(0.2, 1.0, 1.5),
    "clip_low_only": Clip(0.1, None),
    "clip_open": Clip(None, None),
    "reinforce": Reinforce(),
    "k1": KL("k1"),
    "k2": KL("k2", to="old"),
    "k3": KL("k3"),
    "abs": KL("abs", to="old"),
    **{f"{kind}_corrected": KL(kind, corrected=True) for kind in ("k1", "k2", "k3", "abs")},
    "entropy": Entropy(),
    "sequence_clip": SequenceClip(0.05, 0.1),
    "sequence_clip_dual": SequenceClip(0.05, 0.1, 1.2),
    "sequence_clip_token": SequenceClipToken(0.05, 0.1),
    "geometric": GeometricClip(0.2, 0.3),
    "clipped_weight": ClippedWeight(0.2, 0.1),
    "clipped_weight_open": ClippedWeight(None),
    "soft_gate": SoftGate(2.0, 3.0),
    "gaussian": GaussianGate(0.3, 0.2, 0.2, 1.0, 0.9, 1.1),
    "gamma": GammaWeight(),
    "regression": Regression(0.3),
    **{f"divergence_{f}": Divergence(f, 0.7) for f in ("js", "hellinger", "tv", "kl", "reverse_kl", "jeffreys")},
    "mixed": MixedPolicy(0.1),
    "mixed_clip": MixedPolicy(0.3, 0.2, 0.28),
    "unlimited_clip": UnlimitedClip(0.2, 0.28, 3.0),
    "unlimited_sequence_clip": UnlimitedSequenceClip(0.05, 0.1, 1.2),
    "unlimited_geometric": UnlimitedGeometricClip(0.2, 0.3),
    "plain_soft_gate_sequence": PlainSoftGate(1.0, 1.05, "sequence"),
    "capped_weight": CappedWeight(1.1),
    "capped_weight_sequence": CappedWeight(1.1, "sequence"),
    "limited_gamma": LimitedGammaWeight(1.0, 1.5, 2.0, 1.0),
    "corrected_kl_sequence": CorrectedKL("sequence"),
    "limited_kl_straight": LimitedKL("k3", straight=True),
    "limited_k1_straight": LimitedKL("k1", straight=True),
    "limited_abs": LimitedKL("abs"),
}
load()
# What is registered with nothing but its own example is in every test of these tables.
OBJECTIVES |= {
    name: cls(**cls.example) for name, cls in REGISTRY["objective"].items() if cls.__module__.startswith("grpokit.")
}
AGGREGATES = [
    kind(*arguments, over=over)
    for over in ("live", "kept", "rows")
    for kind, arguments in ((TokenMean, ()), (SequenceMean, ()), (SequenceSum, ()), (Constant, (16.0,)), (TokenSum, ()))
]
CORRECTIONS = {
    "none": (),
    "tis": (TIS(1.1),),
    "icepop": (IcePop(0.8, 1.3),),
    "wtrs": (WTRS(0.5, 2.0),),
    "both": (TIS(1.1, low=0.9), WTRS(0.5, 2.0)),
}
# Parameters with which each drops some of the tokens of `table`, and not all.
WEIGHTS = {
    "tis_sequence": TIS(1.1, level="sequence"),
    "tis_open": TIS(None),
    "tis_normalized": TIS(1.1, normalize=True),
    "tis_sequence_normalized": TIS(1.1, level="sequence", normalize=True),
    "mis": MIS(1.6, 0.6),
    "mis_geometric": MIS(1.1, level="geometric"),
    "kpop": KPop(0.01),
    "sequence_mask": SequenceMask(1.6, 0.6),
    "geometric_mask": GeometricMask(0.93, 1.07),
    "veto": Veto(0.6),
    "wtrs": WTRS(0.45, 2.0),
    "trust_region": TrustRegionMask(0.25),
    "trust_region_mean": TrustRegionMask(0.06, "k2", "mean"),
    "trust_region_sum": TrustRegionMask(0.1, "k3", "sum"),
    "trust_region_token": TrustRegionMask(0.02, "k2", "token"),
    "m2po_mask": M2POMask(0.02),
    "floored_mask": FlooredMask(1.3, 0.8),
}
# Those that read the current policy.
LATE_WEIGHTS = {
    "tis_current": TIS(1.1, policy="current"),
    "icepop_current": IcePop(0.8, 1.3, policy="current"),
    "mis_current": MIS(1.6, 0.6, policy="current"),
    "kpop_current": KPop(0.01, policy="current"),
    "sequence_mask_current": SequenceMask(1.6, 0.6, policy="current"),
    "geometric_mask_current": GeometricMask(0.93, 1.07, policy="current"),
    "wtrs_current": WTRS(0.6, 1.8, policy="current"),
    "opsm": OPSM(0.01),
    "opsm_old": OPSM(0.01, "old"),
    "dppo_tv": DPPOMask(0.02, 0.02),
    "dppo_kl": DPPOMask(5e-4, 5e-4, "kl", "old"),
    "binary_kl": BinaryKLMask(5e-4, 5e-4),
}
# Those that read it on the whole batch.
BATCH_WEIGHTS = {
    "m2po_mask_current": M2POMask(0.02, policy="current"),
    "tis_normalized_current": TIS(1.1, normalize=True, policy="current"),
    "clip_cov": ClipCov(0.2, 0.05, 5.0, 0.2, 0.2),
    "top_covariance": TopCovariance(0.2),
    "m2po_clip": M2POClip(0.005, 0.0, 0.0),
    "s2t": S2TMask(0.2, 0.75),
    "s2t_tokens": S2TMask(0.2, 0.5, "tokens"),
    "top_entropy": TopEntropy(0.4),
    "fp32_top_entropy": FP32TopEntropy(0.43),
}
ALL_WEIGHTS = WEIGHTS | LATE_WEIGHTS | BATCH_WEIGHTS
BONUSES = (Term(KL(), 0.04), Term(Entropy(), -0.01, aggregate=SequenceMean()))
RECIPES = {
    "clip": recipe(Clip(0.2, 0.28)),
    "clip_sequence_mean": recipe(Clip(), aggregate=SequenceMean()),
    "clip_sequence_sum": recipe(Clip(None, 0.1), aggregate=SequenceSum(over="rows")),
    "dual_constant": recipe(Clip(0.2, 0.2, 3.0), aggregate=Constant(16.0), extra=BONUSES),
    "tis": recipe(Clip(), (TIS(1.1),), SequenceMean(), BONUSES),
    "icepop_kept": recipe(Clip(), (IcePop(0.8, 1.3),), SequenceMean(over="kept")),
    "icepop_live": recipe(Clip(), (IcePop(0.8, 1.3),), extra=(Term(KL("k2"), 0.1, (IcePop(0.9, 1.2),)),)),
    "rollout_ratio": recipe(Clip(), ratio="rollout", extra=(Term(KL("k1", to="old"), 0.1),)),
    "reinforce": recipe(Reinforce(), (TIS(1.1),), TokenMean(over="kept")),
    "kl_alone": recipe(KL("k3"), aggregate=SequenceMean(over="rows")),
    "entropy_alone": recipe(Entropy(), (IcePop(0.8, 1.3),), Constant(8.0, over="kept")),
    "gspo_icepop": recipe(SequenceClip(0.05, 0.1), (IcePop(0.8, 1.3),), SequenceMean(over="kept")),
    "gspo_token_tis": recipe(SequenceClipToken(0.05, 0.1), (TIS(1.1),), SequenceMean(), BONUSES),
    "gmpo": recipe(GeometricClip(0.2, 0.3), (TIS(1.1),), SequenceMean(over="rows")),
    "vespo_folds_tis": recipe(GammaWeight(), (TIS(1.1),)),
    "vespo_folds_icepop": recipe(GammaWeight(), (IcePop(0.8, 1.3),), TokenMean(over="kept")),
    "oapl": recipe(Regression(0.3), ratio="rollout", aggregate=SequenceMean(over="rows")),
    "lad": recipe(Divergence("js", 0.7), (IcePop(0.8, 1.3),), SequenceMean()),
    "corrected": recipe(Clip(), extra=(Term(KL("k3", corrected=True), 0.1),)),
    "luffy": recipe(MixedPolicy(0.1, 0.2, 0.28)),
    "gspo_in_ratio": recipe(SequenceClip(0.05, 0.1), (IcePop(0.8, 1.3),), SequenceMean(), dropped="in_ratio"),
    "gmpo_in_ratio": recipe(
        GeometricClip(0.2, 0.3), (IcePop(0.8, 1.3),), SequenceMean(over="kept"), dropped="in_ratio"
    ),
    "vespo_in_ratio": recipe(GammaWeight(), (IcePop(0.8, 1.3),), dropped="in_ratio"),
    "vespo_floored": recipe(LimitedGammaWeight(), (FlooredMask(1.3, 0.8),), dropped="in_ratio"),
    "vespo_limited": recipe(LimitedGammaWeight(), (TIS(1.1),), dropped="in_ratio"),
    "intellect": recipe(Reinforce(), (IcePop(0.8, 1.3, policy="current"),)),
}
WEIGHED = {
    f"weight_{name}": recipe(Reinforce() if weight.importance else Clip(), (weight,), SequenceMean(over="kept"))
    for name, weight in ALL_WEIGHTS.items()
}
WEIGHED["kl_cov"] = recipe(Clip(None, None), extra=(Term(KL("abs", to="old"), 0.5, (TopCovariance(0.2),)),))
RECIPES |= {f"alone_{name}": recipe(objective) for name, objective in OBJECTIVES.items() if name[0].isupper()}


def table(seed=0, lengths=(9, 4, 0, 7, 1, 6, 8), near=0.15, *, per_token=False, dtype=torch.float64):
    """A padded batch: interior masks, a fully masked row, and NaN wherever the mask is off."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    S, T = len(lengths), max([*lengths, 1])
    places = torch.arange(T) < torch.tensor(lengths)[:, None]
    mask = places & (torch.rand(S, T, generator=generator) > 0.1)
    logits, targets = 2 * normal(S, T, V), torch.randint(V, (S, T), generator=generator)
    logp = (logits / TEMPERATURE).log_softmax(-1)
    logps = logp.gather(-1, targets[..., None]).squeeze(-1)
    d = {
        "targets": targets,
        "places": places,
        "mask": mask,
        "logits": logits.masked_fill(~mask[..., None], torch.nan),
        "logps": logps.masked_fill(~mask, torch.nan),
        "entropies": (-(logp.exp() * logp).sum(-1)).masked_fill(~mask, torch.nan),
        "advantages": normal(S, T).masked_fill(~mask, torch.nan) if per_token else normal(S),
        "off_policy": torch.rand(S, T, generator=generator) < 0.3,
    }
    for name, scale in (("old_logps", near), ("rollout_logps", 2 * near), ("ref_logps", 0.3)):
        d[name] = (logps + scale * normal(S, T)).masked_fill(~mask, torch.nan)
    return cast(d, dtype)


def cast(d, dtype):
    return {k: x.to(dtype) if x.is_floating_point() else x for k, x in d.items()}


def padded(d, **more):
    constants = {k: d[k] for k in CONSTANTS}
    return TokenBatch(d["targets"], mask=d["mask"], temperature=TEMPERATURE, **(constants | more))


def pack(d):
    """The same rollouts packed: interior masked places stay, pads go. Also the offsets and the places."""
    places = d["places"]
    flat = {k: x[places] if x.dim() > 1 else x for k, x in d.items() if k != "places"}
    return flat, torch.cat([torch.zeros(1, dtype=torch.int64), places.sum(1).cumsum(0)]), places


def packed(d, **more):
    flat, offsets, _ = pack(d)
    constants = {k: flat[k] for k in CONSTANTS}
    batch = TokenBatch(
        flat["targets"], mask=flat["mask"], cu_seqlens=offsets, temperature=TEMPERATURE, **(constants | more)
    )
    return flat, batch


def permute(d, order):
    return {k: x[order] for k, x in d.items()}


def run(batch, r, d, split=None, door="logits", *, reverse=False):
    """Loss, gradient in the caller's layout and metrics, accumulated over the parts."""
    x = d[door].clone().requires_grad_()
    parts = batch.split(split) if split else [batch]
    known = {"entropies": d["entropies"]} if door == "logps" else {}
    if batch.needs_whole(r) and split:
        for part in parts:
            losses.observe(d[door][part.span], part, r, **{k: e[part.span] for k, e in known.items()})
    total, metrics = 0.0, {}
    for part in parts[::-1] if reverse else parts:
        from_ = {"logits": losses.from_logits, "logps": losses.from_logps}[door]
        out = from_(x[part.span], part, r, **{k: e[part.span] for k, e in known.items()})
        out.loss.backward()
        total = total + out.loss.detach()
        metrics = {k: metrics.get(k, 0) + m for k, m in out.metrics.items() if k != "kernel"}
    return total, x.grad, metrics


def same(a, b, tolerance=1e-12):
    """Finite, and equal up to `tolerance` of the largest entry: what sums of a few dozen fp64 terms may differ by."""
    for x, y in zip(a, b, strict=True):
        if isinstance(x, dict):
            assert x.keys() == y.keys()
            same([x[k] for k in y], y.values(), tolerance)
        else:
            assert torch.isfinite(x).all()
            assert torch.isfinite(y).all()
            assert x.shape == y.shape
            assert not x.numel() or (x - y).abs().max() <= tolerance * (1 + y.abs().max()), (x - y).abs().max()


def current(batch, d):
    """The current policy's live columns."""
    return {name: batch.column(name, d[name]) for name in ("logps", "entropies")}


def ragged(batch, now):
    """Rows and current columns as the reference reads them: lists of floats, one a sequence."""
    ends = batch.live.starts

    def cut(columns):
        return [{k: x[a:b].tolist() for k, x in columns.items()} for a, b in zip(ends, ends[1:], strict=False)]

    constants = {k: x for k, x in batch.columns.items() if k not in ("targets", "length", "position")}
    return cut(constants), cut(now)


def kinks(objective):
    """The values of log r, or of the sequence's, where the loss has a corner."""
    low, high, dual = (getattr(objective, name, None) for name in ("low", "high", "dual"))
    bounds = (None if low is None else -low, high) if isinstance(objective, GeometricClip) else log_bounds(low, high)
    corners = (*bounds, dual and math.log(dual), -LIMIT, LIMIT)
    return [b for b in corners if b is not None]
