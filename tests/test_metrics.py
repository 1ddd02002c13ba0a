"""Metrics by hand, and of what a recipe has; that they add up over parts is in test_loss.py."""

import pytest
import torch

import grpokit as gk
from grpokit import loss as losses
from grpokit.equation import coefficients
from tests.losses import BONUSES, OBJECTIVES, current, padded, recipe, run, same, table


def test_metrics_by_hand():
    d, r = table(5), recipe(gk.Clip(0.05, 0.08, 1.2), (gk.IcePop(0.8, 1.3),), extra=BONUSES)
    metrics = run(padded(d), r, d)[2]
    m = d["mask"]
    l, old, rollout, ref = (d[k][m] for k in ("logps", "old_logps", "rollout_logps", "ref_logps"))
    A, ratio, rho = d["advantages"][:, None].expand(m.shape)[m], (l - old).exp(), (old - rollout).exp()
    w = torch.where((rho >= 0.8) & (rho <= 1.3), rho, 0)
    high = (w != 0) & ((A > 0) & (ratio > 1.08) | (A < 0) & (ratio > 1.2))
    low = (w != 0) & (A < 0) & (ratio < 0.95)
    assert high.any()
    assert low.any()
    expected = {
        "clip_ratio/low_mean": low,
        "clip_ratio/high_mean": high,
        "clip_ratio/region_mean": low | high,
        "ratio/mean": ratio,
        "ratio/limited": torch.zeros_like(ratio),
        "entropy": d["entropies"][m],
        "kl": (ref - l).exp() - (ref - l) - 1,
        "sampling/sampling_logp_difference/mean": (old - rollout).abs(),
        "mismatch/weight_mean": w,
        "mismatch/dropped": w == 0,
        "mismatch/dropped/IcePop": w == 0,
    }
    same([metrics], [{k: x.double().mean() for k, x in expected.items()}])
    assert all(not x.requires_grad and x.dim() == 0 for x in metrics.values())


def test_metrics_are_of_what_the_recipe_has():
    d = table(5)
    bare = gk.TokenBatch(d["targets"], mask=d["mask"], advantages=d["advantages"])
    assert losses.from_logps(d["logps"], bare, recipe(gk.Reinforce())).metrics == {}
    assert "kl" not in run(padded(d), recipe(gk.Clip()), d)[2]
    far = padded(d, old_logps=d["logps"] - 30)
    assert losses.from_logps(d["logps"], far, recipe(gk.Clip(None, None))).metrics["ratio/limited"] == 1


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name.startswith("clip")])
def test_clip_share_is_the_gates(name):
    """The share of tokens whose own gradient the gate took away, whatever else pulls at them."""
    d = table(5, near=0.5, per_token=True)
    alone, batch = recipe(OBJECTIVES[name]), padded(d)
    g = coefficients(batch, alone, current(batch, d)).gradients["logps"]
    metrics = run(batch, recipe(OBJECTIVES[name], extra=BONUSES), d)[2]
    assert metrics["clip_ratio/region_mean"] == (g == 0).double().mean()
    same([metrics["clip_ratio/low_mean"] + metrics["clip_ratio/high_mean"]], [metrics["clip_ratio/region_mean"]])
