"""Folded maps: the same values in another order, and layers that give the same on them."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pose_common.convolution import Convolution
from pose_common.folding import FLAT, Fold, enlarge_nearest, fold_of, refold
from pose_common.layers import BatchNorm
from pose_common.training.flops import step_flops


@pytest.mark.parametrize(
    "channels, size, fold",
    [
        (32, (64, 64), Fold(2, 2)),
        (64, (64, 64), Fold(1, 2)),
        (48, (64, 64), Fold(1, 2)),  # 96 of 128
        (16, (64, 64), Fold(2, 4)),
        (128, (64, 64), FLAT),
        (256, (64, 64), FLAT),
        (32, (64, 63), Fold(4, 1)),  # what does not divide the map is not folded
        (32, (63, 61), FLAT),
    ],
)
def test_folds_fill_128_channels(channels, size, fold):
    assert fold_of(channels, size, 128) == fold
    assert fold_of(channels, size, 0) == FLAT


def test_a_folded_cell_holds_its_rows_columns_and_channels():
    x = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    folded = refold(jnp.asarray(x), FLAT, Fold(2, 3))
    np.testing.assert_array_equal(folded[1, 1, 0], x[1, 2:4, 0:3].reshape(-1))
    again = refold(folded, Fold(2, 3), Fold(4, 2))
    np.testing.assert_array_equal(again, refold(jnp.asarray(x), FLAT, Fold(4, 2)))
    np.testing.assert_array_equal(refold(again, Fold(4, 2), FLAT), x)


@pytest.mark.parametrize("fold", [FLAT, Fold(2, 2), Fold(1, 4), Fold(8, 1)])
def test_enlarged_maps(fold):
    x = jnp.arange(2 * 2 * 3 * 5.0).reshape(2, 2, 3, 5)
    plain = jnp.repeat(jnp.repeat(x, 4, axis=1), 4, axis=2)
    np.testing.assert_array_equal(enlarge_nearest(x, 4, fold), refold(plain, FLAT, fold))


@pytest.mark.parametrize(
    "kernel, stride, dilation, source, target",
    [
        (3, 1, 1, Fold(2, 2), Fold(2, 2)),
        (3, 1, 1, FLAT, Fold(2, 2)),
        (3, 1, 1, Fold(1, 2), FLAT),  # unfolded first
        (3, 2, 1, Fold(2, 2), Fold(1, 2)),
        (3, 2, 1, Fold(1, 2), FLAT),
        (3, 2, 1, Fold(2, 4), Fold(2, 2)),
        (3, 2, 1, Fold(4, 4), Fold(1, 2)),  # folded less first
        (1, 1, 1, Fold(1, 2), Fold(1, 2)),
        (3, 1, 3, Fold(2, 1), Fold(2, 1)),
        (5, 1, 1, Fold(4, 2), Fold(2, 4)),
    ],
)
def test_convolutions_of_folded_maps(kernel, stride, dilation, source, target):
    """Results, and gradients of input and kernel, of the same layer on a flat map."""
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (2, 16, 24, 3))
    make = functools.partial(Convolution, 4, kernel, stride, dilation)
    params = make().init(keys[1], x)

    def run(layer: Convolution, params: Any, x: jax.Array):
        def loss(params, x):
            y = refold(layer.apply(params, refold(x, FLAT, layer.source)), layer.target, FLAT)
            return jnp.sin(y).sum(), y

        return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, x)

    found, expected = (run(make(*folds), params, x) for folds in ((source, target), ()))
    for actual, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        # The same sums, of up to some hundred float32 terms, in another order.
        np.testing.assert_allclose(actual, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("group", [None, 2])
def test_batch_norm_of_folded_maps(group):
    """Result, gradients and running statistics are those of the flat map."""
    fold, keys = Fold(2, 2), jax.random.split(jax.random.key(0), 3)
    x, add, slope = (3 + jax.random.normal(key, (4, 4, 6, 5)) for key in keys)
    variables = BatchNorm().init(keys[0], x, train=False)

    def run(own: Fold):
        layer = BatchNorm(relu=True, cells=own.cells, group=group)

        def loss(params, x, add):
            maps = (refold(value, FLAT, own) for value in (x, add))
            y, after = layer.apply({**variables, "params": params}, *maps, train=True, mutable=["batch_stats"])
            y = refold(y, own, FLAT)
            return (y * slope).sum(), (y, after)

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(variables["params"], x, add)

    for actual, wanted in zip(jax.tree.leaves(run(fold)), jax.tree.leaves(run(FLAT)), strict=True):
        # Sums of 96 float32 values that cancel down to a tenth of their size, in another order.
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=2e-4)


def test_zeros_of_folded_kernels_are_no_operations():
    x = jnp.zeros((2, 16, 16, 8))
    flat, folded = Convolution(8, 3), Convolution(8, 3, source=Fold(2, 2), target=Fold(2, 2))
    params = flat.init(jax.random.key(0), x)

    def gradient(layer: Convolution):
        return jax.jit(jax.grad(lambda params, x: jnp.sin(layer.apply(params, x)).sum(), argnums=(0, 1)))

    counted = step_flops(gradient(folded), params, refold(x, FLAT, Fold(2, 2)))
    # Forward and both gradients. Spreading the kernel, a product of its own, does not grow with the maps.
    assert step_flops(gradient(flat), params, x) == 3 * 2 * x.size * 9 * 8
    spreading = step_flops(gradient(folded), params, jnp.zeros((0, 8, 8, 32)))
    assert counted - spreading == 3 * 2 * x.size * 9 * 8
