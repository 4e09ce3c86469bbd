"""The checks that every entry of every dataset passes before it becomes a record.

One place for all builders: a builder hands over what it found, unchecked, and these functions either return
it in the records' own types or raise `Fault`.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import cv2
import numpy as np

from data_pipelines.builders import masks
from data_pipelines.builders.masks import Remark
from data_pipelines.fields import MAX_COORDINATE, Fault, flag, integer, keypoints, number, numbers, printable, whole
from data_pipelines.picture_formats import MAX_PIXELS

MAX_VISIBILITY = 2
_STANDALONE_MARKERS = frozenset([0x01, *range(0xD0, 0xD8)])
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_DECODED = frozenset([0xC0, 0xC1, 0xC2, 0xC9, 0xCA])  # sequential and progressive; not lossless or hierarchical
_START_OF_SCAN = 0xDA


def read_jpeg(image: pathlib.Path | bytes, decode: bool = False) -> tuple[bytes, int, int]:
    """(bytes, width, height) of a complete JPEG.

    The headers are walked and the end marker is looked for, which finds truncated files without decoding.
    `decode` decodes the pixels as well.

    Raises:
      Fault: missing image, not a JPEG, truncated JPEG, picture too large, undecodable JPEG.
    """
    if isinstance(image, pathlib.Path):
        try:
            image = image.read_bytes()
        except FileNotFoundError:
            raise Fault("missing image") from None
        except (OSError, ValueError) as error:  # ValueError: a name that the system cannot have
            raise Fault("unreadable image", str(error)) from error
    if not image.startswith(b"\xff\xd8\xff"):
        raise Fault("not a JPEG", f"{len(image)} bytes that start with {image[:8].hex(' ') or 'nothing'}")
    width, height, scan = _jpeg_frame(image)
    # Within the scans every 0xff byte is followed by 0x00 or a restart marker: an end marker after the first
    # scan's start is the end of the picture. Some cameras append other data behind it.
    if image.rfind(b"\xff\xd9", scan) < 0:
        raise Fault("truncated JPEG", f"no end-of-image marker in {len(image)} bytes")
    if width * height > MAX_PIXELS:
        raise Fault("picture too large", f"{width}x{height}; at most {MAX_PIXELS:,} pixels are read")
    if decode and not _can_be_decoded(image):
        raise Fault("undecodable JPEG", f"{width}x{height}, {len(image)} bytes")
    return image, width, height


def _can_be_decoded(image: bytes) -> bool:
    try:
        return cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR) is not None
    except cv2.error:
        return False


def jpeg_size(data: bytes) -> tuple[int, int]:
    """(width, height) of a JPEG, as stored. Raises Fault."""
    return _jpeg_frame(data)[:2]


def _jpeg_frame(data: bytes) -> tuple[int, int, int]:
    """(width, height, offset of the first scan) from the JPEG's headers. Raises Fault."""
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
            if marker not in _DECODED or data[position + 4] != 8:
                kind = f"of process SOF{marker - 0xC0} and {data[position + 4]} bits, which OpenCV does not read"
                raise Fault("undecodable JPEG", f"{kind}; save it as a usual JPEG")
            height = int.from_bytes(data[position + 5 : position + 7], "big")
            width = int.from_bytes(data[position + 7 : position + 9], "big")
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    raise Fault("truncated JPEG", f"the {len(data)} bytes end within the headers")


def check_image_entry(entry: Mapping[str, Any], width: int, height: int) -> dict[str, Any]:
    """The image fields of a record (without instances), in the records' types.

    `entry` has image_id and file_name, and optionally crowd_index and width and height, which must then be the
    picture's; 0, as tools write that do not have the pictures, says nothing. A name whose bytes are no UTF-8 is written
    with escapes.

    Raises:
      Fault: bad image entry, image size differs.
    """
    image_id = integer(entry, "image_id")
    file_name = entry.get("file_name")
    if not isinstance(file_name, str) or not file_name:
        raise Fault("bad image entry", f"file_name is {file_name!r}")
    for key, stored in (("width", width), ("height", height)):
        annotated = entry.get(key)
        if annotated is not None and whole(annotated) not in (0, stored):
            raise Fault(
                "image size differs",
                f"{file_name} is {width}x{height}, but its {key} is given as {annotated!r:.80}",
            )
    return {
        "image_id": image_id,
        "file_name": printable(file_name),
        "height": height,
        "width": width,
        "crowd_index": number({"crowdIndex": entry.get("crowd_index")}, "crowdIndex", -1.0),
    }


def check_instance(
    instance: Mapping[str, Any], num_keypoints: int, width: int, height: int, categories: frozenset[int]
) -> tuple[dict[str, Any], list[Remark]]:
    """(instance in the records' types, remarks) of one instance of an image of `width` x `height` pixels.

    `instance` has id, box and keypoints (flat or [K, 3]; they may be missing on crowds), and optionally every
    other instance field and `segmentation`.

    Raises:
      Fault: missing field, bad id, wrong number of keypoints, not a number, not a flag, not finite, number out of
        range, negative box, box outside the image, unknown category.
    """
    crowd = flag(instance, "crowd")
    box = numbers(instance, "box", 4)
    _check_range("box", box)
    _check_box(box, width, height)
    labels = _keypoints(instance, num_keypoints, crowd)
    area = number(instance, "area", -1.0)
    if area < 0 and instance.get("area") is not None or area > MAX_COORDINATE**2:
        raise Fault("number out of range", f"area is {area:g}")
    count = integer(instance, "num_keypoints", default=-1, bits=32)
    unlabelled = crowd or count == 0 or not (labels[:, 2] > 0).any()
    mask, unusable = masks.text_of(instance.get("segmentation") if unlabelled else None, width, height)
    remarks = [*_of_box(box, width, height), *_of_points(labels, box, width, height), *_of_area(area, box), *unusable]
    return {
        "id": integer(instance, "id"),
        "box": box.astype(np.float32),
        "area": np.float32(area),
        "crowd": crowd,
        "category": _category(instance, categories),
        "keypoints": labels.astype(np.float32),
        "num_keypoints": count,
        "centre": _centre(instance).astype(np.float32),
        "scale": np.float32(number(instance, "scale", 0.0)),
        "head_size": np.float32(number(instance, "head_size", 0.0)),
        "mask": mask,
    }, remarks


def _centre(instance: Mapping[str, Any]) -> np.ndarray:
    return np.zeros(2) if instance.get("centre") is None else numbers(instance, "centre", 2)


def _keypoints(instance: Mapping[str, Any], count: int, crowd: bool) -> np.ndarray:
    """float64 [count, 3]; zero where a crowd has none."""
    value = instance.get("keypoints")
    if crowd and (value is None or (isinstance(value, (list, np.ndarray)) and not len(value))):
        return np.zeros((count, 3))
    labels = keypoints(instance, "keypoints", count)
    beyond = (np.abs(labels[:, :2]) > MAX_COORDINATE).any(axis=1) & (labels[:, 2] == 0)
    labels[beyond, :2] = 0  # means nothing, and would overflow on its way through crops
    _check_range("keypoints", labels[labels[:, 2] > 0])
    return labels


def _of_points(labels: np.ndarray, box: np.ndarray, width: int, height: int) -> Iterator[Remark]:
    """On visibilities that nobody knows, and on labelled points where nobody puts one: where tools put absent ones,
    (-1, -1) or (0, 0), and shares of the picture that should be pixels.
    """

    def remark(what: str, found: np.ndarray, note: str) -> Remark:
        x, y, visibility = labels[found][0]
        return what, f"keypoint {found.argmax() + 1} at {x:g}, {y:g} with visibility {visibility:g}{note}"

    if (unknown := labels[:, 2][labels[:, 2] > MAX_VISIBILITY]).size:
        detail = f"visibility {unknown[0]:g}; 0 (not labelled), 1 (hidden) and 2 (visible) are known"
        yield "unknown visibility (taken as labelled)", detail
    labelled, points = labels[:, 2] > 0, labels[:, :2]
    # Half a pixel beyond the outer pixels' centres is the border; a point that was rounded over it is not to mention.
    if (outside := labelled & ((points <= -1) | (points > (width, height))).any(axis=1)).any():
        yield remark("labelled keypoints outside the image (kept)", outside, f", image {width}x{height}")
    if (corner := labelled & (points == 0).all(axis=1)).any():
        yield remark("labelled keypoints at 0, 0 (kept)", corner, "; one that is not labelled has visibility 0")
    inside = ((points >= box[:2]) & (points <= box[:2] + box[2:])).all(axis=1)
    if labelled.any() and not (labelled & inside).any() and box[2:].all():
        note = f", {_box_text(box, width, height)}, all in pixels"
        yield remark("no labelled keypoint in the box (kept)", labelled, note)


def _of_area(area: float, box: np.ndarray) -> Iterator[Remark]:
    """On an area that cannot be the object's in square pixels, by which OKS would judge all the same."""
    of_box = float(box[2] * box[3])
    if area > 0 and of_box > 0 and not 0.01 * of_box <= area <= 1.1 * of_box:  # people cover a sixth of theirs or more
        yield "area unlike the box (kept)", f"area {area:g} for a box of {of_box:g} square pixels"


def _category(instance: Mapping[str, Any], categories: frozenset[int]) -> int:
    """The instance's category; where it has none, the only one that there is."""
    if instance.get("category") is None and len(categories) > 1:
        raise Fault("missing field", f"category_id, with {len(categories)} categories to choose from")
    found = integer(instance, "category", default=next(iter(categories), 1), bits=32)
    if found not in categories:
        raise Fault("unknown category", f"category {found}; known are {', '.join(map(str, sorted(categories)))}")
    return found


def _check_range(key: str, values: np.ndarray) -> None:
    if values.size and np.abs(values).max() > MAX_COORDINATE:
        raise Fault("number out of range", f"{key} holds {np.abs(values).max():g}")


def _check_box(box: np.ndarray, width: int, height: int) -> None:
    x, y, w, h = box
    if w < 0 or h < 0:
        raise Fault("negative box", _box_text(box, width, height))
    if x > width or y > height or x + w < 0 or y + h < 0:
        raise Fault("box outside the image", _box_text(box, width, height))


def _of_box(box: np.ndarray, width: int, height: int) -> Iterator[Remark]:
    x, y, w, h = box
    text = _box_text(box, width, height)
    if w == 0 or h == 0:
        yield "box without extent (kept)", text
    elif w <= 1 and h <= 1:
        yield "box of at most a pixel (kept)", f"{text}; pixels are needed, not shares of the picture"
    # Annotations round outwards now and then, so a pixel over the border is nothing to mention.
    if min(x, y) < -1 or x + w > width + 1 or y + h > height + 1:
        fits_as_corners = 0 <= x < w <= width and 0 <= y < h <= height
        hint = "; x, y, width, height are needed, and these may be two corners" if fits_as_corners else ""
        yield "box reaches over the border (kept)", text + hint


def _box_text(box: np.ndarray, width: int, height: int) -> str:
    return f"box {[round(float(v), 2) for v in box]}, image {width}x{height}"
