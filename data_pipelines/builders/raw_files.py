"""Finding and reading the files of a public download."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipelines import fields
from data_pipelines.builders.report import NoAnnotations, RawDataError

# Long lists of numbers that are worth an array at once: as Python floats they take four times the memory.
_NUMBER_LISTS = frozenset(
    {
        "keypoints",
        "foot_kpts",
        "face_kpts",
        "lefthand_kpts",
        "righthand_kpts",
        "smpl_joint_img",
        "world_coord",
    }
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where one split lies, relative to the dataset's folder. The first name that exists counts.

    Attributes:
      annotations: names of the annotation file.
      images: names of the picture folder.
      annotated: False for a test set whose file lists pictures only.
    """

    annotations: tuple[str, ...]
    images: tuple[str, ...]
    annotated: bool = True


@dataclasses.dataclass(frozen=True)
class RawFiles:
    """The annotation file and the picture folder of one split."""

    annotations: pathlib.Path
    images: pathlib.Path


def locate(
    folders: Sequence[str],
    layout: Layout,
    raw_dir: str | pathlib.Path | None,
    annotations: str | pathlib.Path | None = None,
    images: str | pathlib.Path | None = None,
) -> RawFiles:
    """The files of a split under `raw_dir`, which is the folder of all downloads or the dataset's own.

    `annotations` and `images` name a file and a folder that lie elsewhere.

    Raises:
      NoAnnotations: the annotation file is not there.
      RawDataError: the picture folder is not there. Both name every place that was looked at.
    """
    roots = []
    if raw_dir is not None:
        roots = [pathlib.Path(raw_dir) / folder for folder in folders] + [pathlib.Path(raw_dir)]
    files = _candidates(annotations, roots, layout.annotations)
    found = next((path for path in files if path.is_file()), None)
    if found is None:
        raise NoAnnotations(f"no annotation file; looked for {', '.join(map(str, files)) or 'nothing'}")
    pictures = _candidates(images, roots, layout.images)
    folder = next((path for path in pictures if path.is_dir()), None)
    if folder is None:
        raise RawDataError(f"no picture folder; looked for {', '.join(map(str, pictures)) or 'nothing'}")
    return RawFiles(found, folder)


def _candidates(
    given: str | pathlib.Path | None, roots: Sequence[pathlib.Path], names: Sequence[str]
) -> list[pathlib.Path]:
    return [pathlib.Path(given)] if given else [root / name for root in roots for name in names]


def find_picture(folder: pathlib.Path, file_name: str) -> pathlib.Path:
    """Where the picture of that name lies.

    A name that is not there is looked for as other systems write it: with slashes for a Windows path's backslashes, and
    with its accents joined to their letters or apart.
    """
    path = folder / file_name
    if os.path.exists(path):  # unlike Path.exists, whatever the name
        return path
    slashed = file_name.replace("\\", "/")
    names = [slashed, *(unicodedata.normalize(form, slashed) for form in ("NFC", "NFD"))]
    return next((folder / name for name in names if os.path.exists(folder / name)), path)


def read_json(path: pathlib.Path) -> Any:
    """A JSON document whose long number lists (keypoints and the like) are float64 arrays already.

    UTF-8, UTF-16 or UTF-32, with a byte order mark or without.

    Raises:
      RawDataError: the file is missing or is not JSON; with line and column.
    """
    try:
        with path.open("rb") as file:
            encoding = json.detect_encoding(file.read(4))
        with path.open(encoding=encoding) as file:
            return json.load(file, object_hook=_compact)
    except OSError as error:
        raise RawDataError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # not JSON, not text, or a number of thousands of digits
        refuse_archive(path)
        raise RawDataError(f"{path} is not valid JSON: {error}") from error


def refuse_archive(path: pathlib.Path) -> None:
    """Raises RawDataError: unreadable, or a ZIP or gzip archive, as servers of label tools send, whatever its name."""
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        raise RawDataError(f"{path} cannot be read: {error.strerror}") from error
    if head.startswith((b"PK\x03\x04", b"\x1f\x8b")):
        raise RawDataError(f"{path} is an archive: unpack it, and name the file or folder of labels in it")


def document_lists(path: pathlib.Path, document: Any, *required: str) -> list[list]:
    """The lists of that name in a JSON object. Raises RawDataError when one is not there."""
    if not isinstance(document, dict):
        raise RawDataError(f"{path} does not hold a JSON object but a {type(document).__name__}")
    for name in required:
        if not isinstance(document.get(name), list):
            kinds = (f"{key!r} ({type(value).__name__})" for key, value in document.items())
            raise RawDataError(f"{path} has no list {name!r}; it has {', '.join(kinds) or 'nothing'}")
    return [document[name] for name in required]


def has_skeleton(category: Any) -> bool:
    """Whether an entry of a COCO document's categories lists keypoints."""
    names = category.get("keypoints") if isinstance(category, dict) else None
    return isinstance(names, (list, np.ndarray)) and len(names) > 0


def _compact(entry: dict[str, Any]) -> dict[str, Any]:
    for key in _NUMBER_LISTS.intersection(entry):
        if fields.is_numeric(entry[key]):  # anything else stays as it is, for the check of the instance
            with contextlib.suppress(ValueError, OverflowError):
                entry[key] = np.asarray(entry[key], np.float64)
    # Polygons are half of COCO's file, and only those of crowds and unlabelled people become part of a
    # record.
    if "segmentation" in entry and fields.whole(entry.get("num_keypoints")) and not _may_be_crowd(entry):
        del entry["segmentation"]
    return entry


def _may_be_crowd(entry: dict[str, Any]) -> bool:
    try:
        return fields.flag(entry, "iscrowd")
    except fields.Fault:
        return True
