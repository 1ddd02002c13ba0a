"""What stands stale data: N minibatches of 32 answers from one rollout, on the trainer's tiny task, as it comes.

Every run has the same number of answers and of updates; what grows with N is how old the data is when it is learned
from, up to N − 1 updates. A seed has its own weights, warm start, prompts and held-out set. Learning rates, arms and
seeds were fixed before the first run. Writes staleness.{json,md}; runs that are in staleness.json already, from the
same commit, are not repeated.

    make bench-staleness                      # everything, about an hour on two cores
    make bench-staleness ARGS="grpo vespo"    # some of the arms
"""

import statistics
import sys

from timing import RESULTS, machine
from training import all_runs, described, train

# Arm → recipe, its parameters, further settings, what it is.
ARMS = {
    "rloo": ("rloo", {}, [], "no ratio at all: REINFORCE on data of any age"),
    "grpo": ("grpo", {"beta": 0.0}, [], "PPO's clip at 0.2, no KL"),
    "gspo": ("gspo", {"low": 0.1, "high": 0.1}, [], "clip 0.1: the paper's 3e-4 closes the gate of answers this short"),
    "sapo": ("sapo", {}, [], "the paper's 1.0 and 1.05"),
    "vespo": ("vespo", {}, [], "the paper's (2, 3) and (3, 2)"),
    "oapl": ("oapl", {}, ["max_grad_norm=1e-3"], "the paper's beta 1e-3 with its gradient clip 1e-3"),
    "oapl_1": ("oapl", {"beta": 1.0}, [], "beta 1, an optimum within reach"),
    "m2po_clip": ("m2po_clip", {}, [], "the authors' code"),
    "vcpo": ("vcpo", {}, ["lr_control.base=1"], "weight of whole answers, cap 8, learning rate by ESS"),
}
MINIBATCHES, RATES, SEEDS = (1, 4, 16, 64), (1e-4, 3e-4, 1e-3), (0, 1, 2, 3, 4)
UPDATES, PROMPTS = 128, 4


def run(arm, n, rate, seed, weights):
    """One run: held-out pass@1 before and after, and what the last rollout's updates measured."""
    recipe, parameters, more, _ = ARMS[arm]
    steps = UPDATES // n
    settings = [f"learning_rate={rate}", f"seed={seed}", f"prompts_per_step={PROMPTS * n}", f"updates_per_step={n}"]
    settings += [f"steps={steps}", "evaluation.every=0", "evaluation.samples=4", *more]
    rows, problem = train(recipe, parameters, settings, weights)
    passed = [row["eval/pass@1"] for row in rows if "eval/pass@1" in row]
    last = rows[-1]
    return {
        "arm": arm, "n": n, "rate": rate, "seed": seed, "problem": problem, "pass@1": passed,
        "ess": last.get("mismatch/ess_current"), "lr_scale": last.get("lr_scale"), "entropy": last.get("entropy"),
        "seconds": sum(row.get("step_time", 0.0) for row in rows),
    }  # fmt: skip


def cell(runs, arm, n, rate):
    """Mean ± sd over seeds of the final pass@1; a run that diverged counts as 0 and is named."""
    found = [run for run in runs if (run["arm"], run["n"], run["rate"]) == (arm, n, rate)]
    if not found:
        return ""
    ends = [0.0 if run["problem"] else run["pass@1"][-1] for run in found]
    spread = f" ± {statistics.stdev(ends):.3f}" if len(ends) > 1 else ""
    lost = sum(bool(run["problem"]) for run in found)
    return f"{statistics.fmean(ends):.3f}{spread}" + (f" ({lost} diverged)" if lost else "")


def table(runs):
    """A line an arm and a learning rate."""
    heads = " | ".join(f"N = {n}" for n in MINIBATCHES)
    lines = [f"| arm | lr | {heads} |", "|---|---:|" + "---:|" * len(MINIBATCHES)]
    for arm in ARMS:
        for rate in RATES:
            cells = " | ".join(cell(runs, arm, n, rate) for n in MINIBATCHES)
            lines += [f"| {arm} | {rate:g} | {cells} |"]
    return "\n".join(lines)


PAGE = """# Staleness on the tiny task

{about}; `make bench-staleness`.

Held-out pass@1 (256 prompts, 4 samples each) after {updates} updates of 32 answers, N of them from one rollout; mean ±
standard deviation over {seeds} seeds, each with its own weights, warm start, prompts and held-out set; before:
{before}.
The learning rates were fixed beforehand and are the same for all.

{table}

The arms: {arms}.

ESS of the last update's answers, and the learning rate's factor of vcpo, at lr 0.0003 (means over seeds): {ess}.

Sampler and trainer are one program here, so ρ = π_old / π_rollout is 1 to rounding: what is stale is the data alone.
Corrections of ρ (TIS, IcePop, the masks, decoupled PPO) change nothing in this study and are not in it.
"""


def main():
    """All runs, two at a time."""
    names = sys.argv[1:] or list(ARMS)
    about = machine("make bench-staleness", ["torch", "transformers"])
    wanted = [(arm, n, rate, seed) for seed in SEEDS for rate in RATES for n in MINIBATCHES for arm in names]
    arms = list(ARMS)
    runs = all_runs(
        RESULTS / "staleness.json",
        about,
        ("arm", "n", "rate", "seed"),
        wanted,
        run=run,
        order=lambda run: (arms.index(run["arm"]), run["n"], run["rate"], run["seed"]),
    )
    write(about, runs)


def write(about, runs):
    """The page of what is there."""
    before = {run["seed"]: run["pass@1"][0] for run in runs}
    ess = []
    for arm in ("grpo", "vcpo"):
        for n in MINIBATCHES:
            found = [run for run in runs if (run["arm"], run["n"], run["rate"]) == (arm, n, 3e-4)]
            shares = [run["ess"] for run in found if run["ess"] is not None]
            scales = [run["lr_scale"] for run in found if run["lr_scale"] is not None]
            if shares:
                scale = f" (factor {statistics.fmean(scales):.2f})" if scales else ""
                ess.append(f"{arm} N = {n}: {statistics.fmean(shares):.2f}{scale}")
    text = PAGE.format(
        about=described(about),
        updates=UPDATES,
        seeds=len(SEEDS),
        before=", ".join(f"{before[seed]:.3f}" for seed in sorted(before)),
        table=table(runs),
        arms="; ".join(f"{arm}, {what}" for arm, (*_, what) in ARMS.items()),
        ess="; ".join(ess),
    )
    (RESULTS / "staleness.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
