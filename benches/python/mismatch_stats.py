"""`grpokit.mismatch_stats` against verl's rollout correction and a NumPy version; writes mismatch_stats.md.

All get the same log-probs, 2048 x 2048 in float32; ours and NumPy a mask of bool, verl one of bool and one of floats,
with which it is fastest. Ours counts three rules and is asked for its metrics, quantiles among them. verl makes the
weights as well, of which its metrics are; NumPy counts one rule. What they have in common is compared first.

    make bench
"""

import os
import sys
from dataclasses import dataclass
from functools import partial

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from timing import heading, machine, pair, same, save
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_and_rejection_mask as correct

import grpokit as gk

B = T = 2048


@dataclass(frozen=True)
class Rule:
    """A level and bounds of the ratio."""

    level: str
    low: float | None
    high: float | None

    @property
    def bounds(self):
        return self.level, self.low, self.high


RULES = (Rule("token", None, 2.0), Rule("geometric", 0.99, 1.01), Rule("worst", 1e-4, 100.0))
TOKEN = {"rollout_is": "token", "rollout_is_threshold": 2.0}
SEQUENCE = {
    "rollout_is": "sequence",
    "rollout_is_threshold": 2.0,
    "rollout_rs": "seq_mean_k3",
    "rollout_rs_threshold": "0.01",
}


def batch(kind):
    """Log-probs of a trainer and of a sampler that computes in lower precision, some tokens being far off."""
    rng = np.random.default_rng(0)
    old = -rng.exponential(0.5, (B, T)).astype(np.float32)
    noise = rng.normal(0, 0.02, (B, T)) * np.where(rng.random((B, T)) < 0.01, 20, 1)
    rollout = (old + noise).astype(np.float32)
    lengths = rng.integers(1, T + 1, B) if kind == "lengths from 1 to 2,048" else np.full(B, T)
    return old, rollout, np.arange(T) < lengths[:, None]


def ours(old, rollout, mask, threads=None, **groups):
    return gk.mismatch_stats(old, rollout, mask, rules=RULES, threads=threads, **groups).metrics()


def numpy(old, rollout, mask):
    """The same numbers, but for places, in as few passes as NumPy allows."""
    d = old[mask]
    d -= rollout[mask]
    S = np.bincount(np.repeat(np.arange(len(mask)), mask.sum(1)), d, len(mask))
    ratio = np.exp(np.clip(d, -20, 20))
    total, square = ratio.sum(dtype=np.float64), np.square(ratio).sum(dtype=np.float64)
    weights = np.exp(S - S.max())
    return {
        "kl_k1": -d.mean(dtype=np.float64),
        "kl_k3": total / len(d) - 1 - d.mean(dtype=np.float64),
        "ess_token": total**2 / len(d) / square,
        "ess_sequence": weights.sum() ** 2 / len(S) / np.square(weights).sum(),
        "quantiles": np.exp(np.quantile(d, [0, 0.01, 0.5, 0.99, 1])),
        "outside": (ratio > 2.0).mean(),
    }


def verl(old, rollout, mask, options):
    return correct(old, rollout, mask, **options)


def main():
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    about = machine("make bench", ("numpy", "torch", "verl"))
    report = {"machine": about, "torch_threads": torch.get_num_threads(), "rows": []}
    lines = [
        *heading("Mismatch statistics", about),
        f"{B:,} x {T:,} tokens, float32; ours with three rules and `metrics()`, on {about['cores']} threads:",
        "",
        "| live tokens | rival | ours, ms | rival, ms | ratio |",
        "|---|---|---:|---:|---:|",
    ]
    print(*lines, sep="\n")
    for kind in ("lengths from 1 to 2,048", "all"):
        old, rollout, mask = arrays = batch(kind)
        found, theirs = ours(*arrays), numpy(*arrays)
        for name in ("kl_k1", "kl_k3", "ess_token", "ess_sequence"):
            same(name, found[f"mismatch/{name}"], theirs[name], 1e-5)
        same("outside", found[f"mismatch/outside/{RULES[0]!r}/tokens"], theirs["outside"], 1e-6)
        quantiles = np.array([found[f"mismatch/ratio_{q}"] for q in ("min", "p1", "p50", "p99", "max")])
        same("quantiles", np.log(quantiles), np.log(theirs["quantiles"]), 1 / 33)
        tensors = torch.from_numpy(old), torch.from_numpy(rollout)
        masks = {"float": torch.from_numpy(mask).float(), "bool": torch.from_numpy(mask)}
        metrics = verl(*tensors, masks["float"], TOKEN)[2]
        same("kl", metrics["rollout_corr/kl"], found["mismatch/kl_k1"], 1e-4)
        same("k3", metrics["rollout_corr/k3_kl"], found["mismatch/kl_k3"], 1e-4)
        rivals = [("NumPy", None, partial(numpy, *arrays), {})]
        for form, live in masks.items():
            for name, options in (("token", TOKEN), ("sequence + seq_mean_k3", SEQUENCE)):
                rivals.append((f"verl, {name}, mask of {form}", None, partial(verl, *tensors, live, options), {}))
        call = partial(verl, *tensors, masks["bool"], TOKEN)
        rivals.append(("verl, token, mask of bool, one thread each", 1, call, {}))
        if kind != "all":
            groups = {"source": [f"source {i % 8}" for i in range(B)], "lag": np.arange(B) % 5}
            rivals.append(("NumPy, ours by 8 sources and 5 lags too", None, partial(numpy, *arrays), groups))
        for name, threads, rival, groups in rivals:
            torch.set_num_threads(threads or report["torch_threads"])
            us, them = pair(partial(ours, *arrays, threads=threads, **groups), rival, seconds)
            ratio = them["best"] / us["best"]
            lines.append(f"| {kind} | {name} | {us['best']:.2f} | {them['best']:.0f} | {ratio:.0f} |")
            print(lines[-1], flush=True)
            report["rows"].append({"live": kind, "rival": name, "grpokit": us, "theirs": them})
    save("mismatch_stats", report, lines)


if __name__ == "__main__":
    main()
