"""Recipes that have a closed form in the kernel, and both sides of a comparison with eager torch."""

import torch

import grpokit as gk
from grpokit import gates
from grpokit.equation import coefficients
from grpokit.metrics import measure
from grpokit.stages import EXAMPLES, of_papers
from tests.losses import BONUSES, LATE_WEIGHTS, OBJECTIVES, RECIPES, WEIGHED, cast, current, padded, recipe, table

# Weights of the current policy under a denominator that does not count what they keep, and under gates on sequences.
LATE = {
    f"late_{name}": recipe(gk.Reinforce() if weight.importance else gk.Clip(), (weight,), gk.SequenceMean())
    for name, weight in LATE_WEIGHTS.items()
}
LATE |= {
    "late_gspo": recipe(
        gk.SequenceClip(0.05, 0.1),
        (gk.IcePop(0.8, 1.3), gk.SequenceMask(1.6, 0.6, policy="current")),
        gk.SequenceMean(),
    ),
    "late_gspo_in_ratio": recipe(
        gk.SequenceClip(0.05, 0.1), (gk.DPPOMask(0.02, 0.02), gk.Veto(0.5, policy="current")), dropped="in_ratio"
    ),
    "late_gspo_token": recipe(gk.SequenceClipToken(0.05, 0.1), (gk.WTRS(0.6, 1.8, policy="current"),), extra=BONUSES),
    "late_gmpo": recipe(gk.GeometricClip(0.2, 0.3), (gk.GeometricMask(0.93, 1.07, policy="current"),)),
    "late_vespo": recipe(gk.GammaWeight(), (gk.TIS(1.1), gk.SequenceMask(1.6, 0.6, policy="current"))),
    "late_oapl": recipe(gk.Regression(0.3), (gk.Veto(0.5, policy="current"),), ratio="rollout"),
    "late_after_early": recipe(gk.Clip(), (gk.KPop(0.01), gk.OPSM(0.01), gk.Veto(0.6)), extra=BONUSES),
    "extra_weighed": recipe(gk.Clip(), extra=(gk.Term(gk.KL("k3", corrected=True), 0.3, (gk.IcePop(0.9, 1.2),)),)),
    "luffy_corrected": recipe(gk.MixedPolicy(), extra=(gk.Term(gk.KL("k2", to="rollout", corrected=True), 0.3),)),
}
KINDS = {
    f"kl_{kind}{to}{corrected}": recipe(gk.Reinforce(), extra=(gk.Term(gk.KL(kind, to, corrected), 0.5),))
    for kind in ("k1", "k2", "k3", "abs")
    for to, corrected in (("ref", False), ("ref", True), ("old", False))
}
PAPERS = {f"paper_{name}": gk.recipe(name, **EXAMPLES[name]) for name in of_papers("recipe")}
GATES = {f"gate_{name}": recipe(o) for name, o in OBJECTIVES.items() if type(o) in gates.GATES}


def plan(batch, r, now):
    return gates.lower(batch, r, {name: x.float() for name, x in now.items()})


def _lowers(r):
    batch = padded(D)
    return not isinstance(plan(batch, r, current(batch, D)), str)


D = table(0)
# A weight of constants is a column to the kernel, whatever made it.
SETTLED = {name: WEIGHED[name] for name in ("weight_mis", "weight_kpop", "weight_tis_normalized", "weight_m2po_mask")}
ALL = RECIPES | SETTLED | LATE | KINDS | PAPERS | GATES
# Each once, by its last name.
LOWER = {name: r for r, name in {r: name for name, r in ALL.items() if _lowers(r)}.items()}


def error(a, b):
    """The largest difference over the largest entry, of what is a number on both sides.

    Below float32's normal numbers there are no digits to compare: a largest entry there counts as the least of them.
    """
    a, b = a.double(), b.double()
    there = a.isfinite() & b.isfinite()
    largest = float(b[there].abs().max()) if there.any() else 0.0
    off = float((a - b)[there].abs().max()) if there.any() else 0.0
    return off / max(largest, torch.finfo(torch.float32).tiny) if largest else off


def eager(part, r, now):
    result = coefficients(part, r, now)
    return result.loss, result.gradients, measure(part, r, now, result)


def check(d, r, *, split=None, tolerance=1e-5, bounds=False, **more):
    """The kernel against eager torch, in float64 as the truth and in float32 as the twin; returns the kernel's results.

    The twin may be as far off as it is from the truth itself: where A of both signs cancels, it has few digits left.
    With `bounds` there is no truth: at a bound that was rounded to float32, the gate of float64 may be shut.
    """
    single, double = cast(d, torch.float32), cast(cast(d, torch.float32), torch.float64)
    batches = padded(single, **more), padded(double, **more)
    out = []
    for parts in zip(*((batch.split(split) if split else [batch]) for batch in batches), strict=True):
        now = [
            {name: part.column(name, x[name][part.span]) for name in ("logps", "entropies")}
            for part, x in zip(parts, (single, double), strict=True)
        ]
        made = plan(parts[0], r, now[0])
        assert not isinstance(made, str), made
        got = gates.run(made, parts[0], r, now[0])
        twin, truth = (eager(part, r, x) for part, x in zip(parts, now, strict=True))
        assert list(got[2]) == list(twin[2])
        if got[1]["logps"].isnan().any():
            # A NaN weight times the slope of a gate that is shut: NaN here, 0 by autograd, which counts it as shut.
            for _, _, metrics in (got, twin, truth):
                for name in [name for name in metrics if name.startswith("clip_ratio")]:
                    del metrics[name]
        gradients = truth[1].values()
        if any(((g != 0) & (g.float() == 0)).any() for g in gradients):
            # A gate that is open in float64 and too small for float32 counts as shut there: the twin is the truth.
            for name in [name for name in got[2] if name.startswith("clip_ratio")]:
                mine, theirs, _ = (metrics.pop(name) for _, _, metrics in (got, twin, truth))
                torch.testing.assert_close(mine.double(), theirs.double(), rtol=1e-6, atol=0)
        for mine, theirs, true in zip(_flat(got), _flat(twin), _flat(truth), strict=True):
            assert (mine.isnan() | ~theirs.isnan()).all()
            if bounds:
                assert error(mine, theirs) <= tolerance
            else:
                assert error(mine, true) <= tolerance
                assert error(mine, theirs) <= tolerance + 2 * error(theirs, true)
        out.append(got)
    return out


def _flat(result):
    """Loss, gradients, and each metric beside 1, so that a metric near 0 is compared with what it could be."""
    loss, gradients, metrics = result
    return [loss, *gradients.values(), *(torch.stack([x, torch.ones_like(x)]) for x in metrics.values())]
