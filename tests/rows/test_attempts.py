"""pass@k, best@k, worst@k, maj@k: exact against enumeration, the simulation to the bit, and who depends on what."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import grpokit as gk
from grpokit.reference import attempts as ref

VALUES = st.one_of(st.sampled_from((0.0, 1.0, -0.0, 0.1, 0.3)), st.floats(-10, 10), st.floats(-1e150, 1e150))


@st.composite
def prompts(draw, values=VALUES, most=5):
    """Groups of attempts whose rows are mixed: (values, answers, ids)."""
    sizes = draw(st.lists(st.integers(1, most), min_size=1, max_size=4))
    ids = draw(st.permutations([group for group, size in enumerate(sizes) for _ in range(size)]))
    column = lambda of: draw(st.lists(of, min_size=len(ids), max_size=len(ids)))
    return column(values), column(st.sampled_from("abc")), ids


def by_group(ids, *columns):
    """Each group's part of the columns, in order of first appearance."""
    for group in dict.fromkeys(ids):
        yield tuple([x for x, key in zip(column, ids, strict=True) if key == group] for column in columns)


def assert_close(estimate, expected, scale):
    means, stds = zip(*expected, strict=True)
    np.testing.assert_allclose(estimate.values, means, rtol=1e-12, atol=1e-13 * scale)
    # A variance that is 0 but for rounding has a root of this size.
    np.testing.assert_allclose(estimate.std, stds, rtol=1e-6, atol=3e-7 * scale)
    n = len(means)
    assert math.isclose(estimate.mean, math.fsum(means) / n, rel_tol=1e-12, abs_tol=1e-13 * scale)
    between = math.sqrt(math.fsum(x * x for x in stds)) / n
    assert math.isclose(estimate.between_runs, between, rel_tol=1e-6, abs_tol=3e-7 * scale)
    spread = math.sqrt(math.fsum((x - math.fsum(means) / n) ** 2 for x in means) / max(n - 1, 1) / n)
    assert (
        math.isnan(estimate.standard_error)
        if n == 1
        else math.isclose(estimate.standard_error, spread, rel_tol=1e-6, abs_tol=1e-12 * scale)
    )


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_closed_form(counts):
    n, c, k = counts
    exact = ref.pass_at_k(n, c, k)
    given = Fraction(float(gk.pass_at_k_of_counts(n, c, k)))
    assert abs(given - exact) <= Fraction(4 * min(c, k), 2**53) * exact
    estimate = gk.pass_at_k([1.0] * c + [0.0] * (n - c), [0] * n, k)
    assert estimate.values.tolist() == [float(given)]
    assert math.isclose(estimate.std[0], math.sqrt(exact * (1 - exact)), rel_tol=1e-6, abs_tol=1e-7)


@given(prompts(values=st.sampled_from((0.0, 1.0))))
def test_pass_at_k_is_the_mean_over_subsets(case):
    outcomes, _, ids = case
    k = min(ids.count(group) for group in set(ids))
    expected = [float(ref.pass_at_k(len(R), int(sum(R)), k)) for (R,) in by_group(ids, outcomes)]
    estimate = gk.pass_at_k(np.array(outcomes, bool), gk.group(ids), k)
    assert_close(estimate, [(p, math.sqrt(p * (1 - p))) for p in expected], 1.0)


def test_pass_at_k_of_many_attempts():
    n = 1_000_000
    assert gk.pass_at_k_of_counts(n, 1, 1) == 1e-6
    assert gk.pass_at_k_of_counts(n, n // 2, n // 2 + 1) == 1.0
    assert gk.pass_at_k_of_counts(n, n - 1, 1) == (n - 1) / n
    assert gk.pass_at_k_of_counts(n, 0, n) == 0.0
    exact = 1 - math.exp(sum(math.log1p(-1000 / (n - i)) for i in range(700)))
    assert math.isclose(gk.pass_at_k_of_counts(n, 700, 1000), exact, rel_tol=1e-12)
    # A chance of 10⁻¹², of which a difference from 1 would leave four digits.
    assert math.isclose(gk.pass_at_k_of_counts(10**12, 1, 1), 1e-12, rel_tol=1e-15)


def test_the_mean_varies_between_runs_as_it_says():
    """Whole runs drawn anew from the same prompts spread as `between_runs` has it."""
    rng = np.random.default_rng(9)
    values, k, runs = rng.random((12, 8)), 3, 4_000
    drawn = values[np.arange(12)[:, None], rng.integers(0, 8, (runs, 12, k))]
    means = drawn.max(2).mean(1)
    estimate = gk.best_at_k(values.ravel(), np.repeat(np.arange(12), 8), k)
    assert abs(means.mean() - estimate.mean) < 5 * estimate.between_runs / math.sqrt(runs)
    assert abs(means.std() / estimate.between_runs - 1) < 0.06


def test_counts_broadcast():
    table = gk.pass_at_k_of_counts(np.array([[4], [8]], np.int32), 2, [1, 2, 4])
    assert table.shape == (2, 3)
    expected = [[float(ref.pass_at_k(n, 2, k)) for k in (1, 2, 4)] for n in (4, 8)]
    np.testing.assert_allclose(table, expected, rtol=1e-15)
    assert gk.pass_at_k_of_counts(4, 2, 1).shape == ()
    assert gk.pass_at_k_of_counts([], [], 1).shape == (0,)


@given(prompts(), st.integers(1, 4))
def test_best_and_worst_are_exact(case, k):
    values, _, ids = case
    # The squares of a spread below 1e-154 leave float64.
    scale = max(map(abs, values)) + 1e-145
    assert_close(gk.best_at_k(values, ids, k), [ref.best_at_k(R, k) for (R,) in by_group(ids, values)], scale)
    assert_close(gk.worst_at_k(values, ids, k), [ref.worst_at_k(R, k) for (R,) in by_group(ids, values)], scale)


@given(prompts(), st.integers(1, 40))
def test_laws_of_best_and_worst(case, k):
    values, _, ids = case
    best, more, worst = gk.best_at_k(values, ids, k), gk.best_at_k(values, ids, k + 1), gk.worst_at_k(values, ids, k)
    np.testing.assert_array_equal(worst.values, -gk.best_at_k([-x for x in values], ids, k).values)
    for g, (R,) in enumerate(by_group(ids, values)):
        room = 1e-14 * max(map(abs, R)) * len(R)
        assert min(R) - room <= worst.values[g] <= best.values[g] + room
        assert best.values[g] - room <= more.values[g] <= max(R) + room
        if max(R) == min(R):
            assert (best.values[g], best.std[g]) == (R[0], 0.0)


@pytest.mark.parametrize("k", [2, 4, 8, 16])
def test_a_bootstrap_finds_the_exact_values(k):
    rng = np.random.default_rng(k)
    values, draws = rng.normal(size=16), 20_000
    drawn = values[rng.integers(0, 16, (draws, k))]
    for estimate, results in (
        (gk.best_at_k(values, np.zeros(16, int), k), drawn.max(1)),
        (gk.worst_at_k(values, np.zeros(16, int), k), drawn.min(1)),
    ):
        error = results.std() / math.sqrt(draws)
        assert abs(estimate.mean - results.mean()) < 5 * error
        assert abs(estimate.std[0] - results.std()) < 0.05 * results.std() + 5 * error


@given(prompts(values=st.sampled_from((0.0, -0.0, 1.0, -3.0))), st.integers(1, 6), st.integers(0, 2**64 - 1))
def test_majority_draws_what_the_reference_draws(case, k, seed):
    values, answers, ids = case
    estimate = gk.majority_at_k(values, ids, k, answers=answers, draws=20, seed=seed)
    expected = [ref.majority_by_simulation(R, a, k, 20, seed) for R, a in by_group(ids, values, answers)]
    assert_close(estimate, expected, 3.0)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_majority_is_near_the_mean_over_all_draws(k):
    values, answers = [1.0, 0.0, 0.5, 1.0, 0.25], ["x", "y", "y", "x", "z"]
    mean, std = ref.majority_at_k(values, answers, k)
    draws = 40_000
    estimate = gk.majority_at_k(values, [3] * 5, k, answers=answers, draws=draws)
    assert abs(estimate.mean - mean) < 5 * std / math.sqrt(draws)
    assert abs(estimate.std[0] - std) < 0.01
    # Another seed draws otherwise, and finds the same.
    other = gk.majority_at_k(values, [3] * 5, k, answers=answers, draws=draws, seed=1)
    assert other.mean != estimate.mean
    assert abs(other.mean - mean) < 5 * std / math.sqrt(draws)


def test_a_tie_goes_to_the_first():
    """Of two different answers drawn the first counts, so maj@2 is the plain mean; of three it is not."""
    values, answers = [1.0, 0.0, 0.0], ["a", "b", "b"]
    assert math.isclose(ref.majority_at_k(values, answers, 2)[0], 1 / 3)
    assert ref.elected(values, answers, [0, 1]) == 1.0
    assert ref.elected(values, answers, [1, 0]) == 0.0
    assert ref.elected(values, answers, [1, 0, 0]) == 1.0


@given(prompts(), st.integers(1, 5), st.randoms(use_true_random=False))
def test_a_groups_draws_depend_on_its_own_rows_alone(case, k, random):
    values, answers, ids = case
    estimate = gk.majority_at_k(values, ids, k, answers=answers, draws=50)
    of = dict(zip(dict.fromkeys(ids), estimate.values.tolist(), strict=True))
    # Groups in another order, each with its rows in theirs; other names for groups and answers; a group left out.
    left = random.sample(list(of), max(1, len(of) - 1))
    rows = [row for group in left for row in range(len(ids)) if ids[row] == group]
    names = {"a": 9, "b": 8, "c": 7}
    again = gk.majority_at_k(
        [values[row] for row in rows],
        [f"prompt {ids[row]}" for row in rows],
        k,
        answers=[names[answers[row]] for row in rows],
        draws=50,
    )
    assert again.values.tolist() == [of[group] for group in left]


def test_the_same_bits_for_every_number_of_threads():
    rng = np.random.default_rng(5)
    values, answers, ids = rng.random(3_000).round(1), rng.integers(0, 4, 3_000), rng.integers(0, 200, 3_000)
    one = gk.majority_at_k(values, ids, 8, answers=answers, threads=1)
    for threads in (2, 3, 7):
        other = gk.majority_at_k(values, ids, 8, answers=answers, threads=threads)
        assert one.values.tobytes() == other.values.tobytes()
        assert one.std.tobytes() == other.std.tobytes()


def test_without_a_group():
    for estimate in (gk.pass_at_k([], [], 1), gk.best_at_k([], [], 1), gk.majority_at_k([], [], 1, answers=[])):
        assert len(estimate.values) == 0
        assert math.isnan(estimate.mean)
        assert math.isnan(estimate.standard_error)
        assert math.isnan(estimate.between_runs)
    assert repr(gk.pass_at_k([1, 0], [4, 4], np.int64(1))) == "AtK(k=1, 0.5 ± nan, 1 groups)"


BAD = {
    "bad_value": [
        (lambda: gk.pass_at_k([0, 1, 0.5], [1, 1, 1], 1), ["'outcomes' is 0.5 in row 2", "0 or 1"]),
        (lambda: gk.pass_at_k([0, float("nan")], [1, 1], 1), ["nan in row 1"]),
        (lambda: gk.best_at_k([0, float("inf")], [1, 1], 1), ["'values' is inf in row 1", "finite"]),
        (lambda: gk.worst_at_k([1e200], [1], 1), ["1e+200 in row 0", "1e150"]),
        (lambda: gk.majority_at_k([float("nan")], [1], 1, answers=[1]), ["nan in row 0"]),
        (lambda: gk.pass_at_k_of_counts(4, [2, 5], 1), ["'passed' is 5 in row 1", "attempts, 4"]),
        (lambda: gk.pass_at_k_of_counts(4, 2, [1, 4, 5]), ["'k' is 5 in row 2", "attempts, 4"]),
        (lambda: gk.pass_at_k_of_counts(4, -1, 1), ["'passed' is -1"]),
    ],
    "too_few_attempts": [
        (lambda: gk.pass_at_k([1, 0, 1], ["a", "a", "b"], 2), ["group number 1", "row: 2", "1 attempts", "pass@2"])
    ],
    "null_value": [
        (lambda: gk.pass_at_k([1, None], [1, 1], 1), ["'outcomes'", "[1]"]),
        (lambda: gk.best_at_k([None, 1.0], [1, 1], 1), ["'values'", "[0]"]),
        (lambda: gk.majority_at_k(np.ma.array([1.0], mask=[True]), [1], 1, answers=[1]), ["'values'", "[0]"]),
    ],
    "null_key": [(lambda: gk.majority_at_k([1.0], [1], 1, answers=[None]), ["NoneType in row 0"])],
    "column_length": [
        (lambda: gk.pass_at_k([1, 0], [1], 1), ["'outcomes' has 2 rows", "has 1"]),
        (lambda: gk.best_at_k([1, 0], [1], 1), ["'values' has 2 rows", "has 1"]),
        (lambda: gk.majority_at_k([1.0], [1], 1, answers=[1, 2]), ["'answers' has 2 rows", "has 1"]),
    ],
    "bad_parameter": [
        (lambda: gk.pass_at_k([1], [1], 0), ["pass_at_k: k=0", "from 1"]),
        (lambda: gk.best_at_k([1], [1], 1.5), ["best_at_k: k=1.5"]),
        (lambda: gk.worst_at_k([1], [1], True), ["worst_at_k: k=True"]),
        (lambda: gk.majority_at_k([1.0], [1], 1, answers=[1], draws=0), ["draws=0"]),
        (lambda: gk.majority_at_k([1.0], [1], 1, answers=[1], seed=-1), ["seed=-1"]),
        (lambda: gk.pass_at_k_of_counts([1, 2], [1, 2, 3], 1), ["(2,), (3,), ()", "broadcast"]),
    ],
    "bad_threads": [(lambda: gk.majority_at_k([1.0], [1], 1, answers=[1], threads=0), ["0"])],
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_refused(kind):
    for provoke, words in BAD[kind]:
        with pytest.raises(gk.GrpokitError) as caught:
            provoke()
        assert caught.value.kind == kind, caught.value
        assert all(word in str(caught.value) for word in words), str(caught.value)
