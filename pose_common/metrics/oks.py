"""COCO's keypoint metric: average precision and recall over object keypoint similarity (OKS).

The rules are those of pycocotools and, for parts, box sizes and CrowdPose, xtcocotools; the work is a few
array operations over all images instead of loops over images, thresholds and people.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from pose_common.metrics.columns import GroundTruth, Poses, box_area
from pose_common.metrics.nms import extent_area, oks_terms

OKS_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_POINTS = np.linspace(0.0, 1.0, 101)
# Size ranges in square pixels, both ends included.
AREA_RANGES = {"all": (0.0, 1e10), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
MAX_DETECTIONS = 20
# Numbers in one temporary array of the similarity.
_CHUNK = 1 << 18


@dataclasses.dataclass(frozen=True)
class Matches:
    """What became of every detection and annotation. A, T are size ranges and OKS thresholds.

    Attributes:
      image, category: int64 [D], indices into the ground truth's images and categories; detections are in the
        order of images, best first.
      pose: int64 [D], rows of the poses.
      score: [D].
      matched, ignored: bool [A, T, D].
      annotation: int64 [A, T, D], rows of the annotations that the detections are matched to, -1 where to none.
      truth_image, truth_category: int64 [N].
      truth_ignored: bool [A, N].
      num_categories: C.
    """

    image: np.ndarray
    category: np.ndarray
    pose: np.ndarray
    score: np.ndarray
    matched: np.ndarray
    ignored: np.ndarray
    annotation: np.ndarray
    truth_image: np.ndarray
    truth_category: np.ndarray
    truth_ignored: np.ndarray
    num_categories: int


def match(
    truth: GroundTruth,
    poses: Poses,
    sigmas: np.ndarray,
    *,
    part: slice = slice(None),
    size: str = "annotated",
    extent: slice = slice(None),
    ignore_by_count: bool = False,
    thresholds: Sequence[float] = OKS_THRESHOLDS,
) -> Matches:
    """Matches detections to annotations of their image and category, greedily, best score first.

    An annotation is ignored (a detection on it counts neither way) when it is a crowd, has no labelled
    keypoint of the part, or its size lies outside the range. Crowds may be matched repeatedly. A detection
    without a positive confidence in the part does not exist. At most `MAX_DETECTIONS` an image and category
    take part.

    Args:
      truth, poses: `poses.category` must be set.
      sigmas: [K], of all keypoints.
      part: the keypoints to score.
      size: 'annotated', or 'box' for that of the annotated box (`columns.box_area`).
      extent: the keypoints whose extent is an unmatched detection's size.
      ignore_by_count: take "no labelled keypoint" from the annotation's own count, where it has one.
      thresholds: [T], ascending.

    Raises:
      ValueError: a pose is of an image or category that the ground truth does not list, or not finite.
    """
    image, category = _locate(truth, poses)
    area = truth.area if size == "annotated" else box_area(truth.box)
    lower, upper = np.array(list(AREA_RANGES.values())).T[:, :, None]
    truth_ignored = truth.crowd | _unlabelled(truth, part, ignore_by_count) | (area < lower) | (area > upper)

    # Both sides in the order of (image, category), which are then contiguous groups.
    truth_category = category_index(truth, truth.category)
    categories = len(truth.category_id)
    truth_group = truth.image * categories + truth_category
    truth_order = np.argsort(truth_group, kind="stable")
    group = image * categories + category
    exists = np.flatnonzero((poses.keypoints[:, part, 2] > 0).any(1))
    order = exists[np.lexsort((-poses.score[exists].astype(np.float64), group[exists]))]
    order = order[_rank_in_run(group[order]) < MAX_DETECTIONS]
    group, first = group[order], np.searchsorted(truth_group[truth_order], group[order])
    rivals = np.searchsorted(truth_group[truth_order], group, side="right") - first

    detection = np.repeat(np.arange(len(order)), rivals)
    slot = _rank_in_run(detection)
    other = truth_order[first[detection] + slot]
    oks = similarity(truth, poses.keypoints, area, sigmas, part, order[detection], other)
    chosen, ignored = _assign(oks, detection, other, _rank_in_run(group), truth_ignored, truth.crowd, thresholds)
    matched = chosen >= 0

    extents = extent_area(poses.keypoints[order][:, extent])
    outside = (extents < lower) | (extents > upper)
    ignored |= ~matched & outside[:, None]
    found = image[order], category[order], order, poses.score[order].astype(np.float64)
    return Matches(*found, matched, ignored, chosen, truth.image, truth_category, truth_ignored, categories)


def similarity(
    truth: GroundTruth,
    keypoints: np.ndarray,
    area: np.ndarray,
    sigmas: np.ndarray,
    part: slice,
    detection: np.ndarray,
    annotation: np.ndarray,
) -> np.ndarray:
    """OKS of pairs of a detection and an annotation, float64 [P].

    Where an annotation has no labelled keypoint of the part, distances are to its box grown by its own width
    and height on every side, over all keypoints.

    Args:
      truth: annotations [N].
      keypoints: [D, K, 3] of the detections.
      area: [N] sizes of the annotations.
      sigmas: [K].
      part: the keypoints to score.
      detection, annotation: [P] rows of each pair.
    """
    found, target = keypoints[:, part, :2].astype(np.float64), truth.keypoints[:, part, :2]
    labelled = truth.keypoints[:, part, 2] > 0
    count = labelled.sum(1)
    low, high = truth.box[:, :2] - truth.box[:, 2:], truth.box[:, :2] + 2 * truth.box[:, 2:]
    result = np.empty(len(detection))
    step = max(1, _CHUNK // len(sigmas[part]))
    for start in range(0, len(detection), step):
        d, a = detection[start : start + step], annotation[start : start + step]
        offset = found[d] - target[a]
        unlabelled = np.flatnonzero(count[a] == 0)
        if len(unlabelled):
            point, box = found[d[unlabelled]], a[unlabelled]
            below, above = low[box, None] - point, point - high[box, None]
            offset[unlabelled] = np.maximum(below, 0) + np.maximum(above, 0)
        np.square(offset, out=offset)
        terms = oks_terms(offset[..., 0] + offset[..., 1], area[a], sigmas[part])
        counted = labelled[a] | (count[a] == 0)[:, None]
        result[start : start + step] = (terms * counted).sum(1) / counted.sum(1)
    return result


def average_precision(matches: Matches, images: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Interpolated precision and final recall.

    Args:
      matches: see `match`.
      images: bool [I], the images that count; None for all.

    Returns:
      precision [C, A, T, R] at the recall points and recall [C, A, T]; -1 where a category has no annotation
      to find.
    """
    ranges, thresholds = matches.matched.shape[:2]
    precision = np.full((matches.num_categories, ranges, thresholds, len(RECALL_POINTS)), -1.0)
    recall = np.full(precision.shape[:3], -1.0)
    order = np.argsort(-matches.score, kind="stable")
    if images is not None:
        order = order[images[matches.image[order]]]
    for category in range(matches.num_categories):
        counted = matches.truth_category == category
        if images is not None:
            counted &= images[matches.truth_image]
        wanted = np.count_nonzero(~matches.truth_ignored[:, counted], axis=1)
        rows = order[matches.category[order] == category]
        for a in np.flatnonzero(wanted):
            real = ~matches.ignored[a][:, rows]
            found = matches.matched[a][:, rows]
            hits = np.cumsum(found & real, axis=1, dtype=np.float64)
            total = np.cumsum(real, axis=1, dtype=np.float64)
            for t in range(thresholds):
                curve = np.zeros(len(rows) + 1)  # a recall that is never reached has precision 0
                curve[:-1] = hits[t] / (total[t] + np.spacing(1))
                curve = np.maximum.accumulate(curve[::-1])[::-1]
                reached = hits[t] / wanted[a]
                precision[category, a, t] = curve[np.searchsorted(reached, RECALL_POINTS)]
                recall[category, a, t] = reached[-1] if len(rows) else 0.0
    return precision, recall


def category_index(truth: GroundTruth, category: np.ndarray) -> np.ndarray:
    """Index of each category id [n] in the ground truth's list; a ValueError names one that is not there."""
    return _index(truth.category_id, category, "category")


def _locate(truth: GroundTruth, poses: Poses) -> tuple[np.ndarray, np.ndarray]:
    if poses.category is None:
        raise ValueError("poses need categories before they are matched; see evaluate.final_poses")
    if not (np.isfinite(poses.keypoints).all() and np.isfinite(poses.score).all()):
        raise ValueError("a pose has a keypoint or score that is not finite")
    return _index(truth.image_id, poses.image_id, "image"), category_index(truth, poses.category)


def _index(known: np.ndarray, wanted: np.ndarray, what: str) -> np.ndarray:
    index = np.searchsorted(known, wanted)
    missing = np.setdiff1d(wanted, known)
    if len(missing):
        raise ValueError(f"{what} {missing[0]} is not among the ground truth's")
    return index


def _unlabelled(truth: GroundTruth, part: slice, by_count: bool) -> np.ndarray:
    """bool [N]: annotations without a labelled keypoint of the part, or by their own count where they have one."""
    empty = ~(truth.keypoints[:, part, 2] > 0).any(1)
    return np.where(truth.num_keypoints >= 0, truth.num_keypoints == 0, empty) if by_count else empty


def _rank_in_run(sorted_keys: np.ndarray) -> np.ndarray:
    """Position of each element within its run of equal keys."""
    position = np.arange(len(sorted_keys))
    if not len(sorted_keys):
        return position
    starts = np.r_[True, sorted_keys[1:] != sorted_keys[:-1]]
    return position - np.maximum.accumulate(np.where(starts, position, 0))


def _assign(oks, detection, annotation, rank, truth_ignored, crowd, thresholds) -> tuple[np.ndarray, np.ndarray]:
    """Greedy assignment. Returns the annotation of each detection (-1: none), int64 [A, T, D], and ignored, bool.

    Detections of equal rank in their image never compete, so ranks are the only loop. A detection takes the
    free annotation of largest OKS, one that is not ignored before any that is, the later one on ties.

    Args:
      oks, detection, annotation: [P] pairs, those of a detection together and in file order.
      rank: [D] of each detection in its image and category.
      truth_ignored: bool [A, N].
      crowd: bool [N].
      thresholds: [T], ascending.
    """
    thresholds = np.minimum(thresholds, 1 - 1e-10)
    shape = (len(truth_ignored), len(thresholds))
    assigned, ignored = np.full((*shape, len(rank)), -1), np.zeros((*shape, len(rank)), bool)
    taken = np.zeros((*shape, truth_ignored.shape[1]), bool)
    close = np.flatnonzero(oks >= thresholds[0])
    oks, detection, annotation = oks[close], detection[close], annotation[close]
    for turn in np.unique(rank[detection]):
        pairs = np.flatnonzero(rank[detection] == turn)
        rows, first, count = np.unique(detection[pairs], return_index=True, return_counts=True)
        # Rivals of each detection [n, G], in reverse file order so that argmax resolves ties as wanted.
        slot = np.arange(count.max())
        real = slot < count[:, None]
        pair = pairs[np.where(real, (first + count - 1)[:, None] - slot, 0)]
        rival = annotation[pair]
        value = np.where(real, oks[pair], -1.0)
        free = (value >= thresholds[:, None, None]) & (~taken[:, :, rival] | crowd[rival])
        regular = free & ~truth_ignored[:, None, rival]
        eligible = np.where(regular.any(-1, keepdims=True), regular, free)
        best = np.where(eligible, value, -1.0).argmax(-1)
        hit = eligible.any(-1)
        winner = rival[np.arange(len(rows)), best]
        a, t, n = np.nonzero(hit)
        chosen = winner[a, t, n]
        taken[a, t, chosen] = True
        assigned[a, t, rows[n]] = chosen
        ignored[a, t, rows[n]] = truth_ignored[a, chosen]
    return assigned, ignored
