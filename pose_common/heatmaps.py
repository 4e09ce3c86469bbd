"""Keypoints to heatmaps and back, on the device.

Maps are [B, h, w, K]. Coordinates are (x, y); the centre of the top-left pixel is (0, 0); sizes are
(width, height). Two codecs relate crop pixels to heatmap cells and must not be mixed:

* UDP ("unbiased data processing", Huang et al., CVPR 2020): borders are the centres of the outermost pixels,
  so the stride is (W-1)/(w-1); the Gaussian sits on the sub-pixel position and is decoded by DARK
  (Zhang et al., CVPR 2020).
* MSRA: stride W/w; the Gaussian sits on the rounded cell and is decoded by a quarter-cell shift.

Everything has static shapes and may run inside a jitted training step.
"""

from __future__ import annotations

import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np

# Bounds of the blurred map before the logarithm, as in the UDP release.
_LOG_RANGE = (0.001, 50.0)
_ROUNDING = 2.0**-20  # of a value, about ten units in its last place
BLURS = {"released": (0.0, "reflect"), "transformers": (0.8, "symmetric")}
"""Of DARK: (standard deviation, where 0 is OpenCV's for the kernel: 11 -> 2.0; how borders are mirrored). The released
code blurs by OpenCV, the processor of Hugging Face's VitPose by SciPy with 0.8."""


def stride(udp: bool | jax.Array, input_size: tuple[int, int], heatmap_size: tuple[int, int]) -> jax.Array:
    """Crop pixels per heatmap cell along x and y: [2] for one codec, [B, 1, 2] for a choice per sample."""
    crop, cells = np.asarray(input_size, np.float32), np.asarray(heatmap_size, np.float32)
    udp = jnp.asarray(udp)
    udp = udp[:, None, None] if udp.ndim else udp
    # A map of one cell has no extent to stretch; max() keeps that degenerate case finite.
    return jnp.where(udp, np.maximum(crop - 1, 1) / np.maximum(cells - 1, 1), crop / cells)


def encode(
    keypoints: jax.Array,
    visible: jax.Array,
    udp: bool | jax.Array,
    *,
    input_size: tuple[int, int],
    heatmap_size: tuple[int, int],
    sigma: float,
) -> tuple[jax.Array, jax.Array]:
    """Gaussian targets.

    A Gaussian is cut off outside the square of +-3 sigma cells around its rounded centre, and is not
    normalised: the MSRA peak is 1, the UDP peak is at most 1. A keypoint whose square lies outside the
    map gets weight 0; a weight of 0.5 or less stays but draws nothing, as in the reference.

    Args:
      keypoints: [B, K, 2] crop pixels. Pass `input_size=heatmap_size` for positions in heatmap cells.
      visible: [B, K] weight of each keypoint, 0 where it is not labelled.
      udp: codec, one for all or [B] one per sample.
      input_size, heatmap_size: (width, height) of the crop and of the maps.
      sigma: in cells.

    Returns:
      target [B, h, w, K] and weight [B, K], float32.
    """
    mean = keypoints / stride(udp, input_size, heatmap_size)
    cell = jnp.trunc(mean + 0.5)
    reach = 3 * sigma
    size = jnp.asarray(heatmap_size, jnp.float32)
    # The far test has the reference's exclusive end: a square that ends one cell before the map still counts.
    inside = jnp.all((cell - reach < size) & (cell + reach + 1 >= 0), axis=-1)
    weight = visible * inside
    udp = jnp.asarray(udp)
    centre = jnp.where(udp[:, None, None] if udp.ndim else udp, mean, cell)

    def along(axis: int, drawn: jax.Array | bool) -> jax.Array:
        grid = jnp.arange(heatmap_size[axis], dtype=jnp.float32)[None, :, None]
        near = jnp.abs(grid - cell[:, None, :, axis]) <= reach
        distance = jnp.square(grid - centre[:, None, :, axis])
        # The exponential comes last: a CPU then computes these few values once, not again for every cell of the map.
        return jnp.exp(jnp.where(near & drawn, -distance / (2 * sigma**2), -jnp.inf))

    target = along(1, (weight > 0.5)[:, None, :])[:, :, None, :] * along(0, True)[:, None, :, :]
    return target.astype(jnp.float32), weight.astype(jnp.float32)


def first_maximum(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """Maximum along an axis and its first place, int32: `x.max(axis)`, `jnp.argmax(x, axis)`.

    Plain reductions, which a CPU runs in vector registers; XLA's reduction over (value, index) pairs takes 4 to 15
    times as long there. Where there are NaNs the place is the last one.
    """
    maximum = x.max(axis)
    return maximum, first_place(x, jnp.expand_dims(maximum, axis), axis)


def first_place(x: jax.Array, maximum: jax.Array, axis: int) -> jax.Array:
    """Place, int32, of the first value along an axis that equals its maximum [..., 1, ...], or else is `about` it."""
    count = x.shape[axis]
    place = jax.lax.broadcasted_iota(jnp.int32, x.shape, axis % x.ndim)
    # One reduction for both: places of those that are about the maximum count from `count` on.
    place = jnp.where(x == maximum, place, jnp.where(about(x, maximum), count + place, 2 * count)).min(axis)
    return jnp.where(place < 2 * count, place % count, count - 1)


def about(x: jax.Array, maximum: jax.Array) -> jax.Array:
    """Where x is its maximum but for rounding.

    Where x is the result of other operations, XLA may compile these once into the maximum and once more into the
    comparison with it, where multiplications and additions may be joined otherwise: no value then equals the maximum,
    and a peak is lost. No barrier keeps it from that on a CPU.
    """
    return x >= maximum - _ROUNDING * jnp.abs(maximum)


def decode_argmax(heatmaps: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Highest cell of every map, the first one on ties.

    Args:
      heatmaps: [B, h, w, K].

    Returns:
      coords [B, K, 2] in heatmap cells, (-1, -1) where no value is positive, and the maximum [B, K].
    """
    index, score = _peaks(heatmaps)
    width = heatmaps.shape[2]
    coords = jnp.stack([index % width, index // width], axis=-1).astype(jnp.float32)
    return jnp.where(score[..., None] > 0, coords, -1.0), score


def decode_quarter_shift(heatmaps: jax.Array, *, per_axis: bool = False) -> tuple[jax.Array, jax.Array]:
    """Highest cell, moved a quarter cell towards the larger neighbour along each axis.

    Args:
      heatmaps: [B, h, w, K].
      per_axis: False (top-down): the peak moves only when it lies two or more cells from the first and one
        from the last row and column (1 < x < w-1 and 1 < y < h-1). True (single-stage): an axis moves
        whenever the peak is not on that axis's border, whatever the other axis.

    Returns:
      coords [B, K, 2] in heatmap cells, (-1, -1) where no value is positive, and the maximum [B, K].
    """
    height, width = heatmaps.shape[1:3]
    coords, score = decode_argmax(heatmaps)
    x, y = coords[..., 0].astype(jnp.int32), coords[..., 1].astype(jnp.int32)

    def value(dx: int, dy: int) -> jax.Array:
        cell = jnp.clip(y + dy, 0, height - 1) * width + jnp.clip(x + dx, 0, width - 1)
        return jnp.take_along_axis(_flat(heatmaps), cell[:, None], axis=1)[:, 0]

    slope = jnp.stack([value(1, 0) - value(-1, 0), value(0, 1) - value(0, -1)], axis=-1)
    last = jnp.array([width - 1, height - 1], jnp.float32)
    if per_axis:
        moves = (coords > 0) & (coords < last)
    else:
        moves = jnp.all((coords > 1) & (coords < last), axis=-1, keepdims=True)
    return coords + jnp.where(moves, 0.25 * jnp.sign(slope), 0.0), score


def decode_dark_udp(heatmaps: jax.Array, kernel: int, blur: str = "released") -> tuple[jax.Array, jax.Array]:
    """Highest cell, refined by one Newton step on the logarithm of the blurred map (DARK, in its UDP form).

    Only the 3x3 neighbourhood of a peak is ever blurred: a blurred row is a fixed weighting of the map's
    rows, so three rows and three columns of the blur's band matrices give it, mirrored borders included.

    Args:
      heatmaps: [B, h, w, K].
      kernel: odd side of the Gaussian.
      blur: one of `BLURS`.

    Returns:
      coords [B, K, 2] in heatmap cells, (-1, -1) where no value is positive, and the maximum [B, K].
    """
    height, width = heatmaps.shape[1:3]
    coords, score = decode_argmax(heatmaps)
    around = jnp.maximum(coords, 0).astype(jnp.int32)[..., None] + jnp.arange(-1, 2)  # [B, K, (x, y), 3]
    columns = jnp.asarray(_blur_matrix(width, kernel, blur))[jnp.clip(around[..., 0, :], 0, width - 1)]
    rows = jnp.asarray(_blur_matrix(height, kernel, blur))[jnp.clip(around[..., 1, :], 0, height - 1)]
    patch = jax.lax.platform_dependent(
        rows, columns, heatmaps.astype(jnp.float32), tpu=_blurred_by_sums, default=_blurred_by_products
    )
    offset = _newton_step(jnp.log(jnp.clip(patch, *_LOG_RANGE)))
    return coords + jnp.where(score[..., None] > 0, offset, 0.0), score


def _blurred_by_products(rows: jax.Array, columns: jax.Array, heatmaps: jax.Array) -> jax.Array:
    """[B, K, 3, 3]: each map [B, h, w, K] weighted by its rows [B, K, 3, h] and columns [B, K, 3, w]."""
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    return product("bkiw,bkjw->bkij", product("bkih,bhwk->bkiw", rows, heatmaps), columns)


def _blurred_by_sums(rows: jax.Array, columns: jax.Array, heatmaps: jax.Array) -> jax.Array:
    """The same without a product a map, for which a TPU would lay the maps out anew, twice as large."""
    rows, columns = (jnp.moveaxis(x, 1, -1) for x in (rows, columns))
    patch = (rows[:, :, :, None] * heatmaps[:, None]).sum(axis=2)
    return jnp.moveaxis((patch[:, :, None] * columns[:, None]).sum(axis=3), -1, 1)


def flip_back(heatmaps: jax.Array, flip_index: jax.Array, shift: bool | jax.Array) -> jax.Array:
    """Maps [B, h, w, K] of mirrored images, brought back to the original image's frame and keypoint order.

    Args:
      heatmaps: maps of the mirrored images.
      flip_index: [K], the mirrored keypoint of each.
      shift: whether to move the result one column to the right (the first column stays), which the MSRA
        codec needs because it does not map the crop's mirror axis to the heatmap's; one for all or [B].
    """
    back = heatmaps[:, :, ::-1, :][..., jnp.asarray(flip_index)]
    shifted = jnp.concatenate([back[:, :, :1], back[:, :, :-1]], axis=2)
    shift = jnp.asarray(shift)
    return jnp.where(shift[:, None, None, None] if shift.ndim else shift, shifted, back)


def flip_merge(heatmaps: jax.Array, mirrored: jax.Array, flip_index: jax.Array, shift: bool | jax.Array) -> jax.Array:
    """Average of the maps of images and of their mirror images, all [B, h, w, K]; see `flip_back`."""
    return 0.5 * (heatmaps + flip_back(mirrored, flip_index, shift))


def to_crop(
    coords: jax.Array, udp: bool | jax.Array, *, input_size: tuple[int, int], heatmap_size: tuple[int, int]
) -> jax.Array:
    """Heatmap cells [B, K, 2] -> crop pixels [B, K, 2]."""
    return coords * stride(udp, input_size, heatmap_size)


def to_image(coords: jax.Array, inverse_warp: jax.Array) -> jax.Array:
    """Crop pixels [B, K, 2] -> image pixels [B, K, 2] by each crop's affine map [B, 2, 3]."""
    linear = jnp.einsum("bij,bkj->bki", inverse_warp[:, :, :2], coords, precision=jax.lax.Precision.HIGHEST)
    return linear + inverse_warp[:, None, :, 2]


def decode(
    heatmaps: jax.Array,
    inverse_warp: jax.Array,
    *,
    udp: bool,
    input_size: tuple[int, int],
    kernel: int,
    blur: str = "released",
) -> jax.Array:
    """Maps of person crops -> keypoints in the image, by the codec's own decoder.

    Args:
      heatmaps: [B, h, w, K].
      inverse_warp: [B, 2, 3], crop pixels -> image pixels.
      udp: codec of the dataset: DARK-UDP, else quarter shift.
      input_size: (width, height) of the crops.
      kernel, blur: of DARK's Gaussian; see `decode_dark_udp`.

    Returns:
      [B, K, 3]: x, y in image pixels and the map's maximum. A map without a positive value decodes to the
      cell (-1, -1).
    """
    height, width = heatmaps.shape[1:3]
    coords, score = decode_dark_udp(heatmaps, kernel, blur) if udp else decode_quarter_shift(heatmaps)
    crop = to_crop(coords, udp, input_size=input_size, heatmap_size=(width, height))
    return jnp.concatenate([to_image(crop, inverse_warp), score[..., None]], axis=-1)


def _flat(heatmaps: jax.Array) -> jax.Array:
    batch, height, width, channels = heatmaps.shape
    return heatmaps.reshape(batch, height * width, channels)


def _peaks(heatmaps: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Flat index of the first maximum, int32 [B, K], and its value in float32.

    First its row, then its column there: a row's cells are few. Places of all cells take three times as long on a CPU,
    and a TPU lays the maps out anew for them.
    """
    score, y = first_maximum(heatmaps.max(axis=2), axis=1)
    row = jax.lax.platform_dependent(heatmaps, y, tpu=_row_by_mask, default=_row)
    x = first_place(row, score[:, None], axis=1)
    return y * heatmaps.shape[2] + x, score.astype(jnp.float32)


def _row(heatmaps: jax.Array, y: jax.Array) -> jax.Array:
    """[B, w, K]: of each map [B, h, w, K] the row y [B, K]."""
    return jnp.take_along_axis(heatmaps, y[:, None, None], axis=1)[:, 0]


def _row_by_mask(heatmaps: jax.Array, y: jax.Array) -> jax.Array:
    """The same without a lookup, for which a TPU would lay the maps out anew."""
    asked = jnp.arange(heatmaps.shape[1])[:, None, None] == y[:, None, None]
    return jnp.where(asked, heatmaps, -jnp.inf).max(axis=1)


def _newton_step(log_patch: jax.Array) -> jax.Array:
    """Offset (x, y) from the middle of [..., 3 rows, 3 columns] log values to the top of their quadratic."""
    (a, b, _), (d, e, f), (_, h, i) = (tuple(log_patch[..., r, c] for c in range(3)) for r in range(3))
    dx, dy = 0.5 * (f - d), 0.5 * (h - b)
    epsilon = np.finfo(np.float32).eps
    dxx, dyy = f - 2 * e + d + epsilon, h - 2 * e + b + epsilon
    dxy = 0.5 * (i - f - h + 2 * e - d - b + a)
    determinant = dxx * dyy - dxy * dxy
    step = -jnp.stack([dyy * dx - dxy * dy, dxx * dy - dxy * dx], axis=-1)
    # A saddle without curvature has no top: the peak then stays where it is.
    flat = determinant == 0
    return jnp.where(flat[..., None], 0.0, step / jnp.where(flat, 1.0, determinant)[..., None])


@functools.cache
def _blur_matrix(size: int, kernel: int, blur: str) -> np.ndarray:
    """float32 [size, size]: the Gaussian blur along one axis, borders mirrored."""
    sigma, border = BLURS[blur]
    taps = cv2.getGaussianKernel(kernel, sigma, cv2.CV_64F)[:, 0]
    source = np.pad(np.arange(size), kernel // 2, mode=border)  # type: ignore[call-overload]
    matrix = np.zeros((size, size))
    for row in range(size):
        np.add.at(matrix[row], source[row : row + kernel], taps)
    return matrix.astype(np.float32)
