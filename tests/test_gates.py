"""Which recipes have closed forms, and why the others have none. What the kernel computes is in tests/kernels."""

from dataclasses import dataclass

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import grpokit as gk
from grpokit import gates
from grpokit.stages import EXAMPLES, of_papers
from tests.losses import BONUSES, cast, current, padded, recipe, table

D = cast(table(0), torch.float32)
EAGER = {
    "lad": "Divergence has no closed form here",
    "m2po_clip": "M2POClip of the current policy has no closed form here",
    "clip_cov": "ClipCov of the current policy has no closed form here",
    "kl_cov": "the extra term KL has no closed form here",
    "stapo": "S2TMask of the current policy has no closed form here",
    "high_entropy": "TopEntropy of the current policy has no closed form here",
}

LOWER = (
    "ppo_clip grpo dr_grpo nord dapo rloo reinforce_pp reinforce_pp_baseline remax opo gpg spo gspo gspo_token luspo "
    "gmpo cispo sapo maspo vespo oapl luffy decoupled_ppo icepop dppo m2po_mask vcpo"
)


def lower(r, batch=None, **more):
    batch = padded(D) if batch is None else batch
    return gates.lower(batch, r, current(batch, D) | more)


def test_the_recipes_that_lower():
    """None falls back to eager torch unnoticed."""
    made = {name: lower(gk.recipe(name, **EXAMPLES[name])) for name in of_papers("recipe")}
    assert {name: plan for name, plan in made.items() if isinstance(plan, str)} == EAGER
    assert " ".join(name for name in made if name not in EAGER) == LOWER


@dataclass(frozen=True)
class OurClip(gk.Clip):
    """Another package's: what it computes nobody here knows."""


@pytest.mark.parametrize(
    ("r", "why"),
    [
        (recipe(OurClip()), "OurClip has no closed form here"),
        (recipe(extra=(gk.Term(gk.Reinforce()),)), "the extra term Reinforce has no closed form here"),
        (
            recipe(extra=(gk.Term(gk.KL(), 0.1, (gk.IcePop(policy="current"),)),)),
            "the extra term KL has no closed form here",
        ),
        (recipe(correct=(gk.OPSM(0.1),), objective=gk.SequenceClip()), "OPSM parts the tokens of a sequence"),
        (
            recipe(gk.Reinforce(), (gk.TIS(normalize=True, policy="current"),)),
            "TIS of the current policy has no closed form here",
        ),
        (recipe(correct=(gk.DPPOMask(0.1, 0.1, "kl"),)), "DPPOMask of the current policy has no closed form here"),
        (recipe(correct=(gk.OPSM(0.1),), aggregate=gk.TokenMean(over="kept")), "the denominator counts what OPSM"),
        (recipe(correct=(gk.Veto(), gk.Veto(1e-5, policy="current"))), "two corrections of one name"),
    ],
)
def test_what_stays_in_eager_torch(r, why):
    assert lower(r).startswith(why)


def test_columns_that_stay_in_eager_torch():
    r, batch = recipe(extra=BONUSES), padded(D)
    now = current(batch, D)
    assert lower(r, values=now["logps"]) == "the column 'values' has a gradient"
    assert gates.lower(batch, r, {k: x.double() for k, x in now.items()}) == "logps are torch.float64"
    assert gates.lower(batch, r, {"logps": now["logps"]}) == "Entropy reads entropies"
    bare = gk.TokenBatch(D["targets"], mask=D["mask"], advantages=D["advantages"])
    assert lower(r, bare) == "KL reads ref_logps"
    assert lower(recipe(ratio="rollout"), bare) == "Clip reads rollout_logps"
    assert not isinstance(lower(recipe(), bare), str)


def test_a_part_costs_no_other_kernel():
    """Once the step is settled nothing is computed, read back or copied to launch the kernel."""
    r, batch = recipe(gk.Clip(), (gk.IcePop(), gk.Veto(policy="current")), extra=BONUSES), padded(D)
    made = lower(r, batch)
    seen = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
            seen.append(function.overloadpacket.__name__)
            return function(*arguments, **(kwargs or {}))

    for part in batch.split(20):
        now = {name: part.column(name, D[name][part.span]) for name in ("logps", "entropies")}
        seen.clear()
        with Seen():
            arguments, *_ = gates.launch(made, part, r, now)
        if part.rows.start:
            assert set(seen) <= {"slice", "empty_like", "new_empty"}
    assert arguments[0].shape == (part.live_tokens,)
