"""At the bounds: inclusive, the gradient on at the bound and off one step of the number format beyond it.

What is asserted is exact, so that it is the same on every supported torch.
"""

import math

import pytest
import torch

from grpokit.mismatch import TIS, IcePop
from grpokit.objective import Clip
from grpokit.objective.columns import LIMIT, clip, lesser, log_bounds, ratio
from grpokit.tokens import Tokens

DTYPES = [torch.float64, torch.float32]


def slopes(objective, d, A):
    d = d.clone().requires_grad_()
    tokens = Tokens({"log_ratio": d, "advantages": torch.full_like(d, A)}, torch.tensor([len(d)]))
    objective.value(tokens).sum().backward()
    return d.grad


def beside(bound, dtype):
    """The bound in the number format, and its two neighbours."""
    at = torch.tensor(bound, dtype=dtype)
    return torch.stack([torch.nextafter(at, at - 1), at, torch.nextafter(at, at + 1)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("objective", "bound", "A", "inside"),
    [
        (Clip(0.2, 0.28), math.log1p(0.28), 2.0, [True, True, False]),
        (Clip(0.2, 0.28), math.log1p(-0.2), -2.0, [False, True, True]),
        (Clip(0.2, 0.28, 3.0), math.log(3.0), -2.0, [True, True, False]),
        (Clip(0.2, 0.28, 1.1), math.log(1.1), -2.0, [True, True, False]),
        (Clip(0.0, 0.0), 0.0, 2.0, [True, True, False]),
        (Clip(0.2, 0.28), math.log1p(0.28), -2.0, [True, True, True]),
        (Clip(0.2, 0.28), math.log1p(-0.2), 2.0, [True, True, True]),
        (Clip(None, None), LIMIT, -2.0, [True, True, False]),
        (Clip(None, None), -LIMIT, 2.0, [False, True, True]),
    ],
)
def test_clip_gate(objective, bound, A, inside, dtype):
    d = beside(bound, dtype)
    expected = torch.where(torch.tensor(inside), -A * d.exp(), 0)
    assert torch.equal(slopes(objective, d, A), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_clip_value_stops_at_the_bound(dtype):
    """The loss is flat beyond the bound, in the value that it has there."""
    d = torch.tensor([0.3, 5.0, 19.0, -0.4, -9.0], dtype=dtype)
    A = torch.tensor([1, 1, 1, -1, -1], dtype=dtype)
    value = Clip(0.2, 0.28).value(Tokens({"log_ratio": d, "advantages": A}, torch.tensor([5])))
    torch.testing.assert_close(value, torch.tensor([-1.28, -1.28, -1.28, 0.8, 0.8], dtype=dtype))
    dual = Clip(0.2, 0.28, 3.0).value(Tokens({"log_ratio": d, "advantages": -torch.ones_like(d)}, torch.tensor([5])))
    torch.testing.assert_close(dual, torch.tensor([math.exp(0.3), 3, 3, 0.8, 0.8], dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_advantage_no_gradient(dtype):
    d = torch.tensor([-30.0, -1.0, 0.0, 1.0, 30.0], dtype=dtype)
    for objective in (Clip(), Clip(dual=2.0), Clip(None, None)):
        assert not slopes(objective, d, 0.0).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_icepop_keeps_its_bounds(dtype):
    for bound, kept in ((0.5, [False, True, True]), (5.0, [True, True, False])):
        rho = beside(math.log(bound), dtype)
        weight = IcePop(0.5, 5.0).weight(
            Tokens({"old_logps": rho, "rollout_logps": torch.zeros_like(rho)}, torch.tensor([3]))
        )
        assert torch.equal(weight, torch.where(torch.tensor(kept), rho.exp(), 0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_tis_is_the_ratio_up_to_its_cap(dtype):
    rho = torch.tensor([-25.0, -1.0, 0.0, 0.6, 0.8, 25.0], dtype=dtype)
    weight = TIS(2.0).weight(Tokens({"old_logps": rho, "rollout_logps": torch.zeros_like(rho)}, torch.tensor([6])))
    expected = torch.stack(
        [torch.tensor(-LIMIT, dtype=dtype).exp(), *rho[1:4].exp(), *torch.tensor([2.0, 2.0]).to(dtype)]
    )
    assert torch.equal(weight, expected)


def test_clip_helper():
    x = torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0, torch.nan], requires_grad=True)
    y = clip(x, 0.0, 1.0)
    assert y[:5].tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert y[5].isnan()
    y[:5].sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    assert clip(x, None, None) is x


def test_lesser_gives_a_tie_to_the_first_and_shows_nan():
    a = torch.tensor([1.0, 2.0, 3.0, torch.nan, 1.0], requires_grad=True)
    b = torch.tensor([2.0, 2.0, 2.0, 1.0, torch.nan], requires_grad=True)
    out = lesser(a, b)
    assert out[:3].tolist() == [1.0, 2.0, 2.0]
    assert out[3].isnan()
    out[:3].sum().backward()
    assert a.grad.tolist() == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert b.grad.tolist() == [0.0, 0.0, 1.0, 0.0, 0.0]


def test_ratio_is_constant_beyond_its_limit():
    d = torch.tensor([20.0, 20.5, -20.0, -20.5, 0.0], requires_grad=True)
    ratio(d).sum().backward()
    assert (d.grad != 0).tolist() == [True, False, True, False, True]
    assert ratio(torch.tensor([torch.inf, -torch.inf])).isfinite().all()
    assert ratio(torch.tensor(torch.nan)).isnan()


def test_log_bounds():
    assert log_bounds(0.2, 0.28) == (math.log1p(-0.2), math.log1p(0.28))
    assert log_bounds(None, None) == (None, None)
