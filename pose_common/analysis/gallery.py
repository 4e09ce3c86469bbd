"""Pictures of people with prediction and truth, few enough to keep: an even choice, the worst, and some of every kind.

A gallery is a document of plain values; its pictures are JPEG files in base64, so that one file holds everything.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np

from data_pipelines.records import Annotations
from data_pipelines.sides import sides_of
from data_pipelines.skeletons import KeypointSet
from data_pipelines.top_down.crops import decode
from pose_common.analysis.errors import INVERSION, JITTER, KINDS, MISS, SWAP, Errors, Pairs, judged
from pose_common.analysis.measure import person_oks
from pose_common.evaluation import draw
from pose_common.metrics.columns import GroundTruth, Poses

LONGEST_SIDE = 256
"""Of a picture, in pixels; smaller ones stay as they are."""
QUALITY = 80
MARGIN = 0.15
"""Of the shown part's longer side, on every side."""
NOBODY = -1


class Source(Protocol):
    """Where pictures come from: sources of both loaders are such."""

    records: Any
    annotations: Annotations


class Case(NamedTuple):
    """Rows of a person (ground truth), of the pose, and of the errors; `NOBODY` for what there is not."""

    person: int
    pose: int
    errors: int


def choose(truth: GroundTruth, poses: Poses, pairs: Pairs, errors: Errors, count: int) -> list[Case]:
    """Whom to show: at most `4 * count`, in the order of the annotations, poses of nobody last.

    `count` spread evenly over all people, the `count` least similar, of each kind of error `count // 4` people with the
    most of them, and the `count // 4` largest without a pose; then the `count // 4` surest poses that belong to nobody.
    """
    people = np.flatnonzero(judged(truth))
    row_of = dict(zip(pairs.annotation.tolist(), range(len(pairs.annotation)), strict=True))
    chosen = {int(people[i]) for i in np.unique(np.linspace(0, len(people) - 1, min(count, len(people))).astype(int))}
    chosen |= set(pairs.annotation[np.argsort(person_oks(errors), kind="stable")[:count]].tolist())
    few = count // 4
    for kind in (JITTER, INVERSION, SWAP, MISS):
        number = (errors.kind == kind).sum(1)
        most = np.argsort(-number, kind="stable")[:few]
        chosen |= set(pairs.annotation[most[number[most] > 0]].tolist())
    lost = np.setdiff1d(people, pairs.annotation)
    chosen |= set(lost[np.argsort(-truth.area[lost], kind="stable")[:few]].tolist())
    rows = ((person, row_of.get(person, NOBODY)) for person in sorted(chosen))
    cases = [Case(person, int(pairs.pose[row]) if row >= 0 else NOBODY, row) for person, row in rows]
    others = np.setdiff1d(np.arange(len(poses)), pairs.pose)
    surest = others[np.argsort(-poses.score[others], kind="stable")[:few]]
    return cases + [Case(NOBODY, int(pose), NOBODY) for pose in surest]


def make_gallery(
    source: Source,
    keypoint_set: KeypointSet,
    truth: GroundTruth,
    poses: Poses,
    pairs: Pairs,
    errors: Errors,
    count: int,
) -> dict[str, Any]:
    """The skeleton and the `items` that `choose` names; docs/reports.md has the fields.

    Args:
      source: opened records and their annotations, those of `truth`.
      truth, poses, pairs, errors: as in `measure.analyse`.
      count: see `choose`.
    """
    picture_row = {int(image): row for row, image in enumerate(source.annotations.image_id)}
    oks = person_oks(errors)
    items = []
    for case in choose(truth, poses, pairs, errors, count):
        image_id = truth.image_id[truth.image[case.person]] if case.person >= 0 else poses.image_id[case.pose]
        row = picture_row[int(image_id)]
        items.append(
            {
                "id": int(truth.id[case.person]) if case.person >= 0 else None,
                "image_id": int(image_id),
                "file": str(source.annotations.file_name[row]),
                "area": round(float(truth.area[case.person]), 1) if case.person >= 0 else None,
                "score": round(float(poses.score[case.pose]), 4) if case.pose >= 0 else None,
                "oks": round(float(oks[case.errors]), 4) if case.errors >= 0 else None,
                "kinds": errors.kind[case.errors].tolist() if case.errors >= 0 else None,
                "similarity": np.round(errors.own[case.errors], 2).tolist() if case.errors >= 0 else None,
                **_cut(_picture(source, row), truth, poses, case),
            }
        )
    return {
        "keypoints": list(keypoint_set.keypoints),
        "sides": list(sides_of(keypoint_set.keypoints)),
        "limbs": [list(limb) for limb in keypoint_set.limbs],
        "items": items,
    }


def worst_sheet(made: Mapping[str, Any], keypoint_set: KeypointSet, count: int) -> np.ndarray | None:
    """The `count` least similar poses of a gallery, truth and prediction side by side, as one RGB picture.

    None where nobody has a pose.
    """
    found = sorted((item for item in made["items"] if item["oks"] is not None), key=lambda item: item["oks"])
    tiles, captions = [], []
    for item in found[:count]:
        encoded = np.frombuffer(base64.b64decode(item["picture"]), np.uint8)
        picture = cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        tiles += [draw.draw_skeleton(picture, np.array(item[which]), keypoint_set) for which in ("truth", "pose")]
        numbers = ((item["kinds"].count(kind), KINDS[kind]) for kind in (MISS, SWAP, INVERSION, JITTER))
        captions += [f"OKS {item['oks']:.2f} {item['file']}", ", ".join(f"{n} {name}" for n, name in numbers if n)]
    return draw.contact_sheet(tiles, columns=8, captions=captions) if tiles else None


def _picture(source: Source, row: int) -> np.ndarray:
    """The whole picture, uint8 [height, width, 3], BGR."""
    columns = source.annotations
    sample = {
        "size": (int(columns.width[row]), int(columns.height[row])),
        "image_id": int(columns.image_id[row]),
        "origin": (columns.dataset, columns.split, str(columns.file_name[row])),
        "upright": columns.upright,
    }
    return decode(source.records.image(row), sample)


def _cut(picture: np.ndarray, truth: GroundTruth, poses: Poses, case: Case) -> dict[str, Any]:
    """The part of a picture with person and pose: `picture`, `width`, `height`, and both in its pixels."""
    person = truth.keypoints[case.person] if case.person >= 0 else None
    pose = poses.keypoints[case.pose] if case.pose >= 0 else None
    points = [] if person is None else [person[person[:, 2] > 0, :2], _corners(truth.box[case.person])]
    if pose is not None:
        near = pose[:, :2] if person is None else _within_reach(pose[:, :2], truth.box[case.person])
        points.append(near)
    low, high = _window(np.concatenate(points), picture.shape)
    part = picture[low[1] : high[1], low[0] : high[0]]
    factor = min(1.0, LONGEST_SIDE / max(part.shape[:2]))
    width, height = (max(1, round(side * factor)) for side in part.shape[1::-1])
    part = cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA)
    _, encoded = cv2.imencode(".jpg", part, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return {
        "picture": base64.b64encode(encoded.tobytes()).decode("ascii"),
        "width": width,
        "height": height,
        "truth": _moved(person, low, factor),
        "pose": _moved(pose, low, factor),
    }


def _corners(box: np.ndarray) -> np.ndarray:
    return np.array([box[:2], box[:2] + box[2:]])


def _within_reach(points: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Points that are not farther from the box than it is wide and high: the rest would shrink the person to a dot."""
    low, high = box[:2] - box[2:], box[:2] + 2 * box[2:]
    return points[((points >= low) & (points <= high)).all(1)]


def _window(points: np.ndarray, shape: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
    """First and end pixel (x, y) of the points' extent and its margin, inside the picture; at least one pixel."""
    height, width, *_ = shape
    low, high = points.min(0), points.max(0)
    margin = MARGIN * max(float((high - low).max()), 8.0)
    size = np.array([width, height])
    low = np.clip(np.floor(low - margin).astype(int), 0, size - 1)
    return low, np.clip(np.ceil(high + margin).astype(int), low + 1, size)


def _moved(keypoints: np.ndarray | None, low: np.ndarray, factor: float) -> list[list[float]] | None:
    """[K, 3] in the pixels of the part, whose top-left pixel's centre is (0, 0) as everywhere."""
    if keypoints is None:
        return None
    # Centres of pixels: what is resized are areas, whose corners lie half a pixel before them.
    moved = (keypoints[:, :2].astype(np.float64) - low + 0.5) * factor - 0.5
    rows = np.concatenate([np.round(moved, 1), np.round(keypoints[:, 2:], 3)], axis=1)
    return [row if row[2] > 0 else [0, 0, 0] for row in rows.tolist()]
