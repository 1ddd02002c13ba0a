"""The group path against the rivals that a user would pick, in one run; writes benches/results/group_path.{json,md}.

Ours is `grpokit.process`, from the caller's table to `keep` and `advantages`, every check included. The rivals get
columns in the form that suits them best.

    make bench
"""

import os
import shutil
import subprocess
import sys
import uuid
import warnings

os.environ.update(CUDA_VISIBLE_DEVICES="", VERL_FORCE_DEVICE="cpu", RAY_USAGE_STATS_ENABLED="0", POLARS_VERBOSE="0")
warnings.filterwarnings("ignore")

import numpy as np
import polars as pl
import torch
from timing import ROOT, heading, machine, pair, same, save
from verl.trainer.ppo.core_algos import get_adv_estimator_fn

import grpokit as gk

EPS = 1e-6  # verl's, so that the advantages can be compared
GRPO = gk.recipe("grpo", eps=EPS).replace(select=(gk.HasSignal(),))
DAPO = gk.recipe("dapo", max_len=20_480)


def numpy_pass(codes, rewards, *, exact=True):
    """Keep and advantages in NumPy written well. `exact`: signal is max > min, and not std > 0."""
    n = np.bincount(codes)
    mean = np.bincount(codes, rewards) / n
    d = rewards - mean[codes]
    std = np.sqrt(np.bincount(codes, d * d) / np.maximum(n - 1, 1))
    if exact:
        last = np.empty(len(n))
        last[codes] = rewards
        signal = np.bincount(codes, rewards != last[codes]) > 0
    else:
        signal = std > 0
    keep = signal[codes]
    return keep, np.where(keep, d / (std + EPS)[codes], 0.0)


def numpy_strings(ids, rewards):
    return numpy_pass(np.unique(ids, return_inverse=True)[1], rewards)


def polars_mean(frame):
    return frame.select(pl.col("reward").mean().over("group_id"))


def polars_pass(frame):
    """DAPO's whole pass as one lazy query."""
    r, length = pl.col("reward"), pl.col("response_len").cast(pl.Float64)
    shaped = r + ((20_480 - 4_096 - length) / 4_096).clip(-1, 0)
    keep = (r.max() > r.min()).over("group_id")
    frame = frame.lazy().with_columns(shaped=shaped, keep=keep)
    s = pl.col("shaped")
    norm = ((s - s.mean()) / (s.std() + 1e-4)).over("group_id")
    return frame.with_columns(advantage=pl.when("keep").then(norm).otherwise(0.0)).select("keep", "advantage").collect()


def verl(name, ids, rewards):
    """The group part alone: one token an answer, which spares verl its (N, T) broadcast."""
    scores, mask = torch.tensor(rewards, dtype=torch.float32)[:, None], torch.ones(len(rewards), 1, dtype=torch.int64)
    estimator = get_adv_estimator_fn(name)

    def call():
        return estimator(token_level_rewards=scores, response_mask=mask, index=ids)[0][:, 0].numpy()

    return call


def cases(n, order, seed=0):
    """The three kinds of ids on the same rows, each with its rivals."""
    rng = np.random.default_rng(seed)
    groups = n // 16
    ids = np.repeat(np.arange(groups), 16)
    if order == "shuffled":
        ids = rng.permutation(ids)
    # Verifiable rewards in groups of every difficulty, about a third of them without signal.
    rewards = (rng.random(n) < rng.beta(0.4, 0.4, groups)[ids]).astype(np.float64)
    lengths = rng.integers(100, 24_000, n).astype(np.int32)
    names = np.array([str(uuid.UUID(bytes=rng.bytes(16))) for _ in range(groups)], object)
    # A str of its own for every row, as a loader makes them, and not one shared by the group.
    strings = np.array([(name + " ")[:-1] for name in names[ids]], object)
    frame = pl.DataFrame({"group_id": names[ids].tolist(), "reward": rewards, "response_len": lengths})
    table = {"reward": rewards, "response_len": lengths}

    expected = gk.process({"group_id": ids, **table}, GRPO)
    keep, advantages = numpy_pass(ids, rewards)
    same("NumPy", advantages, expected.advantages, 1e-9)
    same("NumPy's filter", keep, expected.keep, 0)
    same("polars", polars_pass(frame)["advantage"].to_numpy(), gk.process(frame, DAPO).advantages, 1e-9)

    yield (
        "integers",
        {
            "grpokit": lambda: gk.process({"group_id": ids, **table}, GRPO),
            "NumPy (bincount)": lambda: numpy_pass(ids, rewards),
            "NumPy (bincount, std > 0: wrong)": lambda: numpy_pass(ids, rewards, exact=False),
        },
    )
    rivals = {"NumPy (unique)": lambda: numpy_strings(strings, rewards)}
    fast = verl("grpo_vectorized", strings, rewards)
    # verl's vectorised estimator floors the variance, which changes groups of tiny spread only.
    same("verl", fast()[expected.keep], expected.advantages[expected.keep], 2e-3)
    rivals["verl 0.9.1 grpo_vectorized"] = fast
    if n <= 65_536:
        rivals["verl 0.9.1 grpo (its default)"] = verl("grpo", strings, rewards)
    yield "Python strings", {"grpokit": lambda: gk.process({"group_id": strings, **table}, GRPO), **rivals}
    yield (
        "Arrow strings",
        {
            "the whole DAPO pass": lambda: gk.process(frame, DAPO),
            "polars, mean per group alone": lambda: polars_mean(frame),
            "polars, the whole DAPO pass": lambda: polars_pass(frame),
        },
    )


def instructions():
    """Instructions a row of the core's pass, which do not depend on the machine's other work."""
    program = ROOT / "target" / "release" / "examples" / "group_path"
    if not (shutil.which("valgrind") and program.exists()):
        return {}
    counted = {}
    for kind in ("integers", "strings"):
        for order in ("contiguous", "shuffled"):
            totals = []
            for what in ("setup", "pass"):
                command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", str(program), "65536"]
                done = subprocess.run([*command, kind, order, what], capture_output=True, text=True, check=True)
                line = next(line for line in done.stderr.splitlines() if "Collected" in line)
                totals.append(int(line.split(":")[1]))
            counted[f"{kind}, {order}"] = round((totals[1] - totals[0]) / 65_536, 1)
    return counted


def main():
    np.ones(4_000_000).sum()  # grows the allocator once, so that no rival pays for it
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 4.0
    results = []
    for n in (65_536, 1_048_576):
        for order in ("contiguous", "shuffled"):
            for kind, calls in cases(n, order):
                (what, ours), *rivals = calls.items()
                for name, rival in rivals:
                    mine, theirs = pair(ours, rival, seconds)
                    ratio = theirs["best"] / mine["best"]
                    row = {"rows": n, "order": order, "ids": kind, "ours": what, "rival": name, "ratio": ratio}
                    results.append(row | {"grpokit": mine, "theirs": theirs})
                    figures = f"{mine['best']:9.3f} ms  {theirs['best']:9.3f} ms  {ratio:8.2f}x"
                    print(f"{n:>9,} {order:<10} {kind:<15} {name:<33} {figures}", flush=True)
    about = machine("make bench", ("numpy", "polars", "torch", "verl"))
    report = {"machine": about, "instructions_a_row": instructions(), "results": results}
    save("group_path", report, markdown(report))


def markdown(report):
    lines = [
        *heading("The group path", report["machine"]),
        "Ours goes from the caller's table to `keep` and `advantages` with every check. verl's estimators are called",
        "with one token an answer, which spares them the (N, T) result. `std > 0` keeps constant groups that",
        "rounding gives a deviation; it is shown because it is what people write.",
        "",
        "| rows | order | ids | rival | ours, ms | rival, ms | ratio |",
        "|---:|---|---|---|---:|---:|---:|",
    ]
    for r in report["results"]:
        what = r["rival"] if r["ours"] == "grpokit" else f"{r['rival']} (against {r['ours']})"
        figures = f"{r['grpokit']['best']:.3f} | {r['theirs']['best']:.3f} | {r['ratio']:.2f}"
        lines.append(f"| {r['rows']:,} | {r['order']} | {r['ids']} | {what} | {figures} |")
    if report["instructions_a_row"]:
        lines += ["", "Instructions a row of the core's whole pass (callgrind, 65,536 rows, one thread):", ""]
        lines += [f"- {name}: {count}" for name, count in report["instructions_a_row"].items()]
    return lines


if __name__ == "__main__":
    main()
