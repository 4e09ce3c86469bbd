"""Opened datasets without files: the reader's interface on top of dicts."""

from __future__ import annotations

import json
import pathlib

import cv2
import numpy as np

from data_pipelines import records
from data_pipelines.datasets import DATASETS, PoseDataset
from data_pipelines.top_down import instances
from data_pipelines.top_down.crops import TopDownSource

INPUT_SIZE = (48, 64)


def annotation_table(dataset: PoseDataset, images: list[dict], people: list[dict]) -> records.Annotations:
    """A table from COCO-style dicts, as a builder would write it."""
    row = {image["id"]: index for index, image in enumerate(images)}
    people = sorted(people, key=lambda person: row[person["image_id"]])
    shapes = records.instance_fields(dataset.num_keypoints)

    def column(name: str, values: list) -> np.ndarray:
        dtype, shape = shapes[name]
        return np.asarray(values, object if dtype is str else dtype).reshape(-1, *shape)

    return records.Annotations(
        protocol=dataset,
        split="train",
        categories=((1, "person"),),
        metadata={},
        image_id=np.array([image["id"] for image in images], np.int64),
        file_name=np.array([image["file_name"] for image in images], object),
        height=np.array([image["height"] for image in images], np.int32),
        width=np.array([image["width"] for image in images], np.int32),
        crowd_index=np.full(len(images), -1, np.float32),
        image_index=np.array([row[person["image_id"]] for person in people], np.int64),
        id=column("id", [person["id"] for person in people]),
        box=column("box", [person.get("bbox", [0, 0, 0, 0]) for person in people]),
        area=column("area", [person.get("area", -1) for person in people]),
        crowd=column("crowd", [bool(person.get("iscrowd", 0)) for person in people]),
        category=column("category", [1] * len(people)),
        keypoints=column("keypoints", [person["keypoints"] for person in people]),
        num_keypoints=column("num_keypoints", [person.get("num_keypoints", -1) for person in people]),
        centre=column("centre", [person.get("centre", [0, 0]) for person in people]),
        scale=column("scale", [person.get("scale", 0) for person in people]),
        head_size=column("head_size", [0] * len(people)),
        mask=column("mask", [""] * len(people)),
    )


class Records:
    """`records.image(row)` from memory; counts its reads."""

    def __init__(self, images: list[bytes]):
        self.images = images
        self.reads = 0

    def image(self, index: int) -> bytes:
        self.reads += 1
        return self.images[index]


def random_source(
    name: str = "coco",
    num_images: int = 5,
    people_per_image: int = 2,
    dataset_index: int = 0,
    seed: int = 0,
    input_size: tuple[int, int] = INPUT_SIZE,
) -> TopDownSource:
    """Coloured noise with random people; `instance_id` counts from 100 * seed."""
    rng = np.random.default_rng(seed)
    dataset = DATASETS[name]
    images, people, encoded = [], [], []
    for number in range(num_images):
        height, width = (int(side) for side in rng.integers(70, 110, 2))
        coarse = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        encoded.append(cv2.imencode(".jpg", cv2.resize(coarse, (width, height)))[1].tobytes())
        images.append({"id": 1000 * seed + number, "file_name": f"{number:06d}.jpg", "height": height, "width": width})
        for _ in range(people_per_image):
            x, y = rng.uniform(0, 20, 2)
            w, h = rng.uniform(30, 60, 2)
            points = rng.uniform((x, y), (x + w, y + h), (dataset.num_keypoints, 2))
            visible = rng.choice([0, 1, 2], (dataset.num_keypoints, 1), p=[0.2, 0.3, 0.5])
            people.append(
                {
                    "id": 100 * seed + len(people),
                    "image_id": images[-1]["id"],
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "keypoints": np.concatenate([points * (visible > 0), visible], axis=1),
                    "num_keypoints": int((visible > 0).sum()),
                }
            )
    annotations = annotation_table(dataset, images, people)
    chosen = instances.ground_truth(annotations, dataset, input_size)
    return TopDownSource(Records(encoded), annotations, chosen, dataset, dataset_index)


def sample_annotations(dataset: PoseDataset, path: pathlib.Path) -> records.Annotations:
    """The table of one of the COCO-style sample files (whole-body parts joined, categories ignored)."""
    document = json.loads(path.read_text())
    people = []
    for person in document["annotations"]:
        names = ("keypoints", "foot_kpts", "face_kpts", "lefthand_kpts", "righthand_kpts")
        parts = [person[name] for name in names if name in person]
        people.append(person | {"keypoints": sum(parts, [])})
    return annotation_table(dataset, document["images"], people)
