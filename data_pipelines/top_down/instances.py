"""Which crops an evaluation or an epoch consists of: annotated people, or the boxes of a detector.

Both give the same columns, `Instances`, in image order; nothing here touches pixels.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pathlib

import numpy as np

from data_pipelines import geometry
from data_pipelines.datasets import PoseDataset
from data_pipelines.records import Annotations

GROUND_TRUTH = "ground_truth"
PERSON_CATEGORY = 1


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
    """

    image_index: np.ndarray
    annotation: np.ndarray
    instance_id: np.ndarray
    box: np.ndarray
    centre: np.ndarray
    scale: np.ndarray
    box_score: np.ndarray
    origin: str

    def __len__(self) -> int:
        return len(self.image_index)


def ground_truth(annotations: Annotations, dataset: PoseDataset, input_size: tuple[int, int]) -> Instances:
    """The annotated people that can be learned or judged, with the rules of the dataset's own loader.

    Left out (and logged, by reason): crowds, people without labelled keypoints, boxes outside the image,
    areas of zero. Order: that of the annotation table.
    """
    columns = annotations
    image = columns.image_index
    if columns.keypoints.shape[1:] != (dataset.num_keypoints, 3):
        raise ValueError(
            f"dataset {dataset.name!r}: annotations hold keypoints of shape "
            f"{columns.keypoints.shape[1:]}, its keypoint set {dataset.keypoint_set!r} needs "
            f"{(dataset.num_keypoints, 3)}"
        )
    box = columns.box.astype(np.float64)
    if dataset.clean_box:
        box = geometry.clean_box(box, columns.width[image], columns.height[image])
    own = columns.scale > 0  # a finished centre and scale instead of a box (mpii)
    reasons = {
        "crowd": columns.crowd,
        "without keypoints": _unlabelled(columns, dataset),
        "box outside the image": ~own & ~((box[:, 2:] > 0).all(axis=1)),
        "area of zero": (columns.area <= 0) & (columns.area != -1),
    }
    keep = np.ones(len(image), bool)
    for reason, dropped in reasons.items():
        if count := int((keep & dropped).sum()):
            logging.info("%s: %d of %d annotations left out: %s", dataset.name, count, len(image), reason)
        keep &= ~dropped
    rows = np.flatnonzero(keep)
    centre, scale = _crops(columns, dataset, box, own, _aspect(dataset, input_size))
    return Instances(
        image[rows].astype(np.int64),
        rows,
        columns.id[rows].astype(np.int64),
        box[rows],
        centre[rows],
        scale[rows],
        np.ones(len(rows), np.float32),
        GROUND_TRUTH,
    )


def _aspect(dataset: PoseDataset, input_size: tuple[int, int]) -> float | None:
    return input_size[0] / input_size[1] if dataset.aspect_box else None


def _unlabelled(columns: Annotations, dataset: PoseDataset) -> np.ndarray:
    if dataset.drop_unlabelled_by == "never":
        return np.zeros(len(columns.id), bool)
    unlabelled = ~(columns.keypoints > 0).any(axis=(1, 2))
    if dataset.drop_unlabelled_by == "num_keypoints":
        unlabelled |= columns.num_keypoints == 0
    return unlabelled


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

    People (category 1) with a score of at least `score_threshold`; every one is kept, and boxes are taken as
    they are, not clipped to the image. A file that does not fit the dataset is an error, which names the
    entry.
    """
    path = os.fspath(path)
    entries = _read_detections(path)
    row_of_image = {int(image_id): row for row, image_id in enumerate(annotations.image_id)}
    image_index, boxes, scores = [], [], []
    for number, entry in enumerate(entries):
        try:
            if entry["category_id"] != PERSON_CATEGORY or entry["score"] < score_threshold:
                continue
            image_id, score = int(entry["image_id"]), float(entry["score"])
            box = np.asarray(entry["bbox"], np.float64)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: entry {number} is no COCO detection: {error!r}") from error
        if box.shape != (4,) or not np.isfinite(box).all() or (box[2:] <= 0).any():
            raise ValueError(
                f"{path}: entry {number} (image {image_id}): bbox {entry['bbox']} is not x, y, "
                "width, height with positive sides"
            )
        if image_id not in row_of_image:
            raise ValueError(
                f"{path}: entry {number} names image {image_id}, which the records of dataset "
                f"{dataset.name!r} do not have"
            )
        image_index.append(row_of_image[image_id])
        boxes.append(box)
        scores.append(score)
    if not boxes:
        raise ValueError(f"{path}: no person detection with a score of at least {score_threshold}")
    image = np.asarray(image_index, np.int64)
    box = np.stack(boxes)
    centre, scale = geometry.box_to_crop(box, _aspect(dataset, input_size), dataset.padding)
    # Image order lets a reader decode each picture once; the ids keep the file's order.
    order = np.argsort(image, kind="stable")
    return Instances(
        image[order],
        np.full(len(order), -1),
        order.astype(np.int64),
        box[order],
        centre[order],
        scale[order],
        np.asarray(scores, np.float32)[order],
        path,
    )


def _read_detections(path: str) -> list:
    with open(path, encoding="utf-8") as file:
        try:
            entries = json.load(file)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(entries, list):
        raise ValueError(f"{path}: a detection file is a list of boxes, not a {type(entries).__name__}")
    return entries
