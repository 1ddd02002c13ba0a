"""The corrections' weights in a loss: constants of the gradient, and 0 is not there."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import grpokit as gk
from grpokit.loss import coefficients, from_logps
from grpokit.reference import mismatch as reference
from tests.losses import BONUSES, RECIPES, current, padded, recipe, run, same, table

logps = st.lists(st.tuples(st.floats(-30, 0), st.floats(-30, 0)), max_size=6)


@settings(deadline=None)
@given(logps)
def test_weights_are_the_references(pairs):
    old, rollout = [a for a, _ in pairs], [b for _, b in pairs]
    columns = {"old_logps": torch.tensor(old).double(), "rollout_logps": torch.tensor(rollout).double()}
    tokens = gk.TokenBatch(torch.zeros(1, len(old), dtype=torch.int64)).tokens(
        recipe(), {"logps": torch.zeros(len(old))}
    )
    tokens = tokens.only(None, **columns)
    tis, icepop = gk.TIS(2.0).weight(tokens), gk.IcePop(0.5, 5.0).weight(tokens)
    exact = columns["old_logps"].tolist(), columns["rollout_logps"].tolist()
    assert tis.tolist() == pytest.approx(reference.tis(*exact, 2.0), rel=1e-14)
    assert icepop.tolist() == pytest.approx(reference.icepop(*exact, 0.5, 5.0), rel=1e-14)


def test_a_dropped_token_gets_no_gradient_from_its_term_even_if_it_is_nan():
    d = table(9)
    batch, r = padded(d), RECIPES["icepop_kept"]
    weights = coefficients(batch, r, current(batch, d)).weights
    dropped = batch.live.index[weights == 0]
    assert len(dropped)
    assert len(dropped) < batch.live_tokens
    poisoned = d | {"logps": d["logps"].flatten().index_fill(0, dropped, torch.nan).view_as(d["logps"])}
    loss, x, _ = run(padded(poisoned), r, poisoned, door="logps")
    assert not x.flatten()[dropped].any()
    expected = run(batch, r, d, door="logps")
    same((loss, x), expected[:2], 0)


def test_a_term_drops_for_itself_alone():
    d = table(9)
    batch = padded(d)
    r = recipe(correct=(gk.IcePop(0.8, 1.3),), extra=BONUSES)
    result = coefficients(batch, r, current(batch, d))
    alone = coefficients(batch, recipe(gk.KL(), extra=BONUSES[1:]), current(batch, d))
    dropped = result.weights == 0
    assert dropped.any()
    torch.testing.assert_close(result.gradients["logps"][dropped], 0.04 * alone.gradients["logps"][dropped])
    torch.testing.assert_close(result.gradients["entropies"], alone.gradients["entropies"])


@pytest.mark.parametrize("stage", [gk.TIS(), gk.IcePop()])
def test_nan_of_the_sampler_is_seen(stage):
    d = table(3)
    batch = padded(d, rollout_logps=torch.full_like(d["old_logps"], torch.nan))
    assert from_logps(d["logps"], batch, recipe(correct=(stage,))).loss.isnan()


def test_everything_dropped():
    d = table(3)
    for over in ("live", "kept", "rows"):
        r = recipe(correct=(gk.IcePop(1e6, 1e7),), aggregate=gk.SequenceMean(over=over))
        loss, x, metrics = run(padded(d), r, d)
        assert loss == 0
        assert not x.any()
        assert metrics["mismatch/dropped"] == 1


def test_the_sampler_is_the_trainer():
    """ρ = 1: the corrections change nothing."""
    d = table(3)
    d["rollout_logps"] = d["old_logps"]
    plain = run(padded(d), recipe(extra=BONUSES), d)
    corrected = run(padded(d), recipe(correct=(gk.TIS(), gk.IcePop()), extra=BONUSES), d)
    same(corrected[:2], plain[:2], 0)


def test_who_reads_what_is_not_there():
    d = table(3)
    with pytest.raises(gk.InputError) as caught:
        from_logps(d["logps"], padded(d, rollout_logps=None), recipe(correct=(gk.TIS(),)))
    assert caught.value.kind == "missing_token_column"
    assert "TIS reads 'rollout_logps'" in str(caught.value)
