"""The estimators of pass@k, of baselines and of several rewards: against the reference, and what they promise."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import grpokit as gk
from grpokit.reference import advantage as ref

from .strategies import rollouts
from .test_reference import SELECT, recipe, run, select_by_reference

REWARDS = st.lists(st.sampled_from([0.0, 1.0, 0.1, 0.3, -2.0, 1e8 + 0.1, 1.0 + 2**-52]), min_size=1, max_size=7)


def alone(R, estimator, **columns):
    """The advantages of one group between two others."""
    ids, rewards = [5] * len(R), list(R)
    return gk.advantages(rewards, ids, estimator, **columns)


def close(found, expected, R):
    scale = max(map(abs, R), default=0.0)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=4e-15 * len(R) * scale + 1e-300)


@given(REWARDS, st.integers(1, 7), st.sampled_from(["loo-1", "loo", "none"]))
def test_pkpo_is_the_sum_over_subsets(R, k, baseline):
    needed = k + (baseline == "loo")
    if baseline == "loo-1" and k < 2:
        with pytest.raises(gk.InputError, match="k=1; expected a whole number, 2 or more"):
            gk.PKPO(k, baseline)
        return
    if len(R) < needed:
        with pytest.raises(gk.InputError) as caught:
            alone(R, gk.PKPO(k, baseline))
        assert caught.value.kind == "too_few_attempts"
        assert caught.value.context["attempts"] == len(R)
        return
    found = alone(R, gk.PKPO(k, baseline))
    close(found, ref.pkpo(R, k, baseline), R)
    for i, j in itertools.combinations(range(len(R)), 2):
        assert R[i] != R[j] or found[i] == found[j]
    if baseline == "loo-1":
        assert (found >= 0).all()
        assert max(R) > min(R) or not found.any()


@pytest.mark.parametrize("baseline", ["loo-1", "loo", "none"])
@pytest.mark.parametrize(("n", "k"), [(4, 2), (5, 3), (6, 4)])
def test_pkpo_is_an_unbiased_gradient_of_pass_at_k(n, k, baseline):
    """Exactly, over all outcomes of n tries that pass with probability p: E Σ_i A_i ∂log P_i/∂p = ∂pass@k/∂p."""
    p = 0.3
    total = 0.0
    for outcome in itertools.product([0.0, 1.0], repeat=n):
        weight = math.prod(p if r else 1 - p for r in outcome)
        A = alone(outcome, gk.PKPO(k, baseline))
        total += weight * sum(a * (1 / p if r else -1 / (1 - p)) for a, r in zip(A, outcome, strict=True))
    assert total == pytest.approx(k * (1 - p) ** (k - 1), rel=1e-12)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_pass_k_training_points_along_pass_at_k(k):
    """Where nothing divides, its gradient is that of pass@k up to the spread: checked by its own unnormalised form."""
    n = 6
    for c in range(n + 1):
        R = [1.0] * c + [0.0] * (n - c)
        A = alone(R, gk.PassKTraining(k))
        assert abs(A.sum()) < 1e-12
        rho = 1 - math.comb(n - c, k) / math.comb(n, k)
        if 0 < rho < 1:
            assert A[0] > 0 > A[-1]
        else:
            assert not A.any()


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=40), st.integers(1, 40), st.sampled_from([0.0, 1e-6]))
def test_pass_k_training_is_the_reference(R, k, eps):
    if len(R) < k:
        with pytest.raises(gk.InputError, match=f"has {len(R)} attempts; pass@{k}"):
            alone(R, gk.PassKTraining(k, eps))
        return
    found, expected = alone(R, gk.PassKTraining(k, eps)), ref.pass_k_training(R, k, eps)
    # 1 − ρ is a difference in the reference, and a product here: what remains of it is uncertain there.
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-8)


def test_pass_k_training_keeps_its_digits():
    """C(n−c, k) / C(n, k) of 1e-9 and less: exact rational arithmetic says what the advantages are."""
    n, c, k = 200, 90, 32
    fail = Fraction(math.comb(n - c, k), math.comb(n, k))
    assert fail < Fraction(1, 10**9)
    sigma = math.sqrt(fail * (1 - fail))
    wrong = fail - Fraction(math.comb(n - c - 1, k - 1), math.comb(n - 1, k - 1))
    A = alone([1.0] * c + [0.0] * (n - c), gk.PassKTraining(k, 0.0))
    assert A[0] == pytest.approx(float(fail) / sigma, rel=1e-13)
    assert A[-1] == pytest.approx(float(wrong) / sigma, rel=1e-13)


def test_pass_k_training_refuses_what_is_not_0_or_1():
    with pytest.raises(gk.InputError, match=r"'reward' is 0.5 in row 1; expected 0 or 1"):
        alone([1.0, 0.5], gk.PassKTraining(1))
    shaped = recipe(gk.PassKTraining(1), (), [gk.Overlong(10, 5)])
    with pytest.raises(gk.InputError, match="expected 0 or 1"):
        gk.process({"group_id": [1, 1], "reward": [1.0, 0.0], "response_len": [9, 3]}, shaped)


@given(REWARDS, st.booleans(), st.sampled_from([0, 1]))
def test_pass_k_argmax_is_the_reference(R, normalize, ddof):
    estimator = gk.PassKArgmax(True, ddof, 1e-6) if normalize else gk.PassKArgmax(False)
    spread = ref.std(R, ddof) + 1e-6 if normalize else 1.0
    found = alone(R, estimator)
    expected = ref.pass_k_argmax(R, spread)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-300)
    assert (found > 0).sum() <= 1


@given(REWARDS, st.sampled_from([1e-3, 0.5, 1.0, 50.0]))
def test_soft_value_is_the_reference(R, beta):
    found = alone(R, gk.SoftValue(beta))
    close(found, ref.soft_value(R, beta), [*R, beta])
    if max(R) == min(R):
        assert not found.any()


@given(REWARDS, st.lists(st.integers(0, 9), min_size=7, max_size=7))
def test_length_baseline_is_the_reference(R, lengths):
    found = alone(R, gk.LengthBaseline(), response_len=lengths[: len(R)])
    if sum(lengths[: len(R)]):
        close(found, ref.length_baseline(R, lengths[: len(R)]), R)
    if max(R) == min(R):
        assert not found.any()


@given(rollouts(), SELECT)
def test_after_selections_they_are_the_reference(data, stages):
    """Rows that were dropped do not count, or count and get 0; groups keep their order of rows."""
    selection = select_by_reference(data, stages)
    lengths = dict(enumerate(data.response_len))
    for estimator, reference in (
        (gk.SoftValue(0.5), lambda R, rows: ref.soft_value(R, 0.5) if R else []),
        (gk.LengthBaseline(), lambda R, rows: ref.length_baseline(R, [lengths[i] for i in rows]) if R else []),
        (gk.PassKArgmax(False), lambda R, rows: ref.pass_k_argmax(R, 1.0) if R else []),
    ):
        out = run(data, estimator, stages)
        keep = selection.keep()
        assert out.keep.tolist() == keep
        for key in set(data.key):
            rows = [i for i in range(len(data.key)) if data.key[i] == key and selection.live[i]]
            R = [float(data.reward[i]) for i in rows]
            if not sum(lengths[i] for i in rows) and isinstance(estimator, gk.LengthBaseline):
                continue
            # A group that was dropped as a whole has no advantages, whatever its rows.
            expected = [a if keep[i] else 0.0 for i, a in zip(rows, reference(R, rows), strict=True)]
            close(out.advantages[rows], expected, [*R, 0.5])
        assert not out.advantages[~out.keep].any()


@given(rollouts(nulls=False, gate=False))
def test_gpg_rescales_by_the_groups_of_the_batch(data):
    out = gk.process(data.table, recipe(gk.RescaledMean()))
    for step in set(data.step or [0]):
        keys = list(dict.fromkeys(k for i, k in enumerate(data.key) if not data.step or data.step[i] == step))
        groups = [[i for i in range(len(data.key)) if data.key[i] == key] for key in keys]
        expected = ref.rescaled_mean([[data.reward[i] for i in rows] for rows in groups])
        for rows, A in zip(groups, expected, strict=True):
            close(out.advantages[rows], A, [len(groups) * data.reward[i] for i in rows])


def test_gpg_counts_the_groups_that_are_left():
    rows = {"group_id": [1, 1, 2, 2, 3, 3], "reward": [1.0, 0.0, 1.0, 1.0, 0.0, 0.0]}
    assert gk.process(rows, "gpg").advantages.tolist() == [1.5, -1.5, 0, 0, 0, 0]
    filtered = gk.recipe("gpg").replace(select=(gk.HasSignal(),))
    assert gk.process(rows, filtered).advantages.tolist() == [0.5, -0.5, 0, 0, 0, 0]
    by_step = rows | {"step": [7, 7, 7, 7, 8, 8]}
    assert gk.process(by_step, "gpg").advantages.tolist() == [1.0, -1.0, 0, 0, 0, 0]


def test_remax():
    rows = {"group_id": [1, 2, 3], "reward": [1.0, 0.0, None], "baseline_reward": [0.25, 0.5, None]}
    assert gk.process(rows, "remax").advantages.tolist() == [0.75, -0.5, 0.0]
    with pytest.raises(gk.InputError, match="baseline_reward.* null in 1 rows, the first: \\[1\\]"):
        gk.process(rows | {"baseline_reward": [0.25, None, None]}, "remax")
    with pytest.raises(gk.InputError, match="NaN or infinite in 1 rows"):
        gk.process(rows | {"baseline_reward": [np.nan, 0.0, 0.0]}, "remax")
    with pytest.raises(gk.InputError, match="baseline_reward' is 1e\\+200 in row 1; expected at most 1e150"):
        gk.process(rows | {"baseline_reward": [0.0, 1e200, 0.0]}, "remax")
    with pytest.raises(gk.InputError, match="GreedyBaseline reads column 'baseline_reward'"):
        gk.process({"group_id": [1], "reward": [0.0]}, "remax")


def test_given_is_what_is_given():
    rows = {"group_id": [1, 1, 2], "reward": [0.5, 0.5, None]}
    assert gk.process(rows, "ppo_clip").advantages.tolist() == [0.5, 0.5, 0.0]


PARTS = {"group_id": [1, 1, 1, 2, 2, 2], "reward": [1.0, 2.0, 3.0, 1.0, 1.0, 0.0], "response_len": [1, 2, 3, 4, 5, 6]}
RIGHT, SHORT = [1.0, 0.0, 1.0, 1.0, 1.0, 1.0], [0.0, 2.0, 2.0, 0.0, -100.0, 50.0]


def gdpo(parts, weights, names, over, lengths):
    x = np.zeros(6)
    for name, part in zip(names, parts, strict=True):
        for rows in ([0, 1, 2], [3, 4, 5]):
            known = [i for i in rows if part[i] is not None]
            A = ref.group_norm([part[i] for i in known], 1, 1e-4)
            x[known] += weights.get(name, 1.0) * np.array(A)
    w = lengths if over == "tokens" else [1] * 6
    return ref.global_norm(x.tolist(), w, 1, 1e-4)


@pytest.mark.parametrize("over", ["sequences", "tokens"])
@pytest.mark.parametrize("form", ["columns", "records", "arrow"])
def test_gdpo(over, form):
    weights = {"short": 0.25}
    estimator = gk.GDPO(over, weights=tuple(weights.items()))
    right = [None, *RIGHT[1:]]
    rows, names = dict(PARTS), None
    if form == "columns":
        rows |= {"right": right, "short": SHORT}
        names = {"reward_parts": ["right", "short"]}
    else:
        rows["reward_parts"] = [{"right": a, "short": b} for a, b in zip(right, SHORT, strict=True)]
    if form == "arrow":
        rows = pa.table(rows)
    out = gk.process(rows, recipe(estimator), columns=names)
    expected = gdpo((right, SHORT), weights, ("right", "short"), over, PARTS["response_len"])
    np.testing.assert_allclose(out.advantages, expected, rtol=1e-12, atol=1e-14)
    assert gk.Recipe.from_dict(recipe(estimator).to_dict()).advantage == estimator
    alone = gk.advantages(
        PARTS["reward"], PARTS["group_id"], estimator, reward_parts={"right": right, "short": SHORT},
        response_len=PARTS["response_len"] if over == "tokens" else None,
    )  # fmt: skip
    np.testing.assert_allclose(alone, expected, rtol=1e-12, atol=1e-14)
    if form == "records" and over == "sequences":
        again = gk.advantages(PARTS["reward"], PARTS["group_id"], estimator, reward_parts=rows["reward_parts"])
        np.testing.assert_array_equal(again, alone)


def test_gdpo_counts_parts_that_differ_in_spread_alike():
    """A part a hundred times as wide moves the advantage no more than the other; summed first it decides alone."""
    rows = PARTS | {"right": RIGHT, "wide": [100 * x for x in SHORT]}
    names = {"reward_parts": ["right", "wide"]}
    narrow = gk.process(PARTS | {"right": RIGHT, "wide": SHORT}, recipe(gk.GDPO("sequences")), columns=names).advantages
    np.testing.assert_allclose(
        gk.process(rows, recipe(gk.GDPO("sequences")), columns=names).advantages, narrow, atol=1e-3
    )


@pytest.mark.parametrize(("bad", "kind"), [(math.inf, "column_not_finite"), (1e200, "too_large")])
def test_gdpo_names_the_part_that_is_no_number(bad, kind):
    rows = PARTS | {"right": RIGHT, "short": [*SHORT[:-1], bad]}
    with pytest.raises(gk.InputError, match="short") as caught:
        gk.process(rows, recipe(gk.GDPO("sequences")), columns={"reward_parts": ["right", "short"]})
    assert caught.value.kind == kind


def test_gdpo_refuses():
    rows = PARTS | {"right": RIGHT}
    with pytest.raises(gk.InputError, match="GDPO reads column 'reward_parts'"):
        gk.process(rows, recipe(gk.GDPO("sequences")))
    with pytest.raises(gk.InputError, match="names of parts that are there: right"):
        gk.process(rows, recipe(gk.GDPO("sequences", (("left", 1.0),))), columns={"reward_parts": ["right"]})
    with pytest.raises(gk.InputError, match="over='rows'; expected one of"):
        gk.GDPO("rows")


LOGPS = {
    "group_id": ["a", "a", "b"],
    "reward": [1.0, 0.0, 1.0],
    "logp_old": [[-1.0, -2.0], [-0.5], []],
    "logp_ref": [[-1.5, -2.5], [-0.25], []],
}


@pytest.mark.parametrize(
    "form", [dict, pa.table, lambda rows: [dict(zip(rows, r, strict=True)) for r in zip(*rows.values(), strict=True)]]
)
def test_kl_in_the_reward(form):
    for kind, k in (("k1", lambda x: x), ("k2", lambda x: x * x / 2), ("k3", lambda x: math.exp(-x) + x - 1)):
        out = gk.process(form(LOGPS), gk.recipe("rloo").replace(shape=(gk.KLPenalty(0.1, kind),)))
        expected = [1 - 0.1 * 2 * k(0.5), -0.1 * k(-0.25), 1.0]
        np.testing.assert_allclose(out.shaped_rewards, expected, rtol=1e-14)
        assert out.groups.mean.tolist() == [0.5, 1.0]  # the outcome is not shaped
    assert gk.recipe("rloo", beta=0.1).shape == (gk.KLPenalty(0.1, "k1"),)


def test_reinforce_pp_per_token():
    out = gk.process(LOGPS, "reinforce_pp", ddof=1, eps=1e-8, beta=0.1)
    x = np.array([1 - 0.1, 1 - 0.05, 0.025])
    expected = (x - x.mean()) / (x.std(ddof=1) + 1e-8)
    np.testing.assert_allclose(out.token_advantages.values, expected, rtol=1e-12)
    assert out.token_advantages.offsets.tolist() == [0, 2, 3, 3]
    assert out.token_advantages[1].tolist() == [out.token_advantages.values[2]]
    assert [len(row) for row in out.token_advantages] == [2, 1, 0]
    np.testing.assert_array_equal(np.concatenate(list(out.token_advantages)), out.token_advantages.values)
    with pytest.raises(IndexError):
        out.token_advantages[3]
    with pytest.raises(TypeError):
        out.token_advantages[:2]
    assert "advantages of its 2 tokens" in out.explain(0)
    assert out.explain(2).endswith("advantages of its 0 tokens: none.")
    with pytest.raises(gk.InputError, match="GlobalNorm gives one advantage a token") as caught:
        out.advantages  # noqa: B018
    assert caught.value.kind == "per_token"
    assert gk.process(PARTS, "dr_grpo", max_len=5).token_advantages is None
    # A row that is dropped has zeros, and counts in nothing.
    rows = LOGPS | {"reward": [1.0, None, 1.0]}
    dropped = gk.process(rows, "reinforce_pp", ddof=0, eps=0.0, beta=0.1).token_advantages
    np.testing.assert_allclose(dropped.values, [-1.0, 1.0, 0.0], rtol=1e-12)
    steps = gk.process(LOGPS | {"step": [1, 2, 2]}, "reinforce_pp", ddof=0, eps=0.0, beta=0.1).token_advantages
    np.testing.assert_allclose(steps.values, [-1.0, 1.0, 0.0], rtol=1e-12, atol=1e-14)


def test_copies_share_their_weight_token_by_token():
    rows = LOGPS | {"text": ["x", "x", "y"], "group_id": ["a", "a", "b"]}
    recipe = gk.recipe("reinforce_pp", ddof=0, eps=0.0, beta=0.1)
    plain = gk.process(rows, recipe).token_advantages.values
    weighed = gk.process(rows, recipe.replace(select=(gk.DuplicateWeight("text"),))).token_advantages.values
    np.testing.assert_allclose(weighed, plain / 2)


def test_a_penalty_beyond_all_numbers_is_an_error():
    rows = LOGPS | {"logp_old": [[-800.0, -2.0], [-0.5], []], "logp_ref": [[-1.0, -2.0], [-0.25], []]}
    with pytest.raises(gk.InputError, match="KLPenalty.*-inf in row 0"), np.errstate(over="ignore"):
        gk.process(rows, gk.recipe("rloo").replace(shape=(gk.KLPenalty(0.1, "k3"),)))


def test_log_probs_that_cannot_be_meant():
    for rows, message in (
        (LOGPS | {"logp_ref": [[-1.5], [-0.25], []]}, r"row 0 has 2 values in 'logp_old' and 1 in 'logp_ref'"),
        (LOGPS | {"logp_ref": [[-1.5, -2.5], None, []]}, r"null in row 1; expected a list of numbers"),
        (LOGPS | {"logp_ref": [[-1.5, "x"], [-0.25], []]}, r"expected a list of numbers"),
        (
            LOGPS | {"logp_ref": [[-1.5, np.nan], [-0.25], []]},
            r"'logp_ref' is NaN or infinite in 1 rows, the first: \[0\]",
        ),
        (LOGPS | {"logp_ref": [-1.5, -0.25, 0.0]}, r"expected a list of numbers"),
        ({k: v for k, v in LOGPS.items() if k != "logp_ref"}, r"reads column 'logp_ref', which is not there"),
    ):
        with pytest.raises((gk.InputError, gk.InputTypeError), match=message):
            gk.process(rows, gk.recipe("rloo", beta=0.1))
    twice = LOGPS | {
        "rollout_id": [1, 1, 2],
        "group_id": ["a", "a", "b"],
        "reward": [1.0, 1.0, 0.0],
        "turn_idx": [0, 1, 0],
    }
    out = gk.process(twice, gk.recipe("rloo", beta=0.1))
    np.testing.assert_allclose(out.shaped_rewards[:2], 1 - 0.1 * 0.75)
    with pytest.raises(gk.InputError, match="this table has rollouts of several rows") as caught:
        gk.process(twice, "reinforce_pp", ddof=1, eps=0.1)
    assert caught.value.kind == "needs_one_row"
    with pytest.raises(gk.InputError) as caught:
        gk.process(LOGPS | {"logp_ref": [[0.0], [0.0], [0.0]]}, gk.recipe("rloo", beta=0.1))
    assert caught.value.kind == "lists_differ"


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: gk.PKPO(0), "k"),
        (lambda: gk.PKPO(2, "mean"), "baseline"),
        (lambda: gk.PassKTraining(0), "k"),
        (lambda: gk.PassKTraining(2, -1.0), "eps"),
        (lambda: gk.PassKArgmax(True), "ddof"),
        (lambda: gk.PassKArgmax(False, 1), "ddof"),
        (lambda: gk.PassKArgmax("yes"), "normalize"),
        (lambda: gk.SoftValue(0.0), "beta"),
        *((lambda weights=weights: gk.GDPO("tokens", weights), "weights") for weights in (5, None, {"a": None}, "ab")),
        (lambda: gk.GDPO("tokens", weights=(("a",),)), "weights"),
        (lambda: gk.GDPO("tokens", weights=(("a", math.nan),)), "weights"),
        (lambda: gk.GDPO("tokens", weights=(("a", 1.0), ("a", 2.0))), "weights"),
        (lambda: gk.GlobalNorm(1, 0.1, over="sequences", beta=0.1), "over"),
        (lambda: gk.GlobalNorm(1, 0.1, beta=-0.1), "beta"),
        (lambda: gk.KLPenalty(-1.0), "beta"),
        (lambda: gk.KLPenalty(0.1, "k4"), "kind"),
    ],
)
def test_bad_parameters(make, name):
    with pytest.raises(gk.InputError) as caught:
        make()
    assert caught.value.kind == "bad_parameter"
    assert caught.value.context["name"] == name


@given(rollouts(nulls=False, gate=False), st.randoms(use_true_random=False))
def test_neither_the_order_of_groups_nor_threads_change_a_bit(data, random):
    """Rows of a group keep their order."""
    n = len(data.key)
    labels = list(dict.fromkeys(data.key))
    random.shuffle(labels)
    order = [i for label in labels for i in range(n) if data.key[i] == label]
    ids = gk.group([repr(key) for key in data.key])
    moved = gk.group([repr(data.key[i]) for i in order])
    for estimator in (
        gk.SoftValue(0.5),
        gk.LengthBaseline(),
        gk.PassKArgmax(False),
        gk.PKPO(1, "none"),
        gk.RescaledMean(),
    ):
        columns = {"response_len": [n + 1 for n in data.response_len]} if "response_len" in estimator.reads else {}
        found = gk.advantages(data.reward, ids, estimator, **columns)
        again = gk.advantages(
            [data.reward[i] for i in order], moved, estimator, **{k: [v[i] for i in order] for k, v in columns.items()}
        )
        np.testing.assert_array_equal(again, found[order])
