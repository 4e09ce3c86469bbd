"""Whom to look at in a picture: boxes as people have them."""

from __future__ import annotations

import collections
import functools
import json
import logging
import os
import pathlib
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.fields import whole
from pose_common.prediction.pictures import FramesLost, Picture, PictureError, pictures_of
from pose_common.prediction.result import Result, extent_boxes

WHOLE, AUTO = "whole", "auto"
Found = tuple[np.ndarray, np.ndarray]
"""Boxes [N, 4] (x, y, width, height) in pixels of the picture, and their scores [N]."""


def boxes_of(
    boxes: Any, count: int | None = None, *, threshold: float = 0.0, category: int | None = None
) -> Callable[[int, Picture], Found]:
    """(number, picture) -> its boxes.

    Args:
      boxes: see `PoseModel.__call__`.
      count: of the pictures, where it is known.
      threshold: smallest score of a box.
      category: the id of those of a file that are taken; None: all.

    Raises:
      ValueError: a file that is none, something else than boxes, those of more pictures than there are, or a category
        of which there are none.
    """
    of_picture = _every_box_of(boxes, count, category)

    def good_enough(number: int, picture: Picture) -> Found:
        found, scores = of_picture(number, picture)
        kept = scores >= threshold
        return found[kept], scores[kept]

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


def _every_box_of(boxes: Any, count: int | None, category: int | None) -> Callable[[int, Picture], Found]:
    if isinstance(boxes, (str, pathlib.Path)) and boxes != WHOLE:
        return _from_file(pathlib.Path(boxes), count, category)
    if isinstance(boxes, Sequence) and boxes and all(isinstance(entry, Mapping) for entry in boxes):
        return _from_entries(boxes, {}, "the given list", count, category)
    if category is not None:
        raise ValueError(f"category={category}: only boxes in COCO's format have one")
    if isinstance(boxes, str):
        return lambda number, picture: (np.array([[0, 0, *picture.image.shape[1::-1]]], np.float64), np.ones(1))
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
        return _checked(arrays[number], picture.name)

    return given


@functools.cache
def embedded_finder(device: Any) -> Callable[[Picture], Result]:
    """The package's own small BoIR, loaded once on a device."""
    import boir_jax  # the other method, only where it is asked for

    return boir_jax.load(device=device)


def _one_each(boxes: Any) -> list:
    """Boxes of one picture [N, 4], or of each; they may be empty, for nobody. Raises for what is neither."""
    rows = list(boxes)
    first = next((row for row in rows if row is not None and np.size(row)), None)
    is_one = not rows if first is None else np.ndim(first) < 2
    return [rows] if is_one else rows


def _found_by(finder: Callable[[Picture], Result], picture: Picture) -> Found:
    found = finder(picture)
    return extent_boxes(found.keypoints).astype(np.float64), found.scores


def _checked(boxes: Any, where: str) -> Found:
    if boxes is None:
        raise ValueError(f"boxes of {where}: None; give [] for nobody, or the box of the whole picture")
    try:
        array = np.asarray(boxes, np.float64)
    except (TypeError, ValueError):
        array = np.full(1, np.nan)
    array = array.reshape(-1, *array.shape[-1:]) if array.size else np.zeros((0, 4))
    if array.shape[-1] not in (4, 5) or not np.isfinite(array).all() or (array[:, 2:4] <= 0).any():
        raise ValueError(
            f"boxes of {where}: expected [N, 4] of x, y, width, height with positive sides, or [N, 5] with scores"
        )
    return array[:, :4], array[:, 4] if array.shape[-1] == 5 else np.ones(len(array))


def _from_mapping(boxes: Mapping[Any, Any], count: int | None) -> Callable[[int, Picture], Found]:
    """Of boxes by the name of the picture, or its id."""
    named = {os.fspath(name) if isinstance(name, os.PathLike) else name: boxes[name] for name in boxes}
    for name in named:
        if not isinstance(name, str) and whole(name) is None:
            raise ValueError(f"boxes: the given mapping: {name!r} is no name or number of a picture")
    entries = [
        {"image_id": name, "bbox": box, "score": score}
        for name, of_picture in named.items()
        for box, score in zip(*_checked(of_picture, f"{name}"), strict=True)
    ]
    return _from_entries(entries, {}, "the given mapping", count, None, named)


def _from_file(path: pathlib.Path, count: int | None, category: int | None) -> Callable[[int, Picture], Found]:
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ValueError(f"boxes: {path} cannot be read as a COCO detection file: {error}") from error
    entries, images = document, []
    if isinstance(document, dict):
        entries, images = document.get("annotations"), document.get("images", [])
    if not isinstance(entries, list) or not isinstance(images, list):
        raise ValueError(f"boxes: {path}: expected a list of detections, or an object with a list 'annotations'")
    names: dict[Any, str] = {}
    for number, image in enumerate(images):
        try:
            names[image["id"]] = image["file_name"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"boxes: {path}: image {number} has no id or file_name: {error!r}") from error
    return _from_entries(entries, names, path, count, category)


def _check_category(entries: Sequence[Any], category: int | None, path: pathlib.Path | str) -> None:
    """Raises ValueError for a category without boxes; tells, where none is named, that all of several are taken."""
    ids = [whole(entry.get("category_id")) if isinstance(entry, Mapping) else None for entry in entries]
    counts = collections.Counter(number for number in ids if number is not None)
    listed = ", ".join(f"{count} of category {number}" for number, count in counts.most_common(5))
    if category is not None and category not in counts:
        raise ValueError(f"boxes: {path}: category {category} has none; there are {listed or 'none of any'}")
    if category is None and len(counts) > 1:
        logging.warning(
            "%s: boxes of %d categories are taken: %s; category=, or --category, takes one", path, len(counts), listed
        )


def _from_entries(
    entries: Sequence[Any],
    names: Mapping[Any, str],
    path: pathlib.Path | str,
    count: int | None,
    category: int | None,
    known: Iterable[Any] = (),
) -> Callable[[int, Picture], Found]:
    """Of boxes in COCO's format, with the names of pictures by id; `path` is what messages call the entries, `known`
    are names or ids of pictures that may have none."""
    by_picture: dict[str | int, dict[str | int, list]] = {}  # last part of a name -> as written -> boxes
    bad: list[str] = []

    def of(named: Any) -> list:
        written = _in_slashes(named) if isinstance(named, str) else int(named)
        last = pathlib.PurePosixPath(written).name if isinstance(written, str) else written
        return by_picture.setdefault(last, {}).setdefault(written, [])

    _check_category(entries, category, path)
    for number, entry in enumerate(entries):
        try:
            named = (
                entry.get("image") or entry.get("file_name") or names.get(entry.get("image_id"), entry.get("image_id"))
            )
            of_name = of(named)  # also where none of its boxes is taken
            x, y, width, height = (None,) * 4 if entry["bbox"] is None else entry["bbox"]
            row = np.array([x, y, width, height, entry.get("score", 1.0)], np.float64)  # NaN where it is null
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"boxes: {path}: entry {number} is no detection: {error!r}") from error
        if category not in (None, whole(entry.get("category_id"))):
            continue
        if not np.isfinite(row).all() or (row[2:4] <= 0).any():
            bad.append(f"entry {number} ({named}): bbox {entry['bbox']} of score {row[4]:g}")
        else:
            of_name.append(row)
    for named in known:
        of(named)
    if bad:
        logging.warning(
            "%d of %d boxes of %s left out, without positive sides or not finite; first: %s",
            *(len(bad), len(entries), path, bad[0]),
        )
    ids = [key for key in by_picture if isinstance(key, int)]
    by_place = 0 in ids and (count is None or max(ids) < count)  # else they may count from 1, or be of other pictures
    matched = told = False
    taken: dict[str | int, str] = {}  # as written -> the picture

    def of_picture(number: int, picture: Picture) -> Found:
        nonlocal matched, told
        below = pathlib.PurePosixPath(_in_slashes(picture.name))
        name = below.name
        stem = pathlib.PurePosixPath(name).stem
        keys: list[str | int] = [name, stem]
        if stem.isdecimal():  # an image's id; only other pictures go by their place
            keys.append(int(stem))
        elif by_place:
            keys.append(number)
        elif ids and name not in by_picture and stem not in by_picture:
            raise ValueError(
                f"boxes: {path}: image_id {min(ids)} to {max(ids)} do not count the pictures from 0, and name none "
                f"{picture.name}; give `image` or `file_name`, or an object with `images`"
            )
        found = next((some for key in keys if (some := _of_picture(below, picture.path, by_picture.get(key, {})))), {})
        for written in found:
            other = taken.setdefault(written, picture.name)
            if other != picture.name and "/" in other + picture.name:
                raise ValueError(f"boxes: {path}: {written} may be both {other} and {picture.name}")
        if len(found) > 1:
            raise ValueError(f"boxes: {path}: {' and '.join(map(str, found))} may both be {picture.name}")
        matched |= bool(found)
        if by_picture and not matched and not told:
            told = True
            logging.warning("%s has no boxes of %s; it has those of %s", path, picture.name, next(iter(by_picture)))
        return _checked(sum(found.values(), []), f"{path}, picture {picture.name}")

    return of_picture


def _of_picture(
    name: pathlib.PurePosixPath, path: pathlib.Path | None, found: dict[str | int, list]
) -> dict[str | int, list]:
    """Boxes {as written: rows} that may be a picture's: written as it or its file is named, whichever says more; or of
    more or fewer folders that are the same, and where several are, the same as its file's."""
    for exact in sorted((str(name), _in_slashes(str(path or name))), key=len, reverse=True):
        if exact in found:
            return {exact: found[exact]}
    fitting = _of_folders(name, found)
    if path is None or len(fitting) < 2:
        return fitting
    return _of_folders(pathlib.PurePosixPath(_in_slashes(os.path.abspath(path))), fitting) or fitting


def _of_folders(name: pathlib.PurePosixPath, found: dict[str | int, list]) -> dict[str | int, list]:
    """Of boxes {as written: rows} those whose folders, from the last on, are the name's."""

    def fits(written: str | int) -> bool:
        folders = [path.parts[-2::-1] for path in (name, pathlib.PurePosixPath(str(written)))]
        return all(one == other for one, other in zip(*folders, strict=False))

    return {written: rows for written, rows in found.items() if fits(written)}


def _in_slashes(name: str) -> str:
    """A path as this file compares them: with slashes, and with accents joined to their letters."""
    return unicodedata.normalize("NFC", name.replace("\\", "/"))
