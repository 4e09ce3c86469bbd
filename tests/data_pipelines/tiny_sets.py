"""Tiny downloads, made on the spot: blank or noisy JPEGs and COCO-format annotation of them."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import cv2
import numpy as np

WIDTH, HEIGHT = 48, 32
PERSON = {"id": 1, "name": "person"}


@functools.cache
def jpeg(width: int = WIDTH, height: int = HEIGHT, seed: int | None = None) -> bytes:
    """A JPEG of that size: noise from the seed, or grey."""
    shape = (height, width, 3)
    image = (
        np.full(shape, 128, np.uint8)
        if seed is None
        else np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)
    )
    return cv2.imencode(".jpg", image)[1].tobytes()


def image_entry(number: int) -> dict[str, Any]:
    return {"id": number, "file_name": f"{number:012d}.jpg", "width": WIDTH, "height": HEIGHT}


def annotation(number: int, image: int, **changes: Any) -> dict[str, Any]:
    """A person with three labelled keypoints in a box inside the picture."""
    keypoints = [0] * 51
    for joint in range(3):
        keypoints[3 * joint : 3 * joint + 3] = [10.5 + joint, 12 + joint, 1 + joint % 2]
    return {
        "id": number,
        "image_id": image,
        "category_id": 1,
        "bbox": [4.25, 5, 20, 22.5],
        "area": 300.5,
        "iscrowd": 0,
        "num_keypoints": 3,
        "keypoints": keypoints,
    } | changes


def document(num_images: int = 4) -> dict[str, Any]:
    """Images 1..n; image i has annotations 10 i and 10 i + 1."""
    return {
        "images": [image_entry(number) for number in range(1, num_images + 1)],
        "annotations": [
            annotation(10 * image + place, image, **({"bbox": [5.25, 5, 20, 22.5]} if place else {}))
            for image in range(1, num_images + 1)
            for place in range(2)
        ],
        "categories": [PERSON],
    }


def write_pictures(folder: pathlib.Path, images: Iterable[Mapping[str, Any]], noisy: bool = True) -> None:
    """A JPEG for every image entry, of the entry's size."""
    for image in images:
        path = folder / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(image["width"], image["height"], image["id"] if noisy else None))


def write_coco(root: pathlib.Path, content: Mapping[str, Any], split: str = "val") -> pathlib.Path:
    """`content` and its pictures in COCO's public layout under `root`; the annotation file's path."""
    path = root / "coco" / "annotations" / f"person_keypoints_{split}2017.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    write_pictures(root / "coco" / f"{split}2017", content["images"])
    return path
