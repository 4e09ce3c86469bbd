"""labelme, and X-AnyLabeling: a folder of JSON files, one a picture, with points and rectangles.

A point's label is its keypoint, a rectangle's its class. `group_id` ties a person's shapes together; without it see
`grouping.people_of`. A point is hidden where one of its flags says `occluded` or `hidden`, or X-AnyLabeling's
`difficult` does. A rectangle is two opposite corners, or X-AnyLabeling's four.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from data_pipelines import fields
from data_pipelines.builders import raw_files
from data_pipelines.builders.report import RawDataError
from data_pipelines.fields import Fault
from data_pipelines.importers.grouping import Mark, Rectangle, people_of
from data_pipelines.importers.labels import HIDDEN, VISIBLE, Broken, LabelledPicture, Labels, OfAnotherKind, assemble
from data_pipelines.importers.text_files import files_below, starts_like

PATTERN = r'"shapes"\s*:\s*\['


def fits(path: pathlib.Path) -> bool:
    """Whether this is a labelme file, or a folder whose first JSON file is one."""
    file = path if path.is_file() else next(iter(files_below(path, ".json")), None)
    return file is not None and file.suffix.lower() == ".json" and starts_like(file, PATTERN)


def read(path: pathlib.Path, images: pathlib.Path | None = None, names: Sequence[str] | None = None) -> Labels:
    """The labels of a folder and the folders in it, or of one file.

    Args:
      path: the folder or file.
      images: where the pictures lie, if not where the files say.
      names: the keypoints in order; None takes them as they first appear.

    Raises:
      RawDataError: no such files.
    """
    root = path if path.is_dir() else path.parent
    files = files_below(path, ".json") if path.is_dir() else [path]
    if not files:
        raise RawDataError(f"{path} has no JSON files")
    pictures, broken = [], []
    for file in files:
        try:
            pictures.append(_picture(file, root))
        except RawDataError as error:
            broken.append(Broken(Fault("unreadable label file", str(error)), file, "", False))
        except Fault as fault:
            broken.append(Broken(fault, file, "", False))
    return assemble(pictures, images or root, names, broken=broken)


def _picture(file: pathlib.Path, root: pathlib.Path) -> LabelledPicture:
    """Raises RawDataError for a file without a list of shapes, Fault for one that names no picture."""
    document = raw_files.read_json(file)
    (shapes,) = raw_files.document_lists(file, document, "shapes")
    name = document.get("imagePath")
    if not isinstance(name, str) or not name:
        raise Fault("bad image entry", f"imagePath is {name!r:.80}")
    marks, rectangles, faults = [], [], []
    for number, shape in enumerate(shapes, 1):
        entry = f"shape {number}"
        try:
            (marks if _kind(shape) == "point" else rectangles).append(_shape(shape, entry))
        except Fault as fault:
            faults.append((fault, entry))
    people, unclear = people_of(marks, rectangles)
    # A path is from the file's own folder, with either system's slashes.
    file_name = (file.parent.relative_to(root) / name.replace("\\", "/")).as_posix()
    size = document.get("imageWidth"), document.get("imageHeight")
    return LabelledPicture(file_name, file, people, [*faults, *unclear], size)


def _kind(shape: Any) -> str:
    if not isinstance(shape, dict):
        raise Fault("not an object", f"{shape!r:.80}")
    kind = shape.get("shape_type")
    if kind not in ("point", "rectangle"):
        raise OfAnotherKind("neither point nor rectangle", f"{kind!r:.80} of label {shape.get('label')!r:.80}")
    if not isinstance(shape.get("label"), str) or not shape["label"]:
        raise Fault("missing field", "label")
    return kind


def _shape(shape: dict[str, Any], entry: str) -> Any:
    """A `Mark` or `Rectangle`. Raises Fault."""
    group = None if shape.get("group_id") is None else fields.integer(shape, "group_id")
    if shape["shape_type"] == "point":
        x, y = fields.numbers(shape, "points", 1, 2)
        flags = shape.get("flags") or {}
        if not isinstance(flags, dict):
            raise Fault("not an object", f"flags is {flags!r:.80}")
        hidden = fields.flag(flags, "occluded") or fields.flag(flags, "hidden") or fields.flag(shape, "difficult")
        return Mark(shape["label"], (float(x), float(y), HIDDEN if hidden else VISIBLE), entry, group)
    points = shape.get("points")
    corners = 4 if isinstance(points, list) and len(points) == 4 else 2
    x, y = fields.numbers(shape, "points", corners, 2).reshape(corners, 2).T.tolist()
    if len(set(x)) > 2 or len(set(y)) > 2:
        raise Fault("rotated region", f"rectangle of label {shape['label']!r:.80}; upright boxes can be read")
    return Rectangle(shape["label"], (min(x), min(y), max(x) - min(x), max(y) - min(y)), entry, group)
