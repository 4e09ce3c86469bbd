"""CVAT: the XML of "CVAT for images 1.1", with skeletons, points and boxes.

A `skeleton` is a person, whose label in the file's head names its keypoints and, in a drawing, its limbs. A `points`
shape of one point is a keypoint named by its label; of several, a person whose keypoints are numbered. `group_id` ties
shapes together. A point that is `outside` is not labelled, one that is `occluded` is hidden.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any
from xml.etree import ElementTree

from data_pipelines import fields
from data_pipelines.builders.report import RawDataError
from data_pipelines.fields import Fault
from data_pipelines.importers.grouping import Mark, Rectangle, people_of
from data_pipelines.importers.labels import (
    HIDDEN,
    VISIBLE,
    LabelledPicture,
    Labels,
    OfAnotherKind,
    Point,
    assemble,
    in_order,
)
from data_pipelines.importers.text_files import files_in, folder_of_pictures

Element = ElementTree.Element


def fits(path: pathlib.Path) -> bool:
    """Whether this is an XML file, or a folder with exactly one."""
    return path.suffix.lower() == ".xml" if path.is_file() else len(files_in(path, "*.xml")) == 1


def read(path: pathlib.Path, images: pathlib.Path | None = None, names: Sequence[str] | None = None) -> Labels:
    """The labels of a file, or of the only XML file in a folder.

    Args:
      path: the file or folder.
      images: where the pictures lie; None for the folder of the file, or `images` in it.
      names: the keypoints in order; where the file's labels are others, those count.

    Raises:
      RawDataError: not such a file, or one of videos.
    """
    files = [path] if path.is_file() else files_in(path, "*.xml")
    if len(files) != 1:
        raise RawDataError(f"{path} has {len(files)} XML files: name one")
    (file,) = files
    try:
        root = ElementTree.parse(file).getroot()
    except OSError as error:
        raise RawDataError(f"{file} cannot be read: {error.strerror}") from error
    except ElementTree.ParseError as error:
        raise RawDataError(f"{file} is not valid XML: {error}") from error
    if root.tag != "annotations" or root.find("track") is not None or root.find("image") is None:
        raise RawDataError(f"{file} lists no images of CVAT: export the task as 'CVAT for images 1.1'")
    declared = list(_skeletons(file, root))
    if len({tuple(sorted(keypoints)) for keypoints, _ in declared}) > 1:
        raise RawDataError(f"{file}: labels with different skeletons are datasets apart: export a file of each")
    limbs: Sequence[tuple[str, str]] = ()
    if declared:
        own, limbs = declared[0]
        names = in_order(own, names)
    pictures = [_picture(file, image, number) for number, image in enumerate(root.iterfind("image"), 1)]
    return assemble(pictures, images or folder_of_pictures(file), names, limbs=limbs)


def _skeletons(file: pathlib.Path, root: Element) -> Iterator[tuple[list[str], list[tuple[str, str]]]]:
    """(keypoints, limbs) of every label that has a skeleton: the labels that name it as their parent."""
    keypoints: dict[str, list[str]] = {}
    for label in root.iterfind("meta//label"):
        if parent := label.findtext("parent"):
            keypoints.setdefault(parent, []).append(label.findtext("name") or "")
    for label in root.iterfind("meta//label"):
        own = keypoints.get(label.findtext("name") or "")
        if own and not label.findtext("parent"):
            yield own, _drawn_limbs(file, label.findtext("svg") or "", own)


def _drawn_limbs(file: pathlib.Path, drawing: str, keypoints: Sequence[str]) -> list[tuple[str, str]]:
    """The edges of a skeleton's drawing."""
    try:
        svg = ElementTree.fromstring(f"<svg>{drawing}</svg>")
    except ElementTree.ParseError as error:
        raise RawDataError(f"{file}: the drawing of a skeleton is not valid XML: {error}") from error
    names = {node.get("data-node-id"): node.get("data-label-name") for node in svg.iter("circle")}
    edges = [(names.get(e.get("data-node-from")), names.get(e.get("data-node-to"))) for e in svg.iter("line")]
    return [(a, b) for a, b in edges if a in keypoints and b in keypoints]  # type: ignore[misc]


def _picture(file: pathlib.Path, image: Element, number: int) -> LabelledPicture:
    marks: list[Mark] = []
    rectangles: list[Rectangle] = []
    faults: list[tuple[Fault, str]] = []
    of_skeleton: dict[Any, str] = {}
    name = image.get("name") or ""
    for place, shape in enumerate(image, 1):
        entry = f"image {name or number}, shape {place}"
        try:
            if shape.tag == "box":
                rectangles.append(_box(shape, entry))
            elif shape.tag in ("skeleton", "points"):
                found = list(_marks(shape, entry, ("shape", place)))
                marks += found
                if found and shape.tag == "skeleton":
                    of_skeleton[found[0].group] = shape.get("label") or ""
            elif shape.tag != "tag":
                raise OfAnotherKind("neither skeleton, points nor box", f"{shape.tag} of {shape.get('label')!r:.80}")
        except Fault as fault:
            faults.append((fault, entry))
    people, unclear = people_of(marks, rectangles, next(iter(of_skeleton.values()), "object"))
    # The export of a project has a folder for each subset.
    path = f"{image.get('subset')}/{name}" if image.get("subset") else name
    return LabelledPicture(path, file, people, [*faults, *unclear], (image.get("width"), image.get("height")))


def _marks(shape: Element, entry: str, own_group: Any) -> Iterator[Mark]:
    """The keypoints of a skeleton or of a `points` shape. Raises Fault."""
    group = _group(shape)
    if shape.tag == "skeleton":
        for part in shape.iterfind("points"):
            if not fields.flag(part.attrib, "outside"):
                (point,) = _points(part, 1)
                yield Mark(part.get("label") or "", point, entry, group or own_group)
        return
    points = _points(shape)
    if len(points) == 1:
        yield Mark(shape.get("label") or "", points[0], entry, group)
        return
    for number, point in enumerate(points, 1):
        yield Mark(f"point_{number}", point, entry, group or own_group)


def _points(shape: Element, count: int | None = None) -> list[Point]:
    pairs = [pair.split(",") for pair in (shape.get("points") or "").split(";")]
    if count is not None and len(pairs) != count:
        raise Fault("wrong length", f"points of {shape.get('label')!r:.80} are {shape.get('points')!r:.80}")
    visibility = HIDDEN if fields.flag(shape.attrib, "occluded") else VISIBLE
    coordinates = fields.numbers({"points": pairs}, "points", len(pairs), 2).reshape(-1, 2)
    return [(x, y, visibility) for x, y in coordinates.tolist()]


def _box(shape: Element, entry: str) -> Rectangle:
    if fields.number(shape.attrib, "rotation", 0.0):
        raise Fault("rotated region", f"box of label {shape.get('label')!r:.80}; upright boxes can be read")
    left, top, right, bottom = (fields.number(shape.attrib, key) for key in ("xtl", "ytl", "xbr", "ybr"))
    return Rectangle(shape.get("label") or "", (left, top, right - left, bottom - top), entry, _group(shape))


def _group(shape: Element) -> int | None:
    """CVAT writes 0, or nothing, for no group."""
    return fields.integer(shape.attrib, "group_id", 0) or None
