"""Two real processes: with shared denominators their gradients are those of the whole step in one."""

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch

import grpokit as gk
from tests.losses import BATCH_WEIGHTS, BONUSES, RECIPES, WEIGHED, padded, recipe, run, table

WORKER = """
import sys
import torch
import torch.distributed as dist
from grpokit import StateError
from grpokit import loss as losses
from tests.losses import RECIPES, padded, run, table
from tests.test_ranks import RANKS, SHARED, rows_of, steered

rank, place = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{place}/store", rank=rank, world_size=2)
found = {}
for name, r in SHARED.items():
    for reduction in ("sum", "mean"):
        d = rows_of(rank)
        batch = padded(d, rollout_ids=torch.tensor(RANKS[rank]))
        batch.synchronize(r, reduction=reduction)
        # One rank takes the batch in two parts, the other in one.
        loss, x, _ = run(batch, steered(r), d, split=20 if rank else None)
        found[name, reduction] = loss, x

# A rank without any sequence, and both without one.
for name, rows in (("alone", range(7) if rank == 0 else []), ("nobody", [])):
    d = {k: x[list(rows)] for k, x in table(2).items()}
    batch = padded(d, rollout_ids=torch.tensor(list(rows), dtype=torch.int64))
    batch.synchronize(SHARED["weight_clip_cov"], reduction="sum")
    found[name] = run(batch, SHARED["weight_clip_cov"], d)[1]

# What was observed before the ranks agreed does not count.
early = padded(rows_of(rank), rollout_ids=torch.tensor(RANKS[rank]))
r = SHARED["weight_s2t"]
for part in early.split(20):
    losses.observe(rows_of(rank)["logits"][part.span], part, r)
early.synchronize(r, reduction="sum")
try:
    part = early.split(20)[0]
    losses.from_logits(rows_of(rank)["logits"][part.span], part, r)
except StateError as problem:
    found["stale"] = problem.kind
found["early"] = run(early, r, rows_of(rank), split=20 if rank else None)[1]

try:
    run(batch, RECIPES["dual_constant"], d)
except StateError as problem:
    found["other"] = problem.kind
torch.save(found, f"{place}/{rank}.pt")
dist.destroy_process_group()
"""
SHARED = {
    name: RECIPES[name]
    for name in ("clip", "icepop_kept", "dual_constant", "gspo_icepop", "vespo_folds_icepop", "kl_alone", "luffy")
}
# What looks at the whole batch of all ranks, and what is counted of the current policy.
SHARED |= {
    name: WEIGHED[name]
    for name in (
        *(f"weight_{name}" for name in BATCH_WEIGHTS),
        "weight_m2po_mask",
        "weight_tis_sequence_normalized",
        "kl_cov",
    )
}
SHARED |= {name: WEIGHED[name] for name in ("weight_opsm", "weight_dppo_tv", "weight_icepop_current")}
SHARED["clip_cov_live"] = recipe(correct=(BATCH_WEIGHTS["clip_cov"],), extra=BONUSES)
SHARED["icepop_terms"] = recipe(correct=(gk.IcePop(0.8, 1.3),), aggregate=gk.TokenMean(over="kept"), extra=BONUSES)
RANKS = ([0, 1, 2, 4], [3, 5, 6])


def rows_of(rank):
    """Some of the sequences; one rank has more tokens than the other."""
    return {k: x[RANKS[rank]] for k, x in table(2).items()}


def steered(r):
    """A controller's change, after the denominators are settled."""
    return r.replace(extra=tuple(replace(term, scale=3 * term.scale) for term in r.extra))


def test_two_ranks_are_one_process(tmp_path):
    root = Path(__file__).parent.parent
    environment = os.environ | {"PYTHONPATH": str(root), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(rank), str(tmp_path)], env=environment, cwd=root)
        for rank in (0, 1)
    ]
    try:
        assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert [part["other"] for part in found] == ["not_synchronized"] * 2
    assert [part["stale"] for part in found] == ["not_observed"] * 2
    alone = run(padded(table(2)), SHARED["weight_clip_cov"], table(2))[1]
    torch.testing.assert_close(found[0]["alone"], alone, rtol=1e-12, atol=1e-14)
    assert [len(found[1]["alone"]), len(found[0]["nobody"])] == [0, 0]
    whole = run(padded(table(2)), SHARED["weight_s2t"], table(2))[1]
    for rank in (0, 1):
        torch.testing.assert_close(found[rank]["early"], whole[RANKS[rank]], rtol=1e-12, atol=1e-14)
    d = table(2)
    for name, r in SHARED.items():
        loss, x, _ = run(padded(d), steered(r), d)
        for reduction, factor in (("sum", 1.0), ("mean", 0.5)):
            total = sum(factor * part[name, reduction][0] for part in found)
            torch.testing.assert_close(total, loss, rtol=1e-12, atol=1e-14)
            for rank in (0, 1):
                torch.testing.assert_close(
                    factor * found[rank][name, reduction][1], x[RANKS[rank]], rtol=1e-12, atol=1e-14
                )


@dataclass(frozen=True)
class Centred(gk.Objective):
    """Batch scope, which a weight may have and an objective may not."""

    reads: ClassVar[frozenset[str]] = frozenset({"logps"})
    scope: ClassVar[str] = "batch"

    def value(self, tokens):
        return tokens.logps - tokens.logps.mean()


def test_what_ranks_cannot_share():
    d = table(2)
    with pytest.raises(gk.InputError) as caught:
        padded(d).synchronize(recipe(Centred()))
    assert caught.value.kind == "not_across_ranks"
    with pytest.raises(gk.InputError, match="ClipCov reads 'rollout_ids'"):
        padded(d).synchronize(WEIGHED["weight_clip_cov"])
    with pytest.raises(gk.InputError, match="reduction='max'; expected 'mean' or 'sum'"):
        padded(d).synchronize(RECIPES["clip"], reduction="max")
