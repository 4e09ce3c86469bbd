"""Annotations and predictions as columns of arrays, and the COCO formats they come from and go to.

Coordinates are image pixels (x, y), the centre of the top-left pixel at (0, 0); boxes are
(x, y, width, height).
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.paths import as_path, write_whole
from data_pipelines.records import Annotations
from data_pipelines.skeletons import KeypointSet

# An object's size where no usable area is annotated, as a share of its box (as for CrowdPose and AIC).
BOX_AREA = 0.53


@dataclasses.dataclass(frozen=True)
class Poses:
    """Predicted poses, one a row.

    Attributes:
      image_id: int64 [N].
      instance_id: int64 [N], unique within an image; the annotation's id where its box made the crop.
      keypoints: [N, K, 3], x, y and confidence.
      score: [N], the box's score until `evaluate.final_poses` turns it into the pose's.
      area: [N], size for suppression: that of the padded crop box (top-down) or of the pose's extent
        (single-stage).
      category: int64 [N], or None until it is looked up.
    """

    image_id: np.ndarray
    instance_id: np.ndarray
    keypoints: np.ndarray
    score: np.ndarray
    area: np.ndarray
    category: np.ndarray | None = None

    def __post_init__(self):
        rows = len(self.image_id)
        for field in dataclasses.fields(self):
            column = getattr(self, field.name)
            if column is not None and len(column) != rows:
                raise ValueError(f"poses: {field.name} has {len(column)} rows, image_id has {rows}")
        if self.keypoints.ndim != 3 or self.keypoints.shape[2] != 3:
            raise ValueError(f"poses: keypoints must be [N, K, 3], not {self.keypoints.shape}")

    def __len__(self) -> int:
        return len(self.image_id)

    def take(self, rows: np.ndarray) -> Poses:
        """The given rows, in their order."""
        columns = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Poses(**{name: None if column is None else column[rows] for name, column in columns.items()})


@dataclasses.dataclass(frozen=True)
class GroundTruth:
    """Annotations as columns: images [I] sorted by id, instances [N] in file order.

    Attributes:
      image_id: int64 [I].
      crowd_index: [I], CrowdPose's `crowdIndex`, NaN where an image has none.
      category_id: int64 [C], sorted.
      image: int64 [N], index into `image_id`.
      id, category: int64 [N].
      keypoints: float64 [N, K, 3].
      box: float64 [N, 4].
      area: float64 [N], the annotated one, `BOX_AREA` of the box where there is none.
      crowd: bool [N].
      num_keypoints: int64 [N], the annotation's own count, -1 where it has none.
      head_size: float64 [N], PCKh's reference length, 0 where there is none.
    """

    image_id: np.ndarray
    crowd_index: np.ndarray
    category_id: np.ndarray
    image: np.ndarray
    id: np.ndarray
    category: np.ndarray
    keypoints: np.ndarray
    box: np.ndarray
    area: np.ndarray
    crowd: np.ndarray
    num_keypoints: np.ndarray
    head_size: np.ndarray

    def take(self, rows: np.ndarray) -> GroundTruth:
        """The given instances, in their order, of the same images."""
        of_instances = ("image", "id", "category", "keypoints", "box", "area", "crowd", "num_keypoints", "head_size")
        return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in of_instances})


def ground_truth(annotations: Annotations) -> GroundTruth:
    """Columns of a prepared split."""
    order = np.argsort(annotations.image_id, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    crowd_index = annotations.crowd_index[order].astype(np.float64)
    box, area = annotations.box.astype(np.float64), annotations.area.astype(np.float64)
    return GroundTruth(
        image_id=annotations.image_id[order],
        crowd_index=np.where(crowd_index >= 0, crowd_index, np.nan),
        category_id=np.array(sorted(number for number, _ in annotations.categories), np.int64),
        image=place[annotations.image_index],
        id=annotations.id,
        category=annotations.category.astype(np.int64),
        keypoints=annotations.keypoints.astype(np.float64),
        box=box,
        area=_areas(area, box),
        crowd=annotations.crowd,
        num_keypoints=annotations.num_keypoints.astype(np.int64),
        head_size=annotations.head_size.astype(np.float64),
    )


def box_area(box: np.ndarray) -> np.ndarray:
    """Sizes [N] of objects in square pixels by their boxes [N, 4]: `BOX_AREA` of each."""
    return BOX_AREA * box[:, 2] * box[:, 3]


def _areas(annotated: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Annotated sizes; by the box where there is none (negative)."""
    return np.where(annotated >= 0, annotated, box_area(box))


def ground_truth_from_coco(document: Mapping[str, Any], keypoint_set: KeypointSet) -> GroundTruth:
    """Columns of a COCO-format document.

    Whole-body annotations may hold all keypoints in `keypoints`, or each part in a list `<part>_kpts`.

    Raises:
      ValueError: an annotation of an unknown image, or a keypoint list of another length than the set's.
    """
    images = sorted(document["images"], key=lambda image: image["id"])
    annotations = document.get("annotations", [])
    image_id = np.array([image["id"] for image in images], np.int64)
    annotated = np.array([a["image_id"] for a in annotations], np.int64)
    image = np.searchsorted(image_id, annotated)
    known = np.isin(annotated, image_id)
    if not known.all():
        bad = annotations[int(np.argmin(known))]
        raise ValueError(f"annotation {bad['id']} belongs to image {bad['image_id']}, which is not listed")

    box = np.array([a["bbox"] for a in annotations], np.float64).reshape(-1, 4)
    area = np.array([a.get("area", -1) for a in annotations], np.float64)
    return GroundTruth(
        image_id=image_id,
        crowd_index=np.array([i.get("crowdIndex", np.nan) for i in images], np.float64),
        category_id=np.array(sorted(c["id"] for c in document["categories"]), np.int64),
        image=image,
        id=np.array([a["id"] for a in annotations], np.int64),
        category=np.array([a["category_id"] for a in annotations], np.int64),
        keypoints=_keypoint_columns(annotations, keypoint_set),
        box=box,
        area=_areas(area, box),
        crowd=np.array([a.get("iscrowd", 0) for a in annotations], bool),
        num_keypoints=np.array([a.get("num_keypoints", -1) for a in annotations], np.int64),
        head_size=np.array([a.get("head_size", 0) for a in annotations], np.float64),
    )


def _keypoint_columns(annotations: list[Mapping[str, Any]], keypoint_set: KeypointSet) -> np.ndarray:
    length = 3 * keypoint_set.num_keypoints
    part_keys = [f"{name}_kpts" for name, _, _ in keypoint_set.parts[1:]]
    rows = []
    for annotation in annotations:
        row = annotation.get("keypoints") or [0] * length
        if part_keys and len(row) < length:
            row = [*row, *(value for key in part_keys for value in annotation.get(key, ()))]
        if len(row) != length:
            raise ValueError(
                f"annotation {annotation['id']} has {len(row)} keypoint numbers, {keypoint_set.name} has {length}"
            )
        rows.append(row)
    return np.array(rows, np.float64).reshape(-1, keypoint_set.num_keypoints, 3)


def coco_results(poses: Poses, keypoint_set: KeypointSet) -> list[dict[str, Any]]:
    """Results in COCO's format; whole-body sets have each part in its own list, as their tools expect.

    Raises:
      ValueError: the poses have no category yet.
    """
    if poses.category is None:
        raise ValueError("poses need categories before they are written; see evaluate.final_poses")
    first, *others = keypoint_set.parts or (("", 0, keypoint_set.num_keypoints),)
    parts = {"keypoints": first[1:], **{f"{name}_kpts": (start, end) for name, start, end in others}}
    columns = {
        "image_id": poses.image_id.tolist(),
        "category_id": poses.category.tolist(),
        **{
            key: poses.keypoints[:, start:end].reshape(len(poses), 3 * (end - start)).tolist()
            for key, (start, end) in parts.items()
        },
        "score": poses.score.tolist(),
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def write_results(path: str | pathlib.Path, poses: Poses, keypoint_set: KeypointSet) -> None:
    """Writes `coco_results` as JSON; the file is there either complete or not at all."""
    path = as_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(coco_results(poses, keypoint_set)))


def write_detections(path: str | pathlib.Path, poses: Poses, boxes: np.ndarray) -> None:
    """Writes the people of `poses` as a COCO detection file, for a top-down model to take its boxes from.

    Args:
      path: of the file, which is there either complete or not at all.
      poses: with their categories.
      boxes: [N, 4].

    Raises:
      ValueError: the poses have no category yet.
    """
    if poses.category is None:
        raise ValueError("poses need categories before they are written; see evaluate.final_poses")
    names = ("image_id", "category_id", "bbox", "score")
    rows = zip(poses.image_id.tolist(), poses.category.tolist(), boxes.tolist(), poses.score.tolist(), strict=True)
    path = as_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps([dict(zip(names, row, strict=True)) for row in rows]))
