"""Boxes for people of whom only keypoints are labelled."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from data_pipelines import fields
from data_pipelines.fields import Fault

MARGIN = 0.2
"""What is added on each side, as a share of the extent's longer side: a body reaches beyond its joints."""


def fill(
    annotations: list, num_keypoints: int, size_of: Callable[[Mapping[str, Any]], tuple[int, int] | None]
) -> tuple[list, int]:
    """(annotations, all with a box where that can be, how many got one).

    The box is the extent of the labelled keypoints with MARGIN, clipped to the picture. A single point has no extent:
    its box is a square of the median size of the others. Entries whose keypoints cannot be read stay as they are.

    Args:
      annotations: entries of a COCO document.
      num_keypoints: of the skeleton.
      size_of: annotation -> (width, height) of its picture; None where it is unknown.
    """
    points = {number: found for number, entry in enumerate(annotations) if (found := _labelled(entry, num_keypoints))}
    if not points:
        return annotations, 0
    low, high = (np.array([getattr(np, side)(found, axis=0) for found in points.values()]) for side in ("min", "max"))
    longer = (high - low).max(1)
    extended = longer > 0
    sides = [*(1 + 2 * MARGIN) * longer[extended], *([] if extended.all() else _drawn_sides(annotations))]
    grown = np.where(extended, MARGIN * longer, np.median(sides) / 2 if sides else 0.0)[:, None]
    low, high = low - grown, high + grown
    filled = list(annotations)
    for number, start, end in zip(points, low, high, strict=True):
        if (size := size_of(annotations[number])) is not None:
            # Half a pixel around the outer pixels' centres is the picture's border.
            start, end = np.clip(start, -0.5, np.array(size) - 0.5), np.clip(end, -0.5, np.array(size) - 0.5)
        # An area of 0 is that of the box which nobody drew.
        own = {key: value for key, value in annotations[number].items() if key != "area" or fields.whole(value) != 0}
        filled[number] = own | {"bbox": [*start.tolist(), *(end - start).tolist()]}
    return filled, len(points)


def _labelled(entry: Any, count: int) -> list[list[float]] | None:
    """The labelled points [[x, y]] of an annotation without a box; None where there are none."""
    if not isinstance(entry, dict) or _is_drawn(entry.get("bbox")):
        return None
    try:
        labels = fields.keypoints(entry, "keypoints", count)
    except Fault:
        return None
    return labels[labels[:, 2] > 0, :2].tolist() or None


def _drawn_sides(annotations: list) -> Iterator[float]:
    """The longer side of every box that somebody drew."""
    for entry in annotations:
        with contextlib.suppress(Fault):
            if isinstance(entry, dict) and _is_drawn(entry.get("bbox")):
                yield fields.numbers(entry, "bbox", 4)[2:].max()


def _is_drawn(box: Any) -> bool:
    """Whether somebody drew it: where nobody did, label tools write null, an empty list, or width and height of 0, at 0
    or at the only labelled point.
    """
    if isinstance(box, (list, tuple, np.ndarray)):
        sides = box[2:] if len(box) == 4 else box
        return any(fields.whole(value) != 0 for value in sides)
    return box is not None
