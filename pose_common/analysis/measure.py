"""The figures of an analysis: tables per keypoint, curves, costs of errors, and the worst people."""

from __future__ import annotations

from typing import Any

import numpy as np

from data_pipelines.datasets import PoseDataset
from pose_common.analysis import errors as kinds
from pose_common.analysis.errors import KINDS, Errors, Pairs
from pose_common.evaluation.tasks import in_percent
from pose_common.metrics import evaluate
from pose_common.metrics.columns import GroundTruth, Poses

WITHIN = (0.05, 0.1)
"""Shares of the longer side of the annotated box within which a keypoint counts as correct (PCK)."""
PCK_CURVE = np.arange(0, 31) / 100
OKS_CURVE = np.arange(0, 51) / 50
NUM_WORST = 50
FORMAT = 1


def analyse(
    dataset: PoseDataset, truth: GroundTruth, poses: Poses, *, by_instance: bool
) -> tuple[dict[str, Any], Pairs, Errors]:
    """Everything about the poses of an evaluation.

    Args:
      dataset: its skeleton, sigmas and metric.
      truth: the annotations; people without a labelled keypoint and crowds are not looked at.
      poses: those that the metric judges (`evaluate.final_poses`).
      by_instance: see `errors.pair`.

    Returns:
      A document of plain values (docs/reports.md has its fields; None: nothing to measure), whose pose is whose, and
      the errors.
    """
    scale = kinds.scale_of(dataset, truth)
    pairs = kinds.pair(dataset, truth, poses, by_instance=by_instance)
    errors = kinds.keypoint_errors(truth, poses, pairs, scale, dataset.keypoints.flip_index)
    people = np.flatnonzero(kinds.judged(truth))
    labelled = truth.keypoints[people, :, 2] > 0
    distance, relative = distances(truth, poses, pairs)
    # People without a pose have no row in `errors`; they count in every denominator.
    count = labelled.sum(0)
    table = keypoint_table(errors, distance, relative, count)
    pooled = Errors(*(field.reshape(-1, 1) for field in errors))
    total = keypoint_table(pooled, distance.reshape(-1, 1), relative.reshape(-1, 1), count.sum(keepdims=True))
    oks = person_oks(errors)
    score, costs = error_costs(dataset, truth, poses, pairs, errors)
    seen = errors.own >= 0
    document = {
        "format": FORMAT,
        "dataset": dataset.name,
        "keypoint_set": dataset.keypoint_set,
        "people": {"labelled": len(people), "found": len(oks), "without_truth": len(poses) - len(oks)},
        "metric": evaluate.protocol_of(dataset).headline[0],
        "score": score,
        "costs": costs,
        "keypoints": _rows(dataset.keypoints.keypoints, table),
        "total": _rows(("all",), total)[0],
        "curves": {
            "pck": {"at": PCK_CURVE.tolist(), "share": _shares_below(relative[seen], PCK_CURVE, int(count.sum()))},
            "oks": {"at": OKS_CURVE.tolist(), "share": _shares_above(oks, OKS_CURVE, len(people))},
        },
        "worst": _worst(truth, poses, pairs, errors, oks),
    }
    return document, pairs, errors


def distances(truth: GroundTruth, poses: Poses, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """[P, K] distances in pixels, and in parts of the longer side of the person's annotated box (infinite without)."""
    offset = poses.keypoints[pairs.pose, :, :2].astype(np.float64) - truth.keypoints[pairs.annotation, :, :2]
    distance = np.linalg.norm(offset, axis=-1)
    side = truth.box[pairs.annotation, 2:].max(1, initial=0)[:, None]
    return distance, np.where(side > 0, distance / np.maximum(side, np.spacing(1)), np.inf)


def person_oks(errors: Errors) -> np.ndarray:
    """[P] OKS of each person's pose: the mean similarity of the labelled keypoints."""
    seen = errors.own >= 0
    return np.where(seen, errors.own, 0).sum(1) / np.maximum(seen.sum(1), 1)


def keypoint_table(
    errors: Errors, distance: np.ndarray, relative: np.ndarray, count: np.ndarray
) -> dict[str, np.ndarray]:
    """Columns [K] of a table per keypoint.

    Args:
      errors, distance, relative: of the people with a pose [P, K].
      count: [K] labelled points of all people.

    Returns:
      `labelled`, `found` (labelled and the person has a pose), `median_error` (pixels) and `median_error_percent` (of
      the longer side of the box), both of those found; `pck@...` and `oks`, shares and mean of all labelled, where
      what was not found is wrong; numbers of the `KINDS`; `left_right_swaps`, of inversions where the partner is one as
      well. NaN where there is nothing to measure.
    """
    seen = errors.own >= 0
    safe = np.maximum(count, 1)

    def share(hits: np.ndarray) -> np.ndarray:
        return np.where(count > 0, hits / safe, np.nan)

    return {
        "labelled": count,
        "found": seen.sum(0),
        "median_error": _median(distance, seen),
        "median_error_percent": 100 * _median(relative, seen),
        **{f"pck@{limit:g}": share(((relative < limit) & seen).sum(0)) for limit in WITHIN},
        "oks": share(np.where(seen, errors.own, 0).sum(0)),
        **{name: (errors.kind == number).sum(0) for number, name in enumerate(KINDS)},
        "left_right_swaps": errors.exchanged.sum(0),
    }


def error_costs(
    dataset: PoseDataset, truth: GroundTruth, poses: Poses, pairs: Pairs, errors: Errors
) -> tuple[float | None, dict[str, float | None]]:
    """The headline metric as it is, and by how much it rises when the errors of one kind are corrected, the others not.

    The metric is AP, PCKh or PCK, as the dataset has it, in percent; the scores of the poses stay. None where there is
    nothing to evaluate.
    """
    scale = kinds.scale_of(dataset, truth)
    metric = evaluate.protocol_of(dataset).headline[0]

    def figure(judged: Poses) -> float | None:
        return in_percent(metric, evaluate.headline_figure(dataset, truth, judged))

    score = figure(poses)
    costs: dict[str, float | None] = {}
    for kind in (kinds.JITTER, kinds.INVERSION, kinds.SWAP, kinds.MISS):
        wrong = (errors.kind == kind).any()
        better = figure(kinds.corrected(truth, poses, pairs, scale, errors, kind)) if wrong else score
        costs[KINDS[kind]] = None if score is None or better is None else round(better - score, 4)
    return None if score is None else round(score, 4), costs


def _worst(truth: GroundTruth, poses: Poses, pairs: Pairs, errors: Errors, oks: np.ndarray) -> list[dict[str, Any]]:
    """The people with the least similar poses, worst first; equal ones in the order of the annotations."""
    rows = np.argsort(oks, kind="stable")[:NUM_WORST]
    numbers = [(errors.kind[rows] == kind).sum(1).tolist() for kind in range(len(KINDS))]
    columns = {
        "image_id": truth.image_id[truth.image[pairs.annotation[rows]]].tolist(),
        "id": truth.id[pairs.annotation[rows]].tolist(),
        "oks": _plain(oks[rows]),
        "score": _plain(poses.score[pairs.pose[rows]]),
        **dict(zip(KINDS, numbers, strict=True)),
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _rows(names: tuple[str, ...], table: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    columns = {"name": list(names), **{name: _plain(column) for name, column in table.items()}}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _plain(column: np.ndarray) -> list:
    """Python numbers, rounded to what can mean something; None for what is no finite number."""
    if np.issubdtype(column.dtype, np.integer):
        return column.tolist()
    return [round(value, 4) if np.isfinite(value) else None for value in column.astype(float).tolist()]


def _median(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """[K] medians of the masked rows of [P, K], NaN without any."""
    count = mask.sum(0)
    ordered = np.sort(np.where(mask, values, np.inf), axis=0)
    ordered = np.concatenate([ordered, np.full((1, values.shape[1]), np.nan)])  # a row to take where there is none
    low, high = np.where(count > 0, (count - 1) // 2, -1), np.where(count > 0, count // 2, -1)
    columns = np.arange(values.shape[1])
    return (ordered[low, columns] + ordered[high, columns]) / 2


def _shares_below(values: np.ndarray, limits: np.ndarray, total: int) -> list:
    below = np.searchsorted(np.sort(values), limits, side="left")
    return _plain(below / total if total else np.full(len(limits), np.nan))


def _shares_above(values: np.ndarray, limits: np.ndarray, total: int) -> list:
    above = len(values) - np.searchsorted(np.sort(values), limits, side="left")
    return _plain(above / total if total else np.full(len(limits), np.nan))
