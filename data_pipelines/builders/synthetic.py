"""The embedded datasets: the synthetic world, annotated like the public datasets they are named after.

`synthetic_<name>` has the skeleton and the protocol of `<name>`; `synthetic_crowd` shows overlapping people
with CrowdPose's, including distant crowds and people too hidden to label (both with masks).
No download is needed:

    python -m scripts.prepare_data synthetic_coco --data_dir=data

Truth in other skeletons: a picture depends on (kind of scene, seed, split, its number), not on the labels.
Two datasets of one kind (people: coco, aic, mpii, coco_wholebody; animals: ap10k, apt36k) prepared with the
same `seed` hold the same pictures, file names, image ids and instance ids. AIC's annotation of
synthetic_coco's validation pictures is synthetic_aic with synthetic_coco's seed, in a folder of its own:

    seed = default_seed("synthetic_coco")
    prepare_synthetic("truth", ["synthetic_aic"], num_train=0, num_val=40, seed=seed)

By default every dataset has a seed, hence pictures, of its own.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np

from data_pipelines import records
from data_pipelines.builders.base import PoseBuilder, read_summary
from data_pipelines.builders.report import RawDataError
from data_pipelines.synthetic_world import Instance, crowd_index, render_scene, skeleton_keypoints

DEFAULT_IMAGES = {"train": 1000, "val": 200}
JPEG_QUALITY = 92
_WORLD = "1"  # change it when pictures change, so that prepared ones are made again
_PERSON = ((1, "person"),)
_ANIMALS = ((1, "dog"), (2, "horse"), (3, "cow"))
_MAX_INSTANCES = 100  # of an image, for ids
# Some sets count labelled points among their first keypoints only (whole body: body; CrowdPose: limbs).
_COUNTED = {"coco_wholebody": 17, "crowdpose": 12}


class SyntheticBuilder(PoseBuilder):
    """Renders one split. Subclasses name the dataset and its kind of scene (`synthetic_world.KINDS`)."""

    splits = ("train", "val")
    kind: str

    def __init__(self, split: str, *, num_images: int | None = None, seed: int | None = None, **kwargs):
        """
        Args:
          split: 'train' or 'val'; they share no picture.
          num_images: how many to render, by default `DEFAULT_IMAGES[split]`. More images begin with the same.
          seed: of the pictures, by default `default_seed(dataset)`.
          **kwargs: those of `PoseBuilder`.
        """
        if split not in self.splits:
            raise RawDataError(f"unknown split {split!r} of {self.dataset}; known: {', '.join(self.splits)}")
        super().__init__(split, **kwargs)
        self.categories = _ANIMALS if self.kind == "animals" else _PERSON
        self.num_images: int = DEFAULT_IMAGES[split] if num_images is None else num_images
        self.seed = default_seed(self.dataset) if seed is None else seed

    def describe_source(self) -> dict[str, str]:
        return {
            "rendered": f"{self.num_images} scenes of {self.kind}",
            "seed": str(self.seed),
            "world": _WORLD,
            "opencv": cv2.__version__,
        }

    def images(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        for index in range(self.num_images):
            scene = render_scene(self.kind, (self.seed, self.splits.index(self.split)), index)
            instances = [
                self._instance(instance, index * _MAX_INSTANCES + number)
                for number, instance in enumerate(scene.instances, start=1)
                if instance.labelled or self.pose_dataset.metric != "mpii"  # MPII knows labelled people only
            ]
            height, width, _ = scene.image.shape
            file_name = f"{self.kind}_{self.seed}_{self.split}_{index:06d}.jpg"
            record = {
                "image_id": index + 1,
                "file_name": file_name,
                "height": height,
                "width": width,
                "instances": instances,
            }
            if self.pose_dataset.metric == "crowdpose":
                record["crowd_index"] = crowd_index(scene.instances, self.pose_dataset.keypoints)
            yield _jpeg(scene.image), record

    def _instance(self, instance: Instance, number: int) -> dict[str, Any]:
        keypoints = skeleton_keypoints(instance, self.pose_dataset.keypoints)
        entry = {
            "id": number,
            "box": instance.box,
            "crowd": instance.crowd,
            "keypoints": keypoints,
            "category": {name: number for number, name in self.categories}[instance.category],
            "segmentation": instance.mask,
        }
        if self.pose_dataset.area == "annotated":
            entry["area"] = instance.area
        if self.pose_dataset.metric == "mpii":
            entry |= {"centre": instance.centre, "scale": 1.25 * instance.scale, "head_size": instance.head_size}
        else:
            counted = _COUNTED.get(self.pose_dataset.keypoint_set)
            entry["num_keypoints"] = int((keypoints[:counted, 2] > 0).sum())
        return entry


class SyntheticCoco(SyntheticBuilder):
    dataset, kind = "synthetic_coco", "people"


class SyntheticAic(SyntheticBuilder):
    dataset, kind = "synthetic_aic", "people"


class SyntheticMpii(SyntheticBuilder):
    dataset, kind = "synthetic_mpii", "people"


class SyntheticAp10k(SyntheticBuilder):
    dataset, kind = "synthetic_ap10k", "animals"


class SyntheticApt36k(SyntheticBuilder):
    dataset, kind = "synthetic_apt36k", "animals"


class SyntheticCocoWholeBody(SyntheticBuilder):
    dataset, kind = "synthetic_coco_wholebody", "people"


class SyntheticCrowd(SyntheticBuilder):
    dataset, kind = "synthetic_crowd", "crowd"


SYNTHETIC: dict[str, type[SyntheticBuilder]] = {
    builder.dataset: builder
    for builder in (
        SyntheticCoco,
        SyntheticAic,
        SyntheticMpii,
        SyntheticAp10k,
        SyntheticApt36k,
        SyntheticCocoWholeBody,
        SyntheticCrowd,
    )
}


def default_seed(dataset: str) -> int:
    """The seed of a synthetic dataset's pictures when none is given."""
    return list(SYNTHETIC).index(dataset)


def prepare_synthetic(
    data_dir: str | pathlib.Path,
    datasets: Sequence[str],
    num_train: int,
    num_val: int,
    seed: int | None = None,
    progress: bool = False,
) -> None:
    """Makes sure that these synthetic datasets are prepared with this many pictures.

    Splits that are there already are kept; those made with other settings are made again. An interrupted call
    leaves no half-written split. When several processes share `data_dir`, one of them calls this.

    Args:
      datasets: names of synthetic datasets.
      num_train, num_val: pictures of each split; 0 leaves the split out.
      seed: of all pictures. None: each dataset's own.

    Raises:
      KeyError: a name that is no synthetic dataset.
      RawDataError: another process is preparing the same split.
    """
    if unknown := sorted(set(datasets) - set(SYNTHETIC)):
        raise KeyError(f"not synthetic: {', '.join(unknown)}; known: {', '.join(SYNTHETIC)}")
    for dataset in datasets:
        for split, num_images in (("train", num_train), ("val", num_val)):
            if num_images == 0:
                continue
            builder = SYNTHETIC[dataset](
                split, num_images=num_images, seed=seed, data_dir=data_dir, strict=True, progress=progress
            )
            directory = records.split_dir(dataset, split, data_dir)
            if directory.is_dir() and read_summary(directory)["source"] == builder.describe_source():
                continue
            builder.prepare(overwrite=True)


def _jpeg(image: np.ndarray) -> bytes:
    """JPEG bytes of an RGB picture."""
    ok, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not ok:
        raise RuntimeError(f"OpenCV could not encode a picture of shape {image.shape}")
    return data.tobytes()
