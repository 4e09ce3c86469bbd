"""Person crops: random access over the instances of a dataset, the warp, and packing into batch elements.

A *sample* is a dict that the transforms hand on (no pixels are touched before the one warp at the end):

    encoded    bytes, the image file           size       (width, height) of the image
    keypoints  float32 [K, 2] image pixels     visible    float32 [K], 0 or 1
    box        float64 [4] before padding      centre     float64 [2] of the crop, image pixels
    scale      float64 [2] of the crop         rotation   degrees
    mirrored   whether everything above is meant in the mirrored image

plus `dataset` (int) and the names that error messages need.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from typing import Any

import cv2
import numpy as np

from data_pipelines import geometry, orientation
from data_pipelines.datasets import PoseDataset
from data_pipelines.records import Annotations
from data_pipelines.top_down.augmentation import Augmentation, steps_of
from data_pipelines.top_down.instances import Instances

Sample = dict[str, Any]


class TopDownSource:
    """Random access over the instances of one dataset: `source[i]` is a sample.

    Args:
      records: opened records; `records.image(row)` are the bytes of an image file.
      annotations: the table that belongs to them.
      instances: the crops, from `instances.ground_truth` or `instances.detections`.
      dataset: the protocol.
      dataset_index: number of the dataset in the batch contract.
    """

    def __init__(
        self, records, annotations: Annotations, instances: Instances, dataset: PoseDataset, dataset_index: int = 0
    ) -> None:
        if not len(instances):
            raise ValueError(
                f"dataset {dataset.name!r}, split {annotations.split!r}: no usable instance; {instances.account}"
            )
        self.records, self.annotations, self.instances = records, annotations, instances
        self.dataset, self.dataset_index = dataset, dataset_index

    def __len__(self) -> int:
        return len(self.instances)

    def __getitem__(self, index: int) -> Sample:
        sample = self.describe(index)
        return sample | {"encoded": self.read(sample["image_index"])}

    @property
    def pictures(self) -> np.ndarray:
        """int [len]: row of the picture that each sample is of."""
        return self.instances.image_index

    def describe(self, index: int) -> Sample:
        """The sample without its image."""
        columns, instances = self.annotations, self.instances
        image, row = instances.image_index[index], instances.annotation[index]
        if row >= 0:
            keypoints = columns.keypoints[row, :, :2].astype(np.float32)
            visible = (columns.keypoints[row, :, 2] > 0).astype(np.float32)
        else:
            keypoints = np.zeros((self.dataset.num_keypoints, 2), np.float32)
            visible = np.zeros(self.dataset.num_keypoints, np.float32)
        return {
            "size": (int(columns.width[image]), int(columns.height[image])),
            "keypoints": keypoints,
            "visible": visible,
            "box": instances.box[index],
            "centre": instances.centre[index],
            "scale": instances.scale[index],
            "rotation": 0.0,
            "mirrored": False,
            "dataset": self.dataset_index,
            "image_index": int(image),
            "image_id": int(columns.image_id[image]),
            "instance_id": int(instances.instance_id[index]),
            "box_score": float(instances.box_score[index]),
            "origin": (self.dataset.name, columns.split, str(columns.file_name[image])),
            "upright": columns.upright,
        }

    def read(self, image_index: int) -> bytes:
        """The bytes of an image file."""
        return self.records.image(image_index)


_DECODED_AT = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


def reducible(encoded: bytes, sample: Sample) -> bool:
    """Whether `decode` can reduce a picture: a JPEG that is not turned (a turned one's cut blocks would come first)."""
    return encoded[:2] == b"\xff\xd8" and not (sample.get("upright") and orientation.tag_of(encoded) != 1)


def decode(encoded: bytes, sample: Sample, reduction: int = 1) -> np.ndarray:
    """The picture as stored (of an `upright` sample: turned by its EXIF orientation), uint8 [height, width, 3], BGR.

    Args:
      encoded: the image file.
      sample: whose picture it is.
      reduction: 1, or for `reducible` pictures 2, 4 or 8: a pixel stands for a block of that side, the last ones cut.

    Raises a ValueError that names the file if it cannot be decoded or has another size than annotated.
    """
    flags = _DECODED_AT[reduction] | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags) if encoded else None
    except cv2.error as error:  # more pixels than OpenCV, or memory, takes
        raise ValueError(f"{_origin(sample)}: cannot be decoded: {error}") from error
    if image is None:
        raise ValueError(f"{_origin(sample)}: cannot be decoded ({len(encoded)} bytes)")
    if sample.get("upright"):
        image = orientation.upright(image, orientation.tag_of(encoded))
    if image.shape[1::-1] != tuple(-(-side // reduction) for side in sample["size"]):
        raise ValueError(
            f"{_origin(sample)}: is {reduction * image.shape[1]}x{reduction * image.shape[0]}, "
            f"annotated as {sample['size'][0]}x{sample['size'][1]}"
        )
    return image


def _origin(sample: Sample) -> str:
    dataset, split, file_name = sample["origin"]
    return f"dataset {dataset!r}, split {split!r}, image {file_name!r} (id {sample['image_id']})"


@dataclasses.dataclass(frozen=True)
class Crop:
    """The one step that touches pixels: sample and decoded picture -> the crop and the keypoints in it."""

    size: tuple[int, int]
    udp: bool

    def reduction(self, sample: Sample) -> int:
        """The largest of 1, 2, 4, 8 by which the picture can be reduced and still has a pixel for each of the crop."""
        shrinks = min(
            side * geometry.SCALE_UNIT / pixels for side, pixels in zip(sample["scale"], self.size, strict=True)
        )
        return next((factor for factor in (8, 4, 2) if factor <= shrinks), 1)

    def __call__(self, sample: Sample, image: np.ndarray, reduction: int = 1) -> Sample:
        """Adds `image` uint8 [H, W, 3] RGB and `matrix` float64 [2, 3] (image -> crop); moves `keypoints`.

        `image` is the picture as decoded with this `reduction`. Bilinear, zeros outside the picture. Under the plain
        affine hidden keypoints keep their image coordinates.
        """
        matrix = geometry.warp_matrix(sample["centre"], sample["scale"], sample["rotation"], self.size, self.udp)
        pixels = geometry.mirrored(matrix, sample["size"][0]) if sample["mirrored"] else matrix
        if reduction > 1:
            pixels = geometry.from_reduced(pixels, reduction)
        # Mirroring while warping costs nothing; colours are put in order on the crop, the smaller picture.
        crop = cv2.warpAffine(image, pixels, self.size, flags=cv2.INTER_LINEAR)
        keypoints = geometry.transform(matrix, sample["keypoints"]).astype(np.float32)
        if not self.udp:
            hidden = sample["visible"] == 0
            keypoints[hidden] = sample["keypoints"][hidden]
        crop = cv2.cvtColor(crop, cv2.COLOR_BGR2RGB)
        return sample | {"image": crop, "matrix": matrix, "keypoints": keypoints}


class LastPictures(threading.local):
    """The last decoded picture of each dataset, of each thread; another process begins with none."""

    def __init__(self):
        self.of_dataset: dict[int, tuple[tuple, np.ndarray]] = {}

    def __reduce__(self):
        return type(self), ()

    def decode(self, encoded: bytes, sample: Sample, reduction: int) -> np.ndarray:
        """As `decode`; the picture of the dataset's last sample is kept."""
        wanted = encoded, sample["size"], reduction  # comparing files takes a thousandth of decoding one
        if self.of_dataset.get(sample["dataset"], (None,))[0] != wanted:
            self.of_dataset[sample["dataset"]] = wanted, decode(encoded, sample, reduction)
        return self.of_dataset[sample["dataset"]][1]


@dataclasses.dataclass(frozen=True)
class Train:
    """Sample -> element of a training batch, for a mixture: `datasets[sample["dataset"]]` says how.

    Keypoints are padded to the mixture's largest count K. All randomness comes from `rng`; without an augmentation
    there is none. People of one picture that follow each other share it.
    """

    datasets: tuple[PoseDataset, ...]
    input_size: tuple[int, int]
    augmentation: Augmentation | None
    pictures: LastPictures = dataclasses.field(default_factory=LastPictures, compare=False, repr=False)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, np.ndarray]:
        steps, crop = self._steps[sample["dataset"]]
        for step in steps:
            sample = step.apply(sample, step.draw(rng))
        encoded, reduction = sample["encoded"], 1
        if self.augmentation and self.augmentation.reduced_decoding and reducible(encoded, sample):
            reduction = crop.reduction(sample)
        sample = crop(sample, self.pictures.decode(encoded, sample, reduction), reduction)
        return {
            "image": sample["image"],
            "keypoints": pad_keypoints(sample["keypoints"], self.num_keypoints),
            "visible": pad_keypoints(sample["visible"], self.num_keypoints),
            "dataset": np.int32(sample["dataset"]),
            "valid": np.bool_(True),
        }

    @functools.cached_property
    def num_keypoints(self) -> int:
        return max(dataset.num_keypoints for dataset in self.datasets)

    @functools.cached_property
    def _steps(self) -> tuple:
        return tuple(
            (steps_of(self.augmentation, dataset, self.input_size), Crop(self.input_size, dataset.codec == "udp"))
            for dataset in self.datasets
        )


def pad_keypoints(array: np.ndarray, count: int) -> np.ndarray:
    """[K, ...] -> [count, ...], with zeros after the last keypoint."""
    padded = np.zeros((count, *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    return padded
