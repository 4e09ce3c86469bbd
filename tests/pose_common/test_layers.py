"""Initial values, linear layers.

Batch norm: its gradient, several devices, and groups of rows as where devices do not synchronise.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pose_common.layers import BatchNorm, Dense, normal

GROUP = 2


def run(layer, variables, x, add=None):
    return layer.apply(variables, x, add, train=True, mutable=["batch_stats"])


def inputs(rows: int):
    """(variables, x, add, slope of the loss): means far from 0, unlike deviations, some values that a ReLU cuts."""
    keys = jax.random.split(jax.random.key(0), 5)
    x = jax.random.normal(keys[0], (rows, 4, 5, 3)) * jnp.array([1, 5, 0.1]) + jnp.array([0, -3, 7])
    params = {"scale": 1 + 0.3 * jax.random.normal(keys[1], (3,)), "bias": jax.random.normal(keys[2], (3,))}
    variables = {"params": params, "batch_stats": {"mean": jnp.zeros(3), "var": jnp.ones(3)}}
    return variables, x, jax.random.normal(keys[3], x.shape), jax.random.normal(keys[4], x.shape)


def formula(params, x, add, relu: bool, rows: int):
    """The definition, for plain differentiation: every `rows` rows on their own."""
    parts = x.reshape(-1, rows, *x.shape[1:])
    mean, var = parts.mean((1, 2, 3), keepdims=True), parts.var((1, 2, 3), keepdims=True)
    y = ((parts - mean) / jnp.sqrt(var + 1e-5) * params["scale"] + params["bias"]).reshape(x.shape)
    y = y if add is None else y + add
    return jnp.maximum(y, 0) if relu else y


@pytest.mark.parametrize("group", [None, GROUP])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("adds", [False, True])
def test_value_and_gradient_are_those_of_the_formula(group, relu, adds):
    variables, x, add, slope = inputs(6)
    add = add if adds else None
    layer = BatchNorm(group=group, relu=relu)

    def ours(params, x, add):
        y = run(layer, {**variables, "params": params}, x, add)[0]
        return (y * slope).sum(), y

    def plain(params, x, add):
        y = formula(params, x, add, relu, group or len(x))
        return (y * slope).sum(), y

    found, expected = (
        jax.grad(each, argnums=(0, 1, 2), has_aux=True)(variables["params"], x, add) for each in (ours, plain)
    )
    # Float32 sums of 40 to 120 products in another order; deviations of 0.1 make slopes of x up to 10.
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_bfloat16_differs_by_its_rounding():
    """A map in bfloat16 is normalised in float32, and so is its gradient; rounded once, at the end."""
    variables, x, add, slope = inputs(6)
    x, add = (value.astype(jnp.bfloat16) for value in (x, add))

    def loss(layer, x, add):
        return (run(layer, variables, x, add)[0].astype(jnp.float32) * slope.astype(jnp.bfloat16)).sum()

    narrow, wide = (
        jax.grad(functools.partial(loss, BatchNorm(relu=True, dtype=dtype)), argnums=(0, 1))(
            x.astype(dtype), add.astype(dtype)
        )
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    for a, b in zip(narrow, wide, strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=2**-8, atol=1e-6)


def test_devices_share_moments_and_gradient():
    """Mapped over eight devices, a part of the loss on each: as on one."""
    variables, x, add, slope = inputs(16)

    def loss(layer, params, x, add, slope):
        y, updated = run(layer, {**variables, "params": params}, x, add)
        return (y * slope).sum(), updated

    def gradient(layer):
        return jax.grad(functools.partial(loss, layer), argnums=(0, 1, 2), has_aux=True)

    (params, *maps), stats = gradient(BatchNorm(relu=True))(variables["params"], x, add, slope)
    layer = BatchNorm(axis_name="devices", relu=True)
    parts = [value.reshape(8, 2, *value.shape[1:]) for value in (x, add, slope)]
    mapped = jax.pmap(gradient(layer), axis_name="devices", in_axes=(None, 0, 0, 0))
    (own_params, *own_maps), own_stats = mapped(variables["params"], *parts)
    # Float32 sums in another order.
    for a, b in zip(jax.tree.leaves(own_params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(a.sum(0), b, rtol=2e-5, atol=2e-5)
    for a, b in zip(own_maps, maps, strict=True):
        np.testing.assert_allclose(a.reshape(b.shape), b, rtol=2e-5, atol=2e-5)
    for a, b in zip(jax.tree.leaves(own_stats), jax.tree.leaves(stats), strict=True):
        np.testing.assert_allclose(a, np.broadcast_to(b, a.shape), rtol=1e-5)


def test_groups_are_normalised_on_their_own():
    variables, x, _, _ = inputs(6)
    y, updated = run(BatchNorm(group=GROUP), variables, x)
    parts = [run(BatchNorm(), variables, x[first : first + GROUP]) for first in range(0, 6, GROUP)]
    # The same float32 sums.
    np.testing.assert_allclose(y, np.concatenate([part for part, _ in parts]), rtol=1e-5, atol=1e-6)
    for name in ("mean", "var"):
        mean = np.mean([stats["batch_stats"][name] for _, stats in parts], axis=0)
        np.testing.assert_allclose(updated["batch_stats"][name], mean, rtol=1e-5)


def test_groups_do_not_depend_on_devices():
    variables, x, _, _ = inputs(16)
    y, updated = run(BatchNorm(group=GROUP), variables, x)
    layer = BatchNorm(axis_name="devices", group=GROUP)
    mapped = jax.pmap(functools.partial(run, layer, variables), axis_name="devices")
    rows, stats = mapped(x.reshape(8, 2, *x.shape[1:]))
    np.testing.assert_allclose(rows.reshape(x.shape), y, rtol=1e-5, atol=1e-6)
    for found, expected in zip(jax.tree.leaves(stats), jax.tree.leaves(updated), strict=True):
        np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), rtol=1e-5)


def test_initial_values_are_those_of_flax():
    """Also of the many layers that `nn.scan` stacks."""
    keys, shape = jax.random.split(jax.random.key(0), 3), (3, 5, 7)

    def drawn(initializer):
        return jax.jit(jax.vmap(lambda key: initializer(key, shape, jnp.float32)))(keys)

    # The bits are equal; the normal's inverse may be rounded otherwise in another loop.
    np.testing.assert_allclose(drawn(normal(0.02)), drawn(nn.initializers.normal(0.02)), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_linear_layer_is_that_of_flax(dtype):
    """The same parameters, values and gradients, whatever axes its rows have."""
    keys = jax.random.split(jax.random.key(0))
    x, init = jax.random.normal(keys[0], (2, 3, 4, 5)), nn.initializers.normal(1.0)
    ours, flaxs = Dense(6, dtype, init), nn.Dense(6, dtype=dtype, kernel_init=init)
    params = ours.init(keys[1], x)
    jax.tree.map(np.testing.assert_array_equal, params, flaxs.init(keys[1], x))

    def slopes(layer):
        return jax.grad(lambda params, x: jnp.sin(layer.apply(params, x).astype(jnp.float32)).sum(), (0, 1))(params, x)

    # Sums of up to 24 terms, whose order may differ; in bfloat16 they are rounded once, to 8 bits.
    rtol = 1e-5 if dtype == jnp.float32 else 2e-2
    close = functools.partial(np.testing.assert_allclose, rtol=rtol, atol=rtol)
    jax.tree.map(close, slopes(ours), slopes(flaxs))
    assert ours.apply(params, x).dtype == dtype


def test_the_gradient_of_a_linear_layer_copies_nothing_on_a_cpu():
    """As where rows have several axes, which the compiler lays out anew."""
    x, layer = jnp.ones((4, 6, 8)), Dense(16, jnp.float32, nn.initializers.normal(1.0))
    params = layer.init(jax.random.key(0), x)
    program = jax.jit(jax.grad(lambda params: jnp.sin(layer.apply(params, x)).sum())).lower(params).compile().as_text()
    assert " dot(" in program and " transpose(" not in program and " copy(" not in program
