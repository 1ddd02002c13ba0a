"""The columns, the parts and the refusals of `TokenBatch`."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import grpokit as gk
from tests.losses import packed, padded, table

TARGETS = torch.tensor([[5, 6, 7], [1, 2, 3]])


@st.composite
def layouts(draw):
    lengths = draw(st.lists(st.integers(0, 5), max_size=5))
    return table(draw(st.integers(0, 99)), lengths, per_token=draw(st.booleans()))


@settings(deadline=None)
@given(layouts())
def test_columns_are_the_live_tokens_in_order(d):
    batch, mask = padded(d), d["mask"]
    for name in ("targets", "old_logps", "rollout_logps", "ref_logps"):
        assert torch.equal(batch.columns[name], d[name][mask])
    A = d["advantages"] if d["advantages"].dim() == 2 else d["advantages"][:, None].expand(mask.shape)
    assert torch.equal(batch.columns["advantages"], A[mask])
    assert torch.equal(batch.columns["length"], mask.sum(1, keepdim=True).expand(mask.shape)[mask])
    assert torch.equal(batch.columns["position"], (mask.cumsum(1) - 1)[mask])
    assert torch.equal(batch.columns["rollout_ids"], torch.arange(len(mask))[:, None].expand(mask.shape)[mask])
    assert batch.live_tokens == mask.sum()


@settings(deadline=None)
@given(layouts())
def test_padded_and_packed_have_the_same_columns(d):
    if len(d["mask"]) == d["places"].sum() and not d["places"].any(1).all():
        return  # refused: see test_ambiguous_column
    a, b = padded(d).columns, packed(d)[1].columns
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@settings(deadline=None)
@given(layouts(), st.integers(1, 30), st.booleans())
def test_split_cuts_between_sequences(d, max_tokens, as_padded):
    batch = padded(d) if as_padded else packed(d, advantages=None, off_policy=None)[1]
    parts = batch.split(max_tokens)
    assert [part.rows.start for part in parts] + [batch.rows.stop] == [0] + [part.rows.stop for part in parts]
    assert [part.span.start for part in parts] + [batch.shape[0]] == [0] + [part.span.stop for part in parts]
    for part in parts:
        assert part.whole is batch
        assert len(part.live.lengths) == 1 or part.shape.numel() <= max_tokens
        assert torch.equal(part.columns["targets"], d["targets"][part.rows][d["mask"][part.rows]])
        assert torch.equal(part.column("logps", torch.ones(part.shape)), torch.ones(part.live_tokens))
    for name, x in batch.columns.items():
        assert torch.equal(torch.cat([part.columns[name] for part in parts]), x)
    pieces = [piece for part in parts for piece in part.split(1)]
    assert all((piece.live.lengths > 0).sum() <= 1 for piece in pieces)
    assert torch.equal(torch.cat([piece.columns["targets"] for piece in pieces]), batch.columns["targets"])


def test_parts_are_filled_up_to_the_limit():
    batch = gk.TokenBatch(torch.zeros(10, dtype=torch.int64), cu_seqlens=[0, 2, 4, 9, 10])
    assert [part.shape[0] for part in batch.split(4)] == [4, 5, 1]
    assert [part.shape[0] for part in batch.split(100)] == [10]


def test_inputs_go_with_the_parts():
    ids, width = torch.arange(6).view(2, 3), torch.tensor([1.0, 2.0])
    parts = gk.TokenBatch(TARGETS, inputs={"input_ids": ids, "width": width}).split(3)
    assert [part.inputs["input_ids"].tolist() for part in parts] == [[[0, 1, 2]], [[3, 4, 5]]]
    assert [part.inputs["width"].tolist() for part in parts] == [[1.0], [2.0]]
    parts = gk.TokenBatch(TARGETS.flatten(), cu_seqlens=[0, 4, 6], inputs=torch.arange(6)).split(2)
    assert [part.inputs.tolist() for part in parts] == [[0, 1, 2, 3], [4, 5]]
    assert gk.TokenBatch(TARGETS).inputs is None


def test_constants_per_place_per_row_or_one_number():
    batch = gk.TokenBatch(
        TARGETS,
        mask=np.array([[1, 1, 0], [1, 0, 0]]),
        advantages=np.array([0.25, -1.0]),
        outcomes=[True, False],
        returns=torch.arange(6.0).view(2, 3).bfloat16(),
        beta=0.1,
        step=7,
    )
    assert batch.columns["advantages"].tolist() == [0.25, 0.25, -1.0]
    assert batch.columns["advantages"].dtype == torch.float64
    assert batch.columns["outcomes"].tolist() == [True, True, False]
    assert batch.columns["returns"].tolist() == [0.0, 1.0, 3.0]
    assert batch.columns["returns"].dtype == torch.float32
    assert batch.columns["beta"].tolist() == [0.1, 0.1, 0.1]
    assert batch.columns["step"].tolist() == [7, 7, 7]
    assert "beta" in repr(batch)


def test_read_only_arrays_are_taken():
    advantages = np.array([1.0, 2.0])
    advantages.setflags(write=False)
    assert gk.TokenBatch(TARGETS, advantages=advantages).columns["advantages"].tolist() == [1.0] * 3 + [2.0] * 3


def test_everything_is_where_targets_are():
    """Nothing is made on the default device behind the caller's back: here that is one without any data."""
    d = table(1)
    with torch.device("meta"):
        batch = padded(d)
        parts = batch.split(20)
        for r in (gk.recipe("grpo"), gk.recipe("dapo", max_len=9).replace(correct=(gk.TIS(), gk.WTRS()))):
            for part in parts:
                x = d["logits"][part.span].clone().requires_grad_()
                out = gk.loss.from_logits(x, part, recipe=r)
                out.loss.backward()
                assert x.grad.device == out.loss.device == next(iter(out.metrics.values())).device == d["mask"].device


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)])
def test_nothing_at_all(shape):
    batch = gk.TokenBatch(torch.zeros(shape, dtype=torch.int64), advantages=torch.zeros(shape[0]))
    (part,) = batch.split(1) if not shape[0] else batch.split(10)
    logits = torch.zeros(*shape, 5, requires_grad=True)
    out = gk.loss.from_logits(logits, part, recipe=gk.recipe("rloo"))
    out.loss.backward()
    assert out.loss == 0
    assert logits.grad.shape == logits.shape
    empty = gk.TokenBatch(torch.zeros(0, dtype=torch.int64), cu_seqlens=[0], advantages=torch.zeros(0))
    assert gk.loss.from_logps(torch.zeros(0), empty, recipe=gk.recipe("rloo")).loss == 0


def test_ambiguous_column():
    """Two places, two sequences, one of them empty: a pair of advantages may be meant either way."""
    packed = {"targets": torch.tensor([1, 2]), "cu_seqlens": torch.tensor([0, 2, 2])}
    with pytest.raises(gk.InputError) as caught:
        gk.TokenBatch(**packed, advantages=torch.tensor([1.0, 2.0]))
    assert caught.value.kind == "ambiguous_column"
    log_probs = gk.TokenBatch(**packed, old_logps=torch.tensor([-1.0, -2.0])).columns["old_logps"]
    assert log_probs.tolist() == [-1.0, -2.0]
    each = gk.TokenBatch(torch.tensor([1, 2]), cu_seqlens=[0, 1, 2], advantages=torch.tensor([1.0, 2.0]))
    assert each.columns["advantages"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"targets": TARGETS.float()}, "token_type", "targets"),
        ({"targets": [[1, 2]]}, "token_type", "targets"),
        ({"targets": TARGETS[0]}, "token_shape", "cu_seqlens"),
        ({"targets": TARGETS[None]}, "token_shape", "(1, 2, 3)"),
        ({"cu_seqlens": [0, 6]}, "token_shape", "(T,)"),
        ({"targets": TARGETS[0], "cu_seqlens": [0, 2]}, "bad_cu_seqlens", "3 places"),
        ({"targets": TARGETS[0], "cu_seqlens": [1, 3]}, "bad_cu_seqlens", "[1, 3]"),
        ({"targets": TARGETS[0], "cu_seqlens": [0, 2, 1, 3]}, "bad_cu_seqlens", "never fall"),
        ({"targets": TARGETS[0], "cu_seqlens": [0.0, 3.0]}, "bad_cu_seqlens", "float64"),
        ({"targets": TARGETS[0], "cu_seqlens": []}, "bad_cu_seqlens", "start at 0"),
        ({"targets": TARGETS[0], "cu_seqlens": [[0, 3]]}, "bad_cu_seqlens", "(1, 2)"),
        ({"mask": torch.ones(2, 2)}, "token_shape", "mask"),
        ({"mask": "all"}, "token_type", "mask"),
        ({"advantages": torch.ones(3)}, "token_shape", "(2,) (per sequence)"),
        ({"advantages": torch.ones(2, 1)}, "token_shape", "(2, 3) (per place)"),
        ({"advantages": torch.ones(2, requires_grad=True)}, "token_type", "detach"),
        ({"advantages": torch.ones(2, dtype=torch.complex64)}, "token_type", "advantages"),
        ({"advantages": [1.0, None]}, "token_type", "advantages"),
        ({"advantages": torch.ones(2, device="meta")}, "token_type", "on meta"),
        ({"old_logps": torch.ones(2)}, "token_shape", "old_logps"),
        ({"old_logps": TARGETS}, "token_type", "old_logps"),
        ({"temperature": 0.0}, "bad_parameter", "temperature"),
        ({"temperature": float("nan")}, "bad_parameter", "temperature"),
        ({"step": 1.5}, "token_type", "step"),
        ({"rollout_ids": ["a", "b"]}, "token_type", "rollout_ids"),
        ({"rollout_ids": torch.ones(2)}, "token_type", "whole numbers"),
        ({"logps": torch.ones(2, 3)}, "reserved_column", "logps"),
        ({"total": torch.ones(2, 3)}, "reserved_column", "total"),
        ({"_columns": torch.ones(2, 3)}, "reserved_column", "_columns"),
        ({"inputs": [1, 2]}, "token_type", "inputs"),
        ({"inputs": {"input_ids": TARGETS[0]}}, "token_shape", "input_ids"),
        ({"inputs": torch.tensor(1)}, "token_shape", "inputs"),
    ],
)
def test_what_is_refused(arguments, kind, words):
    with pytest.raises(gk.GrpokitError) as caught:
        gk.TokenBatch(**({"targets": TARGETS} | arguments))
    assert caught.value.kind == kind
    assert words in str(caught.value)


@pytest.mark.parametrize("max_tokens", [0, -1, 2.5, None])
def test_split_needs_a_number_of_tokens(max_tokens):
    with pytest.raises(gk.InputError) as caught:
        gk.TokenBatch(TARGETS).split(max_tokens)
    assert caught.value.kind == "bad_parameter"
