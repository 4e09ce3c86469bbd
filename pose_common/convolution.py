"""A convolution whose derivatives are fast on CPUs, also inside loops.

XLA brings convolutions into the form that its CPU library runs only outside of loops; the derivatives of a convolution
in a scan are then computed by a generic nest of loops, some twenty times slower. Here they are written in that form.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from pose_common.folding import FLAT, Fold, fold_kernel, refold

DIMENSIONS = ("NHWC", "HWIO", "NHWC")
LARGE = 2**19
"""Values of an output's gradient beyond which it fits into no processor's cache beside the input."""
SEEN = 0.7
"""Share of a dilated kernel's products that meet no padding, up to which a CPU is faster at these alone."""
WIDE = 4
"""Channels of the result by those of the input, beyond which a CPU moves more than it multiplies there."""
FEW = 4
"""Channels of the input by those of the result, from which a kernel's gradient is faster cell by cell."""
FILLED = "filled_{}_of_{}"
"""Name of the scope of a convolution in whose kernel so many values of so many are no zeros."""
Pair = tuple[int, int]


class Convolution(nn.Module):
    """A convolution, zero padded to keep the size over the stride, between maps that may be folded.

    Padding is written out: "SAME" pads a strided convolution on the right only, published weights expect both sides.

    Attributes:
      features: channels of the result.
      kernel: cells of the square kernel, an odd number.
      stride, dilation: in cells of the map that is not folded.
      source, target: folds of input and result, which change nothing but the order of the same values.
      dtype: of the products and, without bias, of the result.
      kernel_init: initial values of the parameter `kernel` [kernel, kernel, C, features].
      bias_init: of the parameter `bias` [features], which is added in float32, so that a large one rounds nothing away;
        None for no bias. Not with a folded result.
    """

    features: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    source: Fold = FLAT
    target: Fold = FLAT
    dtype: Any = jnp.float32
    kernel_init: Callable[..., jax.Array] = nn.initializers.lecun_normal()
    bias_init: Callable[..., jax.Array] | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, h, w, C] -> [B, ceil(h / stride), ceil(w / stride), features], both folded."""
        found = self._convolved(x)
        if self.bias_init is None:
            return found
        return found.astype(jnp.float32) + self.param("bias", self.bias_init, (self.features,))

    def _convolved(self, x: jax.Array) -> jax.Array:
        shape = self.kernel, self.kernel, x.shape[-1] // self.source.cells, self.features
        kernel = self.param("kernel", self.kernel_init, shape).astype(self.dtype)
        x, pad = x.astype(self.dtype), self.dilation * (self.kernel // 2)
        if self.source == self.target == FLAT:
            return convolve(x, kernel, (self.stride,) * 2, ((pad, pad),) * 2, (self.dilation,) * 2)
        source = Fold(*(math.gcd(own, self.stride * to) for own, to in zip(self.source, self.target, strict=True)))
        x = refold(x, self.source, source)
        folded = fold_kernel(kernel, x.shape[1:3], source, self.target, self.stride, self.dilation)
        with jax.named_scope(FILLED.format(*folded.filled)):
            return convolve(x, folded.kernel, folded.strides, folded.padding, (1, 1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def convolve(
    x: jax.Array, kernel: jax.Array, strides: Pair, padding: tuple[Pair, Pair], dilation: Pair, precision=None
) -> jax.Array:
    """x [B, H, W, C], kernel [kh, kw, C, D] -> [B, h, w, D]; padding is (low, high) for each axis."""
    plain = functools.partial(_plain, strides=strides, padding=padding, dilation=dilation, precision=precision)
    if strides != (1, 1) or dilation == (1, 1):
        return plain(x, kernel)
    axes = [_spans(*axis) for axis in zip(x.shape[1:3], kernel.shape, padding, dilation, strict=False)]
    # Each cell of the kernel adds to a whole result, which costs the more the wider that is.
    if math.prod(_share(spans) for spans in axes) > SEEN * min(1, WIDE * kernel.shape[2] / kernel.shape[3]):
        return plain(x, kernel)
    by_cells = functools.partial(_without_padding, axes=axes, precision=precision)
    return jax.lax.platform_dependent(x, kernel, cpu=by_cells, default=plain)


def _plain(x, kernel, strides, padding, dilation, precision):
    if _is_product(kernel.shape, strides, padding):
        # Leaves maps on a TPU as they lie: for a convolution eight pictures lie side by side, and ten take as much as
        # sixteen.
        return jnp.einsum("bhwc,cd->bhwd", x, kernel[0, 0], precision=precision)
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, rhs_dilation=dilation, dimension_numbers=DIMENSIONS, precision=precision
    )


def _is_product(shape: tuple[int, ...], strides: Pair, padding: tuple[Pair, Pair]) -> bool:
    """Whether a kernel of this shape has one cell and sees all of the map: the convolution is a product of matrices."""
    return shape[:2] == strides == (1, 1) and padding == ((0, 0), (0, 0))


class _Span(NamedTuple):
    """Along an axis, the map's `start` to `stop` that a cell of the kernel sees, and for how many results before and
    after those it sees padding."""

    start: int
    stop: int
    before: int
    after: int


def _spans(size: int, cells: int, padding: Pair, dilation: int) -> list[_Span]:
    """Of all cells along an axis, in a convolution of stride 1."""
    found = size + sum(padding) - dilation * (cells - 1)
    spans = []
    for shift in range(-padding[0], dilation * cells - padding[0], dilation):
        start, stop = max(0, shift), min(size, found + shift)
        seen = start < stop
        spans.append(_Span(start, stop, start - shift, found + shift - stop) if seen else _Span(0, 0, found, 0))
    return spans


def _share(spans: list[_Span]) -> float:
    """Of an axis' products, those that meet no padding."""
    seen = sum(span.stop - span.start for span in spans)
    return seen / (seen + sum(span.before + span.after for span in spans))


def _without_padding(x, kernel, axes, precision):
    """The convolution as a sum of products of matrices, one for each cell of the kernel, of what the cell sees."""
    rows, columns = axes
    parts = []
    for (row, high), (column, wide) in itertools.product(enumerate(rows), enumerate(columns)):
        part = jnp.einsum(
            "bhwc,cd->bhwd",
            x[:, high.start : high.stop, wide.start : wide.stop],
            kernel[row, column],
            precision=precision,
            preferred_element_type=jnp.float32,
        )
        around = [(0, 0, 0), (high.before, high.after, 0), (wide.before, wide.after, 0), (0, 0, 0)]
        parts.append(jax.lax.pad(part, jnp.zeros((), part.dtype), around))
    return sum(parts).astype(x.dtype)


def _forward(x, kernel, strides, padding, dilation, precision):
    return convolve(x, kernel, strides, padding, dilation, precision), (x, kernel)


def _backward(strides, padding, dilation, precision, saved, gradient):
    def by_definition(x, kernel, gradient):
        apply = functools.partial(_plain, strides=strides, padding=padding, dilation=dilation, precision=precision)
        # Transposed, not differentiated: that would convolve once more in vain, and be counted.
        to_x, to_kernel = (
            jax.linear_transpose(part, value)
            for part, value in ((lambda value: apply(value, kernel), x), (lambda value: apply(x, value), kernel))
        )
        return to_x(gradient)[0], to_kernel(gradient)[0]

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
    turned = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
    if strides == (1, 1):
        return convolve(gradient, turned, strides, tuple(pads), dilation, precision)
    return jax.lax.conv_general_dilated(
        gradient,
        turned,
        (1, 1),
        pads,
        lhs_dilation=strides,
        rhs_dilation=dilation,
        dimension_numbers=DIMENSIONS,
        precision=precision,
    )


def _to_kernel(x, shape, gradient, strides, padding, dilation, precision):
    """Gradient of the kernel: the output's gradient as the kernel over the input, channels and batch exchanged.

    That of a kernel of one cell is a product of matrices, which takes a third of the time. That of large maps is one
    for each cell of the kernel: as a convolution, whose kernel the cache does not hold, it takes up to four times as
    long. So is that of a kernel with few outputs, up to six times.
    """
    if _is_product(shape, strides, padding):
        # Of one axis of rows, as in `pose_common.layers.product`.
        rows, slopes = (each.reshape(-1, each.shape[-1]) for each in (x, gradient))
        return jnp.einsum("nc,nd->cd", rows, slopes, precision=precision)[None, None]
    if strides == (1, 1) and (gradient.size > LARGE or shape[2] >= FEW * shape[3]):
        return kernel_gradient_by_taps(x, shape[:2], gradient, padding, dilation, precision).astype(x.dtype)
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


def kernel_gradient_by_taps(
    x: jax.Array, cells: Pair, gradient: jax.Array, padding: tuple[Pair, Pair], dilation: Pair = (1, 1), precision=None
) -> jax.Array:
    """Gradient of the kernel of a convolution of stride 1: a product of matrices for each of its cells, in a loop.

    Args:
      x: [B, H, W, C].
      cells: (kh, kw) of the kernel.
      gradient: of the result, [B, h, w, D].
      padding, dilation: of the convolution.

    Returns:
      float32 [kh, kw, C, D].
    """
    reach = [step * (count - 1) for step, count in zip(dilation, cells, strict=True)]
    around = [(own - low, own - high, 0) for own, (low, high) in zip(reach, padding, strict=True)]
    spread = jax.lax.pad(gradient, jnp.zeros((), gradient.dtype), [(0, 0, 0), *around, (0, 0, 0)])
    inputs = x.transpose(3, 0, 1, 2)

    def tap(index):
        row, column = index // cells[1], index % cells[1]
        place = 0, reach[0] - dilation[0] * row, reach[1] - dilation[1] * column, 0
        met = jax.lax.dynamic_slice(spread, place, (*x.shape[:3], gradient.shape[-1]))
        return jnp.einsum("cbhw,bhwd->cd", inputs, met, precision=precision, preferred_element_type=jnp.float32)

    return jax.lax.map(tap, jnp.arange(math.prod(cells))).reshape(*cells, x.shape[-1], gradient.shape[-1])
