"""Inputs of the tests of error analysis."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import cv2
import numpy as np

from data_pipelines.datasets import PoseDataset, find_dataset
from pose_common.analysis import errors as kinds
from pose_common.metrics.columns import GroundTruth, Poses
from tests.pose_common.metrics.cases import random_document, truth_of

COCO = find_dataset("coco")


def crowded(seed: int, dataset: PoseDataset = COCO) -> tuple[GroundTruth, Poses]:
    """Random people and poses where points are moved to their mirror partner, to a neighbour, a little, or far away."""
    document, _ = random_document(seed, dataset, images=20)
    truth = truth_of(dataset, document)
    rng = np.random.default_rng(seed)
    people = np.flatnonzero(kinds.judged(truth))
    keypoints = truth.keypoints[people].copy()
    for row, person in enumerate(people):
        neighbour = rng.choice(np.flatnonzero(truth.image == truth.image[person]))
        side = np.sqrt(truth.area[person]) * 0.05
        for k in range(dataset.num_keypoints):
            flip = dataset.keypoints.flip_index[k]
            place = [
                keypoints[row, k],
                truth.keypoints[person, flip],
                truth.keypoints[neighbour, rng.choice([k, flip])],
            ]
            keypoints[row, k] = place[rng.choice(3, p=(0.6, 0.2, 0.2))]
            keypoints[row, k, :2] += rng.normal(size=2) * side * rng.choice([0.1, 1, 8])
    keypoints[..., 2] = rng.uniform(0.3, 1, keypoints.shape[:2])
    one = np.ones(len(people), np.int64)
    image = truth.image_id[truth.image[people]]
    poses = Poses(image, truth.id[people], keypoints, rng.random(len(people)), one.astype(float), one)
    kept = rng.permutation(len(people))[: len(people) - 2]  # two people have no pose
    return truth, poses.take(kept)


WIDTH, HEIGHT = 1000, 800


class Gradient:
    """A source whose every picture says in its colours where a pixel is: blue grows with x, green with y."""

    def __init__(self, truth: GroundTruth):
        count = len(truth.image_id)
        self.annotations = SimpleNamespace(
            image_id=truth.image_id,
            file_name=np.array([f"{number:03d}.jpg" for number in truth.image_id], object),
            width=np.full(count, WIDTH),
            height=np.full(count, HEIGHT),
            dataset="coco",
            split="val",
            upright=False,
        )
        x, y = np.meshgrid(np.linspace(0, 250, WIDTH), np.linspace(0, 250, HEIGHT))
        picture = np.stack([x, y, np.full_like(x, 128)], axis=-1).round().astype(np.uint8)
        encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
        self.records = SimpleNamespace(image=lambda row: encoded)


def inside(truth: GroundTruth) -> GroundTruth:
    """Points beyond the picture are moved to its edge."""
    keypoints = truth.keypoints.copy()
    keypoints[..., :2] = np.clip(keypoints[..., :2], 0, (WIDTH - 1, HEIGHT - 1))
    return dataclasses.replace(truth, keypoints=keypoints)
