"""The checks that every entry of every dataset passes before it becomes a record.

One place for all builders: a builder hands over what it found, unchecked, and these functions either return
it in the records' own types or raise `Fault`.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from data_pipelines.builders.report import Fault

# A JPEG has at most 65,535 pixels a side, so a coordinate far beyond that is damage, not an occluded limb.
MAX_COORDINATE = 1e6
_STANDALONE_MARKERS = frozenset([0x01, *range(0xD0, 0xD8)])
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN = 0xDA


def read_jpeg(image: pathlib.Path | bytes, decode: bool = False) -> tuple[bytes, int, int]:
    """(bytes, width, height) of a complete JPEG.

    The headers are walked and the end marker is looked for, which finds truncated files without decoding.
    `decode` decodes the pixels as well.

    Raises:
      Fault: missing image, not a JPEG, truncated JPEG, undecodable JPEG.
    """
    if isinstance(image, pathlib.Path):
        try:
            image = image.read_bytes()
        except FileNotFoundError:
            raise Fault("missing image") from None
        except OSError as error:
            raise Fault("unreadable image", str(error)) from error
    if not image.startswith(b"\xff\xd8\xff"):
        raise Fault("not a JPEG", f"{len(image)} bytes that start with {image[:8].hex(' ') or 'nothing'}")
    width, height, scan = _jpeg_frame(image)
    # Within the scans every 0xff byte is followed by 0x00 or a restart marker: an end marker after the first
    # scan's start is the end of the picture. Some cameras append other data behind it.
    if image.rfind(b"\xff\xd9", scan) < 0:
        raise Fault("truncated JPEG", f"no end-of-image marker in {len(image)} bytes")
    if decode and cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR) is None:
        raise Fault("undecodable JPEG", f"{width}x{height}, {len(image)} bytes")
    return image, width, height


def _jpeg_frame(data: bytes) -> tuple[int, int, int]:
    """(width, height, offset of the first scan) from the JPEG's headers."""
    position, width, height = 2, 0, 0
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            raise Fault("not a JPEG", f"no marker at byte {position}")
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker in _STANDALONE_MARKERS:
            position += 2
            continue
        if marker == _START_OF_SCAN:
            if not (width and height):
                raise Fault("not a JPEG", "no picture size before the first scan")
            return width, height, position
        if marker in _START_OF_FRAME and position + 9 <= len(data):
            height = int.from_bytes(data[position + 5 : position + 7], "big")
            width = int.from_bytes(data[position + 7 : position + 9], "big")
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    raise Fault("truncated JPEG", f"the {len(data)} bytes end within the headers")


def check_image_entry(entry: Mapping[str, Any], width: int, height: int) -> dict[str, Any]:
    """The image fields of a record (without instances), in the records' types.

    `entry` has image_id and file_name, and optionally width and height, which must then be the JPEG's, and
    crowd_index.

    Raises:
      Fault: bad image entry, image size differs.
    """
    image_id = integer(entry, "image_id")
    file_name = entry.get("file_name")
    if not isinstance(file_name, str) or not file_name:
        raise Fault("bad image entry", f"file_name is {file_name!r}")
    for key, stored in (("width", width), ("height", height)):
        annotated = entry.get(key)
        if annotated is not None and annotated != stored:
            raise Fault(
                "image size differs",
                f"{file_name} is {width}x{height}, but its {key} is given as {annotated!r:.80}",
            )
    crowd_index = entry.get("crowd_index", -1.0)
    return {
        "image_id": image_id,
        "file_name": file_name,
        "height": height,
        "width": width,
        "crowd_index": float(numbers({"crowdIndex": crowd_index}, "crowdIndex", 1)[0]),
    }


def check_instance(
    instance: Mapping[str, Any], num_keypoints: int, width: int, height: int, categories: frozenset[int]
) -> tuple[dict[str, Any], list[str]]:
    """(instance in the records' types, remarks) of one instance of an image of `width` x `height` pixels.

    `instance` has id, box and keypoints (flat or [K, 3]; they may be missing on crowds), and optionally every
    other instance field and `segmentation`.

    Raises:
      Fault: missing field, bad id, wrong number of keypoints, not a number, not finite, number out of range,
        negative box, box outside the image, unknown category.
    """
    remarks: list[str] = []
    crowd = bool(instance.get("crowd") or False)
    box = numbers(instance, "box", 4)
    _check_range("box", box)
    _check_box(box, width, height, remarks)
    if instance.get("keypoints") is None and crowd:
        keypoints = np.zeros((num_keypoints, 3))
    else:
        keypoints = numbers(instance, "keypoints", 3 * num_keypoints).reshape(num_keypoints, 3)
    if (keypoints[:, 2] < 0).any():
        raise Fault("number out of range", "negative visibility")
    _check_range("keypoints", keypoints[keypoints[:, 2] > 0])
    area = float(numbers(instance, "area", 1)[0]) if instance.get("area") is not None else -1.0
    if area < 0 and instance.get("area") is not None or area > MAX_COORDINATE**2:
        raise Fault("number out of range", f"area is {area:g}")
    category = integer(instance, "category", default=1, bits=32)
    if category not in categories:
        raise Fault("unknown category", f"category {category}")
    count = integer(instance, "num_keypoints", default=-1, bits=32)
    centre, scale, head_size = (
        numbers({key: instance.get(key, np.zeros(length))}, key, length)
        for key, length in (("centre", 2), ("scale", 1), ("head_size", 1))
    )
    unlabelled = crowd or count == 0 or not (keypoints[:, 2] > 0).any()
    return {
        "id": integer(instance, "id"),
        "box": box.astype(np.float32),
        "area": np.float32(area),
        "crowd": crowd,
        "category": category,
        "keypoints": keypoints.astype(np.float32),
        "num_keypoints": count,
        "centre": centre.astype(np.float32),
        "scale": np.float32(scale[0]),
        "head_size": np.float32(head_size[0]),
        "mask": _mask(instance.get("segmentation"), remarks) if unlabelled else "",
    }, remarks


def integer(entry: Mapping[str, Any], key: str, default: int | None = None, bits: int = 64) -> int:
    """A field that must be a whole number of `bits` bits. Raises Fault."""
    value = entry.get(key)
    if value is None and default is not None:
        return default
    if value is None:
        raise Fault("missing field", key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, np.integer))
        or not -(2 ** (bits - 1)) <= value < 2 ** (bits - 1)
    ):
        raise Fault("bad id" if key.endswith("id") else "not a number", f"{key} is {value!r:.80}")
    return int(value)


def hashable(number: Any) -> Any:
    """An id as a dictionary key, whatever a damaged file holds there."""
    return number if isinstance(number, (int, float, str)) else repr(number)


def numbers(entry: Mapping[str, Any], key: str, count: int) -> np.ndarray:
    """float64 [count]: a field that must hold that many finite numbers. Raises Fault."""
    value = entry.get(key)
    if value is None:
        raise Fault("missing field", key)
    try:
        array = np.asarray(value, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError, OverflowError):
        raise Fault("not a number", f"{key} is {value!r:.80}") from None
    if len(array) != count:
        raise Fault(
            "wrong number of keypoints" if key == "keypoints" else "wrong length",
            f"{key} has {len(array)} numbers, {count} are needed",
        )
    if not np.isfinite(array).all():
        raise Fault("not finite", f"{key} holds {array[~np.isfinite(array)][0]}")
    _check_range(key, array, np.finfo(np.float32).max)  # what a record can hold
    return array


def _check_range(key: str, values: np.ndarray, limit: float = MAX_COORDINATE) -> None:
    if values.size and np.abs(values).max() > limit:
        raise Fault("number out of range", f"{key} holds {np.abs(values).max():g}")


def _check_box(box: np.ndarray, width: int, height: int, remarks: list[str]) -> None:
    x, y, w, h = box
    text = f"box {[round(float(v), 2) for v in box]}, image {width}x{height}"
    if w < 0 or h < 0:
        raise Fault("negative box", text)
    if x > width or y > height or x + w < 0 or y + h < 0:
        raise Fault("box outside the image", text)
    if w == 0 or h == 0:
        remarks.append("box without extent (kept)")
    # Annotations round outwards now and then, so a pixel over the border is nothing to mention.
    if min(x, y) < -1 or x + w > width + 1 or y + h > height + 1:
        remarks.append("box reaches over the border (kept)")


def _mask(segmentation: Any, remarks: list[str]) -> str:
    """The segmentation as JSON text: polygons, or run lengths with a size."""
    if not segmentation:
        return ""
    if isinstance(segmentation, dict):
        usable = isinstance(segmentation.get("counts"), (list, str)) and _is_list_of_numbers(
            segmentation.get("size"), 2
        )
    else:
        usable = isinstance(segmentation, list) and all(_is_list_of_numbers(polygon, 6) for polygon in segmentation)
    if not usable:
        remarks.append("unusable segmentation (instance kept without)")
        return ""
    return json.dumps(segmentation)


def _is_list_of_numbers(values: Any, least: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) >= least
        and len(values) % 2 == 0
        and all(isinstance(value, (int, float)) and math.isfinite(value) for value in values)
    )
