"""A convolution whose derivatives are fast on CPUs, also inside loops.

XLA brings convolutions into the form that its CPU library runs only outside of loops; the derivatives of a convolution
in a scan are then computed by a generic nest of loops, some twenty times slower. Here they are written in that form.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

DIMENSIONS = ("NHWC", "HWIO", "NHWC")
Pair = tuple[int, int]


def conv_general_dilated(
    x, kernel, strides, padding, *, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count, precision
):
    """`jax.lax.conv_general_dilated` as `flax.linen.Conv` calls it, for plain images: see `convolve`."""
    del dimension_numbers
    if feature_group_count != 1 or any(step != 1 for step in lhs_dilation or ()):
        raise ValueError("grouped and transposed convolutions are not made for this")
    return convolve(x, kernel, tuple(strides), tuple(map(tuple, padding)), tuple(rhs_dilation), precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def convolve(
    x: jax.Array, kernel: jax.Array, strides: Pair, padding: tuple[Pair, Pair], dilation: Pair, precision=None
) -> jax.Array:
    """x [B, H, W, C], kernel [kh, kw, C, D] -> [B, h, w, D]; padding is (low, high) for each axis."""
    return _plain(x, kernel, strides, padding, dilation, precision)


def _plain(x, kernel, strides, padding, dilation, precision):
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, rhs_dilation=dilation, dimension_numbers=DIMENSIONS, precision=precision
    )


def _forward(x, kernel, strides, padding, dilation, precision):
    return _plain(x, kernel, strides, padding, dilation, precision), (x, kernel)


def _backward(strides, padding, dilation, precision, saved, gradient):
    def by_definition(x, kernel, gradient):
        return jax.vjp(lambda x, w: _plain(x, w, strides, padding, dilation, precision), x, kernel)[1](gradient)

    def in_library_form(x, kernel, gradient):
        geometry = (strides, padding, dilation, precision)
        return _to_input(x.shape, kernel, gradient, *geometry), _to_kernel(x, kernel.shape, gradient, *geometry)

    return jax.lax.platform_dependent(*saved, gradient, cpu=in_library_form, default=by_definition)


convolve.defvjp(_forward, _backward)


def _to_input(shape, kernel, gradient, strides, padding, dilation, precision):
    """Gradient of the input: the kernel turned round, over the gradient with `stride - 1` zeros between its cells."""
    pads = []
    for axis in (0, 1):
        reach = dilation[axis] * (kernel.shape[axis] - 1)
        low = reach - padding[axis][0]
        spread = (gradient.shape[1 + axis] - 1) * strides[axis] + 1
        pads.append((low, shape[1 + axis] + reach - spread - low))
    return jax.lax.conv_general_dilated(
        gradient,
        jnp.swapaxes(kernel[::-1, ::-1], 2, 3),
        (1, 1),
        pads,
        lhs_dilation=strides,
        rhs_dilation=dilation,
        dimension_numbers=DIMENSIONS,
        precision=precision,
    )


def _to_kernel(x, shape, gradient, strides, padding, dilation, precision):
    """Gradient of the kernel: the output's gradient as the kernel over the input, channels and batch exchanged.

    That of a kernel of one cell is a product of matrices, which takes a third of the time.
    """
    if shape[:2] == strides == (1, 1) and padding == ((0, 0), (0, 0)):
        return jnp.einsum("bhwc,bhwd->cd", x, gradient, precision=precision)[None, None]
    pads = []
    for axis in (0, 1):
        low = padding[axis][0]
        reach = dilation[axis] * (shape[axis] - 1)
        spread = (gradient.shape[1 + axis] - 1) * strides[axis] + 1
        pads.append((low, reach + spread - x.shape[1 + axis] - low))
    found = jax.lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        gradient.transpose(1, 2, 0, 3),
        dilation,
        pads,
        rhs_dilation=strides,
        dimension_numbers=DIMENSIONS,
        precision=precision,
    )
    return found.transpose(1, 2, 0, 3)
