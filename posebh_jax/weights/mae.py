"""From a plain vision transformer (MAE and alike) to the backbone of pose estimation.

Works on torch names and layouts. As the original code does it: patch kernels are padded to the new patch
size, and the position embedding is interpolated to the new grid.
"""

from __future__ import annotations

import math
from collections.abc import MutableMapping

import numpy as np

from pose_common.weights.keys import ConversionError

PATCH_KERNEL, POSITION = "patch_embed.proj.weight", "pos_embed"
_CUBIC = -0.75
"""Coefficient of torch's bicubic kernel."""


def adapt_backbone(state: MutableMapping[str, np.ndarray], grid: tuple[int, int], patch_size: int) -> None:
    """Changes patch convolution and position embedding of `state` in place to those of another input.

    Args:
      state: torch names without prefix.
      grid: patches (vertically, horizontally) of the new input.
      patch_size: side of the new patches.

    Raises:
      ConversionError: a position embedding or patch kernel that is none.
    """
    for name, change in (
        (PATCH_KERNEL, lambda kernel: pad_patch_kernel(kernel, patch_size)),
        (POSITION, lambda position: resize_square_position(position, grid)),
    ):
        if name in state:
            state[name] = change(state[name])


def pad_patch_kernel(kernel: np.ndarray, patch_size: int) -> np.ndarray:
    """[C, 3, k, k] -> [C, 3, patch_size, patch_size]: zeros around it, the smaller half first.

    Raises:
      ConversionError: a kernel that is not square, or larger than the patch.
    """
    if kernel.ndim != 4 or kernel.shape[2] != kernel.shape[3] or kernel.shape[2] > patch_size:
        raise ConversionError("the backbone does not fit", [f"{PATCH_KERNEL} has shape {list(kernel.shape)}"])
    before, odd = divmod(patch_size - kernel.shape[2], 2)
    around = (before, before + odd)
    return np.pad(kernel, ((0, 0), (0, 0), around, around))


def resize_square_position(position: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """As `resize_position`, from a square grid; what is on `grid` already is returned as it is.

    Raises:
      ConversionError: the positions make neither a square grid nor `grid`.
    """
    tokens = position.shape[1] - 1 if position.ndim == 3 else 0
    side = int(round(max(tokens, 0) ** 0.5))
    height, width = grid
    if tokens == height * width and side * side != tokens:
        return position
    if tokens <= 0 or side * side != tokens:
        raise ConversionError(
            "the backbone does not fit",
            [f"{POSITION} has shape {list(position.shape)}: no square grid, nor {height} x {width}"],
        )
    return resize_position(position, (side, side), grid)


def resize_position(position: np.ndarray, old: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """[1, 1 + n, C] on the grid `old` -> [1, 1 + h * w, C] on `grid`, both (vertically, horizontally); the leading row
    is kept.

    Bicubic with half-pixel centres and a clamped border, without antialiasing where the grid shrinks.
    """
    vertical, horizontal = (cubic_matrix(length, new) for length, new in zip(old, grid, strict=True))
    rows = position[0, 1:].astype(np.float32).reshape(*old, -1)
    new = np.einsum("hy,wx,yxc->hwc", vertical, horizontal, rows, optimize=True)
    return np.concatenate([position[:, :1], new.reshape(1, math.prod(grid), -1)], axis=1).astype(np.float32)


def without_class_token(position: np.ndarray, tokens: int) -> np.ndarray:
    """[1, n, C] or [1, 1 + n, C] -> [1, 1 + n, C] whose first row is 0; other shapes are left alone.

    MMPose 1.x adds nothing to every patch: where its files have a row for a class token, it takes it off on loading.
    """
    if position.ndim != 3 or position.shape[0] != 1 or position.shape[1] not in (tokens, tokens + 1):
        return position
    return np.concatenate([np.zeros_like(position[:, :1]), position[:, -tokens:]], axis=1)


def cubic_matrix(length: int, new_length: int) -> np.ndarray:
    """Weights [new_length, length] of cubic interpolation along one axis."""
    centres = (np.arange(new_length) + 0.5) * length / new_length - 0.5
    first = np.floor(centres).astype(int)
    matrix = np.zeros((new_length, length))
    for tap in range(-1, 3):
        distance = np.abs(centres - (first + tap))
        inner = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
        outer = ((distance - 5) * distance + 8) * distance * _CUBIC - 4 * _CUBIC
        weight = np.where(distance <= 1, inner, outer)
        np.add.at(matrix, (np.arange(new_length), np.clip(first + tap, 0, length - 1)), weight)
    return matrix
