"""Brings the labels of annotation tools into the form that `builders/custom.py` takes: COCO's records, with a skeleton.

Each format is a module with `fits(path)`, which says whether a file or folder is of that format, and
`read(path, images, names)`, which returns its labels. To add one, write a module and a line in `FORMATS`. Coordinates
are in pixels as the tool writes them, never shifted by half a pixel: none of the tools' own COCO exports does that.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from types import ModuleType

from data_pipelines.builders import raw_files
from data_pipelines.builders.report import NoAnnotations, RawDataError
from data_pipelines.importers import coco, cvat, deeplabcut, label_studio, labelme, mpii_json, yolo_pose
from data_pipelines.importers.labels import Labels, OfAnotherKind, ValShare, select

__all__ = ["FORMATS", "Labels", "OfAnotherKind", "ValShare", "own_splits", "read", "recognise", "select"]

FORMATS: dict[str, ModuleType] = {
    "coco": coco,
    "cvat": cvat,
    "deeplabcut": deeplabcut,
    "label_studio": label_studio,
    "labelme": labelme,
    "mpii": mpii_json,
    "yolo_pose": yolo_pose,
}
"""By the name that `--format` takes."""


def recognise(path: str | os.PathLike) -> str:
    """The format of a file or folder.

    Raises:
      NoAnnotations: there is nothing.
      RawDataError: it looks like none of the formats, or like several.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise NoAnnotations(f"no annotation file or folder; looked for {path}")
    found = [name for name, importer in FORMATS.items() if importer.fits(path)]
    if len(found) == 1:
        return found[0]
    if path.suffix.lower() == ".json":
        return "coco"  # whose reader says what is missing
    if path.is_file():
        raw_files.refuse_archive(path)
    what = f"several: {', '.join(found)}" if found else f"none of {', '.join(FORMATS)}"
    raise RawDataError(
        f"{path} looks like {what}; say which by --format of prepare_data (--skeleton_format of prediction), or name "
        "the file of labels"
    )


def read(
    path: str | os.PathLike,
    format: str | None = None,
    images: str | os.PathLike | None = None,
    names: Sequence[str] | None = None,
) -> Labels:
    """The labels of a file or folder.

    Args:
      path: the file or folder.
      format: one of `FORMATS`; None recognises it.
      images: where the pictures lie, if not where the labels say.
      names: the keypoints in order, where the format does not say.

    Raises:
      RawDataError: there are no such labels, or nothing of them can be read. What is broken alone is in the result.
    """
    if format not in (None, *FORMATS):
        raise RawDataError(f"format {format!r} is none of {', '.join(FORMATS)}")
    importer = FORMATS[format or recognise(path)]
    folder = None if images is None else pathlib.Path(images)
    if folder is not None and not folder.is_dir():
        raise RawDataError(f"no picture folder; looked for {folder}")
    return importer.read(pathlib.Path(path), folder, names)


def own_splits(path: str | os.PathLike, format: str | None = None) -> tuple[str, ...]:
    """The splits that a dataset has of itself; () where the format has none. Raises RawDataError."""
    splits = getattr(FORMATS[format or recognise(path)], "own_splits", None)
    return splits(pathlib.Path(path)) if splits else ()
