"""jax arrays: the kit finds them, gives float64 where it must, and takes jax's own gradients."""

import pytest

from grpokit.testing import engine


@pytest.mark.parametrize("law", [law.name for law in engine.LAWS["loss"]])
def test_a_function_of_jax_arrays(law):
    from .jax_losses import dapo

    made = engine.trial(dapo, "dapo", settings={"max_len": 100}, name="jax_losses:dapo")
    assert made.subject.form.library == "jax"
    (chosen,) = engine.chosen("loss", [law])
    verdict = engine.run(chosen, made, examples=6)
    skipped = {"entropy_gradient", "split", "bf16"}
    assert verdict.status == ("skip" if law in skipped else "pass"), verdict
