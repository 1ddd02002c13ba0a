"""The adapters without their frameworks: what is said when one is missing, and the parts that need none."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import grpokit as gk
from grpokit.adapters.verl_options import RolloutWeights, mode_of
from grpokit.adapters.window import Window, averaged
from grpokit.equation import declare
from grpokit.tokens import Normalizer

ROOT = Path(__file__).parents[1]
ABSENT = """
import importlib.abc, json, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("trl", "verl"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in ("trl", "verl") else found(name, package)
try:
    import grpokit.adapters.NAME
except Exception as problem:
    print(json.dumps([type(problem).__name__, problem.kind, str(problem), sorted(sys.modules)]))
"""


@pytest.mark.parametrize(("name", "install"), [("trl", "trl==1.16.0"), ("verl", "verl==0.9.1")])
def test_a_framework_that_is_missing_is_named(name, install):
    code = ABSENT.replace("NAME", name)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    raised, kind, message, modules = json.loads(done.stdout)
    assert (raised, kind) == ("InputError", "missing_engine")
    assert f"grpokit.adapters.{name} needs {name}" in message
    assert f"pip install '{install}'" in message
    if name == "verl":
        assert not {"torch", "numpy", "ray"} & set(modules)


def test_the_package_itself_loads_nothing():
    code = "import sys, grpokit.adapters; print(not {'torch', 'trl', 'verl', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True\n"


def test_verl_is_told_where_to_look():
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["verl.plugins"]
    assert points == {"grpokit": "grpokit.adapters.verl"}
    assert (ROOT / "python" / "grpokit" / "adapters" / "verl.py").is_file()


def micros(seed=0):
    """Four micro-batches of two rows; of the second nothing is kept."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([[3, 5], [1, 4], [2, 5], [0, 4]])
    keep = torch.tensor([[1, 1], [0, 0], [1, 0], [1, 1]]).bool()
    for at in range(4):
        yield {
            "targets": torch.randint(9, (2, 5), generator=draw),
            "mask": torch.arange(5) < lengths[at][:, None],
            "keep": keep[at],
            "advantages": torch.randn(2, generator=draw),
            "rollout_ids": torch.tensor([2 * at, 2 * at + 1]),
            "old_logps": -torch.rand(2, 5, generator=draw),
        }


@pytest.mark.parametrize(
    "recipe",
    [
        gk.recipe("grpo", beta=0.0),
        gk.recipe("dapo", max_len=9),
        gk.recipe("clip_cov"),
        gk.recipe("rloo").replace(extra=(gk.Term(gk.Entropy(), -0.1),)),
    ],
    ids=lambda recipe: recipe.name,
)
def test_a_window_is_its_kept_rows_in_one_batch(recipe):
    columns = list(micros())
    logps = [-torch.rand(2, 5, generator=torch.Generator().manual_seed(9 + i)) for i in range(4)]
    logps[1][0, 0] = float("nan")  # of a row that is dropped
    entropies = [torch.rand(2, 5, generator=torch.Generator().manual_seed(99 + i)) for i in range(4)]
    leaves = [x.clone().requires_grad_() for x in logps], [x.clone().requires_grad_() for x in entropies]
    window = Window(columns, recipe, step=3, ranks=1)
    if window.needs_first_pass:
        for at in range(4):
            window.observe(at, logps[at], entropies[at])
    losses = [window.loss(at, leaves[0][at], leaves[1][at]) for at in range(4)]
    assert losses[1].item() == 0
    sum(losses).backward()

    keep = torch.cat([micro["keep"] for micro in columns])
    whole = {name: torch.cat([micro[name] for micro in columns])[keep] for name in columns[0] if name != "keep"}
    lp, h = (torch.cat(x)[keep].requires_grad_() for x in (logps, entropies))
    out = gk.loss.from_logps(lp, gk.TokenBatch(**whole, step=3), recipe, entropies=h)
    out.loss.backward()
    torch.testing.assert_close(sum(losses), out.loss)
    torch.testing.assert_close(torch.cat([x.grad for x in leaves[0]])[keep], lp.grad)
    assert (torch.cat([x.grad for x in leaves[0]])[~keep] == 0).all()
    if recipe.reads("entropies"):
        assert leaves[1][1].grad is None
        there = [x.grad for x in leaves[1] if x.grad is not None]
        torch.testing.assert_close(torch.cat(there)[torch.cat([columns[i]["keep"] for i in (0, 2, 3)])], h.grad)
    assert window.metrics == pytest.approx({name: float(x) for name, x in out.metrics.items()}, abs=1e-6)


def test_metrics_of_ranks_count_by_their_tokens():
    assert averaged([(3, {"kl": 1.0, "entropy": 2.0}), (1, {"kl": 5.0}), (0, {})]) == {"kl": 2.0, "entropy": 2.0}


@pytest.mark.parametrize("name", ["grpo", "rloo", "gpg"])
def test_counts_that_are_declared_make_parts_of_a_step(name):
    """Two ranks that have a batch each and know how much there is in all."""
    recipe = gk.recipe(name)
    recipe = recipe.replace(extra=())
    columns = [micro for micro in micros() if micro["mask"].any()]
    logps = [-torch.rand(2, 5, generator=torch.Generator().manual_seed(9 + i)) for i in range(len(columns))]

    def batch(of):
        names = ("targets", "mask", "advantages", "old_logps")
        return gk.TokenBatch(**{name: torch.cat([micro[name] for micro in of]) for name in names})

    whole = batch(columns)
    expected = gk.loss.from_logps(torch.cat(logps), whole, recipe).loss
    counts = Normalizer(torch.tensor(float(whole.live_tokens)).double(), torch.tensor(2.0 * len(columns)).double())
    total = 0.0
    for micro, lp in zip(columns, logps, strict=True):
        part = batch([micro])
        declare(part, recipe, counts, ranks=2)
        total += gk.loss.from_logps(lp, part, recipe).loss / 2
    torch.testing.assert_close(total, expected)


def test_what_verls_modes_are():
    assert mode_of(gk.TokenMean()) == ("token-mean", None)
    assert mode_of(gk.SequenceMean(over="rows")) == ("seq-mean-token-mean", None)
    assert mode_of(gk.SequenceSum(over="rows")) == ("seq-mean-token-sum", None)
    assert mode_of(gk.Constant(7, over="rows")) == ("seq-mean-token-sum-norm", 7)
    for none in (gk.TokenMean(over="kept"), gk.SequenceMean(), gk.SequenceSum(), gk.Constant(7)):
        assert mode_of(none) is None


def test_a_ratio_is_counted_once_with_verls_weights():
    with pytest.raises(gk.InputError) as caught:
        gk.recipe("decoupled_ppo").replace(correct=(gk.TIS(2.0), RolloutWeights()))
    assert caught.value.kind == "counted_twice"
