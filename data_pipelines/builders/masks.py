"""COCO segmentations as they are stored: checked, so that no reader finds a mask of another size than its picture's."""

from __future__ import annotations

import json
from typing import Any

from data_pipelines.fields import MAX_COORDINATE, Fault, numbers, whole

Remark = tuple[str, str]
"""What is unusual of somebody who is kept, and a detail."""
UNUSABLE = "unusable segmentation (instance kept without)"
UNUSABLE_PART = "unusable polygon of a segmentation (left out)"


def text_of(segmentation: Any, width: int, height: int) -> tuple[str, list[Remark]]:
    """(the segmentation of a `width` x `height` picture as JSON text, remarks): polygons, or run lengths with a size.

    The text is "" where there is none, or none that can be used. Remarks are on what cannot be used, of several
    polygons on those.
    """
    if segmentation is None or segmentation in ("", [], {}):
        return "", []
    try:
        if isinstance(segmentation, dict):
            return json.dumps(_run_lengths(segmentation, width, height)), []
        if not isinstance(segmentation, list):
            raise Fault("", f"{segmentation!r:.80} is neither polygons nor run lengths")
    except Fault as fault:
        return "", [(UNUSABLE, fault.detail)]
    usable, unusable = [], []
    is_one = not isinstance(segmentation[0], (list, dict, str))  # whose numbers some tools write without a list around
    for polygon in [segmentation] if is_one else segmentation:
        try:
            usable.append(_polygon(polygon))
        except Fault as fault:
            unusable.append(fault.detail)
    if not usable:
        return "", [(UNUSABLE, unusable[0])]
    return json.dumps(usable), [(UNUSABLE_PART, detail) for detail in unusable]


def _polygon(values: Any) -> list[float]:
    """x, y of the corners, at least three, which may be pairs."""
    if isinstance(values, list) and all(isinstance(corner, list) and len(corner) == 2 for corner in values):
        values = [number for corner in values for number in corner]
    if not isinstance(values, list) or len(values) < 6 or len(values) % 2:
        raise Fault("", f"polygon {values!r:.80} is not x, y of three corners or more")
    corners = numbers({"polygon": values}, "polygon", len(values))
    if abs(corners).max() > MAX_COORDINATE:
        raise Fault("", f"polygon {values!r:.80} reaches too far")
    return corners.tolist()


def _run_lengths(segmentation: dict[str, Any], width: int, height: int) -> dict[str, Any]:
    """Run lengths whose size is the picture's and whose lengths add up to it."""
    size = segmentation.get("size")
    if not isinstance(size, list) or [whole(side) for side in size] != [height, width]:
        raise Fault("", f"its size [height, width] is {size!r:.80}, the picture's [{height}, {width}]")
    counts = segmentation.get("counts")
    lengths = _decompress(counts) if isinstance(counts, str) else _lengths(counts)
    if min(lengths, default=0) < 0 or sum(lengths) != width * height:
        raise Fault("", f"its run lengths add up to {sum(lengths)} pixels, the picture has {width * height}")
    return {"size": [height, width], "counts": counts if isinstance(counts, str) else lengths}


def _lengths(counts: Any) -> list[int]:
    found = [whole(value) for value in counts] if isinstance(counts, list) else [None]
    lengths = [value for value in found if value is not None]
    if len(lengths) != len(found):
        raise Fault("", f"its counts are {counts!r:.80}")
    return lengths


def _decompress(text: str) -> list[int]:
    """The run lengths of COCO's compressed form.

    A character holds five bits of a number, the lowest first, and a sixth bit that says whether more follow. From the
    fourth number on, each is the difference between its run length and the run length two before.

    Raises:
      Fault: a character that is none of these 64, or a number without its end.
    """
    lengths: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64:
            raise Fault("", f"its counts hold the character {letter!r}")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = shift = 0
    if shift:
        raise Fault("", "its counts end within a number")
    return lengths
