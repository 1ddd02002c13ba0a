"""Selection against what frameworks do, ids in every container, and what large tables take; writes rows.{json,md}.

make bench
"""

import importlib.util
import json
import os
import subprocess
import sys
import time
import types
import uuid
import warnings
from collections import defaultdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace

os.environ.update(CUDA_VISIBLE_DEVICES="", VERL_FORCE_DEVICE="cpu", RAY_USAGE_STATS_ENABLED="0", POLARS_VERBOSE="0")
warnings.filterwarnings("ignore")

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
from timing import heading, machine, pair, save

import grpokit as gk

FILTER = gk.recipe("rloo").replace(select=(gk.HasSignal(),))
GROUPS, SIZE = 4096, 16


def dict_of_lists(ids, rewards):
    """Dynamic sampling as verl's DAPO recipe does it: a dict of lists, numpy.std, and a list to look ids up in."""
    values = defaultdict(list)
    for uid, value in zip(ids, rewards, strict=True):
        values[uid].append(value)
    spread = {uid: np.std(of) for uid, of in values.items()}
    kept = [uid for uid, std in spread.items() if std > 0 or len(values[uid]) == 1]
    return [row for row, uid in enumerate(ids) if uid in kept]


def replay_buffer(ids, rewards):
    """The filter of verl 0.9.1's replay buffer itself; its transport answers at once, from memory."""
    stub = types.ModuleType("transfer_queue")
    stub.KVBatchMeta = object
    sys.modules.setdefault("transfer_queue", stub)
    # The module alone: its package imports what this does not need.
    home = Path(importlib.util.find_spec("verl").origin).parent
    spec = importlib.util.spec_from_file_location("replay_buffer", home / "trainer/ppo/v1/replay_buffer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    keys = [f"{uid}_{row}_0" for row, uid in enumerate(ids)]
    fields = [SimpleNamespace(data={"reward_extra_info": {"acc": value}}) for value in rewards]
    module.tq.kv_batch_get = lambda **_: {"extra_fields": fields}
    buffer = object.__new__(next(c for c in vars(module).values() if hasattr(c, "_dapo_filtered_keys")))
    buffer.filter_groups_metric = "acc"
    buffer.partitions = {"train": keys}
    uids = {key.split("_")[0] for key in keys}

    def call():
        buffer.finished_keys = {"train": set(uids)}
        buffer._dapo_classification_cache = {"train": {}}
        return buffer._dapo_filtered_keys("train")[0]

    return call


def outcomes(rng, ids, share):
    """0 or 1, and about that share of the groups with both."""
    groups = int(ids.max()) + 1
    mixed = rng.random(groups) < share
    rate = np.where(mixed, rng.uniform(0.2, 0.8, groups), rng.integers(0, 2, groups))
    return (rng.random(len(ids)) < rate[ids]).astype(np.float64)


def names(rng, groups):
    return np.array([str(uuid.UUID(bytes=rng.bytes(16))) for _ in range(groups)], object)


def filters(seconds):
    rng = np.random.default_rng(0)
    for order in ("contiguous", "shuffled"):
        ids = np.repeat(np.arange(GROUPS), SIZE)
        if order == "shuffled":
            ids = rng.permutation(ids)
        array = np.array([(name + " ")[:-1] for name in names(rng, GROUPS)[ids]], object)
        for share in (0.3, 0.66, 0.9):
            rewards = outcomes(rng, ids, share)
            kept = float(gk.process({"group_id": ids, "reward": rewards}, FILTER).keep.mean())
            for form in ("array", "list"):
                column, values = (array, rewards) if form == "array" else (array.tolist(), rewards.tolist())
                ours = partial(gk.process, {"group_id": column, "reward": values}, FILTER)
                out = ours()
                rivals = {"dict of lists": partial(dict_of_lists, column, values)}
                if dict_of_lists(column, values) != np.flatnonzero(out.keep).tolist():
                    raise SystemExit("the filters disagree: the bench compares different things")
                rivals["verl 0.9.1's replay buffer"] = replay_buffer(column, rewards.tolist())
                lost = {column[row] for row in np.flatnonzero(~out.keep)}
                if rivals["verl 0.9.1's replay buffer"]() != lost:
                    raise SystemExit("verl's filter disagrees: the bench compares different things")
                for name, rival in rivals.items():
                    mine, theirs = pair(ours, rival, seconds)
                    row = {"order": order, "ids": form, "kept": round(kept, 2), "rival": name}
                    yield row | {"grpokit": mine, "theirs": theirs, "ratio": theirs["best"] / mine["best"]}


def containers(seconds):
    """The same million rows with string ids, from every library, against NumPy's unique alone."""
    rng = np.random.default_rng(1)
    for order in ("contiguous", "shuffled"):
        ids = np.repeat(np.arange(65_536), SIZE)
        ids = rng.permutation(ids) if order == "shuffled" else ids
        text = [(name + " ")[:-1] for name in names(rng, 65_536)[ids]]
        array = np.array(text, object)
        table = {"group_id": text, "reward": outcomes(rng, ids, 0.66)}
        forms = {
            "polars": pl.DataFrame(table),
            "pyarrow": pa.table(table),
            "pyarrow, dictionary": pa.table(table | {"group_id": pa.array(text).dictionary_encode()}),
            "pandas": pd.DataFrame(table),
            "NumPy objects": table | {"group_id": array},
            "NumPy U36": table | {"group_id": np.array(text)},
            "list of str": table,
        }
        forms["polars"].__arrow_c_stream__()  # joins its chunks, once
        for name, form in forms.items():
            mine, theirs = pair(
                partial(gk.process, form, FILTER), partial(np.unique, array, return_inverse=True), seconds
            )
            row = {"order": order, "container": name, "grpokit": mine, "theirs": theirs}
            yield row | {"ratio": theirs["best"] / mine["best"]}


def large(rows, order):
    """In a process of its own: seconds and peak memory of one call."""
    rng = np.random.default_rng(2)
    ids = np.repeat(np.arange(rows // SIZE), SIZE)
    if order == "shuffled":
        rng.shuffle(ids)
    table = {"group_id": ids, "reward": rng.integers(0, 2, rows).astype(np.float64)}
    report = {"rows": rows, "order": order}
    # The first call also pays for memory that the machine hands out for the first time.
    for call in ("first", "second"):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts from here
        before = memory("VmRSS")
        start = time.perf_counter()
        out = gk.process(table, FILTER)
        report[call] = time.perf_counter() - start
        report["bytes_a_row"] = (memory("VmHWM") - before) / len(out)
        del out
    print(json.dumps(report))


def memory(line):
    """Bytes, as the kernel counts them."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(next(x for x in status.splitlines() if x.startswith(line)).split()[1])


def sizes():
    for order in ("contiguous", "shuffled"):
        for rows in (1_000_000, 10_000_000, 100_000_000):
            command = [sys.executable, __file__, "large", str(rows), order]
            yield json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main():
    if sys.argv[1:2] == ["large"]:
        large(int(sys.argv[2]), sys.argv[3])
        return
    np.ones(4_000_000).sum()  # grows the allocator once, so that no rival pays for it
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 3.0
    report = {"machine": machine("make bench", ("numpy", "polars", "pandas", "pyarrow", "verl"))}
    for name, rows in (("filters", filters(seconds)), ("containers", containers(seconds)), ("sizes", sizes())):
        report[name] = []
        for row in rows:
            print(name, {k: v for k, v in row.items() if k not in ("grpokit", "theirs")}, flush=True)
            report[name].append(row)
    save("rows", report, markdown(report))


def markdown(report):
    lines = [
        *heading("Selecting rows", report["machine"]),
        f"Dynamic sampling of {GROUPS:,} groups of {SIZE}, Python strings as ids: `gk.process` (keep and advantages)",
        "against the dict of lists with a look-up in a list that verl's DAPO recipe has, and against the filter of",
        "verl's replay buffer, whose transport answers from memory.",
        "",
        "| order | ids | kept | rival | ours, ms | rival, ms | ratio |",
        "|---|---|---:|---|---:|---:|---:|",
    ]
    for r in report["filters"]:
        figures = f"{r['grpokit']['best']:.3f} | {r['theirs']['best']:.1f} | {r['ratio']:,.0f}"
        lines.append(f"| {r['order']} | {r['ids']} | {r['kept']:.0%} | {r['rival']} | {figures} |")
    lines += [
        "",
        "A million rows with string ids in every container, the whole pass, against `np.unique` of the objects alone:",
        "",
        "| order | container | ours, ms | np.unique, ms | ratio |",
        "|---|---|---:|---:|---:|",
    ]
    for r in report["containers"]:
        figures = f"{r['grpokit']['best']:.1f} | {r['theirs']['best']:.0f} | {r['ratio']:.0f}"
        lines.append(f"| {r['order']} | {r['container']} | {figures} |")
    lines += [
        "",
        "Integer ids, in a process of its own; the first call pays for memory that the machine has not handed out",
        "before. Peak memory beside the caller's columns (16 bytes a row):",
        "",
        "| rows | order | first call, s | second call, s | million rows/s | peak bytes a row |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    for r in report["sizes"]:
        speed = r["rows"] / r["second"] / 1e6
        figures = f"{r['first']:.3f} | {r['second']:.3f} | {speed:.0f} | {r['bytes_a_row']:.0f}"
        lines.append(f"| {r['rows']:,} | {r['order']} | {figures} |")
    return lines


if __name__ == "__main__":
    main()
