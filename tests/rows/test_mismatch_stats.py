"""Mismatch statistics: the reference's numbers, laws of ESS, bits that no layout changes, merges, what is refused."""

import math
import pickle
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

import grpokit as gk
from grpokit.reference import mismatch_stats as ref

UNIT = 2.0**-24
FINITE = st.one_of(
    st.floats(-(2**-10), 2**-10, width=32),
    st.floats(-2, 2, width=32),
    st.floats(-40, 40, width=32),
    st.sampled_from((0.0, -0.0, 1.0, -1.0, 20.0, -20.0, 1e4, -1e4)),
)
ANY = st.one_of(FINITE, FINITE, st.sampled_from((math.nan, math.inf, -math.inf)))
SIZES = st.lists(st.integers(0, 20), min_size=1, max_size=6)


def batches(log_ratios):
    """Sequences of log ratios."""
    return SIZES.flatmap(lambda sizes: st.tuples(*(st.lists(log_ratios, min_size=n, max_size=n) for n in sizes)))


@dataclass(frozen=True)
class Rule:
    """A rule with bounds, as stages have them."""

    level: str
    low: float | None = None
    high: float | None = None

    @property
    def bounds(self):
        return self.level, self.low, self.high


RULES = [Rule(level, low, high) for level in ("token", "worst", "sequence", "geometric") for low, high in ((0.5, 1.7),)]
RULES += [Rule("token", None, 1.2), Rule("sequence", 0.9, None), Rule("geometric", None, None)]


def packed(d, **options):
    """The statistics of sequences of log ratios, packed, π_rollout being 1 everywhere."""
    flat = np.array([x for sequence in d for x in sequence], np.float32)
    starts = np.append(0, np.cumsum([len(sequence) for sequence in d], dtype=np.int64))
    return gk.mismatch_stats(flat, np.zeros_like(flat), cu_seqlens=starts, **options)


def padded(d, random, **options):
    """The same with masked places, NaN among them, anywhere between."""
    width = max(map(len, d), default=0) + random.randint(0, 40)
    old, rollout = (np.full((len(d), width), np.nan, np.float32) for _ in range(2))
    mask = np.zeros((len(d), width), bool)
    for row, sequence in enumerate(d):
        at = sorted(random.sample(range(width), len(sequence)))
        old[row, at], rollout[row, at], mask[row, at] = sequence, 0.0, True
    return gk.mismatch_stats(old, rollout, mask, **options), mask


def bits(stats, *, places=True):
    """All that it holds, as bytes."""
    extremes = [[x if places else x._replace(position=0) for x in records] for records in stats._extremes]
    groups = [bits(group, places=places) for group in (*stats.by_source.values(), *stats.by_lag.values())]
    arrays = (stats._counts, stats._sums, stats._logs, stats._outside, *stats._bins.values())
    return b"".join(x.tobytes() for x in arrays), stats._means, extremes, groups


def close(found, expected, error):
    both_nan = math.isnan(found) and math.isnan(expected)
    assert both_nan or abs(found - expected) <= error, (found, expected, error)


@given(batches(ANY))
@example(([],))
@example(([math.nan], [1.0]))
@example(([-15.0] * 9,))
def test_statistics_are_the_references(d):
    stats = packed(d, rules=RULES)
    live, whole = ref.tokens(d), ref.sequences(d)
    n = max(len(live), 1)
    assert (stats.tokens, stats.sequences) == (len(live), len(whole))
    assert (stats.not_finite, stats.sequences_not_finite) == ref.not_finite(d)
    # A lane adds one value in eight, each addition rounds by a unit of what is summed, all of which is of one sign;
    # e^d is right to 4 units, its square to 9.
    adds = n / 8 + 1
    mean_ratio, square = ref.mean_ratio(d), ref.chi2_token(d) + 1
    close(stats.mean_ratio, mean_ratio, (adds + 4) * UNIT * mean_ratio)
    close(stats.chi2_token, square - 1, (adds + 9) * UNIT * square + 1e-15)
    ess = ref.ess_token(d)
    close(stats.ess_token, ess, (3 * adds + 17) * UNIT * ess)
    # Σ d is taken in float64; ρ − 1 − d is right to 6 units of the larger of ρ and |d| beyond ln 2 / 2.
    size = ref.mean([abs(x) for x in live])
    close(stats.kl_k1, ref.kl_k1(d), n * 2.0**-52 * size)
    convex = [math.expm1(x) - x if abs(x) < 0.34 else math.exp(x) + abs(x) for x in map(ref.limited, live)]
    tolerance = (adds + 6) * UNIT * ref.mean(convex) + 4 * n * 2.0**-52 * size
    close(stats.kl_k3, ref.kl_k3(d), tolerance)
    close(stats.kl_gap, ref.kl_gap(d), tolerance)
    # S of up to 8e5 nats has 2^-53 of that as its error, in all four places where it is subtracted.
    largest = max((math.fsum(map(abs, sequence)) for sequence in whole), default=0.0)
    close(stats.ess_sequence, ref.ess_sequence(d), (64 * largest + 100) * 2.0**-52)
    log_square = ref.log_chi2_sequence(d)
    if log_square < 700:
        close(stats.chi2_sequence, math.expm1(log_square), (64 * largest + 100) * 2.0**-52 * math.exp(log_square))
    else:
        assert math.isnan(log_square) or stats.chi2_sequence > 1e300
    for rule in RULES:
        edges = [math.log(x) for x in (rule.low, rule.high) if x is not None]
        values = [*live, *map(math.fsum, whole), *ref.geometric(d)]
        assume(all(abs(x - edge) > 1e-6 * (1 + abs(edge)) for x in values for edge in edges))
        tokens, sequences = ref.outside(d, rule.level, rule.low, rule.high)
        found = stats.outside[repr(rule)]
        close(found.tokens, tokens / len(live) if live else math.nan, 1e-15)
        close(found.sequences, sequences / len(whole) if whole else math.nan, 1e-15)


@given(batches(ANY), st.floats(0, 1))
def test_quantiles_are_within_their_resolution(d, q):
    stats = packed(d)
    for level, values in (("token", ref.tokens(d)), ("geometric", ref.geometric(d))):
        exact = ref.quantile(values, q)
        found = math.log(stats.quantile(q, level)) if values and abs(exact) < 700 else math.nan
        if values and abs(exact) < 31:
            close(found, exact, abs(exact) / 33 * (1 + 1e-6) + 2.0**-27 * 1.1 + 1e-12)
        elif math.isfinite(found):
            assert abs(found) > 30.9
            assert (found > 0) == (exact > 0)
        ends = (min(values), max(values)) if values else (math.nan, math.nan)
        for share, end in zip((0, 1), ends, strict=True):
            found = stats.quantile(share, level)
            assert found == math.inf if end > 709 else math.isnan(end) or found == pytest.approx(math.exp(end), 1e-12)


@given(batches(ANY))
def test_extremes_are_the_most_extreme_and_say_where(d):
    stats = packed(d)
    listed = [(x, row, at) for row, sequence in enumerate(d) for at, x in enumerate(sequence) if math.isfinite(x)]
    sums = [(packed([s])._sums[0], row, 0) for row, s in enumerate(d) if s and all(map(math.isfinite, s))]
    records = (stats.lowest, stats.highest), (stats.lowest_sequences, stats.highest_sequences)
    for (lowest, highest), values in zip(records, (listed, sums), strict=True):
        for found, sign in ((lowest, 1), (highest, -1)):
            expected = sorted(values, key=lambda one: (sign * one[0], *one[1:]))[:5]
            assert [(x.log_ratio, x.sequence, x.position) for x in found] == expected
            assert all(x.batch == 0 for x in found)
    wrong = [(row, at) for row, sequence in enumerate(d) for at, x in enumerate(sequence) if not math.isfinite(x)]
    assert stats.first_not_finite == ((0, *wrong[0]) if wrong else None)


@given(batches(ANY), st.randoms(use_true_random=False))
def test_padded_is_packed_to_the_bit(d, random):
    options = {"rules": RULES, "source": [i % 2 for i in range(len(d))]}
    stats, mask = padded(d, random, **options)
    expected = packed(d, **options)
    assert bits(stats, places=False) == bits(expected, places=False)
    # Positions are places of the row, so that old_logps[sequence, position] is the token.
    for found, other in zip(stats.lowest + stats.highest, expected.lowest + expected.highest, strict=True):
        assert np.flatnonzero(mask[found.sequence])[other.position] == found.position
    if expected.first_not_finite is not None:
        _, sequence, position = expected.first_not_finite
        assert stats.first_not_finite == (0, sequence, np.flatnonzero(mask[sequence])[position])


def long_batch(seed, sequences=60, width=3_000):
    """Sequences over several blocks, a few of them with what is not finite or beyond the limit."""
    rng = np.random.default_rng(seed)
    d = rng.normal(0, 0.1, (sequences, width)).astype(np.float32)
    d[3, 1_500], d[7, 10], d[9, 2_000] = math.nan, 45.0, -45.0
    mask = np.arange(width) < rng.integers(0, width + 1, (sequences, 1))
    mask[3], mask[5] = True, rng.random(width) < 0.5
    return d, np.zeros_like(d), mask, rng.integers(0, 3, sequences)


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_threads_change_no_bit(threads):
    old, rollout, mask, source = long_batch(1)
    given = {"rules": RULES, "source": source, "lag": source[::-1]}
    one = gk.mismatch_stats(old, rollout, mask, threads=1, **given)
    assert bits(gk.mismatch_stats(old, rollout, mask, threads=threads, **given)) == bits(one)
    rows = [old[row][live].tolist() for row, live in enumerate(mask)]
    assert bits(packed(rows, threads=threads, **given), places=False) == bits(one, places=False)


def test_long_sequences_are_the_references():
    old, rollout, mask, _ = long_batch(2)
    stats = gk.mismatch_stats(old, rollout, mask, rules=RULES)
    d = ref.log_ratios(old.tolist(), rollout.tolist(), mask.tolist())
    assert stats.not_finite == 1
    # 128 additions in a lane, then float64.
    for name in ("mean_ratio", "ess_token", "kl_k1", "kl_k3"):
        assert getattr(stats, name) == pytest.approx(getattr(ref, name)(d), rel=150 * UNIT)
    assert stats.ess_sequence == pytest.approx(ref.ess_sequence(d), rel=1e-12)
    for rule in RULES:
        counts = ref.outside(d, rule.level, rule.low, rule.high)
        assert stats.outside[repr(rule)] == (counts[0] / stats.tokens, counts[1] / stats.sequences)


@given(batches(FINITE), st.floats(-50, 50))
def test_the_laws_of_ess(d, shift):
    stats = packed(d)
    if stats.tokens:
        assert 1 / stats.tokens <= stats.ess_token <= 1
        assert 1 / stats.sequences <= stats.ess_sequence <= 1
    # One value repeated is as good as independent ones, to the rounding of sums.
    same = packed([[shift] for _ in d])
    assert same.ess_sequence == pytest.approx(1, abs=1e-12)
    assert same.ess_token == pytest.approx(1, abs=30 * UNIT)
    # Another S for all sequences changes nothing: the log-probs here are sums of quarters, so that d is exact.
    exact = [[round(x * 4) / 4 for x in sequence if abs(x) <= 40] for sequence in d]
    shifted = [[*sequence, round(shift) * 1.0] for sequence in exact]
    plain = packed([[*sequence, 0.0] for sequence in exact])
    assert packed(shifted).ess_sequence == pytest.approx(plain.ess_sequence, rel=1e-11)


def test_ess_is_one_only_if_all_are_equal():
    assert packed([[0.5], [0.25, 0.25]]).ess_sequence == pytest.approx(1, abs=1e-15)
    assert packed([[0.5], [0.25, 0.125]]).ess_sequence < 0.9999
    assert packed([[0.5, 0.25]]).ess_token < 0.9999


@pytest.mark.parametrize("size", [1e4, -1e4, 1e30])
def test_no_sum_is_too_large(size):
    stats = packed([[size, size / 2], [size], [0.0]])
    assert 1 / 3 <= stats.ess_sequence <= 1
    assert stats.chi2_sequence == (math.inf if size > 0 else pytest.approx(-2 / 3))
    assert math.isfinite(stats.kl_k3)
    assert len(str(stats).splitlines()) == 8


@given(batches(FINITE))
def test_the_other_way_round_is_the_mirror_image(d):
    stats = packed(d)
    mirror = packed([[-x for x in sequence] for sequence in d])
    assert mirror.kl_k1 == -stats.kl_k1 or not stats.tokens
    for level in ("token", "geometric"):
        # Of the two bins in the middle, which both stand for 0, one has 0 and the other -0.
        sides = np.delete(stats._bins[level], (511, 512)), np.delete(mirror._bins[level], (511, 512))
        np.testing.assert_array_equal(sides[1], sides[0][::-1])
    assert [-x.log_ratio for x in mirror.lowest] == [x.log_ratio for x in stats.highest]


@given(batches(ANY), st.floats(1.01, 9))
def test_rules_with_reciprocal_bounds_are_symmetric(d, high):
    rules = [Rule(level, 1 / high, high) for level in ("token", "worst", "sequence", "geometric")]
    # 1 / high is rounded, and its logarithm too: no value may lie between the two.
    values = [*ref.tokens(d), *map(math.fsum, ref.sequences(d)), *ref.geometric(d)]
    assume(all(abs(abs(x) - math.log(high)) > 1e-6 for x in values))
    mirror = packed([[-x for x in sequence] for sequence in d], rules=rules)
    assert packed(d, rules=rules)._outside.tolist() == mirror._outside.tolist()


@pytest.mark.parametrize("bound", [1.3, 2.0, 5.0])
def test_bounds_are_inclusive_and_compared_with_logarithms(bound):
    edge = np.float32(math.log(bound))
    at, beyond = float(edge), float(np.nextafter(edge, np.float32(9)))
    for rule, outside in ((Rule("token", None, bound), 0.5), (Rule("worst", None, bound), 0.5)):
        assert packed([[at], [beyond]], rules=[rule]).outside[repr(rule)].sequences == outside
    assert packed([[at], [beyond]], rules=[Rule("token", bound)]).outside[repr(Rule("token", bound))].tokens == 0
    for level in ("sequence", "geometric"):
        high = math.exp(0.5)
        assert math.log(high) == 0.5
        rule = Rule(level, high, high)
        assert packed([[0.5], [0.5 + 2**-20]], rules=[rule]).outside[repr(rule)] == (0.5, 0.5)


def test_what_a_rule_takes_away():
    d = [[0.0, 3.0], [0.1, 0.1, 0.1], [1.0, -1.0]]
    rules = [Rule("token", 0.5, 2.0), Rule("worst", 0.5, 2.0), Rule("sequence", 0.5, 2.0), Rule("geometric", 0.5, 2.0)]
    shares = [(round(7 * x.tokens), round(3 * x.sequences)) for x in packed(d, rules=rules).outside.values()]
    assert shares == [(3, 2), (4, 2), (2, 1), (2, 1)]


@given(st.lists(batches(ANY), min_size=1, max_size=4), st.integers(1, 3))
def test_merging_parts_is_the_whole(parts, sources):
    def stats(d):
        return packed(d, rules=RULES, source=[f"s{i % sources}" for i in range(len(d))], lag=[len(x) for x in d])

    whole = stats(tuple(sequence for part in parts for sequence in part))
    merged = stats(parts[0])
    for part in parts[1:]:
        other = stats(part)
        before = bits(other)
        merged.merge(other)
        assert bits(other) == before
    assert merged.batches == len(parts)
    offsets = np.cumsum([0, *map(len, parts)]).tolist()

    def compare(merged, whole):
        for name in ("_counts", "_outside"):
            np.testing.assert_array_equal(getattr(merged, name), getattr(whole, name))
        for level, counts in whole._bins.items():
            np.testing.assert_array_equal(merged._bins[level], counts)
        assert merged._means == whole._means
        np.testing.assert_allclose(merged._sums, whole._sums, rtol=1e-13, atol=1e-10)
        np.testing.assert_allclose(merged._logs, whole._logs, rtol=1e-13, atol=1e-12)
        for mine, theirs in zip(merged._extremes, whole._extremes, strict=True):
            assert [(offsets[x.batch] + x.sequence, *x[2:]) for x in mine] == [tuple(x[1:]) for x in theirs]
        if whole.first_not_finite is not None:
            batch, sequence, position = merged.first_not_finite
            assert (offsets[batch] + sequence, position) == whole.first_not_finite[1:]

    compare(merged, whole)
    assert list(merged.by_lag) == sorted(whole.by_lag)
    for lag, group in whole.by_lag.items():
        compare(merged.by_lag[lag], group)
        assert merged.by_lag[lag].batches == len(parts)
    assert sum(group.tokens for group in merged.by_source.values()) == whole.tokens


@given(batches(ANY), st.randoms(use_true_random=False))
def test_the_order_of_sequences_changes_rounding_alone(d, random):
    stats, shuffled = packed(d, rules=RULES), list(d)
    random.shuffle(shuffled)
    other = packed(shuffled, rules=RULES)
    for name in ("_counts", "_outside", "_means"):
        np.testing.assert_array_equal(getattr(other, name), getattr(stats, name))
    for level, counts in stats._bins.items():
        np.testing.assert_array_equal(other._bins[level], counts)
    for mine, theirs in zip(stats._extremes, other._extremes, strict=True):
        assert [x.log_ratio for x in mine] == [x.log_ratio for x in theirs]
    np.testing.assert_allclose(other._sums, stats._sums, rtol=1e-13, atol=1e-10)


def test_groups_are_what_their_sequences_give():
    old, rollout, mask, lag = long_batch(3)
    stats = gk.mismatch_stats(old, rollout, mask, rules=RULES, lag=lag, source=np.array(["b", "a"])[lag % 2])
    assert list(stats.by_lag) == [0, 1, 2]
    assert set(stats.by_source) == {"a", "b"}
    for groups, column in ((stats.by_lag, lag), (stats.by_source, np.array(["b", "a"])[lag % 2])):
        for value, group in groups.items():
            rows = np.flatnonzero(column == value)
            alone = gk.mismatch_stats(old[rows], rollout[rows], mask[rows], rules=RULES)
            alone._extremes = [[x._replace(sequence=rows[x.sequence]) for x in records] for records in alone._extremes]
            assert bits(group) == bits(alone)
            assert group.metrics() == pytest.approx(alone.metrics(), nan_ok=True)


def test_sources_and_lags_may_be_given_for_some_batches():
    stats = packed([[0.5], [1.0]], source=["a", "b"])
    stats.merge(packed([[2.0]], source=["b"], lag=torch.tensor([4])))
    assert {name: group.tokens for name, group in stats.by_source.items()} == {"a": 1, "b": 2}
    assert {lag: group.tokens for lag, group in stats.by_lag.items()} == {4: 1}
    assert stats.by_lag[4].highest[0] == stats.highest[0] == (1, 0, 0, 2.0)
    stats.merge(stats)
    assert (stats.batches, stats.tokens, stats.by_source["b"].tokens) == (4, 6, 4)
    assert [x.batch for x in stats.highest] == [1, 3, 0, 2, 0]
    assert "d 2, batch 1, sequence 0 at 0" in str(stats)


@pytest.mark.parametrize(
    ("shape", "mask"),
    [((0, 0), None), ((3, 0), None), ((2, 4), np.zeros((2, 4), bool)), ((0, 7), np.ones((0, 7), int))],
)
def test_nothing_is_counted_as_nothing(shape, mask):
    logps = np.full(shape, np.nan, np.float32)
    stats = gk.mismatch_stats(logps, logps, mask, rules=RULES, lag=[1] * shape[0])
    numbers = stats.metrics()
    assert {name for name, number in numbers.items() if number == 0} == {
        f"mismatch/{name}" for name in ("tokens", "sequences", "not_finite", "sequences_not_finite")
    }
    assert all(math.isnan(number) for number in numbers.values() if number != 0)
    assert "0 tokens in 0 sequences" in str(stats)
    assert stats.lowest == stats.highest_sequences == []
    stats.merge(packed([[1.0]], rules=RULES))
    assert stats.kl_k1 == -1


def test_what_is_masked_is_not_seen():
    old = np.array([[-1.0, np.nan, -np.inf]], np.float32)
    mask = np.array([[True, False, False]])
    stats = gk.mismatch_stats(old, np.zeros_like(old), mask)
    assert bits(stats) == bits(packed([[-1.0]]))
    assert stats.not_finite == 0


def test_what_is_not_finite_is_said():
    stats = packed([[0.5, 0.5], [1.0, math.nan], [math.inf]])
    assert (stats.tokens, stats.sequences, stats.not_finite, stats.sequences_not_finite) == (3, 1, 2, 2)
    assert stats.mean_ratio == pytest.approx((2 * math.exp(0.5) + math.e) / 3)
    assert stats.quantile(0.5, "geometric") == math.exp(0.5)
    assert "2 tokens of 2 sequences, the first in sequence 1 at 1" in str(stats)
    same = np.array([[-np.inf]], np.float32)
    assert gk.mismatch_stats(same, same).not_finite == 1


def test_metrics_are_floats_under_plain_names():
    rule = Rule("token", 0.5, 2.0)
    metrics = packed([[0.5, -3.0], [0.25]], rules=[rule]).metrics()
    assert all(type(number) is float for number in metrics.values())
    assert metrics["mismatch/outside/" + repr(rule) + "/tokens"] == 1 / 3
    assert metrics["mismatch/ratio_max"] == pytest.approx(math.exp(0.5))
    assert metrics["mismatch/ess_token"] == packed([[0.5, -3.0], [0.25]]).ess_token
    assert "ess_token" in packed([[0.5]]).metrics(prefix="")


def test_it_can_be_sent():
    stats = packed([[0.5, -3.0], [math.nan]], rules=RULES, source=["a", "b"], lag=[0, 1])
    again = pickle.loads(pickle.dumps(stats))
    assert bits(again) == bits(stats)
    assert str(again) == str(stats)
    assert repr(again) == "MismatchStats(2 tokens, 1 sequences)"


D = [[0.5, -0.25], [1.0, 0.0]]


@pytest.mark.parametrize(
    "of",
    [
        lambda x: np.array(x, np.float32),
        lambda x: np.array(x, np.float64),
        lambda x: np.array(x, np.float16),
        lambda x: np.array(x, ">f4"),
        lambda x: np.asfortranarray(np.array(x, np.float32)),
        lambda x: np.repeat(np.array(x, np.float32), 2, axis=1)[:, ::2],
        torch.tensor,
        lambda x: torch.tensor(x, dtype=torch.float64),
        lambda x: torch.tensor(x, dtype=torch.bfloat16),
        lambda x: torch.tensor(x, dtype=torch.float16, requires_grad=True),
        lambda x: torch.tensor(x).T.contiguous().T,
    ],
)
def test_containers(of):
    zeros = np.zeros((2, 2), np.float32)
    expected = bits(packed(D))
    assert bits(gk.mismatch_stats(of(D), zeros)) == expected
    for mask in (
        np.ones((2, 2), bool),
        np.ones((2, 2), np.int64),
        np.ones((2, 2)),
        torch.ones(2, 2),
        torch.ones(2, 2) > 0,
    ):
        assert bits(gk.mismatch_stats(of(D), of([[0.0, 0.0], [0.0, 0.0]]), mask)) == expected
    starts = torch.tensor([0, 2, 4], dtype=torch.int32)
    assert bits(gk.mismatch_stats(torch.tensor(D).reshape(-1), zeros.reshape(-1), cu_seqlens=starts)) == expected


def test_float64_is_subtracted_in_float64():
    old = np.array([[1000.0 + 2**-30]])
    assert gk.mismatch_stats(old, np.array([[1000.0]])).kl_k1 == -(2**-30)
    assert gk.mismatch_stats(old, np.array([[1000.0]], np.float32)).kl_k1 == -(2**-30)


ONE = np.zeros((1, 2), np.float32)
FLAT = np.zeros(3, np.float32)


class Unbounded:
    """A rule that looks at the current policy."""


BAD = {
    "token_type": [
        (lambda: gk.mismatch_stats([[0.5]], ONE), ["old_logps", "list", "CPU tensor"]),
        (lambda: gk.mismatch_stats(ONE.astype(int), ONE), ["old_logps", "int64", "float32"]),
        (lambda: gk.mismatch_stats(ONE, torch.zeros(1, 2, device="meta")), ["rollout_logps", "meta", ".cpu()"]),
        (lambda: gk.mismatch_stats(ONE, ONE, np.array([["a", "b"]])), ["mask", "<U1", "0 and 1"]),
        (lambda: gk.mismatch_stats(np.ma.array(ONE, mask=[[0, 1]]), ONE), ["old_logps", "masked array", "mask="]),
    ],
    "token_shape": [
        (lambda: gk.mismatch_stats(FLAT, FLAT), ["(3,)", "need cu_seqlens"]),
        (lambda: gk.mismatch_stats(ONE, ONE, cu_seqlens=[0, 2]), ["(1, 2)", "(T,), with cu_seqlens"]),
        (lambda: gk.mismatch_stats(ONE, np.zeros((2, 1), np.float32)), ["rollout_logps", "(2, 1)", "(1, 2)"]),
        (lambda: gk.mismatch_stats(ONE, ONE, np.ones(2, bool)), ["mask", "(2,)"]),
    ],
    "bad_cu_seqlens": [
        (lambda: gk.mismatch_stats(FLAT, FLAT, cu_seqlens=[0, 2]), ["[0, 2]", "3 places"]),
        (lambda: gk.mismatch_stats(FLAT, FLAT, cu_seqlens=[0, 2, 1, 3]), ["never fall"]),
        (lambda: gk.mismatch_stats(FLAT, FLAT, cu_seqlens=[0.0, 3.0]), ["float64"]),
    ],
    "column_length": [
        (lambda: gk.mismatch_stats(ONE, ONE, source=["a", "b"]), ["'source' has 2 rows", "'old_logps' has 1"]),
        (lambda: gk.mismatch_stats(ONE, ONE, lag=[1, 2]), ["'lag' has 2 rows"]),
    ],
    "column_type": [(lambda: gk.mismatch_stats(ONE, ONE, lag=[0.5]), ["'lag'", "whole numbers"])],
    "bad_parameter": [
        (lambda: gk.mismatch_stats(ONE, ONE, np.array([[1, 2]])), ["mask=2", "0 or 1"]),
        (lambda: gk.mismatch_stats(ONE, ONE, np.array([[1.0, np.nan]])), ["mask=nan"]),
        (lambda: gk.mismatch_stats(ONE, ONE, rules=[Unbounded()]), ["rules[0]", "Unbounded", "loss's metrics"]),
        (lambda: gk.mismatch_stats(ONE, ONE, rules=Rule("token", 1.0)), ["rules=Rule", "list"]),
        (lambda: gk.mismatch_stats(ONE, ONE, rules=[Rule("page", 1.0)]), ["rules[0].bounds", "page", "worst"]),
        (lambda: gk.mismatch_stats(ONE, ONE, rules=[Rule("token", 0.0)]), ["above 0"]),
        (lambda: packed([[0.0]] * 4097, source=list(range(4097))), ["values of source=4097", "4,096"]),
        (lambda: packed([[0.0]]).merge(packed([[0.0]], rules=RULES[:1])), ["the same rules", "Rule(level='token'"]),
        (lambda: packed([[0.0]]).merge({}), ["other={}", "MismatchStats"]),
        (lambda: packed([[0.0]]).quantile(2), ["q=2", "from 0 to 1"]),
        (lambda: packed([[0.0]]).quantile(0.5, "sequence"), ["level='sequence'", "geometric"]),
    ],
    "bad_threads": [(lambda: gk.mismatch_stats(ONE, ONE, threads=0), ["threads is 0"])],
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_refused(kind):
    for provoke, words in BAD[kind]:
        with pytest.raises(gk.GrpokitError) as caught:
            provoke()
        assert caught.value.kind == kind, caught.value
        assert all(word in str(caught.value) for word in words), str(caught.value)


def test_places_are_those_of_the_layout():
    """A packed position is counted from the sequence's start, so that the token is found."""
    d = [[0.0] * 5, [0.0, 0.0, 7.0], [0.0]]
    record = packed(d).highest[0]
    starts = [0, *np.cumsum([len(x) for x in d])]
    flat = [x for sequence in d for x in sequence]
    assert flat[starts[record.sequence] + record.position] == record.log_ratio == 7.0
    assert all(b >= a for a, b in pairwise(starts))


def test_rules_of_the_current_policy_are_refused():
    """What is measured is ρ, and such a rule is about u."""
    old = np.zeros((1, 2), np.float32)
    for rule in (gk.IcePop(policy="current"), gk.OPSM(0.1), gk.KPop(0.1)):
        with pytest.raises(gk.InputError, match="the loss's metrics"):
            gk.mismatch_stats(old, old, rules=(rule,))
    found = gk.mismatch_stats(old, old, rules=(gk.IcePop(), gk.MIS(2.0), gk.GeometricMask(), gk.WTRS(), gk.TIS(None)))
    assert [share.tokens for share in found.outside.values()] == [0.0] * 5
