"""Every recipe on the trainer's tiny task: 100 steps, 3 seeds, one grid of learning rates, as it comes.

A seed has its own weights, warm start, prompts and held-out set; the recipes start from the same warm start of a seed.
Writes recipes.{json,md}; runs that are in recipes.json already, from the same commit, are not repeated.

    make bench-recipes                    # everything, about 40 minutes on two cores
    make bench-recipes ARGS="grpo dapo"   # some of them
"""

import statistics
import sys

from timing import RESULTS, machine
from training import all_runs, described, train

from grpokit.stages import EXAMPLES, of_papers

SEEDS, RATES, STEPS = (0, 1, 2), (1e-4, 3e-4, 1e-3), 100
LAST = 10


def run(name, rate, seed, weights):
    """One run from a warm start: what a row of the table is made of."""
    parameters = {k: v for k, v in EXAMPLES[name].items() if k != "max_len"}
    settings = [f"learning_rate={rate}", f"steps={STEPS}", f"seed={seed}", "evaluation.every=0"]
    rows, problem = train(name, parameters, settings, weights)
    steps, end = rows[1:], rows[1:][-LAST:]

    def mean(key):
        found = [row[key] for row in end if row.get(key) is not None]
        return statistics.fmean(found) if found else None

    return {
        "recipe": name, "rate": rate, "seed": seed, "problem": problem,
        "before": rows[0]["eval/pass@1"], "after": None if problem else rows[-1].get("eval/pass@1"),
        "steps_per_second": len(steps) / sum(row["step_time"] for row in steps) if steps else None,
        "completions": sum(row["sampling/completions"] for row in steps),
        "clipped": mean("clip_ratio/region_mean"), "entropy": mean("entropy"),
        "length": mean("completions/mean_length"),
    }  # fmt: skip


def table(runs):
    """A line a recipe: held-out pass@1 at each learning rate, and what the best of them looked like."""
    rates = " | ".join(f"lr {rate:g}" for rate in RATES)
    lines = [
        f"| recipe | {rates} | best | steps/s | completions | clipped | entropy | length |",
        "|---|" + "---:|" * (len(RATES) + 6),
    ]
    for name in dict.fromkeys(run["recipe"] for run in runs):
        cells, means = [], {}
        for rate in RATES:
            found = [run for run in runs if run["recipe"] == name and run["rate"] == rate]
            passed = [run["after"] for run in found if run["after"] is not None]
            if len(passed) == len(found) and passed:
                means[rate] = statistics.fmean(passed)
                spread = f" ± {statistics.stdev(passed):.3f}" if len(passed) > 1 else ""
                cells.append(f"{means[rate]:.3f}{spread}")
            else:
                cells.append(f"{len(found) - len(passed)} of {len(found)} diverged")
        best = max(means, key=means.get, default=None)
        rows = [run for run in runs if run["recipe"] == name and run["rate"] == best]

        def shown(key, digits, rows=rows):
            values = [row[key] for row in rows if row[key] is not None]
            return f"{statistics.fmean(values):,.{digits}f}" if values else ""

        cells += [f"{best:g}" if best else "none", shown("steps_per_second", 1), shown("completions", 0)]
        cells += [shown("clipped", 3), shown("entropy", 3), shown("length", 2)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


PAGE = """# Every recipe on the tiny task

{about}; `make bench-recipes`.

Held-out pass@1 (256 prompts, 8 samples each, a standard error of about 0.013) after {steps} steps of 16 prompts × 8
completions, two updates a step, mean ± standard deviation over {seeds} seeds; before: {before}.
A seed has its own weights, warm start, prompts and held-out set. The grid of learning rates was fixed beforehand and
is the same for all; "best" is the best mean of it on these very seeds, so it flatters every recipe alike. steps/s with
two runs at once; clipped, entropy and length are means of the last {last} steps at the best rate; completions are what
the steps sampled (dynamic sampling takes more; ReMax's greedy answers are not counted). ppo_clip has no critic here:
its advantages are the rewards themselves, 0 or 1, and nothing is pushed down.

{table}

What may be said: the task is sorting letters after a corrupted warm start, so reinforcement learning sharpens what the
policy knows. It shows that every recipe trains and which rates it stands here, and no more: neither the data nor the
length, staleness or size that the recipes differ for is in it. Required numbers are the examples of the table:
{examples}.
"""


def main():
    """All runs, two at a time."""
    known = list(of_papers("recipe"))
    names = sys.argv[1:] or known
    about = machine("make bench-recipes", ["torch", "transformers"])
    wanted = [(name, rate, seed) for name in names for seed in SEEDS for rate in RATES]
    runs = all_runs(
        RESULTS / "recipes.json",
        about,
        ("recipe", "rate", "seed"),
        wanted,
        run=run,
        order=lambda run: (known.index(run["recipe"]), run["rate"], run["seed"]),
    )
    before = {run["seed"]: run["before"] for run in runs}
    given = [f"{name} {EXAMPLES[name]}" for name in known if set(EXAMPLES[name]) - {"max_len"}]
    text = PAGE.format(
        about=described(about),
        steps=STEPS,
        seeds=len(SEEDS),
        last=LAST,
        before=", ".join(f"{before[seed]:.3f}" for seed in sorted(before)),
        table=table(runs),
        examples="; ".join(given),
    )
    (RESULTS / "recipes.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
