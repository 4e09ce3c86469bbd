"""How many people of a crowd a method loses, finds twice or mixes up, and how well vectors tell them apart."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.spatial import distance

from data_pipelines.datasets import PoseDataset
from pose_common.analysis import errors
from pose_common.metrics import evaluate, oks
from pose_common.metrics.columns import GroundTruth, Poses

LEVELS = ("easy", "medium", "hard")
"""Names of `evaluate.crowd_levels`."""
MIXED = 2
"""So many keypoints at two people's places each make a pose one of several people."""


@dataclasses.dataclass(frozen=True)
class Account:
    """What became of the people and the poses of every picture, int64 [I] each.

    Of a picture's poses as many count as it has people, best first: no threshold on scores, whose meaning differs
    between models, decides how many there are. Poses that are nobody's, at a crowd or unlabelled people, do not count.

    Attributes:
      people: with a labelled keypoint, no crowds.
      found: people that some pose belongs to: of all people, they are the most similar to it, at an OKS of
        `errors.SAME_PERSON` or more.
      duplicates: poses whose person has a better scored pose already.
      strays: poses that belong to nobody.
      merged: poses with `MIXED` or more keypoints at places of their own person and as many at those of others (kind
        `swap` of `pose_common/analysis/errors.py`).
    """

    people: np.ndarray
    found: np.ndarray
    duplicates: np.ndarray
    strays: np.ndarray
    merged: np.ndarray

    @property
    def missed(self) -> np.ndarray:
        """People that no pose belongs to."""
        return self.people - self.found

    def shares(self, pictures: np.ndarray | slice = slice(None)) -> dict[str, float]:
        """Of some pictures' people together, in percent: {"missed", "duplicates", "strays", "merged"}."""
        whole = self.people[pictures].sum()
        names = ("missed", "duplicates", "strays", "merged")
        return {name: 100 * float(getattr(self, name)[pictures].sum()) / max(int(whole), 1) for name in names}


def account(dataset: PoseDataset, truth: GroundTruth, poses: Poses) -> Account:
    """Counts people and poses; see `Account`.

    Args:
      dataset: its sigmas and sizes make the similarity.
      truth, poses: of the same pictures.
    """
    order = np.lexsort((-poses.score, poses.image_id))
    poses = poses.take(order)
    image = np.searchsorted(truth.image_id, poses.image_id)
    judged = errors.judged(truth)
    owner = _owners(dataset, truth, poses, image, np.flatnonzero(judged))
    elsewhere = _owners(dataset, truth, poses, image, np.flatnonzero(~judged))
    people = np.bincount(truth.image[judged], minlength=len(truth.image_id))

    counts = np.flatnonzero((owner >= 0) | (elsewhere < 0))
    rank = np.arange(len(counts)) - np.searchsorted(image[counts], image[counts])
    counts = counts[rank < people[image[counts]]]
    belongs = counts[owner[counts] >= 0]
    first = np.zeros(len(poses), bool)
    first[belongs[np.unique(owner[belongs], return_index=True)[1]]] = True

    def per_picture(rows: np.ndarray) -> np.ndarray:
        return np.bincount(image[rows], minlength=len(people))

    return Account(
        people,
        per_picture(np.flatnonzero(first)),
        per_picture(belongs[~first[belongs]]),
        per_picture(np.setdiff1d(counts, belongs)),
        per_picture(belongs[_mixed(dataset, truth, poses, errors.Pairs(owner[belongs], belongs))]),
    )


def _owners(
    dataset: PoseDataset, truth: GroundTruth, poses: Poses, image: np.ndarray, annotations: np.ndarray
) -> np.ndarray:
    """The most similar of the annotations in its picture, if it is as similar as its own, else -1: [D] of poses."""
    scale, owner = errors.scale_of(dataset, truth), np.full(len(poses), -1)
    for picture in np.unique(image):
        rows, rivals = np.flatnonzero(image == picture), annotations[truth.image[annotations] == picture]
        if not len(rivals):
            continue
        detection, annotation = np.repeat(rows, len(rivals)), np.tile(rivals, len(rows))
        pairs = poses.keypoints, scale.area, scale.width / 2, slice(None), detection, annotation
        values = oks.similarity(truth, *pairs).reshape(len(rows), len(rivals))
        owner[rows] = np.where(values.max(1) >= errors.SAME_PERSON, rivals[values.argmax(1)], -1)
    return owner


def _mixed(dataset: PoseDataset, truth: GroundTruth, poses: Poses, pairs: errors.Pairs) -> np.ndarray:
    """bool [P]: poses with keypoints of several people."""
    if not len(pairs.pose):
        return np.zeros(0, bool)
    flip_index = np.array(dataset.keypoints.flip_index)
    kind = errors.keypoint_errors(truth, poses, pairs, errors.scale_of(dataset, truth), flip_index).kind
    own = np.isin(kind, (errors.GOOD, errors.JITTER)).sum(1)
    return (own >= MIXED) & ((kind == errors.SWAP).sum(1) >= MIXED)


def figures(dataset: PoseDataset, truth: GroundTruth, poses: Poses) -> dict[str, float]:
    """`Account.shares` of all pictures, and of each level's: {"missed": ..., "missed, easy": ...}, in percent."""
    counted, level = account(dataset, truth, poses), evaluate.crowd_levels(truth)
    found = counted.shares()
    for number, name in enumerate(LEVELS):
        found |= {f"{key}, {name}": value for key, value in counted.shares(level == number).items()}
    return found


def silhouette(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Silhouettes of points in clusters, by cosine distance (Rousseeuw 1987).

    (b - a) / max(a, b) with a the mean distance to the others of the own cluster and b that to the nearest other
    cluster; 0 for a cluster of one.

    Args:
      vectors: [n, D]. labels: [n], two or more different ones.

    Returns:
      [n] in [-1, 1].
    """
    names, index, size = np.unique(labels, return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise ValueError("a silhouette needs points of two clusters or more")
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    to_cluster = distance.cdist(unit, unit, "sqeuclidean") / 2 @ np.eye(len(names))[index]
    rows, own_size = np.arange(len(labels)), size[index]
    own = to_cluster[rows, index] / np.maximum(own_size - 1, 1)
    others = to_cluster / size
    others[rows, index] = np.inf
    nearest = others.min(1)
    value = (nearest - own) / np.maximum(np.maximum(own, nearest), 1e-12)
    return np.where(own_size > 1, value, 0.0)
