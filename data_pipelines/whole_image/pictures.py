"""Whole images for single-stage methods: augmentation, the people's targets as coordinates, test-time
resizing.

A *sample* is a dict of one image: `encoded` bytes, `size` (width, height), `keypoints` float64 [P, K, 3] and
`boxes` float64 [P, 4] of its people in image pixels, `masks` (the COCO segmentations of what must not be
learned from), and the names that error messages need. Training pictures are squares of S pixels; coordinates
of their batches are in cells of the map at a quarter of that size, whose own affine map (not the picture's
divided by 4) carries them, as in the release.

Where people are learned is decided here, in float64, once: three points per person are easily confused.
* the centre map's peak: the truncated mean of the labelled keypoints (drawn on the device from `keypoints`);
* `sample_cell`: that cell moved by -1, 0 or 1 along each axis;
* the middle of the box, which the embedding loss uses.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from typing import Any, NamedTuple

import cv2
import numpy as np
import pycocotools.mask

from data_pipelines import geometry
from data_pipelines.datasets import PoseDataset
from data_pipelines.records import Annotations
from data_pipelines.top_down.crops import decode

Sample = dict[str, Any]

STRIDE = 4  # input pixels per map cell
MULTIPLE = 64  # test-time sides are multiples of it


@dataclasses.dataclass(frozen=True)
class Rules:
    """Which images and people a dataset trains on.

    Attributes:
      min_area: people whose box is smaller after augmentation, in input pixels, are not to be found: no
        centre and no instance. Their keypoints stay in the joint maps.
      labelled_images: train only on images with a labelled person, not on all with any annotation.
    """

    min_area: float = 32.0**2
    labelled_images: bool = True


def rules_of(dataset: PoseDataset) -> Rules:
    """The rules of a dataset's own protocol."""
    return Rules(min_area=dataset.min_person_area, labelled_images=dataset.images_need_labels)


class WholeImageSource:
    """Random access over the images of one dataset: `source[i]` is a sample.

    Args:
      records: opened records; `records.image(row)` are the bytes of an image file.
      annotations: the table that belongs to them.
      dataset: the protocol.
      images: rows of the images to use, all by default.
    """

    def __init__(
        self, records, annotations: Annotations, dataset: PoseDataset, images: np.ndarray | None = None
    ) -> None:
        self.records, self.annotations, self.dataset = records, annotations, dataset
        self.images = np.arange(annotations.num_images) if images is None else images
        if not len(self.images):
            raise ValueError(f"dataset {dataset.name!r}, split {annotations.split!r}: no usable image")
        self.people = people(annotations)
        self._first = np.searchsorted(annotations.image_index, np.arange(annotations.num_images + 1))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        sample = self.describe(index)
        return sample | {"encoded": self.records.image(sample["image_index"])}

    def describe(self, index: int) -> Sample:
        """The sample without its image."""
        columns, image = self.annotations, int(self.images[index])
        rows = np.arange(self._first[image], self._first[image + 1])
        chosen = rows[self.people[rows]]
        return {
            "size": (int(columns.width[image]), int(columns.height[image])),
            "keypoints": columns.keypoints[chosen].astype(np.float64),
            "boxes": columns.box[chosen].astype(np.float64),
            "masks": [mask for mask in columns.mask[rows] if mask],
            "image_index": image,
            "image_id": int(columns.image_id[image]),
            "origin": (self.dataset.name, columns.split, str(columns.file_name[image])),
            "upright": columns.upright,
        }


def people(annotations: Annotations) -> np.ndarray:
    """bool [N]: annotations that are one person with keypoints."""
    counted = np.where(annotations.num_keypoints < 0, annotations.labelled, annotations.num_keypoints > 0)
    return ~annotations.crowd & counted


def check_masks(annotations: Annotations) -> None:
    """Raises ValueError for a mask of another size than its picture; names the picture and both sizes."""
    for row, text in enumerate(annotations.mask):
        if not text.startswith("{"):
            continue  # polygons have no size of their own
        image = annotations.image_index[row]
        size = json.loads(text).get("size")
        expected = [int(annotations.height[image]), int(annotations.width[image])]
        if size != expected:
            raise ValueError(
                f"dataset {annotations.dataset!r}, split {annotations.split!r}, image "
                f"{annotations.file_name[image]!r}: the mask of annotation {annotations.id[row]} has the size {size}, "
                f"the picture [height, width] = {expected}; prepare the dataset again"
            )


def training_images(annotations: Annotations, rules: Rules, cap: int) -> np.ndarray:
    """Rows of the images to train on, int [n]. Logs how many people will not fit the batches' instance axis.

    Raises:
      ValueError: there is nobody to learn from.
    """
    has = annotations.image_index
    if rules.labelled_images:
        has = has[~annotations.crowd & annotations.labelled]
    images = np.unique(has)
    count = np.bincount(annotations.image_index[people(annotations)], minlength=annotations.num_images)
    count = count[images]
    if not count.any():
        raise ValueError(
            f"dataset {annotations.dataset!r}, split {annotations.split!r}: nobody in its {annotations.num_images} "
            "images has a keypoint to learn from"
        )
    if (count > cap).any():
        lost = int(np.maximum(count - cap, 0).sum())
        logging.warning(
            "%s (%s): %d of %d people, in %d images, exceed the %d instances of an image; the smallest are left out",
            annotations.dataset,
            annotations.split,
            lost,
            count.sum(),
            int((count > cap).sum()),
            cap,
        )
    return images


class RandomParameters(NamedTuple):
    """Random parameters of one image: factor of the short side, degrees, shift of the middle in image pixels, mirror,
    and per person, smaller ones first, the jitter of the sampling cell [P, 2].
    """

    scale: float
    rotation: float
    shift: tuple[int, int]
    mirror: bool
    jitter: np.ndarray


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random scale, rotation, translation and mirror about the middle of the image (`config.augmentation`).

    Attributes:
      scale: range of the visible square's side as a factor of the image's short side.
      rotation: largest angle in degrees, either way.
      translation: largest shift of the middle along each axis, as a part of the visible square's side.
      mirror: probability.
    """

    scale: tuple[float, float] = (0.75, 1.5)
    rotation: float = 30.0
    translation: float = 0.2
    mirror: float = 0.5

    def draw(self, sample: Sample, rng: np.random.Generator) -> RandomParameters:
        """RandomParameters for one image; a fixed number of them but for the people's."""
        low, high = self.scale
        scale = low + (high - low) * rng.random()
        rotation = self.rotation * (2 * rng.random() - 1)
        reach = int(self.translation * scale * min(sample["size"]))
        shift = rng.integers(-reach, max(reach, 1 - reach), 2)  # whole pixels, the upper end excluded
        mirror = rng.random() < self.mirror
        jitter = rng.integers(-1, 2, (len(sample["boxes"]), 2))
        return RandomParameters(scale, rotation, (int(shift[0]), int(shift[1])), mirror, jitter)


@dataclasses.dataclass(frozen=True)
class Train:
    """Sample -> element of a training batch (the whole-image batch contract).

    Attributes:
      dataset: the protocol.
      input_size: side S of the square pictures, a multiple of 4.
      rules: see `Rules`.
      instances: N, the instance axis; where there are more people the smallest are left out, their boxes ignored.
      augmentation: see `Augmentation`.
    """

    dataset: PoseDataset
    input_size: int
    rules: Rules
    instances: int = 30
    augmentation: Augmentation = Augmentation()

    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return self.apply(sample, decode(sample["encoded"], sample), self.augmentation.draw(sample, rng))

    def apply(self, sample: Sample, image: np.ndarray, draws: RandomParameters) -> dict[str, np.ndarray]:
        """The element for a decoded BGR picture and given draws."""
        size, cells = self.input_size, self.input_size // STRIDE
        side = min(sample["size"]) * draws.scale / geometry.SCALE_UNIT
        centre = np.array(sample["size"]) / 2 + draws.shift

        def warp(length: int) -> np.ndarray:
            return geometry.warp_matrix(centre, (side, side), draws.rotation, (length, length), udp=False)

        picture = cv2.warpAffine(image, warp(size), (size, size), flags=cv2.INTER_LINEAR)
        usable = cv2.warpAffine(usable_pixels(sample), warp(cells), (cells, cells), flags=cv2.INTER_LINEAR)
        ignore = usable <= 127
        keypoints = sample["keypoints"].copy()
        keypoints[..., :2] = geometry.transform(warp(cells), keypoints[..., :2])
        corners = geometry.transform(warp(cells), box_corners(sample["boxes"]))
        if draws.mirror:
            picture, ignore = picture[:, ::-1], ignore[:, ::-1]
            keypoints = keypoints[:, self.dataset.keypoints.flip_index]
            corners = corners[:, [1, 0, 3, 2]]
            # As released: the mirror axis of the map's cells, 3/4 of a cell from that of the picture's
            # pixels.
            keypoints[..., 0] = cells - 1 - keypoints[..., 0]
            corners[..., 0] = cells - 1 - corners[..., 0]
        area = sample["boxes"][:, 2] * sample["boxes"][:, 3] * (size / (side * geometry.SCALE_UNIT)) ** 2
        targets, left_out = self._targets(keypoints, corners, area, draws.jitter, cells)
        for left, top, right, bottom in left_out:  # no person, and no background either
            ignore[top : bottom + 1, left : right + 1] = True
        picture = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_BGR2RGB)
        return targets | {"image": picture, "ignore": ignore}

    def _targets(self, keypoints, corners, area, jitter, cells: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The coordinate fields, padded to `instances` rows: instances first, larger people first; and the first and
        last cells (left, top, right, bottom) [P, 4] of the boxes of people beyond.
        """
        labelled = keypoints[..., 2] > 0
        has_centre = labelled.any(axis=1) & (area >= self.rules.min_area)
        sums = np.where(labelled[..., None], keypoints[..., :2], 0).sum(axis=1)
        centre = np.trunc(sums / np.maximum(labelled.sum(axis=1), 1)[:, None]).astype(np.int64)
        ascending = np.argsort(area, kind="stable")
        valid, cell = sampling_cells(centre, has_centre, ascending, jitter, cells)

        descending = ascending[::-1]
        order = np.concatenate([descending[valid[descending]], descending[~valid[descending]]])
        order, beyond = order[: self.instances], order[self.instances :]
        clipped = np.clip(corners, 0, cells - 1)
        low, high = clipped.min(axis=1), clipped.max(axis=1)
        fields = {
            "keypoints": (keypoints, np.float32),
            "boxes": (np.concatenate([low, high - low], axis=1), np.float32),
            "radius": (gaussian_radius(clipped), np.int32),
            "area": (area, np.float32),
            "sample_cell": (cell, np.int32),
            "has_centre": (has_centre, np.bool_),
            "instance_valid": (valid, np.bool_),
        }
        padded = {}
        for name, (values, dtype) in fields.items():
            padded[name] = np.zeros((self.instances, *values.shape[1:]), dtype)
            padded[name][: len(order)] = values[order]
        return padded, np.concatenate([low, high], axis=1)[beyond].astype(np.int64)


def usable_pixels(sample: Sample) -> np.ndarray:
    """uint8 [height, width]: 255 where the picture may be learned from, 0 in crowds and unlabelled people."""
    width, height = sample["size"]
    blocked = np.zeros((height, width), bool)
    for text in sample["masks"]:
        blocked |= segmentation_mask(json.loads(text), width, height)
    return np.where(blocked, 0, 255).astype(np.uint8)


def segmentation_mask(segmentation: Any, width: int, height: int) -> np.ndarray:
    """bool [height, width] of a COCO segmentation: polygons or run lengths."""
    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], str):
        runs = [segmentation]
    else:
        runs = pycocotools.mask.frPyObjects(segmentation, height, width)
        runs = runs if isinstance(runs, list) else [runs]
    mask = np.zeros((height, width), bool)
    for run in runs:
        mask |= pycocotools.mask.decode(run).astype(bool)
    return mask


def box_corners(boxes: np.ndarray) -> np.ndarray:
    """Boxes [P, 4] -> [P, 4, 2]: top left, top right, bottom left, bottom right."""
    x, y, w, h = boxes.T
    return np.stack(
        [np.stack([x, y], -1), np.stack([x + w, y], -1), np.stack([x, y + h], -1), np.stack([x + w, y + h], -1)], axis=1
    )


def gaussian_radius(corners: np.ndarray, overlap: float = 0.7) -> np.ndarray:
    """CornerNet's radius for warped, clipped box corners [P, 4, 2], as released: int64 [P].

    Both of its roots of a quadratic miss the division by twice the leading coefficient, so radii are larger
    than the overlap asks for; published weights expect them.
    """

    def side(a: int, b: int) -> np.ndarray:
        return np.ceil(np.linalg.norm(corners[:, a] - corners[:, b], axis=1))

    height, width = side(2, 0), side(1, 0)
    total, product = height + width, height * width

    def root(a: float, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        return (b + np.sqrt(b**2 - 4 * a * c)) / 2

    radius = np.minimum.reduce(
        [
            root(1, total, product * (1 - overlap) / (1 + overlap)),
            root(4, 2 * total, (1 - overlap) * product),
            root(4 * overlap, -2 * overlap * total, (overlap - 1) * product),
        ]
    )
    return np.maximum(radius.astype(np.int64), 0)


def sampling_cells(
    centre: np.ndarray, has_centre: np.ndarray, order: np.ndarray, jitter: np.ndarray, cells: int
) -> tuple[np.ndarray, np.ndarray]:
    """Who becomes an instance, and the cell that stands for each.

    In `order`, everybody whose centre cell is on the map takes the cell moved by the next row of `jitter`
    (not moved if that leads off the map); who comes to a taken cell is no instance.

    Returns:
      bool [P] and int64 [P, 2].
    """
    valid, cell = np.zeros(len(centre), bool), np.zeros((len(centre), 2), np.int64)
    taken: set[tuple[int, int]] = set()
    moves = iter(jitter)
    for person in order:
        if not has_centre[person] or not _on_map(centre[person], cells):
            continue
        moved = centre[person] + next(moves)
        place = moved if _on_map(moved, cells) else centre[person]
        if (key := (int(place[0]), int(place[1]))) in taken:
            continue
        taken.add(key)
        valid[person], cell[person] = True, place
    return valid, cell


def _on_map(cell: np.ndarray, cells: int) -> bool:
    return bool((cell >= 0).all() and (cell < cells).all())


def inference_size(size: tuple[int, int], input_size: int) -> tuple[tuple[int, int], np.ndarray]:
    """(width, height) of the picture to run on and the map from image to it, float64 [2, 3].

    The short side becomes `input_size` (rounded up to a multiple of 64), the long one the next multiple of
    64; the content keeps its aspect and its integer middle, what lies outside the image is black.
    """
    width, height = size
    short = -(-input_size // MULTIPLE) * MULTIPLE
    long = int((short / min(size) * max(size) + MULTIPLE - 1) // MULTIPLE) * MULTIPLE
    resized = (short, long) if width < height else (long, short)
    visible = resized[0] / short * min(size) / geometry.SCALE_UNIT
    middle = (math.floor(width / 2 + 0.5), math.floor(height / 2 + 0.5))
    return resized, geometry.warp_matrix(middle, (visible, visible), 0.0, resized, udp=False)
