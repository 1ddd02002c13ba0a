"""best@k, worst@k and maj@k against verl's `process_validation_metrics`; writes attempts.{json,md}.

64 prompts with 16 attempts each, k of 2, 4, 8 and 16, 1,000 draws, as verl does it for every metric of a validation
run. Before they are timed the results are compared: all means must agree within what verl's bootstrap is uncertain by.

    make bench
"""

import sys
from functools import partial

import numpy as np
from timing import heading, machine, pair, save
from verl.trainer.ppo.metric_utils import process_validation_metrics

import grpokit as gk

PROMPTS, ATTEMPTS, KS, DRAWS = 64, 16, (2, 4, 8, 16), 1000


def cases(rng):
    """Right answers worth 1, wrong ones of several kinds worth 0; prompts of every difficulty."""
    difficulty = np.repeat(rng.beta(0.8, 0.8, PROMPTS), ATTEMPTS)
    right = rng.random(PROMPTS * ATTEMPTS) < difficulty
    answers = np.where(right, 0, rng.integers(1, 5, PROMPTS * ATTEMPTS))
    prompts = np.repeat(np.arange(PROMPTS), ATTEMPTS)
    yield "0 or 1", right.astype(float), answers, prompts
    yield "scores", right + 0.1 * answers, answers, prompts


def ours(values, answers, prompts):
    """From columns to every estimate."""
    groups, answered = gk.group(prompts), gk.group(answers)
    found = {}
    for k in KS:
        found[f"best@{k}"] = gk.best_at_k(values, groups, k)
        found[f"worst@{k}"] = gk.worst_at_k(values, groups, k)
        found[f"maj@{k}"] = gk.majority_at_k(values, groups, k, answers=answered, draws=DRAWS)
    return found


def main():
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    report = {"machine": machine("make bench", ("numpy", "verl")), "results": []}
    lines = [
        *heading("What k attempts would give", report["machine"]),
        f"{PROMPTS} prompts × {ATTEMPTS} attempts, k of {KS}, best, worst and maj; verl with {DRAWS:,} draws.",
        "",
        "| values | ours, ms | verl, ms | ratio | largest difference, in standard errors of the bootstrap |",
        "|---|---:|---:|---:|---:|",
    ]
    print(*lines, sep="\n")
    for kind, values, answers, prompts in cases(np.random.default_rng(0)):
        uids, infos = [f"prompt {prompt}" for prompt in prompts], {"acc": values.tolist(), "pred": answers.tolist()}
        mine = partial(ours, values, answers, prompts)
        rival = partial(process_validation_metrics, ["all"] * len(uids), uids, infos)
        theirs, worst = rival()["all"]["acc"], 0.0
        for name, estimate in mine().items():
            # verl draws the same rows for every prompt, so errors of its prompts may all point one way.
            error = max(estimate.std.mean() / np.sqrt(DRAWS), 1e-12)
            both = error * (np.sqrt(2) if name.startswith("maj") else 1)
            off = abs(estimate.mean - theirs[f"{name}/mean"]) / both
            apart = abs(estimate.std.mean() - theirs[f"{name}/std"])
            worst = max(worst, off)
            if off > 5 or apart > 0.05 * estimate.std.mean() + 5 * both:
                raise SystemExit(f"{name} disagrees by {off:.1f} standard errors: the bench compares different things")
        us, them = pair(mine, rival, seconds)
        ratio = them["best"] / us["best"]
        lines.append(f"| {kind} | {us['best']:.2f} | {them['best']:.0f} | {ratio:.0f} | {worst:.1f} |")
        print(lines[-1], flush=True)
        report["results"].append({"values": kind, "grpokit": us, "verl": them, "ratio": ratio, "apart": worst})
    save("attempts", report, lines)


if __name__ == "__main__":
    main()
