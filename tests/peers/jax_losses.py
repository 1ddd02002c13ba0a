"""A loss of jax arrays."""

import jax.numpy as jnp


def dapo(logps, old_logps, advantages, mask):
    d = jnp.clip(jnp.where(mask, logps, 0) - jnp.where(mask, old_logps, 0), -20, 20)
    ratio = jnp.exp(d)
    up, low = jnp.where(ratio > 1.28, 1.28, ratio), jnp.where(ratio < 0.8, 0.8, ratio)
    clipped = jnp.where(advantages > 0, up, low)
    return jnp.where(mask, -clipped * advantages, 0).sum() / jnp.maximum(mask.sum(), 1)
