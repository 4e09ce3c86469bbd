"""Recorded augmentations of whole images, replayed."""

from __future__ import annotations

import json

import numpy as np
import pycocotools.mask

from data_pipelines.datasets import find_dataset
from data_pipelines.whole_image.pictures import Augmentation, RandomParameters, Train, rules_of
from tests.golden_files import golden, golden_config

RECORD = golden("boir/data_train.npz")
CASES = golden_config("boir/data_train.npz")
RELEASED = Augmentation(scale=(0.75, 1.5), rotation=30.0, translation=0.2, mirror=0.5)
"""The settings of the released COCO configurations."""


def recorded(case: str) -> dict[str, np.ndarray]:
    """The arrays of a case."""
    return {key.split(":", 1)[1]: value for key, value in RECORD.items() if key.startswith(f"{case}:")}


def replay(case: str, instances: int | None = None):
    """(element, recorded arrays of the case); by default with two padded rows."""
    config, record = CASES[case], recorded(case)
    instances = len(record["keypoints_src"]) + 2 if instances is None else instances
    image, blocked = record["image"], record["mask_src"] == 0
    run_lengths = pycocotools.mask.encode(np.asfortranarray(blocked.astype(np.uint8)))
    sample = {
        "size": image.shape[1::-1],
        "keypoints": record["keypoints_src"],
        "boxes": record["bbox_src_xywh"],
        "masks": [json.dumps({**run_lengths, "counts": run_lengths["counts"].decode()})],
    }
    low, high = config["min_scale"], config["max_scale"]
    draws = RandomParameters(
        scale=low + (high - low) * float(record["draw_u_scale"]),
        rotation=config["max_rotation"] * (2 * float(record["draw_u_rot"]) - 1),
        shift=tuple(record["draw_dxdy"].tolist()),
        mirror=bool(record["draw_u_flip"] < config["flip_prob"]),
        jitter=record["draw_center_choices"].reshape(-1, 2),
    )
    dataset = find_dataset(config["dataset"])
    assert list(dataset.keypoints.flip_index) == config["flip_index"], "recorded with another skeleton"
    assert config["input_size"] == 4 * config["output_size"], "maps are at stride 4"
    train = Train(dataset, config["input_size"], rules_of(dataset), instances, RELEASED)
    return train.apply(sample, image[..., ::-1], draws), record
