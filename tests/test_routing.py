"""Records of routing: what they take and refuse, how they are cut and laid out, how far two agree."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import grpokit as gk
from grpokit.errors import KINDS


def random_record(rng, *layout, layers=3, k=2, experts=8, weights=False, missing=0.2):
    shape = (*layout, layers, k)
    chosen = rng.random((*layout, layers, experts)).argsort(-1)[..., :k]
    chosen[rng.random((*layout, layers)) < missing] = -1
    return gk.RoutingRecord(chosen, experts, rng.random(shape) if weights else None)


@pytest.mark.parametrize(("experts", "dtype"), [(8, np.int8), (128, np.int8), (129, np.int16), (32768, np.int16)])
def test_kept_small_and_exact(experts, dtype):
    given = np.array([[[0, experts - 1]], [[-1, -1]]])
    for array in (given, given.tolist(), torch.from_numpy(given), given.astype(np.int32)):
        record = gk.RoutingRecord(array, experts)
        assert record.experts.dtype == dtype
        assert record.experts.tolist() == given.tolist()
        assert record.recorded.tolist() == [[True], [False]]


def test_is_frozen_and_not_the_callers():
    given = np.array([[[0, 1]]], np.int8)
    record = gk.RoutingRecord(given, 4, np.ones((1, 1, 2), np.float32))
    given[:] = 3
    assert record.experts.tolist() == [[[0, 1]]]
    for array in (record.experts, record[:1].experts, record.weights):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0
    with pytest.raises(AttributeError):
        record.num_experts = 5
    assert repr(record) == "RoutingRecord(1, 1 layers, 2 of 4 experts, with weights)"


@pytest.mark.parametrize("weights", [False, True])
def test_rows_follow_a_batch(weights):
    """`record[part.span]` are the rows of a part, padded and packed."""
    rng = np.random.default_rng(0)
    padded = random_record(rng, 5, 4, weights=weights)
    batch = gk.TokenBatch(targets=torch.zeros(5, 4, dtype=torch.int64))
    packed = random_record(rng, 20, weights=weights)
    flat = gk.TokenBatch(targets=torch.zeros(20, dtype=torch.int64), cu_seqlens=torch.tensor([0, 3, 9, 10, 20]))
    for record, whole in ((padded, batch), (packed, flat)):
        parts = [record[part.span] for part in whole.split(max_tokens=8)]
        assert len(parts) > 2
        again = gk.RoutingRecord.concatenate(parts)
        np.testing.assert_array_equal(again.experts, record.experts)
        assert (again.weights is None) is not weights
        if weights:
            np.testing.assert_array_equal(again.weights, record.weights)


def test_rows_by_mask_and_list():
    record = random_record(np.random.default_rng(1), 4, 3)
    np.testing.assert_array_equal(record[[2, 0]].experts, record.experts[[2, 0]])
    np.testing.assert_array_equal(record[torch.tensor([2, 0])].experts, record.experts[[2, 0]])
    np.testing.assert_array_equal(record[np.array([0, 1, 1, 0], bool)].experts, record.experts[1:3])


@pytest.mark.parametrize("seed", range(20))
def test_padding_and_packing(seed):
    """split undoes padded, whatever the padding is; requests that are a token short leave it unknown."""
    rng = np.random.default_rng(seed)
    B, P = int(rng.integers(1, 5)), int(rng.integers(1, 7))
    mask = rng.random((B, P)) < 0.6
    rows = [random_record(rng, int(n), weights=seed % 2 == 0) for n in mask.sum(1)]
    batch = gk.RoutingRecord.padded(rows, mask)
    assert not batch.recorded[~mask].any()
    for row, again in zip(rows, batch.split(mask), strict=True):
        np.testing.assert_array_equal(again.experts, row.experts)
        if row.weights is not None:
            np.testing.assert_array_equal(again.weights, row.weights)
    assert gk.RoutingRecord.concatenate(batch.split(mask)).layout == (mask.sum(),)
    short = [row[:-1] for row in rows]
    late = gk.RoutingRecord.padded(short, mask)
    for i, row in enumerate(short):
        places = np.flatnonzero(mask[i])
        np.testing.assert_array_equal(late.experts[i, places[: row.layout[0]]], row.experts)
        assert not late.recorded[i, places[row.layout[0] :]].any()


@pytest.mark.parametrize("seed", range(10))
def test_agreement_in_plain_loops(seed):
    rng = np.random.default_rng(seed)
    a, b = (random_record(rng, 4, 5, k=3, experts=5) for _ in range(2))
    mask = rng.random((4, 5)) < 0.7
    found = a.agreement(b, mask)
    assert found.tokens.tolist() == b.agreement(a, torch.from_numpy(mask)).tokens.tolist()
    every = []
    for layer in range(3):
        shares = []
        for place in zip(*np.nonzero(mask), strict=True):
            A, B = set(a.experts[place][layer].tolist()), set(b.experts[place][layer].tolist())
            if -1 not in A | B:
                shares.append(len(A & B) / 3)
        assert found.tokens[layer] == len(shares)
        np.testing.assert_allclose(found.overlap_by_layer[layer], np.mean(shares), rtol=1e-14)
        np.testing.assert_allclose(found.sets_by_layer[layer], np.mean([s == 1 for s in shares]), rtol=1e-14)
        every += shares
    np.testing.assert_allclose(found.overlap, np.mean(every), rtol=1e-14)
    np.testing.assert_allclose(found.sets, np.mean([s == 1 for s in every]), rtol=1e-14)
    own = a.agreement(a)
    assert own.sets == own.overlap == 1.0


def test_agreement_of_nothing_is_not_a_number():
    record = random_record(np.random.default_rng(0), 2, 2)
    nothing = record.agreement(record, np.zeros((2, 2)))
    assert nothing.tokens.tolist() == [0, 0, 0]
    assert np.isnan([nothing.sets, nothing.overlap, *nothing.sets_by_layer]).all()


ROW = gk.RoutingRecord(np.array([[[0, 1]], [[2, 3]]]), 4)  # (2,), 1 layer
PAD = gk.RoutingRecord(ROW.experts[None], 4)  # (1, 2)
OTHER = gk.RoutingRecord(np.array([[[0, 1]]]), 5)
MASK = np.ones((1, 2))

BAD = {
    "bad_experts": [
        (lambda: gk.RoutingRecord(np.array([[[0, 4]]]), 4), ["(0, 0)", "[0, 4]", "0 to 3"]),
        (lambda: gk.RoutingRecord(np.array([[[0, 1]], [[0, -2]]]), 4), ["(1, 0)", "[0, -2]"]),
        (lambda: gk.RoutingRecord(np.array([[[0, -1]]]), 4), ["[0, -1]", "not recorded"]),
        (lambda: gk.RoutingRecord(np.array([[[2, 1, 2]]]), 4), ["[2, 1, 2]", "different"]),
        (lambda: gk.RoutingRecord(np.zeros((1, 2, 2), int), 4), ["[0, 0]", "without experts"]),
        (lambda: gk.RoutingRecord(np.array([[[0, 255]]], np.uint8), 4), ["[0, 255]"]),
        (lambda: gk.RoutingRecord(np.array([[[2**64 - 1, 2**64 - 1]]], np.uint64), 4), ["18446744073709551615"]),
    ],
    "token_shape": [
        (lambda: gk.RoutingRecord(np.array([[0, 1]]), 4), ["experts", "(1, 2)", "(T, layers, k)"]),
        (lambda: gk.RoutingRecord(np.zeros((1, 1, 0), int), 4), ["(1, 1, 0)"]),
        (lambda: gk.RoutingRecord(ROW.experts, 4, np.ones((2, 2))), ["weights", "(2, 1, 2)"]),
        (lambda: ROW[0], ["one row", "a slice"]),
        (lambda: ROW.split(MASK), ["mask", "(1, 2)", "(2,)"]),
        (lambda: ROW.split([1, 1]), ["packed", "(B, P)"]),
        (lambda: PAD.split(MASK[:, :1]), ["mask", "(1, 1)", "(1, 2)"]),
        (lambda: gk.RoutingRecord.padded([ROW], MASK[:, :1]), ["row 0", "(2,)", "1 live"]),
        (lambda: gk.RoutingRecord.padded([PAD], MASK), ["row 0", "packed"]),
        (lambda: gk.RoutingRecord.padded([ROW, ROW], MASK), ["mask", "(1, 2)", "(2, P)"]),
        (lambda: gk.RoutingRecord.padded([ROW, OTHER], np.ones((2, 2))), ["of 5", "of 4 experts"]),
        (lambda: gk.RoutingRecord.concatenate([ROW, PAD]), ["(1, 2)"]),
        (lambda: gk.RoutingRecord.concatenate([ROW, OTHER]), ["of 5", "of 4 experts"]),
        (lambda: ROW.agreement(PAD), ["(1, 2)", "(2,)"]),
        (lambda: ROW.agreement(OTHER), ["of 5"]),
        (lambda: ROW.agreement(ROW, [1]), ["mask", "(1,)"]),
    ],
    "token_type": [
        (lambda: gk.RoutingRecord(np.array([[[0.0, 1.0]]]), 4), ["float64", "whole numbers"]),
        (lambda: gk.RoutingRecord([[["a", "b"]]], 4), ["<U1"]),
        (lambda: gk.RoutingRecord(ROW.experts, 4, ROW.experts), ["weights", "int8", "floats"]),
        (lambda: gk.RoutingRecord.concatenate([ROW, "x"]), ["str", "RoutingRecord"]),
        (lambda: gk.RoutingRecord.concatenate([ROW.experts]), ["ndarray"]),
        (lambda: ROW.agreement(3), ["int"]),
    ],
    "bad_parameter": [
        (lambda: gk.RoutingRecord(ROW.experts, 0), ["num_experts=0"]),
        (lambda: gk.RoutingRecord(ROW.experts, 2**15 + 1), ["num_experts=32769"]),
        (lambda: gk.RoutingRecord(ROW.experts, 4, layers=("a", "b")), ["layers=('a', 'b')", "1 names"]),
        (lambda: gk.RoutingRecord(ROW.experts, 4, np.full((2, 1, 2), np.nan)), ["weights", "finite"]),
        (lambda: gk.RoutingRecord.concatenate([]), ["records=[]"]),
    ],
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_meant_is_refused(kind):
    for provoke, words in BAD[kind]:
        with pytest.raises(KINDS[kind].cls) as caught:
            provoke()
        assert caught.value.kind == kind, caught.value
        for word in words:
            assert word in str(caught.value), (word, str(caught.value))


def test_needs_no_torch():
    code = "import sys, grpokit as gk; gk.RoutingRecord([[[0, 1]]], 4)[:1]; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_weights_behind_the_unrecorded_do_not_matter():
    weights = np.array([[[np.nan, np.inf]]])
    assert gk.RoutingRecord(np.array([[[-1, -1]]]), 4, weights).weights.dtype == np.float32
