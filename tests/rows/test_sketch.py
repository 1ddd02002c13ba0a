"""Quantiles within the relative error, merges to the bit, bytes that are refused when they are not a sketch's."""

import math
import pickle
import struct
import threading
from fractions import Fraction

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import grpokit as gk

SMALLEST = np.finfo(np.float64).smallest_normal
NUMBERS = st.one_of(
    st.integers(0, 50_000).map(float),
    st.floats(0, 1e6),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from((0.0, -0.0, 1.0, -1.0, 5e-324, SMALLEST, 1.7976931348623157e308, -1.7976931348623157e308, 64.0)),
)
COLUMNS = st.lists(NUMBERS, max_size=80)
ERRORS = st.sampled_from((0.001, 0.01, 1 / 129, 0.05, 0.3))
COARSE = st.sampled_from((0.01, 1 / 129, 0.05, 0.3))  # their bytes are few over all of float64's range too


def sketch_of(*columns, relative_error=0.01):
    sketch = gk.QuantileSketch(relative_error)
    for column in columns:
        sketch.add(column)
    return sketch


@given(COLUMNS.filter(len), st.lists(st.floats(0, 1), max_size=6), ERRORS)
def test_quantiles_are_within_the_relative_error(values, shares, relative_error):
    sketch = sketch_of(values, relative_error=relative_error)
    shares = [0.0, 0.5, *shares, 1.0]
    n = len(values)
    for q, found in zip(shares, sketch.quantiles(shares).tolist(), strict=True):
        exact = sorted(values)[math.floor(q * (n - 1))]
        assert abs(found - exact) <= relative_error * abs(exact) * (1 + 1e-12) + SMALLEST, (q, found, exact)
        assert found == sketch.quantile(q)
    assert (sketch.quantile(0), sketch.quantile(1)) == (min(values), max(values)) == (sketch.min, sketch.max)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=60), st.floats(0, 1))
def test_the_rank_is_numpys(lengths, q):
    exact = np.quantile(np.array(lengths, float), q, method="lower")
    assert abs(sketch_of(lengths, relative_error=0.001).quantile(q) - exact) <= 0.001 * exact


@given(COLUMNS)
def test_count_extremes_and_mean(values):
    sketch = sketch_of(values)
    assert sketch.count == len(values)
    if not values:
        assert all(map(math.isnan, (sketch.min, sketch.max, sketch.mean, sketch.quantile(0.5))))
        return
    exact = sum(map(Fraction, values)) / len(values)
    size = sum(abs(Fraction(x)) for x in values) / len(values)
    # Two roundings for each power of two that occurs, and those of their sum.
    octaves = len({math.frexp(x)[1] for x in values})
    assert abs(Fraction(sketch.mean) - exact) <= size * Fraction(octaves + 2, 2**52) + 2 * octaves * Fraction(5e-324)


def test_the_mean_of_lengths_is_the_exact_one():
    lengths = np.random.default_rng(1).integers(0, 2**40, 10_000)
    assert sketch_of(lengths).mean == pytest.approx(sum(lengths.tolist()) / 10_000, rel=1e-15)


@given(st.lists(COLUMNS, min_size=1, max_size=4), COARSE, st.randoms(use_true_random=False))
def test_merging_is_exact_in_any_order(parts, relative_error, random):
    values = [x for part in parts for x in part]
    random.shuffle(values)
    whole = sketch_of(values, relative_error=relative_error)
    sketches = [sketch_of(part, relative_error=relative_error) for part in parts]
    while len(sketches) > 1:
        other = sketches.pop(random.randrange(len(sketches)))
        before = other.to_bytes()
        random.choice(sketches).merge(other)
        assert other.to_bytes() == before
    assert sketches[0].to_bytes() == whole.to_bytes()
    assert sketches[0].mean == whole.mean or not values


@given(COLUMNS, COARSE)
def test_bytes_and_pickles_give_the_same_sketch(values, relative_error):
    sketch = sketch_of(values, relative_error=relative_error)
    for again in (gk.QuantileSketch.from_bytes(sketch.to_bytes()), pickle.loads(pickle.dumps(sketch))):
        assert again.to_bytes() == sketch.to_bytes()
        assert again.relative_error == sketch.relative_error == relative_error
        again.add([1.0])
        sketch_and_one = sketch_of(values, [1.0], relative_error=relative_error)
        assert again.to_bytes() == sketch_and_one.to_bytes()


@given(st.lists(st.integers(1, 5_000), max_size=9), st.data())
def test_any_changed_byte_is_noticed(lengths, data):
    blob = bytearray(sketch_of(lengths).to_bytes())
    at = data.draw(st.integers(0, len(blob) - 1))
    blob[at] ^= data.draw(st.integers(1, 255))
    for wrong in (bytes(blob), bytes(blob[:at])):
        with pytest.raises(gk.InputError) as caught:
            gk.QuantileSketch.from_bytes(wrong)
        assert caught.value.kind == "bad_sketch"


def sealed(body):
    """Bytes with the checksum that belongs to them."""
    checksum = 0xCBF29CE484222325
    for byte in body:
        checksum = (checksum ^ byte) * 0x100000001B3 % 2**64
    return body + struct.pack("<Q", checksum)


@given(st.lists(st.integers(1, 5_000), max_size=9), st.data())
@settings(max_examples=200)
def test_what_is_sealed_but_wrong_breaks_nothing(lengths, data):
    """Whoever computes the checksum anew may change numbers, and still cannot make a sketch that fails later."""
    body = bytearray(sketch_of(lengths).to_bytes()[:-8])
    at = data.draw(st.integers(0, len(body) - 1))
    body[at] ^= data.draw(st.integers(1, 255))
    try:
        sketch = gk.QuantileSketch.from_bytes(sealed(bytes(body)))
    except gk.InputError as problem:
        assert problem.kind == "bad_sketch"
    else:
        sketch.add([3.0])
        sketch.merge(sketch)
        assert sketch.min <= sketch.quantile(0.5) <= sketch.max
        assert sketch.min <= sketch.mean <= sketch.max


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda body: b"a table" + body, "do not start"),
        (lambda body: body.replace(b"sketch 1", b"sketch 2"), "another version"),
        (lambda body: body + bytes(8), "something follows"),
        (lambda body: body[:-1], "too early"),
        (lambda body: body[:16] + struct.pack("<d", 0.02) + body[24:], "something follows"),
        (lambda body: body[:40] + struct.pack("<d", math.nan) + body[48:], "contradict"),
        (lambda body: body[:48] + struct.pack("<Q", 2**63) + body[56:], "contradict"),
        (lambda body: body[:32] + struct.pack("<d", 9e9) + body[40:], "contradict"),
    ],
)
def test_what_is_wrong_is_said(change, words):
    body = sketch_of([1, 2, 3]).to_bytes()[:-8]
    assert gk.QuantileSketch.from_bytes(sealed(body)).count == 3
    with pytest.raises(gk.InputError, match=words):
        gk.QuantileSketch.from_bytes(sealed(change(body)))


def test_a_sketch_merged_with_itself_counts_twice():
    sketch = sketch_of([1.0, 5.0])
    sketch.merge(sketch)
    assert sketch.to_bytes() == sketch_of([1.0, 5.0], [5.0, 1.0]).to_bytes()


def test_threads_may_share_a_sketch():
    sketch, other = gk.QuantileSketch(), gk.QuantileSketch()
    columns = [np.arange(start, start + 50_000) for start in range(8)]

    def work(column):
        sketch.add(column)
        other.add(column)

    started = [threading.Thread(target=work, args=(column,)) for column in columns]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    assert sketch.to_bytes() == other.to_bytes() == sketch_of(*columns).to_bytes()


def test_memory_is_bounded():
    lengths = sketch_of(np.arange(1, 1_000_000))
    assert len(lengths.to_bytes()) < 11 * 1024
    ends = sketch_of([1.7e308, -1.7e308, 5e-324, -5e-324])
    assert len(ends.to_bytes()) < 2.2 * 2**20


def test_containers():
    for values in (
        [3, 4.5],
        (3, 4.5),
        np.array([3, 4.5], np.float32),
        pl.Series([3.0, 4.5]),
        np.array([3, 4.5, 9])[:2],
    ):
        assert sketch_of(values).to_bytes() == sketch_of([3.0, 4.5]).to_bytes()
    assert repr(sketch_of(np.ones(2_000, bool))) == "QuantileSketch(relative_error=0.01, count=2,000)"


BAD = {
    "bad_value": [
        (lambda: sketch_of([1.0, float("nan")]), ["'values' is nan in row 1", "finite"]),
        (lambda: sketch_of([float("-inf")]), ["-inf in row 0"]),
    ],
    "null_value": [(lambda: sketch_of([1.0, None]), ["'values'", "[1]"])],
    "column_type": [(lambda: sketch_of(["a"]), ["str in row 0"])],
    "column_shape": [(lambda: sketch_of(3.0), ["()"])],
    "bad_sketch": [(lambda: gk.QuantileSketch.from_bytes(b""), ["to_bytes()"])],
    "bad_parameter": [
        (lambda: gk.QuantileSketch.from_bytes("sketch"), ["data='sketch'", "bytes"]),
        (lambda: gk.QuantileSketch(0.5), ["relative_error=0.5", "0.3"]),
        (lambda: gk.QuantileSketch(float("nan")), ["relative_error=nan"]),
        (lambda: gk.QuantileSketch("1%"), ["relative_error='1%'"]),
        (lambda: sketch_of([1.0]).quantile(1.5), ["q=[1.5]", "from 0 to 1"]),
        (lambda: sketch_of([1.0]).quantiles([0.5, float("nan")]), ["from 0 to 1"]),
        (lambda: sketch_of([1.0]).quantiles("half"), ["q='half'"]),
        (lambda: gk.QuantileSketch(0.01).merge(gk.QuantileSketch(0.011)), ["relative_error=0.011", "0.01, as"]),
        (lambda: gk.QuantileSketch().merge([1.0]), ["other=[1.0]", "QuantileSketch"]),
    ],
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_refused(kind):
    for provoke, words in BAD[kind]:
        with pytest.raises(gk.GrpokitError) as caught:
            provoke()
        assert caught.value.kind == kind, caught.value
        assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_refused_column_adds_nothing():
    sketch = sketch_of([1.0])
    with pytest.raises(gk.InputError):
        sketch.add([2.0, float("nan")])
    assert sketch.to_bytes() == sketch_of([1.0]).to_bytes()
