"""Whom to look at in a picture: boxes as people have them."""

from __future__ import annotations

import functools
import json
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.fields import id_key, whole
from data_pipelines.paths import as_path
from pose_common.prediction.pictures import FramesLost, Picture, PictureError
from pose_common.prediction.result import Result, extent_boxes
from pose_common.prediction.sources import pictures_of
from posebh_jax.named_boxes import Found, NamedBoxes, checked

WHOLE, AUTO = "whole", "auto"


def with_finder(boxes: Any, device: Any) -> Any:
    """Boxes as `boxes_of` takes them: the finder of people in place of BoIR weights' path, or of "auto"."""
    if not isinstance(boxes, (str, os.PathLike)) or boxes == WHOLE:
        return boxes
    if pathlib.Path(boxes).suffix.lower() == ".json":
        return boxes
    if boxes == AUTO:
        return _finder(None, device)
    path = os.fspath(boxes)
    try:
        return _finder(path, device, _state_of(path))
    except ValueError as error:
        raise ValueError(f"boxes: {error}; a file of boxes, not of weights, is a .json in COCO's format") from error


@functools.lru_cache(maxsize=4)  # it compiles on its first picture
def _finder(checkpoint: str | None, device: Any, state: tuple = ()) -> Callable[[Picture], Result]:
    """BoIR on a device; the package's own small one without a path. `state`: of the weights, which may be replaced."""
    del state
    import boir_jax  # the other method, only where it is asked for

    return boir_jax.load(checkpoint, device=device)


def _state_of(path: str) -> tuple:
    """What is another when the weights at a path are: a file's state, or a folder's and that of what is in it.

    Those of a bucket or of the hub are read once.
    """
    if "://" in path:
        return ()
    place = as_path(path)
    states = [file.stat() for file in (place, *sorted(place.glob("*"))) if file.exists()]
    return tuple((state.st_ino, state.st_mtime_ns) for state in states)


def boxes_of(
    boxes: Any,
    count: int | None = None,
    *,
    threshold: float = 0.0,
    category: int | None = None,
) -> Callable[[int, Picture], Found]:
    """(number, picture) -> its boxes.

    Args:
      boxes: see `PoseModel.__call__`; as `with_finder` leaves them.
      count: of the pictures, where it is known.
      threshold: smallest score of a box.
      category: the id of those of a file that are taken; None: all.

    Raises:
      ValueError: a file that is none, something else than boxes, those of more pictures than there are, or a category
        of which there are none.
    """
    of_picture = _every_box_of(boxes, count, category)
    told = False

    def good_enough(number: int, picture: Picture) -> Found:
        nonlocal told
        boxes, scores, image_id = of_picture(number, picture)
        kept = scores >= threshold
        told = told or _tell_of_unlikely(boxes[kept], picture) or _tell_of_negative(scores, picture)
        return Found(boxes[kept], scores[kept], image_id)

    return good_enough


def with_boxes(
    source: Any,
    find_boxes: Callable[[int, Picture], Found],
    left_out: Callable[[PictureError], None] | None = None,
) -> Iterator[tuple[Picture, Found]]:
    """Pictures with their boxes.

    Args:
      source: see `pictures_of`.
      find_boxes: (number, picture) -> boxes; numbers count pictures that are left out, too.
      left_out: given the error of each picture that cannot be read, or that a finder of people cannot take; without,
        it is raised.
    """
    number = 0

    def leave_out(error: PictureError) -> None:
        nonlocal number
        if left_out is None:
            raise error
        left_out(error)
        number += not isinstance(error, FramesLost)

    for picture in pictures_of(source, left_out and leave_out):
        try:
            found = find_boxes(number, picture)
        except PictureError as error:
            leave_out(error)
            continue
        number += 1
        yield picture, found


def _tell_of_unlikely(boxes: np.ndarray, picture: Picture) -> bool:
    """Warns of boxes, [N, 4], which hardly can be of this picture, as two corners or shares of its sides; whether there
    are any."""
    height, width = picture.image.shape[:2]
    first, sides = boxes[:, :2], boxes[:, 2:]
    shown = np.clip(first + sides, 0, (width, height)) - np.clip(first, 0, (width, height))
    unlikely = (shown.prod(1) < sides.prod(1) / 2) | (sides < 1).any(1)
    if unlikely.any():
        logging.warning(
            "%d of %d boxes of %s, %dx%d pixels, lie mostly outside or are smaller than a pixel; the first is %s. "
            "A box is x, y, width, height in pixels",
            *(unlikely.sum(), len(boxes), picture.name, width, height, boxes[unlikely][0].round(2).tolist()),
        )
    return bool(unlikely.any())


def _tell_of_negative(scores: np.ndarray, picture: Picture) -> bool:
    """Warns of scores below 0, as a detector's logits are, of which no pose is kept; whether there are any."""
    if negative := int((scores < 0).sum()):
        logging.warning(
            "%d of %d boxes of %s have a score below 0, and give no pose: scores of 0 to 1 are needed",
            *(negative, len(scores), picture.name),
        )
    return negative > 0


def _every_box_of(boxes: Any, count: int | None, category: int | None) -> Callable[[int, Picture], Found]:
    if isinstance(boxes, (str, os.PathLike)) and boxes != WHOLE:
        return _from_file(pathlib.Path(boxes), count, category)
    if isinstance(boxes, Sequence) and boxes and all(isinstance(entry, Mapping) for entry in boxes):
        return NamedBoxes(boxes, "the given list", count, category)
    if category is not None:
        raise ValueError(f"category={category}: only boxes in COCO's format have one")
    if isinstance(boxes, str):
        return lambda number, picture: Found(np.array([[0, 0, *picture.image.shape[1::-1]]], np.float64), np.ones(1))
    if callable(boxes):
        return lambda number, picture: _found_by(boxes, picture)
    if isinstance(boxes, Mapping):
        return _from_mapping(boxes, count)
    try:
        arrays = _one_each(boxes)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"boxes={boxes!r:.80}: give {WHOLE!r}, [N, 4] numbers, several of them, a file, or a finder of people"
        ) from error
    if count is not None and len(arrays) > count:
        raise ValueError(f"boxes of {len(arrays)} pictures were given for {count}")

    def given(number: int, picture: Picture) -> Found:
        if number >= len(arrays):
            raise ValueError(f"boxes of {len(arrays)} pictures were given, none for picture {number} ({picture.name})")
        return checked(arrays[number], picture.name)

    return given


def _one_each(boxes: Any) -> list:
    """Boxes of one picture [N, 4], or of each; they may be empty, for nobody. Raises for what is neither."""
    rows = list(np.asarray(boxes) if hasattr(boxes, "__array__") else boxes)  # a pandas table lists its columns
    first = next((row for row in rows if row is not None and np.size(row)), None)
    is_one = not rows if first is None else np.ndim(first) < 2
    return [rows] if is_one else rows


def _found_by(finder: Callable[[Picture], Result], picture: Picture) -> Found:
    found = finder(picture)
    return Found(extent_boxes(found.keypoints).astype(np.float64), found.scores)


def _from_mapping(boxes: Mapping[Any, Any], count: int | None) -> Callable[[int, Picture], Found]:
    """Of boxes by the name of the picture, or its id."""
    named = {os.fspath(name) if isinstance(name, os.PathLike) else name: boxes[name] for name in boxes}
    for name in named:
        if not isinstance(name, str) and whole(name) is None:
            raise ValueError(f"boxes: the given mapping: {name!r} is no name or number of a picture")
    found = {name: checked(of_picture, f"{name}") for name, of_picture in named.items()}
    entries = [
        {"image" if isinstance(name, str) else "image_id": name, "bbox": box, "score": score}
        for name, of_picture in found.items()
        for box, score in zip(of_picture.boxes, of_picture.scores, strict=True)
    ]
    return NamedBoxes(entries, "the given mapping", count, known=named)


def _from_file(path: pathlib.Path, count: int | None, category: int | None) -> Callable[[int, Picture], Found]:
    try:
        document = json.loads(path.read_bytes())  # UTF-8, -16 or -32, with a byte order mark or without
    except (OSError, ValueError) as error:
        raise ValueError(f"boxes: {path} cannot be read as a COCO detection file: {error}") from error
    entries, images = document, []
    if isinstance(document, dict):
        entries, images = document.get("annotations"), document.get("images", [])
    if not isinstance(entries, list) or not isinstance(images, list):
        raise ValueError(f"boxes: {path}: expected a list of detections, or an object with a list 'annotations'")
    names: dict[Any, str] = {}
    ids: dict[str, Any] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for number, image in enumerate(images):
        try:
            names[id_key(image["id"])] = image["file_name"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"boxes: {path}: image {number} has no id or file_name: {error!r}") from error
        width, height = whole(image.get("width")), whole(image.get("height"))
        if isinstance(image["file_name"], str):
            ids[image["file_name"]] = image["id"]
            if width and height:  # of which 0 and null say nothing
                sizes[image["file_name"]] = width, height
    return NamedBoxes(entries, path, count, category, names, sizes=sizes, ids=ids)
