"""Functions in a straight line of primitives."""

from __future__ import annotations

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from pose_common.export.primitives import REWRITES, straight_line

WEIGHTS = np.random.default_rng(0).normal(size=(3, 4, 4)).astype(np.float32)


@jax.jit
def everything(x):
    """[B, 6, 5, 4]: a loop, nested calls, a way of one platform, and each primitive that is rewritten."""
    y, _ = lax.scan(lambda carry, kernel: (nn.relu(carry @ kernel), None), x, jnp.asarray(WEIGHTS))
    y = nn.max_pool(y, (3, 5), padding=((1, 1), (2, 2)))
    y = jnp.pad(y, ((0, 0), (1, 2), (0, 3), (0, 0)), constant_values=-1.0)
    first, second = jnp.split(y, 2, axis=1) if y.shape[1] % 2 == 0 else (y[:, 1:], y[:, :-1])
    second = lax.platform_dependent(second, cpu=lambda maps: maps[::-1][::-1], default=lambda maps: maps)
    index = jnp.argmax(first.reshape(x.shape[0], -1), axis=1)
    return first, second, lax.rem(index, 7), lax.rem(-index, 7)


def primitives(function, *specs):
    return {equation.primitive.name for equation in jax.make_jaxpr(function)(*specs).jaxpr.eqns}


@pytest.mark.parametrize("rows", [3, "batch"])
@pytest.mark.parametrize("height", [5, 6])
def test_a_straight_line_computes_the_same(rows, height):
    x = np.random.default_rng(1).normal(size=(3, height, 5, 4)).astype(np.float32)
    rows = jax.export.symbolic_shape("batch")[0] if rows == "batch" else rows
    spec = jax.ShapeDtypeStruct((rows, *x.shape[1:]), jnp.float32)
    line = straight_line(everything, spec)
    assert not primitives(line, spec) & {*REWRITES, "scan", "while", "jit", "pjit", "custom_jvp_call", "cond", "rev"}
    found = jax.export.export(jax.jit(lambda x: tuple(line(x))))(spec).call(x)
    for one, other in zip(found, everything(x), strict=True):
        # The same operations, which XLA may fuse in another way.
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_what_depends_on_weights_only_is_computed_but_not_blown_up():
    def function(x):
        factor = lax.rsqrt(jnp.asarray(WEIGHTS[0, 0]) ** 2 + 1.0)
        return (x * factor + jnp.zeros((64, 64, 64))[0, 0, 0],)

    spec = jax.ShapeDtypeStruct((2, 4), jnp.float32)
    jaxpr = jax.make_jaxpr(straight_line(function, spec))(spec)
    assert "rsqrt" not in {equation.primitive.name for equation in jaxpr.jaxpr.eqns}
    assert max(np.size(value) for value in jaxpr.consts) < 64**3


def test_what_cannot_be_written_is_said():
    spec = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
    with pytest.raises(NotImplementedError, match="strides"):
        straight_line(lambda x: (nn.max_pool(x, (2, 2), strides=(2, 2)),), spec)
    with pytest.raises(NotImplementedError, match="padding"):
        straight_line(lambda x: (lax.pad(x, 0.0, ((0, 0, 0), (-1, 0, 0), (0, 0, 0), (0, 0, 0))),), spec)
