"""Label Studio: its JSON export, with keypoints (`keypointlabels`) and boxes (`rectanglelabels`); `labels` is either.

Coordinates are percent of the picture. A point belongs to the box that is its parent region, or to which a relation
ties it; else see `grouping.people_of`. Of several annotations of a task the one marked as ground truth counts, or the
first that was not cancelled. A task without any is left out: nobody has said that there is nobody in its picture.
"""

from __future__ import annotations

import os
import pathlib
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines import fields
from data_pipelines.builders import raw_files
from data_pipelines.builders.report import RawDataError
from data_pipelines.fields import Fault
from data_pipelines.importers import pictures as picture_files
from data_pipelines.importers.grouping import Mark, Rectangle, people_of
from data_pipelines.importers.labels import VISIBLE, Broken, LabelledPicture, Labels, OfAnotherKind, assemble
from data_pipelines.importers.text_files import require_json_file, starts_like, the_json_file

POINTS, BOXES = "keypointlabels", "rectanglelabels"
TEXTS = ("choices", "textarea", "rating")
"""What is said of a whole picture, or of one region, by its id."""
_IDS = ("id", "parentID", "from_id", "to_id")
_UPLOADED = re.compile(r"[0-9a-f]{8}-(?=.)")  # before the name of an uploaded file


def fits(path: pathlib.Path) -> bool:
    """Whether this is a JSON list of tasks, or a folder with exactly one JSON file that is one."""
    file = the_json_file(path)
    return (
        file is not None
        and starts_like(file, r"^\s*\[\s*\{")
        and starts_like(file, r'"(annotations|data)"\s*:\s*[\[{]')
    )


def read(path: pathlib.Path, images: pathlib.Path | None = None, names: Sequence[str] | None = None) -> Labels:
    """The labels of an export.

    Args:
      path: the JSON file, or the folder that has it alone.
      images: where the pictures lie; None for the folder of the file.
      names: the keypoints in order; None takes them as they first appear.

    Raises:
      RawDataError: not such a file.
    """
    file = require_json_file(path)
    tasks = raw_files.read_json(file)
    if not isinstance(tasks, list):
        raise RawDataError(f"{file} does not hold a list of tasks; export as JSON, not as JSON-MIN or COCO")
    folder = images or file.parent
    found, broken = [], []
    remarks: list[tuple[str, pathlib.Path, str]] = []
    for number, task in enumerate(tasks, 1):
        entry = f"task {task.get('id', number) if isinstance(task, dict) else number}"
        try:
            annotations = _annotations(task)
            if len(annotations) > 1:
                remarks.append(("further annotations of a task (left out)", file, entry))
            found.append(_picture(file, task["data"], annotations[0], entry, folder))
        except Fault as fault:
            broken.append(Broken(fault, file, entry, False))
    return assemble(found, folder, names, broken=broken, remarks=remarks)


def _annotations(task: Any) -> list[dict[str, Any]]:
    """What people annotated in a task, the one that counts first. Raises Fault: nothing."""
    if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
        raise Fault("not a task", f"{task!r:.80}")
    annotations = [item for item in task.get("annotations") or () if isinstance(item, dict)]
    annotations = [item for item in annotations if not fields.flag(item, "was_cancelled")]
    if not annotations:
        why = "skipped" if task.get("annotations") else "predictions are not read" if task.get("predictions") else ""
        raise OfAnotherKind("task that nobody annotated", why)
    return sorted(annotations, key=lambda item: not fields.flag(item, "ground_truth"))


def _picture(
    file: pathlib.Path, data: Mapping[str, Any], annotation: Mapping[str, Any], entry: str, folder: pathlib.Path
) -> LabelledPicture:
    results = annotation.get("result") or []
    if not isinstance(results, list):
        raise Fault("not a list", f"result is {results!r:.80}")
    people, faults, size = _people(results, entry)
    return LabelledPicture(_file_name(data, folder), file, people, faults, size)


def _file_name(data: Mapping[str, Any], folder: pathlib.Path) -> str:
    """The picture of a task, without what the server adds. Raises Fault: the task has none."""
    texts = [value for value in data.values() if isinstance(value, str)]
    name = data.get("image") or data.get("img") or (texts[0] if len(texts) == 1 else None)
    if not isinstance(name, str) or not name:
        raise Fault("bad image entry", f"no image in data {data!r:.80}")
    address = urllib.parse.urlsplit(name)
    if address.scheme == "data":
        raise Fault("bad image entry", f"{name[:20]!r}... is the picture itself; one with a name is needed")
    local = urllib.parse.parse_qs(address.query).get("d")
    name = local[0] if local else urllib.parse.unquote(address.path) if address.scheme or name[0] == "/" else name
    start, slash, last = name.rpartition("/")
    plain = f"{start}{slash}{_UPLOADED.sub('', last)}"
    if plain != name and not os.path.exists(picture_files.find(folder, name)):
        return plain
    return name


def _people(results: Sequence[Any], task: str) -> tuple[list, list[tuple[Fault, str]], tuple[Any, Any] | None]:
    """(people, what is wrong, (width, height))."""
    results = [_with_keys(item) if isinstance(item, dict) else item for item in results]
    boxes = {item.get("id") for item in results if isinstance(item, dict) and _kind(item) == BOXES}
    labelled = {item.get("id") for item in results if isinstance(item, dict) and item.get("type") == "labels"}
    regions = {item.get("id") for item in results if isinstance(item, dict) and _kind(item) in (POINTS, BOXES)}
    related = {}
    for item in results:
        if isinstance(item, dict) and item.get("type") == "relation":
            ends = item.get("from_id"), item.get("to_id")
            related |= {point: box for point, box in (ends, ends[::-1]) if box in boxes and point not in boxes}
    marks: list[Mark] = []
    rectangles: list[Rectangle] = []
    faults: list[tuple[Fault, str]] = []
    sizes = []
    for number, item in enumerate(results, 1):
        entry = f"{task}, region {item.get('id', number) if isinstance(item, dict) else number}"
        try:
            if not isinstance(item, dict):
                raise Fault("not an object", f"{item!r:.80}")
            kind = _kind(item)
            if kind in (POINTS, BOXES):
                group = item.get("parentID") or related.get(item.get("id"))
                group = item.get("id") if kind == BOXES else group if group in boxes else None
                (marks if kind == POINTS else rectangles).append(_region(item, kind, entry, group))
                sizes.append((item["original_width"], item["original_height"]))
            elif kind in ("keypoint", "rectangle") and item.get("id") in labelled:
                continue  # the same region once more, without its label
            elif kind in TEXTS:
                if item.get("id") in regions:
                    raise OfAnotherKind(f"{kind} of a region", f"{item.get('value')!r:.80}")
            elif kind != "relation":
                raise OfAnotherKind(f"neither {POINTS} nor {BOXES}", f"type {item.get('type')!r:.80}")
        except Fault as fault:
            faults.append((fault, entry))
    tied = {mark.group for mark in marks}
    # A box that no point names is open to those that name none.
    rectangles = [r if r.group in tied else Rectangle(r.category, r.box, r.entry) for r in rectangles]
    people, unclear = people_of(marks, rectangles)
    return people, [*faults, *unclear], sizes[0] if sizes else None


def _with_keys(item: Mapping[str, Any]) -> dict[str, Any]:
    """With ids that are dictionary keys, whatever a damaged file holds there."""
    return {**item, **{key: repr(item[key]) for key in _IDS if isinstance(item.get(key), (list, dict))}}


def _kind(item: Mapping[str, Any]) -> Any:
    """The type of a result. A project that has `Labels` beside `KeyPoint` or `Rectangle` writes `labels` for either."""
    value = item.get("value")
    if item.get("type") != "labels" or not isinstance(value, dict) or not {"x", "y", "width"} <= set(value):
        return item.get("type")
    return BOXES if "height" in value else POINTS


def _region(item: Mapping[str, Any], kind: str, entry: str, group: Any) -> Any:
    """A `Mark` or `Rectangle`. Raises Fault."""
    width, height = fields.integer(item, "original_width"), fields.integer(item, "original_height")
    value = item.get("value")
    if not isinstance(value, dict):
        raise Fault("missing field", "value")
    if fields.number(item, "image_rotation", 0.0) or fields.number(value, "rotation", 0.0):
        raise Fault("rotated region", "upright pictures and boxes can be read")
    labels = value.get(item["type"])
    if not isinstance(labels, list) or len(labels) != 1 or not isinstance(labels[0], str):
        raise Fault("not one label", f"{item['type']} is {labels!r:.80}")
    x, y = fields.number(value, "x") * width / 100, fields.number(value, "y") * height / 100
    if kind == POINTS:
        return Mark(labels[0], (x, y, VISIBLE), entry, group)
    size = fields.number(value, "width") * width / 100, fields.number(value, "height") * height / 100
    return Rectangle(labels[0], (x, y, *size), entry, group)
