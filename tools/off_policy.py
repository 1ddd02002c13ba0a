"""Writes docs/off_policy.md and its plot: `make docs`, or `python tools/off_policy.py DIR`.

In: the corrections of the installed package, and the results of the staleness study. Out: off_policy.md and
staleness.svg. Formulas and numbers are the registry's; when a correction helps is the judgement of this project.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import grpokit as gk
from grpokit.explain import equation, made
from grpokit.stages import of_papers

ROOT = Path(__file__).parent.parent
STUDY = ROOT / "benches" / "results" / "staleness.json"
COSTS = ROOT / "benches" / "results" / "score_norms.json"
# When it helps, and what to watch.
HELPS = {
    "TIS": ("sampler and trainer differ a little everywhere: another kernel, bf16 against fp32, quantised rollouts",
            "`mismatch/weight_mean` near 1; many truncated weights say that the gap is no rounding"),
    "IcePop": ("few tokens are far off and the rest agree: mixture-of-experts, long answers", "`mismatch/dropped/IcePop`, "
               "steady at some thousandths"),
    "MIS": ("whole answers are what is importance-weighted, and are short enough for their product", "ESS per sequence"),
    "KPop": ("as IcePop, where rare tokens are dropped too often and sure ones too seldom", "`mismatch/dropped/KPop`"),
    "SequenceMask": ("answers whose product of ratios has left the trust region must go, the others keep weight 1",
                     "`outside` of `gk.mismatch_stats`: long answers go first"),
    "GeometricMask": ("the same for answers of very different length", "`outside`; bounds this narrow need fp32 "
                      "log-probs on both sides"),
    "Veto": ("tokens that the trainer holds for next to impossible: a wrong weight, a broken decoder", "`lowest` of "
             "`gk.mismatch_stats`, with the positions"),
    "WTRS": ("one broken token makes the whole answer suspect: agents, tools, interrupted generation", "`outside` of "
             "`gk.mismatch_stats`, in sequences"),
    "TrustRegionMask": ("a bound in nats and not in ratios", "`mismatch/dropped/TrustRegionMask`"),
    "OPSM": ("stale data with wrong answers that the policy has left already", "`mismatch/dropped/OPSM`"),
    "DPPOMask": ("clipping by ratio holds rare tokens and lets sure ones run", "`mismatch/dropped/DPPOMask`"),
    "M2POMask": ("data that is many updates old: the batch says how much is too much", "`mismatch/dropped/M2POMask`"),
    "ClipCov": ("the entropy collapses", "`entropy`; the share is tiny by design"),
    "TopCovariance": ("no correction of its own: the tokens that KL-Cov's penalty is about (`weigh` of its term)", "`entropy`"),
    "M2POClip": ("data that is many updates old, without a fixed clip", "`mismatch/dropped/M2POClip`"),
    "S2TMask": ("rewarded nonsense tokens are reinforced", "`mismatch/dropped/S2TMask`: in the paper mostly below 1e-4"),
    "TopEntropy": ("learning at forks only", "`mismatch/dropped/TopEntropy`, 1 − ρ"),
}  # fmt: skip
METRICS = [
    ("`sampling/sampling_logp_difference/mean`", "mean |log π_old − log π_rollout|", "below 0.01 in bf16, 1e-5 in fp32",
     "another temperature, weights that were not synced; top-p or top-k with processed log-probs (every token is off by the "
     "log of the kept mass). With raw ones such a sampler reads 0 here, although it is another policy"),
    ("`mismatch/kl_k3`, `mismatch/kl_k1`", "mean(ρ − 1 − log ρ) and mean(−log ρ): both estimate KL(π_rollout ‖ π_old)",
     "nearly equal, below 1e-3", "k3 far above k1: heavy tails, some tokens are very wrong"),
    ("`mismatch/ess_token`, `mismatch/ess_sequence`", "(Σw)² / (n Σw²) of ρ per token, of Π_t ρ_t per answer",
     "tokens above 0.9; answers fall with length", "below 1/10: the gradient is a handful of answers; mask, or sync more often"),
    ("`mismatch/ess_current`, `mismatch/ess_last`", "the same of Π_t u_t per answer at each update: their mean over a step, "
     "and the last", "`ess_last` near `ess_sequence`", "`ess_last` far below it: too many updates per rollout"),
    ("`mismatch/chi2_token`", "mean ρ² − 1; where the mean of ρ is 1, ESS = 1 / (1 + χ²)", "below 0.1", "as ESS"),
    ("`mismatch/dropped/NAME`", "the share of tokens that a correction drops", "steady", "grows from step to step"),
    ("`ratio/mean`, `clip_ratio/region_mean`", "the recipe's own ratio (r, in bypass u), and the share that its clip holds",
     "1, and below 0.01", "r: too many updates; u: these, or mismatch"),
]  # fmt: skip
INTRO = """# Off-policy: mismatch and staleness

<!-- Written by tools/off_policy.py (make docs); a test keeps it fresh. -->

The policy that samples is never quite the policy that learns. Two things part them, and they want different answers:
**mismatch**, the same weights in two programs (kernels, number formats, top-p, expert routing), and **staleness**, older
weights (several updates a rollout, asynchronous rollouts).

## Which ratio is which

Three policies: π_rollout sampled (its log-probs came back with the answers), π_old is the trainer's before the first
update on them (recomputed), π is the trainer's now.

| symbol | is | grows with | who holds it |
|---|---|---|---|
| ρ | π_old / π_rollout | mismatch, and the age of the data when it arrives | a correction (`correct=`), a constant of the step |
| r | π / π_old | updates since the data arrived | the objective's clip, gate or weight, with the gradient |
| u | π / π_rollout = r ρ | both | an objective with `ratio="rollout"`, or a weight with `policy="current"` |

Each ratio belongs into a term once; a recipe that would count one twice is refused (`counted_twice`): a weight of ρ on a
ratio against the sampler, two weights, a weight of u on a ratio of its own.

{ways}

Coupled is right while ρ is 1 to rounding. Decoupled keeps the trust region around the trainer's own policy and makes up
for the sampler with a weight: the choice where the data is fresh but the programs differ. Bypass clips both at once and
saves a pass; its trust region is around a policy that may be far away already. `old_logps=None` means on-policy: π_old is
π, and ρ is then u.

Where a weight of 0 leaves a token out, the denominator is a choice of its own: `over="live"` keeps counting it (as IcePop,
AReaL, TRL), `over="kept"` does not (as verl's rejection), which scales the rest up. In a sequence's ratio (GSPO, GMPO,
VESPO) a dropped token is not there, or stays as in TRL and verl with `dropped="in_ratio"`. VESPO folds the weight into its
own W and uses it nowhere else.

## What to watch

`gk.mismatch_stats` makes what is said of ρ in one pass over the tokens, by source and by version lag, with positions of
the extremes and the reach of rules, and merges over steps and ranks. The losses return what is said of r, of u and of the
weights. The trainer logs both. What is healthy is the judgement of this project, like the next table's "helps where".

```python
import numpy as np

import grpokit as gk

rng = np.random.default_rng(0)
old_logps = -rng.gamma(0.5, 1.0, (4, 200)).astype(np.float32)
rollout_logps = old_logps + rng.normal(0, 0.02, old_logps.shape).astype(np.float32)
rollout_logps[2, 30] -= 3  # a token that the sampler found less likely than the trainer
stats = gk.mismatch_stats(old_logps, rollout_logps, rules=(gk.IcePop(), gk.Veto()), lag=[0, 0, 3, 3])
worst = stats.highest[0]
print(worst.sequence, worst.position, round(worst.log_ratio, 1))
print(f"{stats.ess_token:.2f} {stats.by_lag[0].ess_token:.2f} {stats.by_lag[3].ess_token:.2f}")
print(stats.outside[str(gk.IcePop())])
```

```text
2 30 3.0
0.70 1.00 0.55
Outside(tokens=0.00125, sequences=0.25)
```

"""


def page() -> str:
    """The text of docs/off_policy.md."""
    parts = [INTRO.rstrip().replace("{ways}", _ways())]
    rows = ["| metric | is | healthy | alarming |", "|---|---|---|---|"]
    rows += [_row(*row) for row in METRICS]
    parts += ["\n".join(rows)]
    parts += ["## The corrections", CORRECTIONS, _corrections()]
    parts += [WHOLE, _study(), VCPO.format(cost=_cost()), ELSEWHERE]
    return "\n\n".join(parts) + "\n"


CORRECTIONS = """Stage 5. Masks go with any recipe, several at once. Weights of ρ (TIS, IcePop, MIS, KPop) go one at a time with any recipe
whose ratio is taken against π_old; those of recipes against the sampler (`oapl`, `dppo`, `m2po_clip`) are in the ratio.
"Made" follows from what it reads: once a step where all are constants, in each forward pass where the current policy is
read, in a first pass where the whole batch of it is. Without `old_logps` π_old is the current policy, and so is what is
made of it."""
WHOLE = """## What sees the whole batch

ClipCov, TopCovariance, M2POClip, S2TMask, TopEntropy and M2POMask rank or average over the optimizer step. With
micro-batches that takes a first pass without gradient where they read the current policy:

```python
import torch

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Embedding(11, 8), torch.nn.Linear(8, 11))
ids, recipe = torch.randint(11, (4, 7)), gk.recipe("stapo", tau_p=0.1)
batch = gk.TokenBatch(targets=ids[:, 1:], inputs=ids[:, :-1], advantages=torch.tensor([0.7, -0.7, 0.7, -0.7]))

parts = batch.split(max_tokens=12)
if batch.needs_whole(recipe):
    for part in parts:
        gk.loss.observe(model(part.inputs), part, recipe)
for part in parts:
    out = gk.loss.from_logits(model(part.inputs), part, recipe)
    out.loss.backward()
print(len(parts), batch.needs_whole(recipe), "mismatch/dropped/S2TMask" in out.metrics)
```

```text
2 True True
```

`batch.synchronize(recipe, group)` makes the whole that of all ranks: each gathers the columns that such a weight reads.
Random choices (ClipCov) are a hash of (seed, step, rollout id, position), ties are kept or dropped together: the gradient
is the same for any split and any number of ranks (`tests/test_loss.py`, `tests/test_ranks.py`). What reads entropies says
so where only log-probs are given. Without the first pass a micro-batch would have its own means and quantiles, as in the
authors' code and verl 0.9.1."""
VCPO = """## Steps as large as the data is worth

VCPO (arXiv:2602.17616) scales an update's learning rate by √ESS of its answers, w = Π_t u_t:

    log ESS = 2 LSE(log w) − LSE(2 log w) − log B,   η ← η √min(1, ESS / base)

`--set recipe=vcpo --set lr_control.base=1`, or `gk.ESSLearningRate` in your own loop with `out.log_weights` of the losses;
the factor is the metric `lr_scale`, and `learning_rate` is what came out. The released code takes exponentials in fp32:
weights that overflow make ESS NaN there, and the step its full size. Here they meet the smallest step, with base 1 a
factor of 1/√B.

Its baseline b = Σ W R / Σ W, W = w² ‖∇ log π(o)‖², is `gk.MinimumVarianceBaseline`; the squared norms are a column
`score_norm` of yours, or computed by the trainer (`recipe.baseline=minimum_variance`). They are a forward and a backward
pass an answer: {cost}. Where that is too much, `gk.LengthBaseline` takes lengths for the norms."""
ELSEWHERE = """## Mixture-of-experts

Routing makes single tokens jump. [Routing replay](routing.md) (R2, R3) removes the jump instead of the token.

## Traps seen in the wild

- A weight of u on top of a ratio in r: slime's first version weighed by the current policy.
- verl 0.9.1 compares −log ρ with the bounds of `token_k1`: what is kept is [1/high, 1/low].
- Rejection before the advantages (verl): REINFORCE++ and ReMax lose the terminal reward with the last token.
- TRL's VESPO with `token_mask`: a dropped token has ratio 1e-8 in the product, and the answer is lost.
- AReaL maps a log-ratio that is no number to 0, ratio 1. Here a NaN of a live token is seen in the loss.
- bf16 log-probs: one rounding at log π = −8 is 0.03, and geometric bounds of 0.001 mean nothing.
- top-p or top-k: the sampler's policy is the renormalised one. With processed log-probs ρ says so, on every token; with
  raw ones ρ reads 1 and is wrong by the kept mass, and no metric shows it.
- AReaL's and slime's rejection keep the original token count; verl's does not. State which (`over=`)."""


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _ways() -> str:
    """The four ways to take the ratios, with the equations of recipes that go them."""
    ppo, weight = gk.recipe("ppo_clip"), gk.TIS(2.0, policy="current")
    ways = [
        ("coupled", ppo, "ρ is taken for 1", "one for π_old", "`gk.recipe('ppo_clip')`"),
        ("decoupled", gk.recipe("decoupled_ppo", cap=2.0), "a weight of ρ, a clip of r", "one for π_old",
         "`recipe.replace(correct=(gk.TIS(2.0),))`"),
        ("bypass", ppo.replace(ratio="rollout"), "a clip of u, the recipe's r", "none for π_old",
         "`recipe.replace(ratio='rollout')`"),
        ("weighed", ppo.replace(objective=gk.Reinforce(), correct=(weight,)), "a weight of u, no clip",
         "none for π_old", "`objective=gk.Reinforce(), correct=(gk.TIS(2.0, policy='current'),)`"),
    ]  # fmt: skip
    rows = ["| way | holds | LOSS | forward passes | as a recipe |", "|---|---|---|---|---|"]
    for name, recipe, holds, passes, code in ways:
        with_weight = "".join(f"; TIS_t: {stage.equation}" for stage in recipe.correct)
        rows.append(_row(name, holds, f"{equation(recipe)}, r = π / π_{recipe.ratio}{with_weight}", passes, code))
    return "\n".join(rows)


def _corrections() -> str:
    rows = ["| correction | w | made | helps where | watch |", "|---|---|---|---|---|"]
    numbers = ["| correction | number | here | from |", "|---|---|---|---|"]
    known = of_papers("correct")
    assert set(known) == set(HELPS), set(known) ^ set(HELPS)
    for name, cls in known.items():
        stage = cls(**cls.example)
        when, watch = HELPS[name]
        rows.append(_row(name, stage.equation, made(stage), when, watch))
        for parameter, where in stage.sources.items():
            numbers.append(_row(name, parameter, repr(getattr(stage, parameter)), where))
        if stage.leaves_out:
            numbers.append(_row(name, "left out", "", stage.leaves_out))
    between = "Their numbers; what no source states is required, and stands here as an example:"
    return "\n\n".join(["\n".join(rows), between, "\n".join(numbers)])


def _cost() -> str:
    found = json.loads(COSTS.read_text())
    ratio = min(found["minimum_variance"]) / min(found["mean"])
    return f"{ratio:.1f} times the step of the tiny run (`benches/results/score_norms.md`)"


def _study() -> str:
    study = json.loads(STUDY.read_text())
    runs, arms = study["runs"], list(dict.fromkeys(run["arm"] for run in study["runs"]))
    ages, rates = sorted({run["n"] for run in runs}), sorted({run["rate"] for run in runs})
    seeds = len({run["seed"] for run in runs})
    lines = [f"| arm | {' | '.join(f'N = {n}' for n in ages)} | worst rate, N = {ages[-1]} |"]
    lines.append("|---|" + "---:|" * (len(ages) + 1))
    for arm in arms:
        best = [max(mean_of(runs, arm, n, rate) for rate in rates) for n in ages]
        worst = min(mean_of(runs, arm, ages[-1], rate) for rate in rates)
        lines.append(f"| {arm} | " + " | ".join(f"{x:.3f}" for x in best) + f" | {worst:.3f} |")
    before = statistics.fmean(run["pass@1"][0] for run in runs)
    head = f"""## Who stands stale data

Held-out pass@1 on the trainer's tiny task after 128 updates of 32 answers each, of which the answers of N updates come from
one rollout: means over {seeds} seeds with their own warm starts (about {before:.2f} before), at the best of {len(rates)} learning rates that were
fixed beforehand. That best is picked on these very runs and flatters all arms alike; the last column is the worst.
Everything, with spreads: `benches/results/staleness.md`; `make bench-staleness`."""
    return "\n\n".join([head, "\n".join(lines), "![pass@1 over N](staleness.svg)", _reading(runs)])


def _reading(runs: list[dict[str, object]]) -> str:
    """What the numbers say, and what of the papers does not show in them."""

    def at(arm: str, n: int, rate: float = 1e-4) -> str:
        found = ends(runs, arm, n, rate) or [float("nan")]
        return f"{statistics.fmean(found):.2f}"

    def fall(arm: str) -> str:
        return f"{at(arm, 1)} to {at(arm, 64)} at 1e-4, {at(arm, 1, 3e-4)} to {at(arm, 64, 3e-4)} at 3e-4"

    return f"""From N = 1 to N = 64, what may be said of a task this small:

- **Without a ratio stale data ruins the policy**: rloo goes from {fall("rloo")}.
- **VESPO and GSPO hardly lose anything**: vespo {fall("vespo")}; gspo {fall("gspo")}. Reproduced, in kind: VESPO's claim to
  stand 64 minibatches against GRPO and SAPO (arXiv:2602.10693). Not reproduced: that GSPO falls behind there; its clip is
  one for short answers here, not the paper's.
- **PPO's clip is no bad guard**: grpo {fall("grpo")}.
- **SAPO is worn down and does not collapse**: {fall("sapo")}; in VESPO's paper it ends lowest of all.
- **M2PO's clip and VCPO stand it at the smaller rate**: m2po_clip {fall("m2po_clip")}; vcpo {fall("vcpo")}, with a larger spread.
  Neither beats VESPO or GSPO; ages of 256, where M2PO was tried by its authors, are not in this study.
- **OAPL's numbers do not reproduce**: with the paper's β₂ = 1e-3 and its gradient clip it goes from {fall("oapl")}, as
  rloo does: its optimum, a log-ratio of A / β₂, is hundreds of nats away, and what is left is REINFORCE. With β₂ = 1 it
  goes from {fall("oapl_1")}. The paper clears its buffer at each renewal and runs at scale; that may be what it takes.
- **1e-3 is too fast for all**, on-policy as well ({at("grpo", 1, 1e-3)} for grpo at N = 1), and says nothing about staleness.
  1e-4, the lower end of the grid, is the best rate of most arms at N = 64: what a still smaller one gives was not tried.

Differences of 0.03 are within two standard errors of five seeds."""


def ends(runs: list[dict[str, object]], arm: str, n: int, rate: float) -> list[float]:
    """Final pass@1 of each seed; a run that diverged is 0."""
    found = [run for run in runs if (run["arm"], run["n"], run["rate"]) == (arm, n, rate)]
    return [0.0 if run["problem"] else run["pass@1"][-1] for run in found]  # type: ignore[index]


def mean_of(runs: list[dict[str, object]], arm: str, n: int, rate: float) -> float:
    """Their mean."""
    return statistics.fmean(ends(runs, arm, n, rate) or [float("nan")])


def draw(path: Path) -> None:
    """One panel a learning rate: mean and every seed over N."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    runs = json.loads(STUDY.read_text())["runs"]
    arms, rates = list(dict.fromkeys(run["arm"] for run in runs)), sorted({run["rate"] for run in runs})
    ages, grey = sorted({run["n"] for run in runs}), "#7a7a7a"
    colours = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#999933", "#882255", "#44aa99"]
    with mpl.rc_context({"svg.hashsalt": "grpokit", "font.size": 9}):
        figure, panels = plt.subplots(1, len(rates), figsize=(9.5, 3.4), sharey=True, layout="constrained")
        for axes, rate in zip(panels, rates, strict=True):
            for arm, colour in zip(arms, colours, strict=False):
                values = [ends(runs, arm, n, rate) for n in ages]
                means = [mean_of(runs, arm, n, rate) for n in ages]
                axes.plot(ages, means, color=colour, linewidth=1.4, label=arm)
                for n, seeds in zip(ages, values, strict=True):
                    axes.plot([n] * len(seeds), seeds, ".", color=colour, markersize=3, alpha=0.6)
            axes.set_xscale("log", base=4)
            axes.set_xticks(ages, [str(n) for n in ages])
            axes.set_title(f"lr {rate:g}", color=grey, fontsize=9)
            axes.set_xlabel("N, minibatches a rollout", color=grey)
            axes.tick_params(colors=grey)
            axes.set_ylim(0, 1)
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
        panels[0].set_ylabel("held-out pass@1", color=grey)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
        figure.savefig(path, metadata={"Date": None, "Creator": None}, transparent=True)
        plt.close(figure)


def write(directory: Path) -> None:
    """The page and its plot."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "off_policy.md").write_text(page(), encoding="utf-8")
    draw(directory / "staleness.svg")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs")
