"""Derivatives of the convolution against those that JAX makes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pose_common import convolution
from pose_common.convolution import DIMENSIONS, convolve

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
    weights = 0.3 * jax.random.normal(keys[1], (kernel, kernel, 3, 4))
    geometry = (stride, stride), ((padding, padding),) * 2, (dilation, dilation)

    def plain(x, weights):
        strides, pads, dilations = geometry
        return jax.lax.conv_general_dilated(
            x, weights, strides, pads, rhs_dilation=dilations, dimension_numbers=DIMENSIONS
        )

    def ours(x, weights):
        return convolve(x, weights, *geometry)

    @jax.jit
    def gradients(x, weights):
        def loss(layer, x, weights):
            return jnp.sin(layer(x, weights)).sum()

        return [jax.grad(functools.partial(loss, layer), argnums=(0, 1))(x, weights) for layer in (ours, plain)]

    found, expected = gradients(x, weights)
    for actual, wanted in zip(found, expected, strict=True):
        # The same sums, of up to some hundred float32 terms, in another order.
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "size, kernel, padding, dilation",
    [
        ((8, 9), (3, 3), ((4, 4), (4, 4)), (4, 4)),
        ((8, 4), (3, 3), ((4, 4), (4, 4)), (4, 4)),  # cells that only ever see padding on one axis
        ((8, 9), (2, 3), ((5, 0), (1, 12)), (3, 5)),
        ((8, 9), (3, 1), ((9, 9), (-1, -2)), (7, 1)),  # a map that is cut
        ((2, 2), (2, 2), ((9, 9), (9, 9)), (15, 15)),  # nothing but padding
    ],
)
def test_dilated_kernels_without_padding(size, kernel, padding, dilation):
    """Where most cells see padding, a CPU sums products of what they see: no convolution is left in the program."""
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (2, *size, 3))
    weights = jax.random.normal(keys[1], (*kernel, 3, 4))
    geometry = (1, 1), padding, dilation
    ours = jax.jit(lambda x, weights: convolve(x, weights, *geometry))
    assert "convolution(" not in ours.lower(x, weights).compile().as_text()
    expected = jax.lax.conv_general_dilated(
        x, weights, (1, 1), padding, rhs_dilation=dilation, dimension_numbers=DIMENSIONS
    )
    # The same sums, of up to 27 float32 terms, in another order.
    np.testing.assert_allclose(ours(x, weights), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("features, products", [(8, True), (9 * convolution.WIDE, False)])
def test_a_wide_result_of_a_dilated_kernel_stays_a_convolution(features, products):
    x, weights = jnp.ones((1, 8, 8, 2)), jnp.ones((3, 3, 2, features))
    program = jax.jit(lambda x, weights: convolve(x, weights, (1, 1), ((6, 6), (6, 6)), (6, 6))).lower(x, weights)
    assert ("convolution(" not in program.compile().as_text()) == products


@pytest.mark.parametrize("features, loop", [(4, False), (2, True)])
def test_kernel_gradient_of_few_outputs(features, loop):
    """By a product for each cell of the kernel."""
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (2, 6, 5, 2 * convolution.FEW))
    weights = jax.random.normal(keys[1], (3, 3, x.shape[-1], features))
    ours = jax.jit(jax.grad(lambda w: jnp.sin(convolve(x, w, (1, 1), ((1, 1), (1, 1)), (1, 1))).sum()))
    assert (" while(" in ours.lower(weights).compile().as_text()) == loop

    def plain(w):
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=DIMENSIONS)

    # The same sums, of 60 float32 terms, in another order.
    expected = jax.grad(lambda w: jnp.sin(plain(w)).sum())(weights)
    np.testing.assert_allclose(ours(weights), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "kernel, padding, dilation",
    [
        ((3, 3), ((1, 1), (1, 1)), (1, 1)),
        ((3, 3), ((6, 6), (6, 6)), (6, 6)),  # kernel cells that only ever see padding
        ((2, 2), ((1, 0), (0, 1)), (1, 1)),  # a phase of a transposed convolution
        ((1, 3), ((0, 0), (4, 1)), (1, 2)),
        ((2, 3), ((3, 2), (4, 5)), (1, 2)),  # more padding than the kernel reaches
        ((3, 2), ((0, 0), (0, 0)), (1, 1)),
    ],
)
def test_kernel_gradient_of_large_maps(kernel, padding, dilation, monkeypatch):
    """By a product for each cell of the kernel; that there is a way of its own shows in the loop."""
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (2, 6, 5, 3))
    weights = jax.random.normal(keys[1], (*kernel, 3, 4))

    def gradient(weights):
        return jax.grad(lambda w: jnp.sin(convolve(x, w, (1, 1), padding, dilation)).sum())(weights)

    expected = jax.jit(gradient)(weights)
    assert " while(" not in jax.jit(gradient).lower(weights).compile().as_text()
    monkeypatch.setattr(convolution, "LARGE", 0)
    by_taps = jax.jit(lambda weights: gradient(weights))
    assert " while(" in by_taps.lower(weights).compile().as_text()
    # The same sums, of up to some hundred float32 terms, in another order.
    np.testing.assert_allclose(by_taps(weights), expected, rtol=1e-5, atol=1e-5)
