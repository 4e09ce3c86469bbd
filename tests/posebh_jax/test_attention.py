"""Attention with a gradient of its own, against JAX's attention and plain differentiation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posebh_jax.attention import attend


def inputs(dtype=jnp.float32):
    """qkv [2, 10, 3 * 24], bias and slope for three heads; scores up to 20: some weights nearly 0, some nearly 1."""
    keys = jax.random.split(jax.random.key(0), 3)
    scale = jnp.repeat(jnp.array([4.0, 2.0, 1.0]), 24)
    qkv = scale * jax.random.normal(keys[0], (2, 10, 72))
    bias = jax.random.normal(keys[1], (72,))
    return qkv.astype(dtype), bias.astype(dtype), jax.random.normal(keys[2], (2, 10, 24), dtype)


def ours(qkv, bias):
    return attend(qkv, bias, 3)


def jaxs_own(qkv, bias):
    q, k, v = jnp.split((qkv + bias).reshape(2, 10, 9, 8), 3, axis=2)
    return jax.nn.dot_product_attention(q, k, v).reshape(2, 10, 24)


def value_and_gradient(attention, qkv, bias, slope):
    value, pull_back = jax.vjp(attention, qkv, bias)
    return value, *pull_back(slope)


# Float32: sums of ten products in another order, slopes up to 30. Bfloat16 rounds operands and results to 8 bits on
# both sides, at other places: two roundings of values up to about 8.
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2**-5)])
def test_value_and_gradient_are_those_of_jaxs_attention(dtype, tolerance):
    found = value_and_gradient(ours, *inputs(dtype))
    expected = value_and_gradient(jaxs_own, *inputs(dtype))
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        scale = np.abs(b.astype(jnp.float32)).max()
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), atol=tolerance * scale)


def test_scores_beyond_the_range_of_exp():
    """Scores of hundreds neither overflow nor lose the gradient."""
    qkv, bias, slope = inputs()
    qkv = qkv * jnp.repeat(jnp.array([100.0, 1.0, 1.0]), 24)
    found = value_and_gradient(ours, qkv, bias, slope)
    assert all(np.isfinite(each).all() for each in found)
    np.testing.assert_allclose(found[0], jaxs_own(qkv, bias), atol=1e-4)  # scores of 1e3 have digits of 1e-4
