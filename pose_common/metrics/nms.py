"""Rescoring of poses and suppression of duplicates by object keypoint similarity (OKS).

The similarity of two *predictions* is symmetric: the mean of both areas is the size, all keypoints count.
"""

from __future__ import annotations

import numpy as np

# Padded poses that are compared at once: enough to amortise a numpy call, small enough for the cache.
_BLOCK = 4096


def rescore(keypoints: np.ndarray, box_score: np.ndarray, threshold: float = 0.2) -> np.ndarray:
    """[N, K, 3], [N] -> [N]: box score times the mean of the confidences above `threshold`, 0 without any."""
    confidence = keypoints[..., 2]
    counts = confidence > threshold
    total = np.where(counts, confidence, 0).sum(1, dtype=np.float64)
    return box_score * total / np.maximum(counts.sum(1), 1)


def extent_area(keypoints: np.ndarray) -> np.ndarray:
    """Area of the axis-aligned extent of each pose, all its keypoints counted; [N, K, 2 or more] -> [N]."""
    return np.prod(np.ptp(keypoints[..., :2].astype(np.float64), axis=1), axis=1)


def pose_similarity(
    keypoints: np.ndarray, area: np.ndarray, sigmas: np.ndarray, min_confidence: float | None = None
) -> np.ndarray:
    """OKS of every pair of poses.

    Args:
      keypoints: [n, K, 3].
      area: [n].
      sigmas: [K], COCO's (the variance is (2 sigma)^2 x area).
      min_confidence: count only keypoints above it in *both* poses; a pair without any has similarity 0.

    Returns:
      float64 [n, n].
    """
    points = keypoints[..., :2].astype(np.float64)
    terms = _terms(points[:, None], points[None], area[:, None], area[None], sigmas)
    if min_confidence is None:
        return terms.mean(-1)
    seen = keypoints[..., 2] > min_confidence
    both = seen[:, None] & seen[None]
    return (terms * both).sum(-1) / np.maximum(both.sum(-1), 1)


def oks_nms(
    keypoints: np.ndarray,
    area: np.ndarray,
    score: np.ndarray,
    sigmas: np.ndarray,
    threshold: float,
    image: np.ndarray | None = None,
) -> np.ndarray:
    """Greedy suppression: best first, a pose is removed when its OKS with a kept one exceeds `threshold`.

    All images are treated at once: in step i every image compares its i-th best pose, if that is still there,
    with the later ones.

    Args:
      keypoints: [N, K, 3].
      area, score: [N].
      sigmas: [K].
      threshold: largest OKS that two kept poses may have.
      image: [N] sortable image of each pose; None when all are of one image.

    Returns:
      int64 kept rows, ordered by image, then best first (equal scores in row order).
    """
    image = np.zeros(len(score), np.int64) if image is None else image
    order = np.lexsort((-np.asarray(score, np.float64), image))
    if not len(order):
        return order
    starts = np.flatnonzero(np.r_[True, np.diff(image[order]) != 0])
    counts = np.diff(np.r_[starts, len(order)])
    points, area = keypoints[order, :, :2].astype(np.float64), np.asarray(area, np.float64)[order]

    alive = np.ones(len(order), bool)
    # Images of about one count share a block, so that little is padded; a lone pose has no rival.
    crowded = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts > 1)]
    while len(crowded):
        most = counts[crowded[0]]
        block, crowded = np.split(crowded, [max(1, _BLOCK // most)])
        slots = np.arange(most)
        real = slots < counts[block, None]
        rows = np.where(real, starts[block, None] + slots, 0)
        alive[rows[real]] = _suppress(points[rows], area[rows], real, sigmas, threshold)[real]
    return order[alive]


def soft_oks_nms(
    keypoints: np.ndarray,
    area: np.ndarray,
    score: np.ndarray,
    sigmas: np.ndarray,
    threshold: float,
    max_poses: int = 20,
) -> np.ndarray:
    """Soft suppression in one image: the best pose multiplies the others' scores by exp(-OKS^2 / threshold).

    Nothing is dropped but what exceeds `max_poses`, and the decayed scores only choose the order.

    Returns:
      int64 kept rows [at most max_poses], in the order of choice.
    """
    similarity = pose_similarity(keypoints, np.asarray(area), sigmas)
    decayed = np.asarray(score, np.float64).copy()
    chosen: list[int] = []
    while len(chosen) < min(max_poses, len(decayed)):
        best = int(np.argmax(decayed))
        chosen.append(best)
        decayed *= np.exp(-np.square(similarity[best]) / threshold)
        decayed[best] = -np.inf
    return np.array(chosen, np.int64)


def oks_terms(squared: np.ndarray, area: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """exp(-d^2 / (2 variance)), whose mean over keypoints is OKS; takes the place of `squared`.

    Args:
      squared: float64 [..., K], squared distances of keypoints.
      area: [...] sizes.
      sigmas: [K].
    """
    squared *= -1 / (2 * np.square(2 * np.asarray(sigmas, np.float64)))
    squared /= (area + np.spacing(1))[..., None]
    return np.exp(squared, out=squared)


def _terms(points, others, area, other_area, sigmas) -> np.ndarray:
    """`oks_terms` of broadcastable poses [..., K, 2] of sizes [...]."""
    squared = np.square(points[..., 0] - others[..., 0])
    squared += np.square(points[..., 1] - others[..., 1])
    return oks_terms(squared, 0.5 * (area + other_area), sigmas)


def _suppress(points, area, real, sigmas, threshold) -> np.ndarray:
    """Kept poses, bool [I, n], of padded images [I, n, K, 2] whose poses are in order, best first."""
    alive = real.copy()
    for i in range(alive.shape[1] - 1):
        rows = np.flatnonzero(alive[:, i])
        later = slice(i + 1, None)
        best, rest = (points[rows, i, None], area[rows, i, None]), (points[rows, later], area[rows, later])
        terms = _terms(best[0], rest[0], best[1], rest[1], sigmas)
        alive[rows, later] &= terms.mean(-1) <= threshold
    return alive
