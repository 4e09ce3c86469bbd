"""Inputs of the metric tests: recorded ones in our columns, and random ones full of corner cases."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.datasets import PoseDataset, find_dataset
from pose_common.metrics.columns import GroundTruth, Poses, ground_truth_from_coco
from pose_common.metrics.nms import extent_area
from tests.golden_files import GOLDEN, golden
from tests.settings import POSES

EVAL = "data/eval"
OKS_METRICS = ("coco", "wholebody", "crowdpose")


def recorded_evaluations() -> dict[str, dict[str, Any]]:
    """Name -> expected numbers of every recorded evaluation by OKS whose annotations are recorded too."""
    names = (path.name.removesuffix("_expected.json") for path in sorted((GOLDEN / EVAL).glob("*_expected.json")))
    expected = {name: golden(f"{EVAL}/{name}_expected.json") for name in names}
    return {
        name: numbers
        for name, numbers in expected.items()
        if find_dataset(numbers["dataset"]).metric in OKS_METRICS and annotations_of(name).exists()
    }


def settings_of(expected: Mapping[str, Any]) -> dict[str, float]:
    """The thresholds of a recorded evaluation, as options of ours."""
    return POSES | {"confidence_threshold": expected["vis_thr"], "oks_threshold": expected["oks_thr"]}


def annotations_of(name: str) -> pathlib.Path:
    """Its own annotations, or those of the evaluation of which it is a variant (coco_synth_gtbox: coco_synth)."""
    own = GOLDEN / EVAL / f"{name}_gt.json"
    return own if own.exists() else GOLDEN / EVAL / f"{name.rsplit('_', 1)[0]}_gt.json"


def truth_of(dataset: PoseDataset, document: Mapping[str, Any]) -> GroundTruth:
    """A COCO document as the arrays that metrics take."""
    return ground_truth_from_coco(document, dataset.keypoints)


def recorded_poses(rows: list[dict[str, Any]], dataset: PoseDataset) -> Poses:
    """Recorded network output (see the golden README) as columns."""

    def column(key: str, default: float, dtype: type) -> np.ndarray:
        return np.array([row.get(key, default) for row in rows], dtype)

    keypoints = np.array([row["keypoints"] for row in rows], np.float32)
    return Poses(
        image_id=column("image_id", 0, np.int64),
        instance_id=column("bbox_id", 0, np.int64),
        keypoints=keypoints.reshape(-1, dataset.num_keypoints, 3),
        score=column("box_score", 1.0, np.float32),
        area=column("area", 0.0, np.float32),
        category=column("category_id", 0, np.int64) if "category_id" in rows[0] else None,
    )


def random_document(
    seed: int, dataset: PoseDataset, images: int = 30, categories: tuple[int, ...] = (1,)
) -> tuple[dict[str, Any], Poses]:
    """Ground truth and detections with what goes wrong in practice.

    Images without people, without detections, with more than 20; crowds; people without keypoints; zero
    areas; two people at one place; equal scores within and across images; detections that equal the
    annotation.
    """
    rng = np.random.default_rng(seed)
    count = dataset.num_keypoints
    annotations, found = [], []
    for image in range(1, images + 1):
        people, copied = int(rng.integers(0, 7)), []
        for _ in range(people):
            size = rng.lognormal(4.3, 0.9, 2)
            box = np.concatenate([rng.uniform(0, 300, 2), size])
            points = np.round(box[:2] + rng.random((count, 2)) * size)
            visible = rng.integers(0, 3, count) * (rng.random() > 0.15)
            if copied and rng.random() < 0.2:  # two people at one place
                box, points, visible = copied[-1]
            copied.append((box, points, visible))
            labelled = np.concatenate([points * (visible > 0)[:, None], visible[:, None]], axis=1)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(rng.choice(categories)),
                    "bbox": box.tolist(),
                    "area": float(rng.choice([0.6, 0.6, 0.6, 0.0]) * size.prod()),
                    "iscrowd": int(rng.random() < 0.1),
                    "keypoints": labelled.ravel().tolist(),
                    "num_keypoints": int(np.count_nonzero(visible)),
                }
            )
        for _ in range(int(rng.choice([0, 3, 8, 26]))):
            points = copied[int(rng.integers(people))][1] if people else rng.uniform(0, 300, (count, 2))
            noise = rng.choice([0.0, 2.0, 8.0, 100.0])
            confidence = rng.uniform(0.05, 1, (count, 1))
            keypoints = np.concatenate([points + rng.normal(size=(count, 2)) * noise, confidence], axis=1)
            found.append((image, keypoints, round(rng.random(), 1), int(rng.choice(categories))))
    document = {
        "images": [{"id": i, "width": 640, "height": 480} for i in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": c, "name": str(c)} for c in categories],
    }
    image_id, keypoints, score, category = (np.array(column) for column in zip(*found, strict=True))
    order = rng.permutation(len(score))
    poses = Poses(image_id, np.arange(len(score)), keypoints, score, extent_area(keypoints), category)
    return document, poses.take(order)
