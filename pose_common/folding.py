"""Folded maps: neighbouring cells side by side in the channels.

A TPU keeps 128 channels side by side, whether a map has so many or not: one of 32 is moved, normalised and multiplied
as three quarters of nothing. Folded, 2 x 2 of its cells are 128 channels of one cell of a map of half the size. A
convolution over it has a larger kernel, in which each of the own kernel's values stands once for every output cell,
and zeros; on TPUs that is a fraction of the time and memory (docs/benchmarks.md), elsewhere a waste.

Channels of a folded map are ordered by row, column and own channel: [B, h / rows, w / columns, rows * columns * C].
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

LANES = 128
"""Channels that a TPU keeps side by side."""


class Fold(NamedTuple):
    """How many cells of a map one folded cell holds, down and across."""

    rows: int = 1
    columns: int = 1

    @property
    def cells(self) -> int:
        return self.rows * self.columns


FLAT = Fold()


def fold_of(channels: int, size: tuple[int, int], limit: int) -> Fold:
    """The largest fold of a map [h, w, channels] that has at most `limit` channels; flat where none divides the map."""
    fold = FLAT
    while True:
        wider, taller = Fold(fold.rows, 2 * fold.columns), Fold(2 * fold.rows, fold.columns)
        for larger in (wider, taller) if fold.columns <= fold.rows else (taller, wider):
            if channels * larger.cells <= limit and size[0] % larger.rows == 0 and size[1] % larger.columns == 0:
                fold = larger
                break
        else:
            return fold


def refold(x: jax.Array, old: Fold, new: Fold) -> jax.Array:
    """A map folded otherwise."""
    if old != FLAT and old != new:
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height, width, *old, channels // old.cells)
        x = x.transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(batch, height * old.rows, width * old.columns, channels // old.cells)
    if new != FLAT and old != new:
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // new.rows, new.rows, width // new.columns, new.columns, channels)
        x = x.transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(batch, height // new.rows, width // new.columns, new.cells * channels)
    return x


def enlarge_nearest(x: jax.Array, factor: int, fold: Fold = FLAT) -> jax.Array:
    """[B, h, w, C] -> [B, factor * h, factor * w, C], folded."""
    if factor % fold.rows or factor % fold.columns:
        return refold(enlarge_nearest(x, factor), FLAT, fold)
    x = jnp.tile(x, fold.cells)
    batch, height, width, channels = x.shape
    down, across = factor // fold.rows, factor // fold.columns
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, down, width, across, channels))
    return x.reshape(batch, height * down, width * across, channels)


class Taps(NamedTuple):
    """A convolution along one axis between folded maps.

    Attributes:
      where: 0 or 1 [kernel cells d, input i, output o, k]: whether value k of the own kernel stands at d, i, o.
      stride: in cells of the folded input.
      padding: before and behind it.
    """

    where: np.ndarray
    stride: int
    padding: tuple[int, int]


def taps(kernel: int, stride: int, dilation: int, source: int, target: int, length: int) -> Taps:
    """Of a kernel that is padded to keep the size over the stride, over `length` folded cells.

    Args:
      kernel: its cells, an odd number.
      source, target: cells that one of the folded input and output holds; `source` divides `stride * target`.
    """
    output, value = np.meshgrid(np.arange(target), np.arange(kernel), indexing="ij")
    place = stride * output + dilation * (value - kernel // 2)
    cell, inside = place // source, place % source
    first, last, step = cell.min(), cell.max(), stride * target // source
    where = np.zeros((last - first + 1, source, target, kernel), np.float32)
    where[cell - first, inside, output, value] = 1
    steps = -(-length * source // (stride * target)) - 1
    return Taps(where, step, (int(-first), int(step * steps + last - (length - 1))))


class FoldedKernel(NamedTuple):
    """A kernel [kh, kw, source.cells * C, target.cells * D], its strides and padding, and of how many values how many
    are no zeros.
    """

    kernel: jax.Array
    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    filled: tuple[int, int]


def fold_kernel(
    kernel: jax.Array, size: tuple[int, int], source: Fold, target: Fold, stride: int, dilation: int
) -> FoldedKernel:
    """The kernel [k, k, C, D] for an input of `size` folded cells: see `taps`."""
    down, across = (taps(kernel.shape[0], stride, dilation, source[axis], target[axis], size[axis]) for axis in (0, 1))
    # Each result is one value of the kernel or zero, whatever the precision of the product.
    spread = jnp.einsum(
        "yiok,xjpl,klcd->yxijcopd",
        *(jnp.asarray(each.where, kernel.dtype) for each in (down, across)),
        kernel,
        precision=jax.lax.Precision.HIGHEST,
    )
    cells = len(down.where), len(across.where)
    spread = spread.reshape(*cells, source.cells * kernel.shape[2], target.cells * kernel.shape[3])
    filled = kernel.shape[0] * kernel.shape[1], math.prod(cells) * source.cells
    return FoldedKernel(spread, (down.stride, across.stride), (down.padding, across.padding), filled)
