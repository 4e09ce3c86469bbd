"""Derivatives of the convolution against those that JAX makes."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pose_common.convolution import conv_general_dilated

pytestmark = pytest.mark.slow  # compiles many gradients


@pytest.mark.parametrize(
    "size, kernel, stride, dilation, padding",
    [
        ((12, 10), 3, 1, 1, 1),
        ((12, 10), 3, 2, 1, 1),
        ((11, 9), 3, 2, 1, 1),  # the last row and column of the padded input are not seen
        ((8, 8), 3, 1, 12, 12),  # kernel cells that only ever see padding
        ((9, 10), 3, 2, 2, 2),
        ((9, 10), 5, 3, 1, 0),
        ((8, 8), 1, 1, 1, 0),
    ],
)
def test_gradients(size, kernel, stride, dilation, padding):
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (2, *size, 3))
    make = functools.partial(
        nn.Conv, 4, (kernel, kernel), stride, ((padding, padding),) * 2, kernel_dilation=dilation, use_bias=False
    )
    ours, plain = make(conv_general_dilated=conv_general_dilated), make()
    params = plain.init(keys[1], x)

    @jax.jit
    def gradients(params, x):
        def loss(layer, params, x):
            return jnp.sin(layer.apply(params, x)).sum()

        return [jax.grad(functools.partial(loss, layer), argnums=(0, 1))(params, x) for layer in (ours, plain)]

    found, expected = map(jax.tree.leaves, gradients(params, x))
    for actual, wanted in zip(found, expected, strict=True):
        # The same sums, of up to some hundred float32 terms, in another order.
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5)


def test_what_it_is_not_made_for():
    x = jnp.zeros((1, 8, 8, 4))
    for settings in ({"feature_group_count": 2}, {"input_dilation": 2}):
        layer = nn.Conv(4, (3, 3), conv_general_dilated=conv_general_dilated, **settings)
        with pytest.raises(ValueError, match="grouped and transposed"):
            layer.init(jax.random.key(0), x)
