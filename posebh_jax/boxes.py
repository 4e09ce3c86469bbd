"""Whom to look at in a picture: boxes as people have them."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from pose_common.prediction.pictures import Picture
from pose_common.prediction.result import Result, extent_boxes

WHOLE = "whole"
Found = tuple[np.ndarray, np.ndarray]
"""Boxes [N, 4] (x, y, width, height) in pixels of the picture, and their scores [N]."""


def boxes_of(boxes: Any) -> Callable[[int, Picture], Found]:
    """(number, picture) -> its boxes; for what `boxes` may be see `PoseModel.__call__`."""
    if isinstance(boxes, str) and boxes == WHOLE:
        return lambda number, picture: (np.array([[0, 0, *picture.image.shape[1::-1]]], np.float64), np.ones(1))
    if isinstance(boxes, (str, pathlib.Path)):
        return _from_file(pathlib.Path(boxes))
    if callable(boxes):
        return lambda number, picture: _found_by(boxes, picture)
    arrays = [boxes] if isinstance(boxes, np.ndarray) or np.ndim(boxes[0]) == 1 else list(boxes)

    def given(number: int, picture: Picture) -> Found:
        if number >= len(arrays):
            raise ValueError(f"boxes of {len(arrays)} pictures were given, none for picture {number} ({picture.name})")
        return _checked(np.asarray(arrays[number], np.float64), picture.name)

    return given


def _found_by(finder: Callable[[Picture], Result], picture: Picture) -> Found:
    found = finder(picture)
    return extent_boxes(found.keypoints).astype(np.float64), found.scores


def _checked(array: np.ndarray, where: str) -> Found:
    array = array.reshape(-1, array.shape[-1]) if array.size else np.zeros((0, 4))
    if array.shape[-1] not in (4, 5) or not np.isfinite(array).all() or (array[:, 2:4] <= 0).any():
        raise ValueError(
            f"boxes of {where}: expected [N, 4] of x, y, width, height with positive sides, or [N, 5] with scores"
        )
    return array[:, :4], array[:, 4] if array.shape[-1] == 5 else np.ones(len(array))


def _from_file(path: pathlib.Path) -> Callable[[int, Picture], Found]:
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ValueError(f"boxes: {path} cannot be read as a COCO detection file: {error}") from error
    entries, images = (document["annotations"], document["images"]) if isinstance(document, dict) else (document, [])
    names = {image["id"]: pathlib.Path(image["file_name"]).name for image in images}
    by_picture: dict[Any, list] = {}
    for number, entry in enumerate(entries):
        try:
            key = (
                entry.get("image") or entry.get("file_name") or names.get(entry.get("image_id"), entry.get("image_id"))
            )
            key = pathlib.Path(key).name if isinstance(key, str) else int(key)
            by_picture.setdefault(key, []).append([*entry["bbox"], float(entry.get("score", 1.0))])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"boxes: {path}: entry {number} is no detection: {error!r}") from error

    def of_picture(number: int, picture: Picture) -> Found:
        stem = pathlib.Path(picture.name).stem
        keys = (picture.name, int(stem) if stem.isdigit() else None, number)
        rows = next((by_picture[key] for key in keys if key in by_picture), [])
        return _checked(np.array(rows, np.float64), f"{path}, picture {picture.name}")

    return of_picture
