"""The evaluation protocol of every dataset, from the network's keypoints to its table row.

`evaluate` is `final_poses` (one pose an instance, rescored, duplicates suppressed) and then `metrics_of`.
Call the two yourself to write the results in between, or to evaluate poses that were scored and suppressed
elsewhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from data_pipelines.datasets import PoseDataset
from pose_common.metrics import nms, oks, pck
from pose_common.metrics.columns import GroundTruth, Poses

# CrowdPose's levels by `crowdIndex`: easy below the first bound (texts say 0.1, the tools 0.2), hard from the
# second on.
CROWD_LEVELS = (0.2, 0.8)
# InterHand's protocol: PCK at this share of the longer side of the hand's box, AUC up to this many pixels.
HAND_PCK_THRESHOLD = 0.2
HAND_AUC_LIMIT = 30.0
NOT_FRACTIONS = frozenset((*pck.PCKH_FIGURES, "EPE", "unmeasured"))
"""Metrics in percent, pixels or people; all others are in [0, 1]."""


def evaluate(dataset: PoseDataset, truth: GroundTruth, predictions: Poses, **options: Any) -> dict[str, float]:
    """Metrics of top-down predictions by the dataset's protocol.

    Args:
      dataset: decides metric, sigmas and the objects' size.
      truth: the annotations.
      predictions: what the network found, `score` being the boxes' score. Repeated instances count once.
      **options: see `final_poses`.

    Returns:
      Metric name -> value; OKS metrics and PCK are in [0, 1], PCKh in percent, EPE in pixels (`NOT_FRACTIONS`); -1 =
      nothing to evaluate. PCKh leaves out people without a head size; `unmeasured` counts them where there are some.
    """
    return metrics_of(dataset, truth, final_poses(dataset, truth, predictions, **options))


def final_poses(
    dataset: PoseDataset,
    truth: GroundTruth,
    predictions: Poses,
    *,
    confidence_threshold: float,
    suppression: str,
    oks_threshold: float,
) -> Poses:
    """One pose an instance, rescored and without duplicates, with its category.

    Args:
      dataset: its metric says whether duplicates are suppressed; PCKh and hand metrics judge every instance.
      truth: the annotations; without any (a test set) it needs a single category.
      predictions: `score` being the boxes' score.
      confidence_threshold: confidences above it enter the pose's score.
      suppression: 'hard', 'soft' or 'none', at `oks_threshold`.

    Returns:
      Poses ordered by image, then best first where suppressed, else by instance.

    Raises:
      ValueError: an unknown metric or suppression, or, of several categories, an instance without an annotation to take
        its category from.
    """
    keys = np.stack([predictions.image_id, predictions.instance_id], axis=1)
    poses = predictions.take(np.unique(keys, axis=0, return_index=True)[1])
    poses = dataclasses.replace(
        poses,
        score=nms.rescore(poses.keypoints, poses.score, confidence_threshold),
        category=_categories(truth, poses.instance_id) if poses.category is None else poses.category,
    )
    if not protocol_of(dataset).suppress or suppression == "none":
        return poses
    sigmas = dataset.keypoints.oks_sigmas
    if suppression == "hard":
        return poses.take(nms.oks_nms(poses.keypoints, poses.area, poses.score, sigmas, oks_threshold, poses.image_id))
    if suppression != "soft":
        raise ValueError(f"suppression must be 'hard', 'soft' or 'none', not {suppression!r}")
    kept = []
    for rows in np.split(np.arange(len(poses)), np.flatnonzero(np.diff(poses.image_id)) + 1):
        image = poses.take(rows)
        kept.append(rows[nms.soft_oks_nms(image.keypoints, image.area, image.score, sigmas, oks_threshold)])
    return poses.take(np.concatenate(kept))


def metrics_of(dataset: PoseDataset, truth: GroundTruth, poses: Poses) -> dict[str, float]:
    """Metrics of finished poses; see `evaluate`."""
    return protocol_of(dataset).metrics(dataset, truth, poses)


def headline_figure(dataset: PoseDataset, truth: GroundTruth, poses: Poses) -> float:
    """The first metric of the dataset's row in a result table: AP (alone, without what stands beside), PCKh or PCK."""
    name = protocol_of(dataset).headline[0]
    return (oks_metrics if name == "AP" else metrics_of)(dataset, truth, poses)[name]


def oks_metrics(
    dataset: PoseDataset, truth: GroundTruth, poses: Poses, part: tuple[int, int] | None = None
) -> dict[str, float]:
    """COCO's ten numbers, of all keypoints or of the range `part` = (first, end)."""
    return _summary(*oks.average_precision(match_poses(dataset, truth, poses, part)))


def match_poses(
    dataset: PoseDataset,
    truth: GroundTruth,
    poses: Poses,
    part: tuple[int, int] | None = None,
    thresholds: Sequence[float] = oks.OKS_THRESHOLDS,
) -> oks.Matches:
    """Who is matched to whom by the dataset's protocol: `oks.match` with its sigmas, sizes and rules.

    Args:
      dataset: decides sigmas, the objects' size and who is ignored.
      truth: the annotations.
      poses: those of `final_poses`.
      part: (first, end) of the keypoints to compare; all by default.
      thresholds: see `oks.match`.

    Raises:
      ValueError: a skeleton without a sigma for each keypoint, an unknown metric, or poses that `oks.match` refuses.
    """
    sigmas = np.array(dataset.keypoints.sigmas)
    if len(sigmas) != dataset.num_keypoints:
        raise ValueError(f"OKS needs a sigma for each keypoint; {dataset.keypoint_set!r} has {len(sigmas)}")
    # The tools take a detection's extent from its `keypoints` list: in whole-body sets, the body alone.
    extent = slice(*dataset.keypoints.parts[0][1:]) if dataset.keypoints.parts else slice(None)
    return oks.match(
        truth,
        poses,
        sigmas,
        part=slice(*part) if part else slice(None),
        size=dataset.area,
        extent=extent,
        ignore_by_count=protocol_of(dataset).ignore_by_count,
        thresholds=thresholds,
    )


def _summary(precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    result: dict[str, float] = {}
    for name, table in (("AP", precision), ("AR", recall)):
        half, three_quarters = (int(np.argmin(abs(oks.OKS_THRESHOLDS - t))) for t in (0.5, 0.75))
        everything, medium, large = (table[:, a] for a in range(3))
        result |= {
            name: _mean_present(everything),
            f"{name} .5": _mean_present(everything[:, half]),
            f"{name} .75": _mean_present(everything[:, three_quarters]),
            f"{name} (M)": _mean_present(medium),
            f"{name} (L)": _mean_present(large),
        }
    return result


def _mean_present(table: np.ndarray) -> float:
    present = table[table > -1]
    return float(present.mean()) if present.size else -1.0


def _wholebody(dataset: PoseDataset, truth: GroundTruth, poses: Poses) -> dict[str, float]:
    """The ten numbers of all keypoints, and AP and AR of each part."""
    result = oks_metrics(dataset, truth, poses)
    for name, first, end in dataset.keypoints.parts:
        numbers = oks_metrics(dataset, truth, poses, (first, end))
        result |= {f"AP ({name})": numbers["AP"], f"AR ({name})": numbers["AR"]}
    return result


def _crowdpose(dataset: PoseDataset, truth: GroundTruth, poses: Poses) -> dict[str, float]:
    """AP and AR, and AP of each level's images as if they were the whole dataset, rounded to four digits."""
    matches = match_poses(dataset, truth, poses)
    numbers = _summary(*oks.average_precision(matches))
    result = {name: numbers[name] for name in ("AP", "AP .5", "AP .75", "AR", "AR .5", "AR .75")}
    levels = crowd_levels(truth)
    for level, letter in enumerate("EMH"):
        precision, _ = oks.average_precision(matches, levels == level)
        result[f"AP({letter})"] = round(float(precision[:, 0].mean()), 4)
    return result


def crowd_levels(truth: GroundTruth) -> np.ndarray:
    """int [I]: 0 easy, 1 medium, 2 hard by the crowd index of every image; -1 where it has none."""
    return np.where(np.isnan(truth.crowd_index), -1, np.digitize(truth.crowd_index, CROWD_LEVELS))


def _mpii(dataset: PoseDataset, truth: GroundTruth, poses: Poses) -> dict[str, float]:
    predicted, target, mask, rows = _judged(truth, poses)
    head_size = truth.head_size[rows]
    measured = head_size > 0
    result = pck.pckh(
        predicted[measured], target[measured], mask[measured], head_size[measured], dataset.keypoints.keypoints
    )
    return result if measured.all() else result | {"unmeasured": float(np.count_nonzero(~measured))}


def _hand(dataset: PoseDataset, truth: GroundTruth, poses: Poses) -> dict[str, float]:
    predicted, target, mask, rows = _judged(truth, poses)
    longer_side = np.repeat(truth.box[rows, 2:].max(1, keepdims=True), 2, axis=1)
    return {
        "PCK": pck.pck(predicted, target, mask, HAND_PCK_THRESHOLD, longer_side)[1],
        "AUC": pck.auc(predicted, target, mask, HAND_AUC_LIMIT),
        "EPE": pck.epe(predicted, target, mask),
    }


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a metric judges.

    Attributes:
      metrics: (dataset, truth, poses) -> {metric: value}.
      suppress: whether duplicates are removed before.
      ignore_by_count: whether "no labelled keypoint" is taken from the annotation's own count.
      headline: the metrics that stand in a result table.
      levels: AP by how crowded the images are, where the dataset says it.
    """

    metrics: Callable[[PoseDataset, GroundTruth, Poses], dict[str, float]]
    suppress: bool = True
    ignore_by_count: bool = False
    headline: tuple[str, ...] = ("AP", "AR")
    levels: tuple[str, ...] = ()


PROTOCOLS: dict[str, Protocol] = {
    "coco": Protocol(oks_metrics),
    "wholebody": Protocol(_wholebody),
    "crowdpose": Protocol(_crowdpose, ignore_by_count=True, levels=("AP(E)", "AP(M)", "AP(H)")),
    "mpii": Protocol(_mpii, suppress=False, headline=("PCKh", "PCKh@0.1")),
    "hand": Protocol(_hand, suppress=False, headline=("PCK", "AUC", "EPE")),
}
"""By `PoseDataset.metric`."""


def protocol_of(dataset: PoseDataset) -> Protocol:
    """The protocol of a dataset's metric; a ValueError lists the known ones where it names another."""
    if dataset.metric not in PROTOCOLS:
        raise ValueError(f"{dataset.name} asks for metric {dataset.metric!r}; known: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[dataset.metric]


def _categories(truth: GroundTruth, instance_id: np.ndarray) -> np.ndarray:
    """The only category, else that of each instance's annotation."""
    if len(truth.category_id) == 1:
        return np.full(len(instance_id), truth.category_id[0], np.int64)
    order = np.argsort(truth.id, kind="stable")
    row = np.searchsorted(truth.id[order], instance_id)
    known = np.isin(instance_id, truth.id)
    if not known.all():
        raise ValueError(f"instance {instance_id[np.argmin(known)]} has no annotation to take a category from")
    return truth.category[order[row]]


def _judged(truth: GroundTruth, poses: Poses) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Predicted and annotated points [n, K, 2], mask [n, K], rows [n]: labelled annotations, no crowds.

    Raises:
      ValueError: one of them has no prediction.
    """
    mask = truth.keypoints[..., 2] > 0
    rows = np.flatnonzero(mask.any(1) & ~truth.crowd)
    row_of = {instance: row for row, instance in enumerate(poses.instance_id.tolist())}
    missing = [i for i in truth.id[rows].tolist() if i not in row_of]
    if missing:
        raise ValueError(f"{len(missing)} annotated instances have no prediction, the first is {missing[0]}")
    found = np.array([row_of[i] for i in truth.id[rows].tolist()], np.int64)
    return poses.keypoints[found, :, :2], truth.keypoints[rows, :, :2], mask[rows], rows
