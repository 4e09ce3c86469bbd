"""Boxes in COCO's format, and which of them are of a picture."""

from __future__ import annotations

import collections
import logging
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.fields import Fault, are_boxes, flag, id_key, in_slashes, integer, is_name, unchecked, whole
from pose_common.prediction.pictures import Picture, PictureError

Called = tuple[str, pathlib.Path | None]
"""A picture's name and path."""


class Found(NamedTuple):
    """Whom to look at in a picture.

    Attributes:
      boxes: [N, 4], x, y, width, height in pixels of the picture.
      scores: [N].
      image_id: that the boxes' own file gives the picture; None without.
    """

    boxes: np.ndarray
    scores: np.ndarray
    image_id: Any = None


class NamedBoxes:
    """(number, picture) -> its boxes, by the picture's name, its id, or its place where ids count from 0.

    A name may be written with more or fewer folders than the picture's, so long as it can be no other's. Of annotations
    the crowds are left out.

    Args:
      entries: of COCO's format: `bbox`, maybe `score` and `category_id`, and `image`, `file_name` or `image_id`.
      path: what messages call them.
      count: of the pictures, where it is known.
      category: the id of those that are taken; None: all.
      names: of pictures, by `fields.id_key` of their id.
      known: names or ids of pictures that may have none.
      sizes: (width, height) of pictures by their names, where these are told.
      ids: of pictures by their names, where these are told.

    Raises:
      ValueError: an entry that is no detection, or a category without boxes; when called, where it cannot be said which
        picture a name or a number means.
      PictureError: when called with a picture of another size than its boxes are of.
    """

    def __init__(
        self,
        entries: Sequence[Any],
        path: pathlib.Path | str,
        count: int | None = None,
        category: int | None = None,
        names: Mapping[Any, str] | None = None,
        known: Iterable[Any] = (),
        sizes: Mapping[str, tuple[int, int]] | None = None,
        ids: Mapping[str, Any] | None = None,
    ):
        self._path = path
        self._told_ids: dict[str | int, Any] = {in_slashes(name): number for name, number in (ids or {}).items()}
        self._sizes = {in_slashes(name): size for name, size in (sizes or {}).items()}
        self._by_picture: dict[str | int, dict[str | int, list]] = {}  # last part of a name -> as written -> boxes
        _check_category(entries, category, path)
        self._enter(entries, category, names or {})
        for named in known:
            self._of(named)
        self._ids = [key for key in self._by_picture if isinstance(key, int)]
        # Else they may count from 1, or be of other pictures.
        self._by_place = 0 in self._ids and (count is None or max(self._ids) < count)
        self._alike = {_stem(last).casefold(): last for last in self._by_picture if isinstance(last, str)}
        self._taken: dict[str | int, Called] = {}  # as written -> the picture
        self._matched = self._told = False

    def __call__(self, number: int, picture: Picture) -> Found:
        named = pathlib.PurePosixPath(in_slashes(picture.name))
        keys = self._keys(number, named.name, picture)
        found: dict[str | int, list] = next(
            (some for key in keys if (some := _of_picture(named, picture.path, self._by_picture.get(key, {})))), {}
        )
        for written in found:
            own = (picture.name, picture.path)
            if both := _of_two_folders(self._taken.setdefault(written, own), own):
                raise ValueError(f"boxes: {self._path}: {written} may be both {both[0]} and {both[1]}")
        if len(found) > 1:
            raise ValueError(f"boxes: {self._path}: {' and '.join(map(str, found))} may both be {picture.name}")
        image_id = None
        for written in found:
            self._check_size(written, picture)
            image_id = self._told_ids.get(written)
        self._matched |= bool(found)
        closest = None if named.name in self._by_picture else self._alike.get(_stem(named.name).casefold())
        if self._by_picture and not found and not self._told and (closest or not self._matched):
            self._told = True
            other = closest or next(iter(self._by_picture))
            logging.warning("%s has no boxes of %s; it has those of %s", self._path, picture.name, other)
        return checked(sum(found.values(), []), f"{self._path}, picture {picture.name}")._replace(image_id=image_id)

    def _check_size(self, written: str | int, picture: Picture) -> None:
        """Raises PictureError where boxes are of the picture as it is stored, not as EXIF turns it, or of a copy."""
        seen = picture.image.shape[1::-1]
        size = self._sizes.get(written, seen) if isinstance(written, str) else seen
        if size != seen:
            width, height = seen
            turned = " when its EXIF orientation is applied" if size == (height, width) else ""
            raise PictureError(
                f"{picture.name}: boxes of {self._path} are of {size[0]}x{size[1]} pixels, but the picture has "
                f"{width}x{height}{turned}"
            )

    def _of(self, named: Any) -> list:
        """The boxes of a name, to which more may be added."""
        written = in_slashes(named) if isinstance(named, str) else int(named)
        last = pathlib.PurePosixPath(written).name if isinstance(written, str) else written
        return self._by_picture.setdefault(last, {}).setdefault(written, [])

    def _enter(self, entries: Sequence[Any], category: int | None, names: Mapping[Any, str]) -> None:
        bad: list[str] = []
        for number, entry in enumerate(entries):
            try:
                named = entry.get("image") or entry.get("file_name") or _by_id(entry, names)
                if named is None:
                    raise ValueError("it names no picture: give `image`, `file_name` or `image_id`")
                of_name = self._of(named)  # also where none of its boxes is taken
                box = (None,) * 4 if entry["bbox"] is None else unchecked(entry, "bbox", 4)
                scored = {"score": 1.0} | entry
                score = (None,) if scored["score"] is None else unchecked(scored, "score", 1)
                row = np.array([*box, *score], np.float64)  # NaN where it is null
                crowd = flag(entry, "iscrowd")
            except (AttributeError, KeyError, TypeError, ValueError, Fault) as error:
                raise ValueError(f"boxes: {self._path}: entry {number} is no detection: {error!r}") from error
            if crowd or category not in (None, whole(entry.get("category_id"))):
                continue
            if not are_boxes(row):
                bad.append(f"entry {number} ({named}): bbox {entry['bbox']} of score {row[4]:g}")
            else:
                of_name.append(row)
        if bad:
            logging.warning(
                "%d of %d boxes of %s left out, without positive sides, not finite or beyond 1e6; first: %s",
                *(len(bad), len(entries), self._path, bad[0]),
            )

    def _keys(self, number: int, name: str, picture: Picture) -> list[str | int]:
        """Under which keys a picture's boxes may be, the likeliest first; `name` is the end of what it is called."""
        # A frame has no suffix: what follows a point in its name is the film's, 1.5.mp4's, and 1 is no id.
        stem = _stem(name) if picture.time is None else name
        if stem.isdecimal():  # an image's id; only other pictures go by their place
            return [name, stem, int(stem)]
        if self._by_place:
            return [name, stem, number]
        if self._ids and name not in self._by_picture and stem not in self._by_picture:
            raise ValueError(
                f"boxes: {self._path}: image_id {min(self._ids)} to {max(self._ids)} do not count the pictures from 0, "
                f"and name none {picture.name}; give `image` or `file_name`, or an object with `images`"
            )
        return [name, stem]


def _stem(name: str) -> str:
    return pathlib.PurePosixPath(name).stem


def _by_id(entry: Mapping[str, Any], names: Mapping[Any, str]) -> Any:
    """The name that an entry's `image_id` has or is, its number, or None without. Raises Fault: neither."""
    number = entry.get("image_id")
    if number is None or is_name(number) or id_key(number) in names:
        return names.get(id_key(number), number)
    return integer(entry, "image_id")


def checked(boxes: Any, where: str) -> Found:
    """Boxes float64 [N, 4] (x, y, width, height) and scores [N], 1 where none are given, of a picture's boxes.

    Args:
      boxes: [N, 4], or [N, 5] with scores; one row alone; [] for nobody.
      where: the picture, as messages name it.

    Raises:
      ValueError: anything else, among it None, numbers not finite or beyond 1e6, and sides that are not positive.
    """
    if boxes is None:
        raise ValueError(f"boxes of {where}: None; give [] for nobody, or the box of the whole picture")
    try:
        array = np.asarray(boxes, np.float64)
    except (TypeError, ValueError):
        array = np.full(1, np.nan)
    array = array.reshape(-1, *array.shape[-1:]) if array.size else np.zeros((0, 4))
    if array.shape[-1] not in (4, 5) or not are_boxes(array).all():
        raise ValueError(
            f"boxes of {where}: expected [N, 4] of x, y, width, height with positive sides, or [N, 5] with scores; "
            f"given: {' '.join(repr(boxes).split()):.80}"
        )
    return Found(array[:, :4], array[:, 4] if array.shape[-1] == 5 else np.ones(len(array)))


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


def _of_two_folders(one: Called, other: Called) -> tuple[str, str] | None:
    """What two pictures are called that fit the same boxes, where their folders tell them apart; else None."""
    if one[0] != other[0]:
        return (one[0], other[0]) if "/" in one[0] + other[0] else None
    # Names of an iterator's files, which is not read ahead, say no folders.
    paths = [os.path.abspath(path) for _, path in (one, other) if path is not None]
    return (paths[0], paths[1]) if len(set(paths)) == 2 else None


def _of_picture(
    name: pathlib.PurePosixPath, path: pathlib.Path | None, found: dict[str | int, list]
) -> dict[str | int, list]:
    """Boxes {as written: rows} that may be a picture's: written as it or its file is named, whichever says more; or of
    more or fewer folders that are the same, and where several are, the same as its file's."""
    for exact in sorted((str(name), in_slashes(str(path or name))), key=len, reverse=True):
        if exact in found:
            return {exact: found[exact]}
    fitting = _of_folders(name, found)
    if path is None or len(fitting) < 2:
        return fitting
    return _of_folders(pathlib.PurePosixPath(in_slashes(os.path.abspath(path))), fitting) or fitting


def _of_folders(name: pathlib.PurePosixPath, found: dict[str | int, list]) -> dict[str | int, list]:
    """Of boxes {as written: rows} those whose folders, from the last on, are the name's."""

    def fits(written: str | int) -> bool:
        folders = [path.parts[-2::-1] for path in (name, pathlib.PurePosixPath(str(written)))]
        return all(one == other for one, other in zip(*folders, strict=False))

    return {written: rows for written, rows in found.items() if fits(written)}
