"""Attention with a gradient of its own, against JAX's attention and plain differentiation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posebh_jax.attention import attend


def inputs(dtype=jnp.float32):
    """q, k, v and a slope [2, 3, 10, 8]; scores up to about 20, so that some weights are nearly 0 and some nearly 1."""
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, slope = (jax.random.normal(key, (2, 3, 10, 8), dtype) for key in keys)
    return 4 * q, 2 * k, v, slope


def jaxs_own(q, k, v):
    q, k, v = (each.swapaxes(1, 2) for each in (q, k, v))
    return jax.nn.dot_product_attention(q, k, v).swapaxes(1, 2)


def value_and_gradient(attention, q, k, v, slope):
    value, pull_back = jax.vjp(attention, q, k, v)
    return value, *pull_back(slope)


# Float32: sums of ten products in another order, slopes up to 30. Bfloat16 rounds operands and results to 8 bits on
# both sides, at other places: two roundings of values up to about 8.
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2**-5)])
def test_value_and_gradient_are_those_of_jaxs_attention(dtype, tolerance):
    found = value_and_gradient(attend, *inputs(dtype))
    expected = value_and_gradient(jaxs_own, *inputs(dtype))
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        scale = np.abs(b.astype(jnp.float32)).max()
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), atol=tolerance * scale)


def test_scores_beyond_the_range_of_exp():
    """Scores of hundreds neither overflow nor lose the gradient."""
    q, k, v, slope = inputs()
    found = value_and_gradient(attend, 100 * q, k, v, slope)
    assert all(np.isfinite(each).all() for each in found)
    np.testing.assert_allclose(found[0], jaxs_own(100 * q, k, v), atol=1e-4)  # scores of 1e3 have digits of 1e-4
