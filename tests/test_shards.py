"""A vocabulary that is split over two real ranks: the loss and each shard's gradient are those of whole rows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import grpokit as gk
from grpokit import loss as losses
from grpokit.vocabulary import VocabularyShard
from tests.losses import RECIPES, V, padded, run, same, table

FIRST = (0, 5, V)
NAMES = ("clip", "gspo_icepop", "kl_alone", "dual_constant", "luffy")
# Of the kernels, which see two numbers a token of any recipe: with an entropy term and without.
CASES = [
    *((name, "eager", 1e-12) for name in NAMES),
    ("clip", "two_kernel", 2e-5),
    ("dual_constant", "two_kernel", 2e-5),
]
WORKER = """
import sys
import torch
import torch.distributed as dist
from tests.test_shards import shares

rank, place = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{place}/store", rank=rank, world_size=2)
torch.save(shares(rank), f"{place}/{rank}.pt")
dist.destroy_process_group()
"""


def rows(dtype=torch.float64):
    d = table(5)
    logits = d["logits"].clone()
    # Rows whose columns on one shard are all −∞: padding of the vocabulary, or what the sampler was not allowed.
    target_first = (d["targets"] < FIRST[1])[..., None]
    column = torch.arange(V) < FIRST[1]
    logits[:, :3] = torch.where((target_first ^ column)[:, :3], -torch.inf, logits[:, :3])
    return d | {"logits": logits.to(dtype)}


def shares(rank):
    """What one rank gets of each recipe, back end and way to write."""
    shard, columns, found = VocabularyShard(FIRST[rank], V), slice(FIRST[rank], FIRST[rank + 1]), {}
    for name, kernel, _ in CASES:
        for inplace in (False, True):
            d = rows(torch.float64 if kernel == "eager" else torch.float32)
            leaf = d["logits"][..., columns].clone().requires_grad_()
            # A tensor of its own to be overwritten; a part of the batch and the rest.
            for part in padded(d).split(20):
                x = leaf[part.span] * 1
                out = losses.from_logits(x, part, RECIPES[name], shard=shard, inplace=inplace, kernel=kernel)
                out.loss.backward()
                found.setdefault((name, kernel, inplace), []).append((out.loss.detach(), out.metrics["kernel"]))
            found[name, kernel, inplace].append(leaf.grad)
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    place = tmp_path_factory.mktemp("shards")
    root = Path(__file__).parents[1]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(root), "GLOO_SOCKET_IFNAME": "lo"}
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(rank), str(place)], env=environment, cwd=root)
        for rank in (0, 1)
    ]
    try:
        assert [worker.wait(timeout=240) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    return [torch.load(place / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(("name", "kernel", "tolerance"), CASES)
def test_two_shards_are_the_whole(ranks, name, kernel, tolerance, inplace):
    d = rows()
    loss, gradient, _ = run(padded(d), RECIPES[name], d)
    found = [of_rank[name, kernel, inplace] for of_rank in ranks]
    for *parts, _ in found:
        assert {how for _, how in parts} == {kernel}
        same([sum(x for x, _ in parts).double()], [loss], tolerance)
    same([torch.cat([of_rank[-1] for of_rank in found], -1).double()], [gradient], tolerance)


def test_targets_are_held_against_the_whole_vocabulary():
    batch = gk.TokenBatch(torch.tensor([[3, 9]]), advantages=torch.ones(1))
    with pytest.raises(gk.InputError, match="the logits have 9 entries") as raised:
        losses.from_logits(torch.zeros(1, 2, 4), batch, gk.recipe("rloo"), shard=VocabularyShard(0, 9))
    assert raised.value.kind == "target_range"
