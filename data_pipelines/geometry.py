"""From a box to a crop and back: the one place that says what a pixel coordinate means.

Coordinates are (x, y) in pixels; pixel centres lie at integers, the top-left pixel's at (0, 0), the
bottom-right one's at (W-1, H-1). A mirror maps x to W-1-x. Boxes are (x, y, width, height). A crop is
described by its *centre* (x, y) in image pixels and its *scale* (width, height) in units of 200 pixels;
`size` arguments are (width, height).

Two affine maps lead from image to crop. `udp` (unbiased data processing, Huang et al. 2020) measures lengths
between pixel centres: the box's corners fall on the centres of the crop's corner pixels. The plain map
divides W pixels by the box's width and sends the box's centre to (W/2, H/2), half a pixel beyond the middle
of the crop; models trained with it expect just that. It ignores the box's height, and its rotation turns the
other way round.
"""

from __future__ import annotations

import math

import numpy as np

SCALE_UNIT = 200.0


def clean_box(box: np.ndarray, width: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Clips boxes [..., 4] to their images, as the COCO loaders do: float64 [..., 4].

    The right and lower sides are the last pixels *inside*, so a cleaned box is one pixel narrower than
    annotated. A box that lies outside its image comes back with a width or height of zero or less.
    """
    x, y, w, h = np.moveaxis(np.asarray(box, np.float64), -1, 0)
    x1, y1 = np.maximum(0, x), np.maximum(0, y)
    x2 = np.minimum(np.asarray(width) - 1, x1 + np.maximum(0, w - 1))
    y2 = np.minimum(np.asarray(height) - 1, y1 + np.maximum(0, h - 1))
    return np.stack([x1, y1, x2 - x1, y2 - y1], axis=-1)


def grow_to_aspect(size: np.ndarray, aspect: float) -> np.ndarray:
    """Enlarges the smaller side of (width, height) [..., 2] until width / height is `aspect`."""
    width, height = size[..., 0], size[..., 1]
    return np.stack([np.maximum(width, height * aspect), np.maximum(height, width / aspect)], axis=-1)


def box_to_crop(box: np.ndarray, aspect: float | None, padding: float) -> tuple[np.ndarray, np.ndarray]:
    """(centre, scale), float64 [..., 2] each, of boxes [..., 4], padded.

    Boxes grow to `aspect` (width / height) first; None keeps their shape and so stretches the picture.
    """
    box = np.asarray(box, np.float64)
    size = box[..., 2:] if aspect is None else grow_to_aspect(box[..., 2:], aspect)
    return box[..., :2] + box[..., 2:] / 2, size * (padding / SCALE_UNIT)


def warp_matrix(centre, scale, rotation: float, size: tuple[int, int], udp: bool) -> np.ndarray:
    """The map from image pixels to crop pixels, float64 [2, 3].

    Args:
      centre: (x, y) of the crop's middle in the image.
      scale: (width, height) of the cropped box in units of 200 pixels.
      rotation: degrees.
      size: (width, height) of the crop in pixels.
      udp: which of the two conventions above.
    """
    cx, cy = float(centre[0]), float(centre[1])
    box_width, box_height = float(scale[0]) * SCALE_UNIT, float(scale[1]) * SCALE_UNIT
    width, height = size
    cos, sin = math.cos(math.radians(rotation)), math.sin(math.radians(rotation))
    if udp:
        scale_x, scale_y = (width - 1) / box_width, (height - 1) / box_height
        middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    else:
        scale_x = scale_y = width / box_width
        middle_x, middle_y = width / 2, height / 2
        sin = -sin
    xx, xy, yx, yy = scale_x * cos, -scale_x * sin, scale_y * sin, scale_y * cos
    return np.array([[xx, xy, middle_x - xx * cx - xy * cy], [yx, yy, middle_y - yx * cx - yy * cy]])


def mirrored(matrix: np.ndarray, width: int) -> np.ndarray:
    """`matrix` [2, 3] after the mirror x -> width-1-x, so that pixels are mirrored while they are warped."""
    flipped = matrix.copy()
    flipped[:, 0] *= -1
    flipped[:, 2] += matrix[:, 0] * (width - 1)
    return flipped


def from_reduced(matrix: np.ndarray, reduction: int) -> np.ndarray:
    """`matrix` [2, 3] for a picture whose pixels are means of blocks of side `reduction`, centred amid them."""
    linear = matrix[:, :2]
    offset = matrix[:, 2:] + linear.sum(axis=1, keepdims=True) * ((reduction - 1) / 2)
    return np.concatenate([linear * reduction, offset], axis=1)


def invert(matrix: np.ndarray) -> np.ndarray:
    """The inverse of an affine map [2, 3]."""
    linear = np.linalg.inv(matrix[:, :2])
    return np.concatenate([linear, -linear @ matrix[:, 2:]], axis=1)


def transform(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Applies an affine map [2, 3] to points [..., 2]."""
    return points @ matrix[:, :2].T + matrix[:, 2]
