"""Distances of keypoints to their annotation: PCK, AUC, EPE, NME, and MPII's PCKh.

Predictions and annotations are [N, K, 2] in pixels, `mask` [N, K] says which keypoints are annotated.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# MPII reports these groups, the mean of both sides; pelvis and thorax stay out of the overall figure.
_PCKH_GROUPS = {
    "Head": ("head_top",),
    "Shoulder": ("left_shoulder", "right_shoulder"),
    "Elbow": ("left_elbow", "right_elbow"),
    "Wrist": ("left_wrist", "right_wrist"),
    "Hip": ("left_hip", "right_hip"),
    "Knee": ("left_knee", "right_knee"),
    "Ankle": ("left_ankle", "right_ankle"),
}
_PCKH_EXCLUDED = ("pelvis", "thorax")
PCKH_FIGURES = (*_PCKH_GROUPS, "PCKh", "PCKh@0.1")
"""All that `pckh` may give."""


def pck(
    predicted: np.ndarray, truth: np.ndarray, mask: np.ndarray, threshold: float, reference: np.ndarray
) -> tuple[np.ndarray, float, int]:
    """Percentage of correct keypoints: the normalised distance is strictly below `threshold`.

    Args:
      predicted, truth, mask: see the module.
      threshold: on the normalised distance.
      reference: [N, 2] lengths that divide the distances along x and y. An instance with a zero is left out,
        a negative length never counts as far.

    Returns:
      Ratio per keypoint [K] (-1 where it is never annotated), the mean of the others (0 if there is none),
      their number.
    """
    distance, valid = _normalised_distance(predicted, truth, mask, reference)
    count = valid.sum(0)
    ratio = np.where(count > 0, ((distance < threshold) & valid).sum(0) / np.maximum(count, 1), -1.0)
    seen = ratio[count > 0]
    return ratio, float(seen.mean()) if len(seen) else 0.0, len(seen)


def auc(predicted: np.ndarray, truth: np.ndarray, mask: np.ndarray, limit: float, steps: int = 20) -> float:
    """Area under the PCK curve up to `limit` pixels, at `steps` thresholds from 0, the end excluded."""
    reference = np.full((len(predicted), 2), float(limit))
    return float(np.mean([pck(predicted, truth, mask, i / steps, reference)[1] for i in range(steps)]))


def epe(predicted: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> float:
    """End-point error: mean distance in pixels over annotated keypoints, 0 if there is none."""
    return nme(predicted, truth, mask, np.ones((len(predicted), 2)))


def nme(predicted: np.ndarray, truth: np.ndarray, mask: np.ndarray, reference: np.ndarray) -> float:
    """Mean distance of annotated keypoints over [N, 2] reference lengths (see `pck`), 0 if there is none."""
    distance, valid = _normalised_distance(predicted, truth, mask, reference)
    return float(distance[valid].mean()) if valid.any() else 0.0


def pckh(
    predicted: np.ndarray, truth: np.ndarray, mask: np.ndarray, head_size: np.ndarray, names: Sequence[str]
) -> dict[str, float]:
    """MPII's PCKh: percentages of keypoints within 0.5 (and 0.1) of the head's reference length, inclusive.

    Args:
      predicted, truth, mask: see the module.
      head_size: [N], 0.6 times the diagonal of the head box in pixels.
      names: [K] keypoint names; groups whose keypoints are not among them are left out.

    Returns:
      Percentage per joint group, `PCKh` and `PCKh@0.1`. The last two weight keypoints by how often they are
      annotated and leave out pelvis and thorax. -1 where nothing is annotated.
    """
    mask = np.asarray(mask, bool)
    distance = np.linalg.norm(predicted.astype(np.float64) - truth, axis=-1) / head_size[:, None]
    count = mask.sum(0)

    def percent(keypoints: list[int], threshold: float, weights: np.ndarray) -> float:
        chosen = [k for k in keypoints if count[k]]
        if not chosen:
            return -1.0
        correct = 100.0 * ((distance <= threshold) & mask)[:, chosen].sum(0) / count[chosen]
        return float(np.average(correct, weights=weights[chosen]))

    index = {name: i for i, name in enumerate(names)}
    groups = {group: [index[n] for n in members if n in index] for group, members in _PCKH_GROUPS.items()}
    alike = np.ones(len(names))
    result = {group: percent(members, 0.5, alike) for group, members in groups.items() if members}
    counted = [i for i, name in enumerate(names) if name not in _PCKH_EXCLUDED]
    return result | {"PCKh": percent(counted, 0.5, count), "PCKh@0.1": percent(counted, 0.1, count)}


def _normalised_distance(predicted, truth, mask, reference) -> tuple[np.ndarray, np.ndarray]:
    """Distances [N, K] over reference lengths, and which of them count."""
    reference = np.asarray(reference, np.float64)
    valid = np.asarray(mask, bool) & (reference != 0).all(1)[:, None]
    lengths = np.where(reference > 0, reference, 1e6)
    offset = (predicted.astype(np.float64) - truth) / lengths[:, None]
    return np.linalg.norm(offset, axis=-1), valid
