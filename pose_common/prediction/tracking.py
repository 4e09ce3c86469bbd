"""The same people from frame to frame: matching by OKS and box overlap, and smoothing of their keypoints.

A frame's poses are assigned to the known tracks so that the sum of similarities is largest (the Hungarian method);
pairs below `MatchSettings.similarity` stay apart and count for nothing. State is explicit: `step` takes and returns it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
from scipy.optimize import linear_sum_assignment

from pose_common.metrics.columns import box_area
from pose_common.prediction.result import Result, with_ids


@dataclasses.dataclass(frozen=True)
class MatchSettings:
    """When a pose continues a track.

    Attributes:
      similarity: smallest mean of OKS and box overlap (IoU).
      patience: frames that a track outlives without a pose.
      min_score: poses below it start no track.
    """

    similarity: float = 0.2
    patience: int = 15
    min_score: float = 0.05


@dataclasses.dataclass(frozen=True)
class Tracks:
    """After a frame, of T tracks: ids [T], last keypoints [T, K, 3], boxes [T, 4], frames unseen [T]."""

    ids: np.ndarray
    keypoints: np.ndarray
    boxes: np.ndarray
    unseen: np.ndarray
    next_id: int


def no_tracks(num_keypoints: int) -> Tracks:
    """Before the first frame."""
    empty = np.zeros(0, np.int64)
    return Tracks(empty, np.zeros((0, num_keypoints, 3), np.float32), np.zeros((0, 4), np.float32), empty, 1)


def step(tracks: Tracks, result: Result, settings: MatchSettings = MatchSettings()) -> tuple[Tracks, Result]:
    """(the tracks after this frame, the frame's poses with ids). Poses that start no track are left out."""
    similar = similarities(tracks, result, result.skeleton.oks_sigmas)
    similar = np.where(similar >= settings.similarity, similar, 0.0)  # what stays apart takes no pose from others
    rows, columns = linear_sum_assignment(-similar)
    good = similar[rows, columns] >= settings.similarity
    rows, columns = rows[good], columns[good]
    starts = np.setdiff1d(np.flatnonzero(result.scores >= settings.min_score), columns)
    ids = np.zeros(len(result), np.int64)
    ids[columns] = tracks.ids[rows]
    ids[starts] = tracks.next_id + np.arange(len(starts))
    kept = np.flatnonzero(ids)
    lost = np.setdiff1d(np.arange(len(tracks.ids)), rows)
    lost = lost[tracks.unseen[lost] < settings.patience]
    after = Tracks(
        np.concatenate([ids[kept], tracks.ids[lost]]),
        np.concatenate([result.keypoints[kept], tracks.keypoints[lost]]),
        np.concatenate([result.boxes[kept], tracks.boxes[lost]]),
        np.concatenate([np.zeros(len(kept), np.int64), tracks.unseen[lost] + 1]),
        tracks.next_id + len(starts),
    )
    taken = dataclasses.replace(
        result, keypoints=result.keypoints[kept], boxes=result.boxes[kept], scores=result.scores[kept]
    )
    return after, with_ids(taken, ids[kept])


def similarities(tracks: Tracks, result: Result, sigmas: np.ndarray) -> np.ndarray:
    """[T, N]: mean of OKS, measured by the track's box, and of the boxes' overlap."""
    area = np.maximum(box_area(tracks.boxes), 1.0)
    square = np.square(tracks.keypoints[:, None, :, :2] - result.keypoints[None, :, :, :2]).sum(-1)
    oks = np.exp(-square / (2 * area[:, None, None] * np.square(2 * sigmas))).mean(-1)
    return 0.5 * (oks + overlaps(tracks.boxes, result.boxes))


def overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """IoU [T, N] of boxes [T, 4] and [N, 4], x, y, width, height."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, :2] + first[:, None, 2:], second[None, :, :2] + second[None, :, 2:])
    common = np.prod(np.maximum(high - low, 0), axis=-1)
    return common / np.maximum(np.prod(first[:, None, 2:], -1) + np.prod(second[None, :, 2:], -1) - common, 1e-9)


def track(results: Iterable[Result], settings: MatchSettings = MatchSettings()) -> Iterator[Result]:
    """The frames' poses with ids, in order."""
    tracks: Tracks | None = None
    for result in results:
        tracks, found = step(tracks or no_tracks(result.keypoints.shape[1]), result, settings)
        yield found


def smooth(results: Iterable[Result], min_cutoff: float = 1.0, beta: float = 0.02) -> Iterator[Result]:
    """One-Euro filter (Casiez et al., CHI 2012) along each track: slow movements are smoothed, fast ones followed.

    Args:
      results: of `track`, frames of a video with their times.
      min_cutoff: in hertz, of a keypoint at rest; smaller is smoother.
      beta: how much the cutoff rises with speed, in hertz per pixel a second.
    """
    state: dict[int, tuple[float, np.ndarray, np.ndarray]] = {}
    for number, result in enumerate(results):
        time = number / 30 if result.picture.time is None else result.picture.time
        keypoints = result.keypoints.copy()
        for row, identity in enumerate([] if result.ids is None else result.ids.tolist()):
            points = keypoints[row, :, :2].astype(np.float64)
            velocity = np.zeros_like(points)
            if identity in state:
                before, last, speed = state[identity]
                step_time = max(time - before, 1e-3)
                velocity = _mix((points - last) / step_time, speed, 1.0, step_time)
                cutoff = min_cutoff + beta * np.linalg.norm(velocity, axis=-1, keepdims=True)
                points = _mix(points, last, cutoff, step_time)
            state[identity] = (time, points, velocity)
            keypoints[row, :, :2] = points
        yield dataclasses.replace(result, keypoints=keypoints)


def _mix(new: np.ndarray, old: np.ndarray, cutoff: float | np.ndarray, step_time: float) -> np.ndarray:
    """First-order low-pass filter of one step."""
    share = 1 / (1 + 1 / (2 * np.pi * cutoff * step_time))
    return share * new + (1 - share) * old
