"""Skeletons, boxes and heatmaps on pictures, and many pictures on one sheet. OpenCV only.

Pictures are uint8 [H, W, 3] RGB; coordinates are (x, y) in pixels, the top-left pixel's centre is (0, 0).
Every function returns a new picture and leaves its arguments alone.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import cv2
import numpy as np

from data_pipelines.paths import as_path, write_whole
from data_pipelines.sides import sides_of
from data_pipelines.skeletons import KeypointSet

Colour = tuple[int, int, int]

LEFT: Colour = (40, 200, 90)
RIGHT: Colour = (250, 110, 30)
CENTRE: Colour = (70, 150, 255)
_SIDE_COLOURS = {"left": LEFT, "right": RIGHT, "centre": CENTRE}
_EDGE: Colour = (20, 20, 20)
_DENSE_PARTS = ("face", "lefthand", "righthand")
_SHIFT = 4  # OpenCV draws at 1 / 2^shift pixels
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw_skeleton(
    image: np.ndarray,
    keypoints: np.ndarray,
    keypoint_set: KeypointSet,
    *,
    threshold: float = 0.0,
    colour: Colour | None = None,
    thickness: int | None = None,
) -> np.ndarray:
    """One figure's limbs and points.

    Args:
      image: uint8 [H, W, 3].
      keypoints: [K, 3], x, y and confidence (of a prediction) or visibility (of an annotation).
      keypoint_set: the skeleton, K points.
      threshold: points whose third number is not above it are left out, with their limbs.
      colour: of everything, to tell people apart; None: green on the left of the body, orange on its right,
        blue in the middle, whatever the skeleton.
      thickness: of limbs in pixels; None: by the size of the figure.

    Raises:
      ValueError: the number of points is not the skeleton's.
    """
    keypoints = np.asarray(keypoints, np.float64)
    if keypoints.shape != (keypoint_set.num_keypoints, 3):
        raise ValueError(
            f"keypoints of shape {keypoints.shape}; {keypoint_set.name} needs {(keypoint_set.num_keypoints, 3)}"
        )
    image = np.array(image, order="C")
    shown = (keypoints[:, 2] > threshold) & np.isfinite(keypoints).all(1)
    if not shown.any():
        return image
    if thickness is None:
        extent = min(np.ptp(keypoints[shown, :2], axis=0).max(), max(image.shape))
        thickness = max(1, round(float(extent) / 90))
    dense = _dense(keypoint_set)
    sides = sides_of(keypoint_set.keypoints)
    for a, b in keypoint_set.limbs:
        if shown[a] and shown[b]:
            width = 1 if dense[a] or dense[b] else thickness
            cv2.line(
                image,
                _fixed_point(keypoints[a]),
                _fixed_point(keypoints[b]),
                colour or _limb_colour(sides[a], sides[b]),
                width,
                cv2.LINE_AA,
                _SHIFT,
            )
    for index in np.flatnonzero(shown):
        radius = 0.8 if dense[index] else thickness + 0.5
        if not dense[index]:
            _dot(image, keypoints[index], radius + 1, _EDGE)
        _dot(image, keypoints[index], radius, colour or _SIDE_COLOURS[sides[index]])
    return image


def instance_colour(index: int) -> Colour:
    """A bright colour for the index-th person of a picture, unlike those of the persons before."""
    hue = np.uint8(round((index * 0.618034 % 1.0) * 179))
    red, green, blue = cv2.cvtColor(np.array([[[hue, 200, 255]]], np.uint8), cv2.COLOR_HSV2RGB)[0, 0].tolist()
    return red, green, blue


def draw_box(
    image: np.ndarray,
    box: Sequence[float],
    *,
    colour: Colour = (255, 220, 0),
    label: str = "",
) -> np.ndarray:
    """A box (x, y, w, h) with an optional label at its upper left corner."""
    image = np.array(image, order="C")
    x, y, w, h = (float(v) for v in box)
    corners = _fixed_point((x, y)), _fixed_point((x + w, y + h))
    cv2.rectangle(image, *corners, colour, 1, cv2.LINE_AA, _SHIFT)
    if label:
        at = (round(max(x, 0)) + 2, round(max(y, 0)) + 11)
        cv2.putText(image, label, at, _FONT, 0.4, (0, 0, 0), 2, cv2.LINE_AA)
        cv2.putText(image, label, at, _FONT, 0.4, colour, 1, cv2.LINE_AA)
    return image


def heatmap_overlay(image: np.ndarray, heatmap: np.ndarray, *, opacity: float = 0.6) -> np.ndarray:
    """A heatmap [h, w], or the maximum of [h, w, K], stretched over the picture of which it is a map.

    Values from 0 to 1 run from transparent blue to opaque red; values beyond are cut.
    """
    heatmap = np.asarray(heatmap, np.float32)
    if heatmap.ndim == 3:
        heatmap = heatmap.max(axis=-1)
    height, width = image.shape[:2]
    heatmap = np.clip(cv2.resize(heatmap, (width, height), interpolation=cv2.INTER_LINEAR), 0, 1)
    colours = cv2.applyColorMap(np.uint8(255 * heatmap), cv2.COLORMAP_JET)[..., ::-1]
    weight = opacity * np.sqrt(heatmap)[..., None]  # the square root keeps faint peaks in sight
    return np.uint8(np.rint(image * (1 - weight) + colours * weight))


def contact_sheet(
    images: Sequence[np.ndarray],
    columns: int,
    captions: Sequence[str] = (),
    *,
    gap: int = 4,
) -> np.ndarray:
    """The pictures in rows of `columns`, in cells of the largest one's size, captions (if any) underneath.

    Raises:
      ValueError: no picture, or another number of captions.
    """
    if not images or (captions and len(captions) != len(images)):
        raise ValueError(f"{len(images)} pictures with {len(captions)} captions")
    line = 16 if captions else 0
    height, width = (max(image.shape[axis] for image in images) + gap for axis in (0, 1))
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    sheet = np.full((rows * (height + line) + gap, columns * width + gap, 3), 32, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + line) + gap, index % columns * width + gap
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
        if captions:
            _caption(sheet, captions[index], left, top + height - gap, width - gap)
    return sheet


def save_image(path: str | pathlib.Path, image: np.ndarray) -> None:
    """Writes an RGB picture as PNG or JPEG, by the name's suffix.

    Raises:
      OSError: it could not be written.
      cv2.error: a suffix that OpenCV does not know.
    """
    path = as_path(path)
    write_whole(path, encode(image, path.suffix))


def encode(image: np.ndarray, suffix: str) -> bytes:
    """A file of an RGB picture in the format of a suffix, such as `.png`.

    Raises:
      OSError: it could not be encoded.
      cv2.error: a suffix that OpenCV does not know.
    """
    done, content = cv2.imencode(suffix, np.ascontiguousarray(image[..., ::-1]))
    if not done:
        raise OSError(f"a picture {list(image.shape)} could not be encoded as {suffix}")
    return content.tobytes()


def _limb_colour(side_a: str, side_b: str) -> Colour:
    """A limb belongs to the side of its ends; between the two sides, or without one, to the middle."""
    sides = {side_a, side_b} - {"centre"}
    return _SIDE_COLOURS[sides.pop()] if len(sides) == 1 else CENTRE


def _dense(keypoint_set: KeypointSet) -> np.ndarray:
    """bool [K]: points of face and hands, which lie too close together for thick marks."""
    dense = np.zeros(keypoint_set.num_keypoints, bool)
    for name, first, end in keypoint_set.parts:
        dense[first:end] = name in _DENSE_PARTS
    return dense


def _dot(image: np.ndarray, point: Sequence[float], radius: float, colour: Colour) -> None:
    cv2.circle(image, _fixed_point(point), round(radius * (1 << _SHIFT)), colour, -1, cv2.LINE_AA, _SHIFT)


def _fixed_point(point: Sequence[float]) -> tuple[int, int]:
    """OpenCV's sub-pixel coordinates; far points are cut so that they fit its integers."""
    x, y = np.clip(np.asarray(point, np.float64)[:2], -1e6, 1e6)
    return round(float(x) * (1 << _SHIFT)), round(float(y) * (1 << _SHIFT))


def _caption(sheet: np.ndarray, text: str, left: int, top: int, width: int) -> None:
    """One line of text, cut to the cell's width."""
    cell = np.zeros((16, width, 3), np.uint8)
    cell[:] = 32
    cv2.putText(cell, text, (2, 11), _FONT, 0.36, (230, 230, 230), 1, cv2.LINE_AA)
    sheet[top : top + 16, left : left + width] = cell
