"""`grpokit.balance` against verl's `get_seqlen_balanced_partitions`, and what `grpokit.pack` takes; writes packing.md.

Both get the lengths in the form that suits them, ours a NumPy array and verl's a list, and take turns in one run.
Before they are timed their partitions are checked: every row once, counts as asked, and in tokens no worse a spread
than verl's.

    make bench
"""

import sys
from functools import partial

import numpy as np
from timing import heading, machine, pair, save
from verl.utils.seqlen_balancing import get_seqlen_balanced_partitions

import grpokit as gk

N, RANKS = 4096 * 16, 8


def lengths_of(kind, rng):
    if kind == "uniform":
        return rng.integers(100, 20_000, N)
    # Most answers are short, some run into the limit.
    return np.minimum(np.exp(rng.normal(7.5, 1.0, N)), 20_480).astype(np.int64)


def spread_of(name, parts, lengths, *, equal_counts):
    """The spread of a partition, which is checked to be one."""
    rows = np.sort(np.concatenate(parts))
    counts = {len(part) for part in parts}
    if not np.array_equal(rows, np.arange(N)) or (equal_counts and len(counts) > 1):
        raise SystemExit(f"{name} gives no such partition: the bench compares different things")
    loads = [int(lengths[part].sum()) for part in parts]
    return max(loads) - min(loads)


def main():
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 4.0
    rng = np.random.default_rng(0)
    report = {"machine": machine("make bench", ("numpy", "verl")), "balance": [], "pack": []}
    lines = [
        *heading("Balancing and packing", report["machine"]),
        f"{N:,} lengths to {RANKS} ranks:",
        "",
        "| lengths | cost | equal counts | ours, ms | verl, ms | ratio | our spread | verl's spread |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    print(*lines, sep="\n")
    for kind in ("uniform", "lognormal"):
        lengths = lengths_of(kind, rng)
        for cost in (None, (24_576, 1)):
            costs = lengths if cost is None else 24_576 * lengths + lengths * lengths
            listed = costs.tolist()
            for equal in (True, False):
                ours = partial(gk.balance, lengths, ranks=RANKS, equal_counts=equal, cost=cost)
                rival = partial(get_seqlen_balanced_partitions, listed, RANKS, equal)
                mine = spread_of("grpokit", ours().ranks, costs, equal_counts=equal)
                theirs = spread_of("verl", rival(), costs, equal_counts=equal)
                # Of a cost's 10^12 both leave a few; which of them fewer is chance, the method is the same.
                if cost is None and mine > theirs:
                    raise SystemExit(f"our spread is {mine}, verl's {theirs}")
                us, them = pair(ours, rival, seconds)
                times = f"{us['best']:.2f} | {them['best']:.0f} | {them['best'] / us['best']:.0f}"
                what = "tokens" if cost is None else "24,576·n + n²"
                lines.append(f"| {kind} | {what} | {'yes' if equal else 'no'} | {times} | {mine} | {theirs} |")
                print(lines[-1], flush=True)
                row = {"lengths": kind, "cost": what, "equal_counts": equal, "spread": mine, "verl's spread": theirs}
                report["balance"].append(row | {"grpokit": us, "verl": them})
        ours = partial(gk.pack, lengths, max_tokens=32_768)
        row = {
            "lengths": kind,
            "best": pair(ours, ours, 1.0)[0]["best"],
            "bins": len(ours().bins),
            "waste": ours().waste,
        }
        report["pack"].append(row | {"at_least": -(-int(lengths.sum()) // 32_768)})
    lines += ["", f"{N:,} lengths into budgets of 32,768:", ""]
    for row in report["pack"]:
        bins = f"{row['bins']:,} bins (at least {row['at_least']:,}), {row['waste']:.3%} empty"
        lines.append(f"- {row['lengths']}: {row['best']:.1f} ms, {bins}")
        print(lines[-1])
    save("packing", report, lines)


if __name__ == "__main__":
    main()
