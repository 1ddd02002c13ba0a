"""The workspace of the LM head under the kernels: they read it, overwrite it, and see rows that were moved."""

import pytest
import torch

import grpokit as gk
from grpokit import loss as losses
from tests.heads import headed, run_hidden
from tests.losses import RECIPES, cast, padded, same


@pytest.mark.parametrize("rows", [7, 999])
@pytest.mark.parametrize("name", ["dual_constant", "gspo_icepop", "clip"])
def test_is_eager(name, rows):
    d, weight = headed(13)
    d["advantages"][:3] = 0.0
    single = cast(d, torch.float32)
    found, expected = (
        run_hidden(padded(single), RECIPES[name], single, weight.float(), rows, kernel=kernel)
        for kernel in ("two_kernel", "eager")
    )
    same(found, expected, 1e-5)


@pytest.mark.parametrize("kernel", ["one_kernel", "one_kernel_l2"])
def test_one_pass_is_refused(kernel):
    d, weight = headed(13)
    single = cast(d, torch.float32)
    with pytest.raises(gk.InputError, match="are read and overwritten by two kernels") as caught:
        losses.from_hidden(single["hidden"], weight.float(), padded(single), RECIPES["clip"], kernel=kernel)
    assert caught.value.kind == "no_kernel"


def test_one_pass_that_the_environment_asks_for_is_two_kernels(monkeypatch):
    monkeypatch.setenv("GRPOKIT_KERNEL", "one_kernel")
    d, weight = headed(13)
    single = cast(d, torch.float32)
    out = losses.from_hidden(single["hidden"], weight.float(), padded(single), RECIPES["clip"])
    assert out.metrics["kernel"] == "two_kernel"
