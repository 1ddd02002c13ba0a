import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpokit.tokens import Normalizer, Segments, Tokens

masks = st.lists(st.lists(st.booleans(), max_size=5), max_size=5)


@settings(deadline=None)
@given(masks)
def test_segments_are_the_places_that_are_there(rows):
    flat = torch.tensor([there for row in rows for there in row], dtype=torch.bool)
    segments = Segments.of(flat, torch.tensor([len(row) for row in rows], dtype=torch.int64))
    assert segments.lengths.tolist() == [sum(row) for row in rows]
    assert segments.index.tolist() == [i for i, there in enumerate(flat.tolist()) if there]
    assert segments.starts == [sum(map(sum, rows[:i])) for i in range(len(rows) + 1)]
    for first in range(len(rows)):
        origin = sum(map(len, rows[:first]))
        part = segments.part(first, len(rows), origin)
        again = Segments.of(flat[origin:], torch.tensor([len(row) for row in rows[first:]]))
        assert part.index.tolist() == again.index.tolist()
        assert part.lengths.tolist() == again.lengths.tolist()


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), max_size=5), st.integers(0, 99))
def test_total_and_mean_and_their_gradient(lengths, seed):
    """A sum at every token of the sequence; its transpose is itself, twice over for a second derivative."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(lengths), generator=generator, dtype=torch.float64, requires_grad=True)
    k = torch.randn(sum(lengths), generator=generator, dtype=torch.float64)
    tokens = Tokens({}, torch.tensor(lengths, dtype=torch.int64))
    same = torch.block_diag(*[torch.ones(n, n, dtype=torch.float64) for n in lengths])
    same = same[:, : len(x)] if len(x) else torch.zeros(0, 0, dtype=torch.float64)
    total = tokens.total(x)
    torch.testing.assert_close(total, same @ x)
    torch.testing.assert_close(tokens.mean(x), (same @ x) / same.sum(1))
    (g,) = torch.autograd.grad((k * total**2).sum(), x, create_graph=True)
    torch.testing.assert_close(g, same @ (2 * k * total))
    if len(x):
        (gg,) = torch.autograd.grad(g.sum(), x)
        torch.testing.assert_close(gg, same @ (2 * k * (same @ torch.ones_like(x))))


def test_a_long_sum_in_fp32_is_rounded_once():
    x = torch.full((100_000,), 0.1)
    total = Tokens({}, torch.tensor([100_000])).total(x)
    assert total[0] == (x.double().sum()).float()


@settings(deadline=None)
@given(masks)
def test_normalizer_counts(rows):
    weights = torch.tensor([float(w) for row in rows for w in row], dtype=torch.float64)
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    live = Normalizer.of(weights, lengths, "live")
    assert (float(live.tokens), float(live.sequences)) == (len(weights), sum(bool(row) for row in rows))
    kept = Normalizer.of(weights, lengths, "kept")
    assert (float(kept.tokens), float(kept.sequences)) == (sum(map(sum, rows)), sum(any(row) for row in rows))
    everything = Normalizer.of(weights, lengths, "rows")
    assert (float(everything.tokens), float(everything.sequences)) == (len(weights), len(rows))


def test_columns_of_what_is_left():
    tokens = Tokens({"logps": torch.tensor([1.0, 2.0, 3.0])}, torch.tensor([2, 1]))
    kept = Segments.of(torch.tensor([False, True, True]), torch.tensor([2, 1]))
    left = tokens.only(kept, extra=torch.tensor([4.0, 5.0, 6.0]))
    assert left.logps.tolist() == [2.0, 3.0]
    assert left.extra.tolist() == [5.0, 6.0]
    assert left.lengths.tolist() == [1, 1]
    assert "extra" in left
    assert "extra" not in tokens
    assert tokens.only(None).logps.tolist() == [1.0, 2.0, 3.0]
