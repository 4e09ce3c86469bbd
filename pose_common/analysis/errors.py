"""Kinds of error of single keypoints, and poses without the errors of one kind.

The definitions are those of Ronchi & Perona, "Benchmarking and Error Diagnosis in Multi-Instance Pose Estimation"
(ICCV 2017), section 3. The similarity of a predicted and an annotated point is a term of OKS,
exp(-d^2 / (2 s^2 k^2)), with the distance d, the size s^2 of the annotated person and k = 2 sigma of the keypoint.
P are people with a pose, K keypoints; coordinates are image pixels.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from data_pipelines.datasets import PoseDataset
from pose_common.metrics import evaluate
from pose_common.metrics.columns import GroundTruth, Poses, box_area

GOOD, JITTER, INVERSION, SWAP, MISS = range(5)
KINDS = ("good", "jitter", "inversion", "swap", "miss")
"""Near the own place; a little off; on the other side's place; on another person's; near none of these."""
UNLABELLED = -1
NEAR, EXACT = 0.5, 0.85
"""Similarities from which a prediction is at a place at all, and from which it is good there."""
_CHUNK = 1 << 20  # keypoints that are compared with neighbours at once
SAME_PERSON = 0.1
"""OKS from which a pose is taken for a person's, where nothing else says whose it is (as the paper's tool has it)."""


class Pairs(NamedTuple):
    """Whose pose is whose: rows of the ground truth and of the poses, int64 [P] each."""

    annotation: np.ndarray
    pose: np.ndarray


class Scale(NamedTuple):
    """What distances are measured by: size of every annotation [N] in square pixels, 2 sigma of every keypoint [K]."""

    area: np.ndarray
    width: np.ndarray


class Errors(NamedTuple):
    """Of every person with a pose.

    Attributes:
      kind: int8 [P, K], index of `KINDS`, `UNLABELLED` where there is no truth.
      own: [P, K] similarity to the own place, -1 where unlabelled.
      best: [P, K] the largest similarity to one of the places that are compared.
      exchanged: bool [P, K], both points of a mirror pair are inversions: left and right have changed places.
    """

    kind: np.ndarray
    own: np.ndarray
    best: np.ndarray
    exchanged: np.ndarray


def scale_of(dataset: PoseDataset, truth: GroundTruth) -> Scale:
    """The protocol's sizes and sigmas; see `KeypointSet.oks_sigmas` for a skeleton without any."""
    area = truth.area if dataset.area == "annotated" else box_area(truth.box)
    return Scale(area, 2 * dataset.keypoints.oks_sigmas)


def judged(truth: GroundTruth) -> np.ndarray:
    """bool [N]: people with a labelled keypoint, no crowds."""
    return (truth.keypoints[..., 2] > 0).any(1) & ~truth.crowd


def pair(dataset: PoseDataset, truth: GroundTruth, poses: Poses, *, by_instance: bool) -> Pairs:
    """Whose pose each person has.

    Args:
      by_instance: a pose's `instance_id` is the annotation's id, as where annotated boxes make the crops; otherwise the
        protocol's matching from an OKS of `SAME_PERSON` decides.
    """
    if by_instance:
        order = np.argsort(poses.instance_id, kind="stable")
        place = np.searchsorted(poses.instance_id[order], truth.id)
        found = judged(truth) & np.isin(truth.id, poses.instance_id)
        return Pairs(np.flatnonzero(found), order[place[found]])
    matches = evaluate.match_poses(dataset, truth, poses, thresholds=(SAME_PERSON,))
    annotation, everybody = matches.annotation[0, 0], 0  # of all sizes
    real = (annotation >= 0) & ~matches.ignored[everybody, 0]
    order = np.argsort(annotation[real], kind="stable")
    return Pairs(annotation[real][order], matches.pose[real][order])


def keypoint_errors(truth: GroundTruth, poses: Poses, pairs: Pairs, scale: Scale, flip_index: np.ndarray) -> Errors:
    """Kinds of error: a prediction belongs to the place that it is most similar to, if it is near any.

    Places are the keypoint's own, that of its mirror partner on the same person, and both of everybody else in the
    picture. `flip_index` [K] is the skeleton's.
    """
    found = poses.keypoints[pairs.pose, :, :2].astype(np.float64)
    partner = np.where(flip_index == np.arange(len(flip_index)), -1, flip_index)
    own = _similarity(found, truth, pairs.annotation, scale)
    mirrored = _similarity(found, truth, pairs.annotation, scale, partner)
    others = _others(found, truth, pairs.annotation, scale, partner)
    best = np.maximum(np.maximum(own, mirrored), others)
    at_home, at_partner = own >= best, mirrored >= best
    kind = np.select(
        [own < 0, best < NEAR, at_home & (own >= EXACT), at_home, at_partner],
        [UNLABELLED, MISS, GOOD, JITTER, INVERSION],
        SWAP,
    ).astype(np.int8)
    inverted = kind == INVERSION
    return Errors(kind, own, best, inverted & inverted[:, flip_index])


def corrected(truth: GroundTruth, poses: Poses, pairs: Pairs, scale: Scale, errors: Errors, kind: int) -> Poses:
    """The poses without errors of one kind.

    The points move towards the truth, on a straight line, to where a jitter is just good, a miss just near, and where
    an inversion or swap is as similar to its own place as it was to the wrong one.
    """
    similarity = {JITTER: EXACT, MISS: NEAR}.get(kind, errors.best)
    size = scale.area[pairs.annotation][:, None]
    distance = scale.width * np.sqrt(-2 * np.log(np.clip(similarity, 1e-12, 1)) * size)
    target = truth.keypoints[pairs.annotation, :, :2]
    keypoints = poses.keypoints.astype(np.float64)
    offset = keypoints[pairs.pose, :, :2] - target
    length = np.linalg.norm(offset, axis=-1)
    moved = target + offset * (distance / np.maximum(length, np.spacing(1)))[..., None]
    wrong = (errors.kind == kind)[..., None]
    keypoints[pairs.pose, :, :2] = np.where(wrong, moved, keypoints[pairs.pose, :, :2])
    return dataclasses.replace(poses, keypoints=keypoints)


def _similarity(
    found: np.ndarray, truth: GroundTruth, annotation: np.ndarray, scale: Scale, partner: np.ndarray | None = None
) -> np.ndarray:
    """[R, K] similarity of predictions [R, K, 2] and the truth of as many annotations; -1 where unlabelled.

    Args:
      partner: [K] compare with this keypoint instead, with none where it is -1.
    """
    places = truth.keypoints[annotation] if partner is None else truth.keypoints[annotation][:, partner]
    labelled = places[..., 2] > 0
    if partner is not None:
        labelled &= partner >= 0
    squared = np.square(found - places[..., :2]).sum(-1)
    size = scale.area[annotation][:, None] + np.spacing(1)
    return np.where(labelled, np.exp(-squared / (2 * size * np.square(scale.width))), -1.0)


def _others(
    found: np.ndarray, truth: GroundTruth, annotation: np.ndarray, scale: Scale, partner: np.ndarray
) -> np.ndarray:
    """[P, K] the largest similarity to a place of somebody else in the picture, -1 where there is none."""
    order = np.argsort(truth.image, kind="stable")
    images = truth.image[order]
    first, end = (np.searchsorted(images, truth.image[annotation], side) for side in ("left", "right"))
    best = np.full(found.shape[:2], -1.0)
    size = max(1, int((end - first).sum()) * found.shape[1])
    for part in np.array_split(np.arange(len(annotation)), -(-size // _CHUNK)):
        count = (end - first)[part]
        row = np.repeat(part, count)
        neighbour = order[np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count) + first[row]]
        apart = neighbour != annotation[row]
        row, neighbour = row[apart], neighbour[apart]
        if not len(row):
            continue
        own, mirrored = (_similarity(found[row], truth, neighbour, scale, which) for which in (None, partner))
        starts = np.flatnonzero(np.r_[True, np.diff(row) > 0])
        best[row[starts]] = np.maximum.reduceat(np.maximum(own, mirrored), starts, axis=0)
    return best
