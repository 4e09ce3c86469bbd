"""Annotated people as crops, from which a new skeleton is learned (`posebh_jax/skeleton.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from data_pipelines import geometry, sides
from data_pipelines.datasets import PoseDataset, check_skeleton
from data_pipelines.importers import boxes as extents
from data_pipelines.skeletons import DEFAULT_SIGMA, KeypointSet
from pose_common.prediction.pictures import Picture
from pose_common.prediction.sources import pictures_of
from posebh_jax.crops import crops_of


class Figures(NamedTuple):
    """Annotated people as crops.

    Attributes:
      image: uint8 [N, H, W, 3].
      keypoints: float32 [N, K, 2], pixels of the crop.
      visible: float32 [N, K], 0 where there is no label.
    """

    image: np.ndarray
    keypoints: np.ndarray
    visible: np.ndarray


def protocol_of(
    name: str, names: Sequence[str], mirror: Sequence[tuple[str, str]] | None, limbs: Sequence[tuple[str, str]]
) -> PoseDataset:
    """How a new skeleton is cropped and drawn, as a custom dataset is (`builders/custom.py`).

    Args:
      name: its name.
      names: of the K keypoints.
      mirror: pairs of names that a mirror exchanges; None takes those that differ in the side alone.
      limbs: pairs of names.

    Raises:
      ValueError: names that are not unique or no texts, or pairs of others; a name that no file can have.
    """
    if not isinstance(name, str) or not name or "/" in name:
        raise ValueError(f"name={name!r}: files of results are called by it; give one without a slash")
    if isinstance(names, str) or not all(isinstance(of_point, str) for of_point in names):
        raise ValueError(f"names={names!r:.80}: expected a list of texts, one a keypoint")
    names = tuple(names)
    for a, b in [*(mirror or ()), *limbs]:
        if a not in names or b not in names:
            raise ValueError(f"mirror and limbs: ({a!r}, {b!r}) should be two of the names {', '.join(names)}")

    def numbers(pairs: Sequence[tuple[str, str]]) -> tuple[tuple[int, int], ...]:
        return tuple((names.index(a), names.index(b)) for a, b in pairs)

    pairs = sides.mirror_pairs(names)[0] if mirror is None else numbers(mirror)
    skeleton = KeypointSet(name, names, pairs, numbers(limbs), sigmas=(DEFAULT_SIGMA,) * len(names))
    check_skeleton(skeleton, "names of the new skeleton")
    return PoseDataset(name, name, codec="udp", half_body=False, skeleton=skeleton)


def figures_of(
    images: Any, keypoints: Sequence, boxes: Sequence | None, protocol: PoseDataset, input_size: tuple[int, int]
) -> Figures:
    """Crops of annotated people, in an order that does not depend on that of the pictures.

    Args:
      images: see `pictures_of`.
      keypoints: of every picture [K, 3], [K, 2], or of several people [n, K, 3]; x, y in pixels of the picture, and
        visibility, 0 for points without a label. NaN is no label.
      boxes: of every picture [4] or [n, 4], x, y, width, height; None: around the keypoints, a fifth of the longer side
        wider all around; around a single point, a square of the median size of the others.
      protocol: of the skeleton.
      input_size: (width, height) of the crops.

    Raises:
      ValueError: no pictures, or keypoints or boxes that do not fit them.
    """
    rows, count = [], protocol.num_keypoints
    pictures = [] if isinstance(images, Sequence) and not len(images) else list(pictures_of(images))
    if not pictures:
        raise ValueError("images: there are none; give at least one picture and its keypoints")
    for what, given in (("keypoints", keypoints), ("boxes", boxes)):
        if given is not None and len(given) != len(pictures):
            raise ValueError(f"{what}: there are {len(given)} for {len(pictures)} pictures; give one entry a picture")
    labelled = [_labelled(keypoints[number], count, picture.name) for number, picture in enumerate(pictures)]
    around = _extents(labelled, pictures) if boxes is None else map(_given, boxes, labelled, pictures)
    for picture, people, found in zip(pictures, labelled, around, strict=True):
        seen = (people[..., 2] > 0).any(axis=1)
        if not (found[seen, 2:] > 0).all():
            raise ValueError(f"boxes of {picture.name}: one point has no extent in the picture; give boxes=")
        crops = crops_of(picture, found[seen], protocol, input_size)
        for person, row in zip(people[seen], crops, strict=True):
            points = geometry.transform(geometry.invert(row["inverse_warp"].astype(np.float64)), person[:, :2])
            rows.append((row["image"], points.astype(np.float32), (person[:, 2] > 0).astype(np.float32)))
    _require_each_visible(np.array([row[2] for row in rows]).reshape(-1, count), protocol)
    rows.sort(key=lambda row: (row[1].tobytes(), row[0].tobytes()))
    return Figures(*(np.stack(column) for column in zip(*rows, strict=True)))


def _labelled(keypoints: Any, count: int, name: str) -> np.ndarray:
    """float64 [n, K, 3] of what was given for one picture."""
    array = np.asarray(keypoints, np.float64)
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[1] != count or array.shape[2] not in (2, 3):
        raise ValueError(
            f"keypoints of {name}: expected [{count}, 3] or [people, {count}, 3] by the number of names, {count}, "
            f"not {list(array.shape)}"
        )
    visible = np.isfinite(array).all(-1) & (array[..., 2:] > 0).all(-1)  # of two columns, all
    return np.where(visible[..., None], np.concatenate([array[..., :2], np.full_like(array[..., :1], 2)], -1), 0.0)


def _extents(people: Sequence[np.ndarray], pictures: Sequence[Picture]) -> list[np.ndarray]:
    """float64 [n, 4] of every picture: boxes around the labelled points; of nobody's points, zeros."""
    entries = [{"keypoints": person.ravel(), "of": number} for number, some in enumerate(people) for person in some]
    sizes = [picture.image.shape[1::-1] for picture in pictures]
    filled, _ = extents.fill(entries, people[0].shape[1], lambda entry: sizes[entry["of"]])
    found = np.array([entry.get("bbox", (0.0, 0.0, 0.0, 0.0)) for entry in filled], np.float64).reshape(-1, 4)
    return np.split(found, np.cumsum([len(some) for some in people])[:-1])


def _given(boxes: Any, people: np.ndarray, picture: Picture) -> np.ndarray:
    """float64 [n, 4] of one picture's people. Raises ValueError for boxes that are none."""
    array = np.asarray(boxes, np.float64).reshape(-1, 4)
    if len(array) != len(people) or not np.isfinite(array).all() or not (array[:, 2:] > 0).all():
        raise ValueError(f"boxes of {picture.name}: give x, y, width, height > 0 for each of its {len(people)} people")
    return array


def _require_each_visible(visible: np.ndarray, protocol: PoseDataset) -> None:
    """Raises ValueError for a keypoint that nobody shows, nor its counterpart in the mirror."""
    shown = (visible > 0).any(axis=0)
    shown |= shown[protocol.keypoints.flip_index]
    if lost := [name for name, seen in zip(protocol.keypoints.keypoints, shown, strict=True) if not seen]:
        raise ValueError(
            f"keypoints: {', '.join(lost)} of {protocol.name!r} is visible in none of the {len(visible)} people; "
            "annotate it once or leave it out"
        )
