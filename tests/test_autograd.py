"""A model under the loss, as trainers run it: accumulation, checkpointing, DDP, fully_shard; from logits and hidden."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from grpokit import loss as losses
from tests.losses import RECIPES, TEMPERATURE, V, padded, same, table
from tests.test_ranks import RANKS

SIZE = {"workspace_bytes": 5 * V * 8}
DOORS = ["logits", "hidden"]
STEPS = {name: RECIPES[name] for name in ("dual_constant", "gspo_icepop")}


class Tiny(nn.Module):
    """A language model of fp64: embedding, a body of two layers, an LM head."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embedding = nn.Embedding(V, 6)
            self.body = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
            self.lm_head = nn.Linear(6, V, bias=False)
        self.double()

    def forward(self, ids, door="hidden"):
        hidden = self.body(self.embedding(ids))
        return self.lm_head(hidden) if door == "logits" else hidden


def step():
    """One optimizer step near the model: what it reads, and the batch's columns."""
    d = table(2)
    d["ids"] = torch.randint(V, d["mask"].shape, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        logp = (Tiny()(d["ids"], "logits") / TEMPERATURE).log_softmax(-1)
    logps = logp.gather(-1, d["targets"][..., None]).squeeze(-1)
    for name in ("old_logps", "rollout_logps", "ref_logps"):
        d[name] = d[name] - d["logps"] + logps
    return d


def loss_of(model, part, r, door, weight=None, **more):
    """The loss of a part, of a model that may be wrapped."""
    if door == "logits":
        return losses.from_logits(model(part.inputs, "logits"), part, r, **more).loss
    hidden = model(part.inputs)
    weight = getattr(model, "module", model).lm_head.weight if weight is None else weight(model)
    return losses.from_hidden(hidden, weight, part, r, **SIZE, **more).loss


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters()}


def whole(d, r):
    """The truth: the step in one process and one part, by a formula over all logits."""
    model = Tiny()
    batch = padded(d, inputs=d["ids"])
    loss = losses.from_logits(model.lm_head(model(batch.inputs)), batch, r).loss
    loss.backward()
    return loss.detach(), gradients(model)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", STEPS)
def test_accumulation_over_parts_is_the_whole(name, door):
    d, r, model = step(), STEPS[name], Tiny()
    loss, expected = whole(d, r)
    total = 0.0
    for part in padded(d, inputs=d["ids"]).split(20):
        out = loss_of(model, part, r, door)
        (out / 4).backward()
        total += out.detach()
    same([total, gradients(model)], [loss, {k: g / 4 for k, g in expected.items()}])


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("door", DOORS)
def test_checkpointing_the_body_and_the_loss(door, reentrant):
    d, r = step(), STEPS["dual_constant"]
    loss, expected = whole(d, r)
    batch = padded(d, inputs=d["ids"])

    class Checkpointed(Tiny):
        def forward(self, ids, door="hidden"):
            x = self.embedding(ids)
            hidden = checkpoint(self.body, x, use_reentrant=reentrant)
            return self.lm_head(hidden) if door == "logits" else hidden

    model = Checkpointed()
    out = loss_of(model, batch, r, door)
    out.backward()
    same([out.detach(), gradients(model)], [loss, expected])

    model = Tiny()

    def everything(hidden):
        if door == "logits":
            return losses.from_logits(model.lm_head(hidden), batch, r).loss
        return losses.from_hidden(hidden, model.lm_head.weight, batch, r, **SIZE).loss

    out = checkpoint(everything, model(d["ids"]), use_reentrant=reentrant)
    out.backward()
    same([out.detach(), gradients(model)], [loss, expected])


def test_in_place_under_accumulation():
    d, r, model = step(), STEPS["dual_constant"], Tiny()
    expected = whole(d, r)[1]
    for part in padded(d, inputs=d["ids"]).split(20):
        loss_of(model, part, r, "logits", inplace=True).backward()
    same([gradients(model)], [expected])


def test_what_was_overwritten_is_not_read_again():
    """A second backward pass, and a second loss of the same logits, see that they are gone."""
    d, r, model = step(), STEPS["dual_constant"], Tiny()
    batch = padded(d, inputs=d["ids"])
    logits = model(batch.inputs, "logits")
    kept = losses.from_logits(logits, batch, r).loss
    out = losses.from_logits(logits, batch, r, inplace=True).loss
    out.backward(retain_graph=True)
    for again in (out, kept):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            again.backward(retain_graph=True)


def test_without_gradients():
    d, r, model = step(), STEPS["gspo_icepop"], Tiny()
    loss = whole(d, r)[0]
    for door in DOORS:
        with torch.no_grad():
            out = loss_of(model, padded(d, inputs=d["ids"]), r, door)
        assert not out.requires_grad
        same([out], [loss])
    model.lm_head.requires_grad_(requires_grad=False)
    loss_of(model, padded(d, inputs=d["ids"]), r, "hidden").backward()
    expected = whole(d, r)[1]
    assert model.lm_head.weight.grad is None
    same(
        [{k: g for k, g in gradients(model).items() if g is not None}],
        [{k: expected[k] for k in expected if k != "lm_head.weight"}],
    )


WORKER = """
import sys
import torch.distributed as dist
from tests.test_autograd import on_a_rank

rank, place = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{place}/store", rank=rank, world_size=2)
on_a_rank(rank, place)
dist.destroy_process_group()
"""


def on_a_rank(rank, place):
    """This rank's share of the step under each wrapper: the gradients that all ranks have in the end."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Partial
    from torch.nn.parallel import DistributedDataParallel

    mesh = init_device_mesh("cpu", (2,))

    def shard(model, *modules):
        for module in (*modules, model):
            fully_shard(module, mesh=mesh)
        return model

    def gathered(model):
        return model.lm_head.weight.full_tensor(grad_placements=[Partial("avg")])

    def unsharded(model):
        model.lm_head.unshard()
        return model.lm_head.weight

    ways = {
        "ddp": lambda m: (DistributedDataParallel(m), None),
        "root": lambda m: (shard(m, m.body), None),
        "unsharded": lambda m: (shard(m, m.body, m.lm_head), unsharded),
        "gathered": lambda m: (shard(m, m.body, m.lm_head), gathered),
    }
    found = {}
    d = {k: x[RANKS[rank]] for k, x in step().items()}
    for name, r in STEPS.items():
        for way, wrap in ways.items():
            for door in DOORS:
                model, weight = wrap(Tiny())
                batch = padded(d, inputs=d["ids"], rollout_ids=torch.tensor(RANKS[rank]))
                batch.synchronize(r, reduction="mean")
                loss_of(model, batch, r, door, weight).backward()
                found[name, way, door] = {
                    k.removeprefix("module."): g.full_tensor() if hasattr(g, "full_tensor") else g
                    for k, g in gradients(model).items()
                }
    model, _ = ways["gathered"](Tiny())
    try:
        loss_of(model, batch, r, "hidden")
    except TypeError as problem:
        found["sharded"] = problem.kind
    torch.save(found, f"{place}/{rank}.pt")


def test_ranks_are_one_process(tmp_path):
    """Under DDP and fully_shard every rank ends with the gradients of the whole step."""
    root = Path(__file__).parent.parent
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(rank), str(tmp_path)], env=environment, cwd=root)
        for rank in (0, 1)
    ]
    try:
        assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found.pop("sharded") == "sharded_tensor"
        assert len(found) == 16
        for (name, *_), got in found.items():
            same([got], [whole(step(), STEPS[name])[1]])
