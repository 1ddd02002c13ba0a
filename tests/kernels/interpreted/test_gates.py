"""The kernel of coefficients against eager torch, in Triton's interpreter."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import grpokit as gk
from grpokit import gates
from grpokit.equation import declare
from grpokit.tokens import Normalizer
from tests.kernels.recipes import LOWER, PAPERS, D, check, eager, plan
from tests.losses import current, kinks, padded, permute, recipe, table

# What a GPU computes without a word, NumPy warns of.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
BLOCK = 4


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """So that a sequence of 9 tokens takes three."""
    monkeypatch.setattr(gates, "BLOCK", BLOCK)


@pytest.mark.parametrize("name", LOWER)
def test_equal_to_eager(name):
    """Sequences below, at and above a block, of one token and of none; in parts."""
    check(table(3, lengths=(9, 4, 0, 1), near=0.3), LOWER[name], split=18)


ON_SEQUENCES = [
    name
    for name, r in LOWER.items()
    if isinstance(r.objective, gates.ON_SEQUENCES) and name.startswith(("gate", "late", "paper", "gmpo"))
]


@pytest.mark.parametrize("name", [*ON_SEQUENCES, "late_opsm", "luffy", "paper_dapo"])
def test_advantages_per_token(name):
    check(table(4, lengths=(5, 9, 0), near=0.3, per_token=True), LOWER[name])


def steps(d_T, advantages, *, alone):
    """Tokens of which log r is d, for each of the advantages: sequences of one token, or one sequence of all."""
    d_T, A = torch.tensor(d_T).repeat(len(advantages)), torch.tensor(advantages).repeat_interleave(len(d_T))
    shape = (len(d_T), 1) if alone else (1, len(d_T))
    d = table(5, lengths=(shape[1],) * shape[0], per_token=True)
    # With π_old = 1 the difference of log-probs has the bits of d.
    logps, old, off = d_T.double().view(shape), torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)
    d |= {"mask": ~off, "off_policy": off, "advantages": A.double().view(shape), "entropies": -logps}
    return d | {"logps": logps, "old_logps": old, "rollout_logps": old - 0.1, "ref_logps": logps - 0.2}


@pytest.mark.parametrize(
    "objective",
    [
        gk.Clip(0.2, 0.28, 3.0),
        gk.Clip(None, None),
        gk.ClippedWeight(4.0, 0.1),
        gk.SoftGate(2.0, 3.0),
        gk.GaussianGate(0.3),
        gk.QuadraticPenalty(),
        gk.MixedPolicy(0.1, 0.2, 0.28),
        gk.SequenceClip(0.05, 0.1, 1.2),
        gk.SequenceClip(),
        gk.SequenceClipToken(0.05, 0.1),
        gk.GeometricClip(0.2, 0.3),
        gk.GammaWeight(),
    ],
    ids=str,
)
def test_at_and_beyond_the_bounds(objective):
    """The gate is open at the same bits as in eager fp32, for every sign of A."""
    at = [0.0]
    for x in kinks(objective):
        exact = torch.tensor(x, dtype=torch.float32)
        at += [float(exact), float(exact.nextafter(99 * exact.sign()))]
    d = steps([*at, 25.0, -25.0], [1.0, -1.0, 0.0], alone=objective.scope == "sequence")
    r = recipe(objective)
    ((_, gradients, metrics),) = check(d, r, bounds=True)
    batch = padded({k: x.float() if x.is_floating_point() else x for k, x in d.items()})
    now = {k: x.float() for k, x in current(batch, d).items()}
    expected = eager(batch, r, now)
    assert torch.equal(gradients["logps"] == 0, expected[1]["logps"] == 0)
    assert metrics["clip_ratio/region_mean"] == expected[2]["clip_ratio/region_mean"]


@pytest.mark.parametrize("rule", [gk.TIS(1.5, low=0.5), gk.IcePop(0.5, 1.5), gk.SequenceMask(1.5, 0.5), gk.Veto(0.5)])
def test_at_the_bounds_of_a_weight(rule):
    """On-policy, so that the kernel makes the weight: what is kept is what eager fp32 keeps."""
    at = [float(torch.tensor(math.log(x), dtype=torch.float32)) for x in (0.5, 1.5)]
    at += [x + e for x in at for e in (-1e-6, 1e-6)] + [0.0, 25.0, -25.0]
    d = steps(at, [1.0], alone=rule.scope == "sequence")
    check(d | {"rollout_logps": d["old_logps"]}, recipe(gk.Reinforce(), (rule,)), bounds=True, old_logps=None)


COLUMNS = ("logps", "entropies", "old_logps", "rollout_logps", "ref_logps", "advantages")


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("name", ["gspo_in_ratio", "late_gspo", "late_after_early"])
def test_nan_is_shown(name, column):
    """What is NaN in eager torch is NaN, and what another sequence holds is untouched."""
    d = table(6, lengths=(6, 5, 2), near=0.3)
    clean = check(d, LOWER[name])[0]
    d[column] = d[column].clone()
    d[column][(1,) if column == "advantages" else (1, d["mask"][1].nonzero()[2, 0])] = torch.nan
    ((loss, gradients, _),) = check(d, LOWER[name])
    other = torch.arange(3).repeat_interleave(d["mask"].sum(1)) != 1
    assert torch.equal(loss[other], clean[0][other])
    assert torch.equal(gradients["logps"][other], clean[1]["logps"][other])
    if column == "logps":
        assert loss.isnan().any()
        assert gradients["logps"].isnan().any()


# Weights of constants alone may be any stage's; on-policy they become weights of the current policy.
SETTLED = ("late_after_early", "paper_m2po_mask")


@example(name="paper_vespo", lengths=[6, 8], seed=1, near=3.0, per_token=False, old=True)
@example(name="paper_vespo", lengths=[4, 3], seed=2, near=3.0, per_token=False, old=True)
@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(name for name in LOWER if name.startswith(("late", "paper")))),
    lengths=st.lists(st.integers(0, 2 * BLOCK + 1), min_size=1, max_size=4),
    seed=st.integers(0, 2**16),
    near=st.sampled_from([0.0, 0.02, 0.5, 3.0]),
    per_token=st.booleans(),
    old=st.booleans(),
)
def test_any_batch(name, lengths, seed, near, per_token, old):
    d = table(seed, lengths=lengths, near=near, per_token=per_token)
    # β D may be as large as A, and then what is left of the residual has few digits.
    tolerance = 1e-3 if name.endswith("oapl") else 3e-5
    check(d, LOWER[name], tolerance=tolerance, **({} if old or name in SETTLED else {"old_logps": None}))


def test_nothing_to_add_up():
    for lengths in ((0, 0), (3, 0)):
        d = table(7, lengths=lengths)
        d["mask"] = d["mask"] & (lengths[0] == 0)
        check(d, LOWER["late_gspo"])


def test_numbers_of_any_form():
    """One advantage for all, float64 or a whole number, and marks that are floats."""
    d = table(8, lengths=(5, 2))
    for name in ("luffy", "gspo_token_tis"):
        for A in (1.5, torch.tensor([1, -2]), torch.tensor([0.1, -0.2], dtype=torch.float64)):
            check_as_given(d, LOWER[name], advantages=A, off_policy=d["off_policy"].double())


def check_as_given(d, r, **constants):
    single = {k: x.float() if x.dtype == torch.float64 else x for k, x in d.items()}
    batch = padded(single, **constants)
    now = current(batch, single)
    got, expected = gates.run(plan(batch, r, now), batch, r, now), eager(batch, r, now)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_the_same_bits_in_any_order_and_split():
    """A sequence is one program's: neither the others nor a part's bounds have a say in its numbers."""
    d, r, order = table(9), LOWER["late_gspo"], [4, 6, 1, 0, 5, 3, 2]
    whole = check(d, r)[0][0]
    assert torch.equal(torch.cat([loss for loss, *_ in check(d, r, split=20)]), whole)
    moved = check(permute(d, order), r)[0][0]
    ends = [0, *d["mask"].sum(1).cumsum(0).tolist()]
    assert torch.equal(moved, torch.cat([whole[ends[i] : ends[i + 1]] for i in order]))


def test_denominators_of_the_whole_step():
    """A framework's counts, and a scale that moves, reach the kernel."""
    r = PAPERS["paper_grpo"]
    d = {k: x.float() if x.dtype == torch.float64 else x for k, x in D.items()}
    batch = padded(d)
    now = current(batch, d)
    before = gates.run(plan(batch, r, now), batch, r, now)[0]
    declare(batch, r, Normalizer(torch.tensor(70.0).double(), torch.tensor(14.0).double()), ranks=2)
    torch.testing.assert_close(gates.run(plan(batch, r, now), batch, r, now)[0], before)
    larger = r.replace(extra=(gk.Term(gk.KL("k3"), 0.4, (), gk.SequenceMean(over="rows")),))
    torch.testing.assert_close(
        gates.run(plan(batch, larger, now), batch, larger, now)[0], eager(batch, larger, now)[0], rtol=1e-5, atol=1e-6
    )
