"""Which crops an evaluation or an epoch consists of: annotated people, or the boxes of a detector.

Both give the same columns, `Instances`, in image order; nothing here touches pixels. Preparation counts by the same
rules (`census`).
"""

from __future__ import annotations

import collections
import dataclasses
import json
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines import fields, geometry
from data_pipelines.datasets import PoseDataset
from data_pipelines.fields import Fault
from data_pipelines.paths import as_path
from data_pipelines.records import Annotations

GROUND_TRUTH = "ground_truth"
PERSON = "person"
NO_AREA = "area of zero"
DOUBTFUL_SHARE = 0.1
"""Of the boxes of a file: where more look as if they were meant otherwise, it is said."""


@dataclasses.dataclass(frozen=True)
class Instances:
    """N crops of one dataset. Boxes and centres in image pixels, scales in units of 200 pixels.

    Attributes:
      image_index: int64 [N], row of the image in the records.
      annotation: int64 [N], row of the annotation, or -1 for a detection.
      instance_id: int64 [N]. Annotated people: the annotation's id, unique in the dataset. Detections: their
        count within the file, in file order, over those that are kept.
      box: float64 [N, 4], x, y, width, height before padding; what the centre jitter is measured by.
      centre, scale: float64 [N, 2].
      box_score: float32 [N]; 1 for annotated people.
      origin: 'ground_truth' or the path of the detection file.
      category: int64 [N], the annotation's or the detection's.
      left_out: how many annotations or detections were not used, by reason.
      images_without: images of the split that have no crop.
      doubts: what makes a detection file look as if its numbers were meant otherwise.
    """

    image_index: np.ndarray
    annotation: np.ndarray
    instance_id: np.ndarray
    box: np.ndarray
    centre: np.ndarray
    scale: np.ndarray
    box_score: np.ndarray
    origin: str
    category: np.ndarray | None = None
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)
    images_without: int = 0
    doubts: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.image_index)

    @property
    def account(self) -> str:
        """One sentence: what was used, what was not and why, and what is to be doubted."""
        kind = "annotations" if self.origin == GROUND_TRUTH else "detected boxes"
        left_out = ", ".join(f"{reason}: {count}" for reason, count in self.left_out.items()) or "none"
        used = f"{len(self)} {kind} used, {self.images_without} images have none; left out: {left_out}"
        return "; ".join([used, *self.doubts])


def ground_truth(annotations: Annotations, dataset: PoseDataset, input_size: tuple[int, int]) -> Instances:
    """The annotated people that can be learned or judged, with the rules of the dataset's own loader.

    Left out (and logged, by reason): see `reasons`. Order: that of the annotation table.
    """
    columns = annotations
    image = columns.image_index
    left_out, keep = _sort_out(reasons(annotations, dataset))
    for reason, count in left_out.items():
        logging.info("%s: %d of %d annotations left out: %s", dataset.name, count, len(image), reason)
    rows = np.flatnonzero(keep)
    box = _boxes(annotations, dataset)
    centre, scale = _crops(columns, dataset, box, columns.scale > 0, _aspect(dataset, input_size))
    return Instances(
        image[rows].astype(np.int64),
        rows,
        columns.id[rows].astype(np.int64),
        box[rows],
        centre[rows],
        scale[rows],
        np.ones(len(rows), np.float32),
        GROUND_TRUTH,
        columns.category[rows].astype(np.int64),
        left_out,
        columns.num_images - len(np.unique(image[rows])),
    )


def reasons(annotations: Annotations, dataset: PoseDataset) -> dict[str, np.ndarray]:
    """Why an annotation gives no crop: {reason: bool [N]}, all False for those that give one.

    Crowds, people without labelled keypoints, boxes outside the image or without extent, areas of zero.

    Raises:
      ValueError: the annotations have another number of keypoints than the dataset.
    """
    columns = annotations
    if columns.keypoints.shape[1:] != (dataset.num_keypoints, 3):
        raise ValueError(
            f"dataset {dataset.name!r}: annotations hold keypoints of shape "
            f"{columns.keypoints.shape[1:]}, its keypoint set {dataset.keypoint_set!r} needs "
            f"{(dataset.num_keypoints, 3)}"
        )
    own = columns.scale > 0  # a finished centre and scale instead of a box (mpii)
    return {
        "crowd": columns.crowd,
        "without keypoints": _unlabelled(columns, dataset),
        "box without extent": ~own & (columns.box[:, 2:] <= 0).any(axis=1),
        "box outside the image": ~own & (_boxes(columns, dataset)[:, 2:] <= 0).any(axis=1),
        NO_AREA: (columns.area <= 0) & (columns.area != -1),
    }


def census(annotations: Annotations, dataset: PoseDataset) -> dict[str, Any]:
    """How many people can be learned from and judged: `training`, `evaluation`, and `left_out`, {reason: people}.

    Learned from are the crops of `ground_truth` with at least one labelled point. They are judged as well, by PCKh only
    with a known head size.
    """
    why = reasons(annotations, dataset)
    why["without keypoints"] = why["without keypoints"] | ~annotations.labelled
    left_out, usable = _sort_out(why)
    judged = usable & (annotations.head_size > 0) if dataset.metric == "mpii" else usable
    if unmeasured := int((usable & ~judged).sum()):
        left_out["without head size (evaluation)"] = unmeasured
    return {"training": int(usable.sum()), "evaluation": int(judged.sum()), "left_out": left_out}


def _sort_out(why: Mapping[str, np.ndarray]) -> tuple[dict[str, int], np.ndarray]:
    """({reason: count}, bool [N] of the others); whoever has several reasons counts for the first."""
    keep = ~np.zeros_like(next(iter(why.values())))
    counts = {}
    for reason, dropped in why.items():
        if count := int((keep & dropped).sum()):
            counts[reason] = count
        keep = keep & ~dropped
    return counts, keep


def _boxes(columns: Annotations, dataset: PoseDataset) -> np.ndarray:
    """float64 [N, 4]: the annotated boxes, clipped to their images where the protocol does so."""
    box = columns.box.astype(np.float64)
    if not dataset.clean_box:
        return box
    image = columns.image_index
    return geometry.clean_box(box, columns.width[image], columns.height[image])


def _aspect(dataset: PoseDataset, input_size: tuple[int, int]) -> float | None:
    return input_size[0] / input_size[1] if dataset.aspect_box else None


def _unlabelled(columns: Annotations, dataset: PoseDataset) -> np.ndarray:
    """bool [N]: who is left out for want of labels; see `PoseDataset.drop_unlabelled_by`."""
    if dataset.drop_unlabelled_by == "never":
        return np.zeros(len(columns.id), bool)
    by_count = dataset.drop_unlabelled_by == "num_keypoints"
    # A whole body's own `keypoints` are the body's, and the release looks at them alone.
    parts = () if by_count else dataset.keypoints.parts
    first, end = parts[0][1:] if parts else (0, dataset.num_keypoints)
    unlabelled = ~(columns.keypoints[:, first:end] > 0).any(axis=(1, 2))
    return unlabelled | (columns.num_keypoints == 0) if by_count else unlabelled


def _crops(columns: Annotations, dataset: PoseDataset, box, own, aspect) -> tuple[np.ndarray, np.ndarray]:
    """(centre, scale) of every annotation; those with an `own` square need no padding."""
    centre, scale = geometry.box_to_crop(box, aspect, dataset.padding)
    square = np.repeat(columns.scale[:, None].astype(np.float64), 2, axis=1)
    if aspect is not None:
        square = geometry.grow_to_aspect(square, aspect)
    return np.where(own[:, None], columns.centre, centre), np.where(own[:, None], square, scale)


def detections(
    path: str | pathlib.Path,
    annotations: Annotations,
    dataset: PoseDataset,
    input_size: tuple[int, int],
    score_threshold: float = 0.0,
) -> Instances:
    """The boxes of a COCO detection file, [{image_id, category_id, bbox, score}, ...].

    An entry may also name its picture, by `file_name`, `image` or a text as `image_id` (Ultralytics writes the name
    without suffix). Where there is such a picture it counts, as detectors number pictures in ways of their own.
    Those of the annotation file's own categories (`categories_of`) with a score of at least `score_threshold`; where
    there is one category, an entry need not name it. Boxes are taken as they are, not clipped to the image. What is not
    used is counted, by reason: `Instances.left_out`.

    Raises:
      ValueError: an entry that is no detection, or no box left; with file and entry. Or a metric that judges annotated
        people one by one (PCKh, PCK), whom a detector's boxes cannot stand for.
    """
    path = os.fspath(path)
    if dataset.metric in ("mpii", "hand") and annotations.num_instances:
        raise ValueError(
            f"{path}: the metric of dataset {dataset.name!r} judges annotated people one by one; it takes "
            f"their boxes ({GROUND_TRUTH!r}), not a detector's"
        )
    kept, left_out = _used_detections(path, annotations, dataset, score_threshold)
    image, category, box, score = (np.asarray(values) for values in zip(*kept, strict=True))
    doubts = _doubts(box, annotations.width[image], annotations.height[image])
    for doubt in doubts:
        logging.warning("%s: %s", path, doubt)
    centre, scale = geometry.box_to_crop(box, _aspect(dataset, input_size), dataset.padding)
    # Image order lets a reader decode each picture once; the ids keep the file's order.
    order = np.argsort(image, kind="stable")
    return Instances(
        image[order].astype(np.int64),
        np.full(len(order), -1),
        order.astype(np.int64),
        box[order],
        centre[order],
        scale[order],
        score[order].astype(np.float32),
        path,
        category[order].astype(np.int64),
        dict(left_out),
        annotations.num_images - len(np.unique(image)),
        doubts,
    )


def _used_detections(
    path: str, annotations: Annotations, dataset: PoseDataset, score_threshold: float
) -> tuple[list[tuple[int, int, np.ndarray, float]], collections.Counter]:
    """(row of the image, category, box, score) of each, and how many others there are by reason, of which it warns."""
    entries, categories = _read_detections(path), categories_of(annotations)
    pictures = _Pictures(annotations)
    kept, left_out, first = [], collections.Counter(), {}
    only = next(iter(categories)) if len(categories) == 1 else None
    for number, entry in enumerate(entries):
        picture, row, category, box, score = _detection(path, number, entry, pictures, only)
        reason, detail = _why_not(picture, row, category, box, score, categories, score_threshold)
        if reason:
            left_out[reason] += 1
            first.setdefault(reason, f"{path}: entry {number} {detail} of dataset {dataset.name!r}")
        elif row is not None:
            kept.append((row, category, box, score))
    for reason, count in left_out.items():
        logging.warning("%d of %d detections left out: %s; first: %s", count, len(entries), reason, first[reason])
    if not kept:
        listed = ", ".join(f"{number} ({name})" for number, name in categories.items())
        cases = "".join(f"; {reason}: {count}, first: {first[reason]}" for reason, count in left_out.items())
        raise ValueError(
            f"{path}: no person detection with a score of at least {score_threshold} of the category ids "
            f"{listed} of dataset {dataset.name!r} among {len(entries)} entries{cases}"
        )
    return kept, left_out


def categories_of(annotations: Annotations) -> dict[int, str]:
    """Id and name of the categories that boxes and poses may have: all of the annotation file's.

    A test set without annotations may list the categories of a whole benchmark; of these only the person.
    """
    categories = dict(annotations.categories)
    if annotations.num_instances == 0 and PERSON in categories.values():
        return {number: name for number, name in categories.items() if name == PERSON}
    return categories


class _Pictures:
    """Finds the picture of a detection by its id or its name: whole, with fewer or more folders, without suffix."""

    def __init__(self, annotations: Annotations):
        self._by_id = {int(image_id): row for row, image_id in enumerate(annotations.image_id)}
        whole: dict[str, set[int]] = {}
        parts: dict[str, set[int]] = {}
        for row, path in enumerate(map(str, annotations.file_name)):
            first, *others = _ever_fewer_folders(path)
            whole.setdefault(first, set()).add(row)
            for name in (*others, *_ever_fewer_folders(os.path.splitext(path)[0])):
                parts.setdefault(name, set()).add(row)
        by_name = [*parts.items(), *whole.items()]  # the whole name goes before others' parts
        self._by_name = {name: rows.pop() for name, rows in by_name if len(rows) == 1}

    def find(self, entry: Mapping[str, Any]) -> tuple[int | str, int | None]:
        """(what an entry calls its picture, the picture's row; None if there is none). Raises Fault."""
        number = entry.get("image_id")
        given = entry.get("file_name"), entry.get("image"), number if fields.is_name(number) else None
        names = [name for name in given if isinstance(name, str)]
        for name in names:
            for part in _ever_fewer_folders(name):
                if part in self._by_name:
                    return name, self._by_name[part]
        if names and fields.whole(number) is None:
            return names[0], None
        image_id = fields.integer(entry, "image_id")
        return image_id, self._by_id.get(image_id)


def _ever_fewer_folders(path: str) -> list[str]:
    """a/b/c.jpg, b/c.jpg, c.jpg."""
    parts = pathlib.PurePosixPath(fields.in_slashes(path)).parts
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _detection(
    path: str, number: int, entry: Any, pictures: _Pictures, only: int | None
) -> tuple[int | str, int | None, int, np.ndarray, float]:
    """(picture, its row, category, box, score) of an entry, the box and the score as they are. Raises ValueError.

    The category is the `only` one where the entry has none.
    """
    try:
        if not isinstance(entry, dict):
            raise Fault("not an object", f"{entry!r:.80}")
        picture, row = pictures.find(entry)
        category = fields.integer(entry, "category_id", default=only)
        score = float(fields.unchecked(entry, "score", 1)[0])
    except Fault as fault:
        raise ValueError(f"{path}: entry {number} is no COCO detection: {fault}") from fault
    try:
        return picture, row, category, fields.unchecked(entry, "bbox", 4), score
    except Fault as fault:
        raise ValueError(
            f"{path}: entry {number} (image {picture}): bbox {entry.get('bbox')!r:.80} is not x, y, width, height"
        ) from fault


def _why_not(
    picture: int | str,
    row: int | None,
    category: int,
    box: np.ndarray,
    score: float,
    categories: Mapping[int, str],
    threshold: float,
) -> tuple[str, str]:
    """(reason, detail) why a detection is not used; ("", "") if it is."""
    if category not in categories:
        return f"category {category}", f"is of category {category}"
    if not score >= threshold:
        return f"score under {threshold:g}", f"has the score {score:g}"
    if not fields.are_boxes(np.append(box, score)):
        detail = f"bbox {box.tolist()} of score {score:g} is not x, y, width, height with positive sides, up to 1e6"
        return "bad box", f"(image {picture}): {detail}"
    if row is None:
        return "unknown image", f"names image {picture}, which is none of the prepared images"
    return "", ""


def _doubts(box: np.ndarray, width: np.ndarray, height: np.ndarray) -> list[str]:
    """What speaks against boxes [N, 4] as x, y, width, height in pixels, of images whose sizes [N] are given."""
    start, side, size = box[:, :2], box[:, 2:], np.stack([width, height], axis=1)
    outside = ((start >= size) | (start + side <= 0)).any(axis=1)
    over = (start + side > size + 1).any(axis=1)
    corners = over & (start >= 0).all(axis=1) & (start < side).all(axis=1) & (side <= size).all(axis=1)
    found = {
        "have no side of over a pixel: are they shares of the image?": (side <= 1).all(axis=1),
        "lie outside their image: are they of images of another size?": outside,
        "reach over the border, but would not as x1, y1, x2, y2: are they corners?": corners,
    }
    return [
        f"{doubtful.sum()} of {len(box)} boxes {what}"
        for what, doubtful in found.items()
        if doubtful.mean() > DOUBTFUL_SHARE
    ]


def _read_detections(path: str) -> list:
    try:
        entries = json.loads(as_path(path).read_bytes())  # UTF-8, -16 or -32, with a byte order mark or without
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(entries, list):
        raise ValueError(f"{path}: a detection file is a list of boxes, not a {type(entries).__name__}")
    return entries
