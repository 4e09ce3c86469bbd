"""Crops of boxes in a picture, for prediction and for learning a skeleton."""

from __future__ import annotations

import numpy as np

from data_pipelines import geometry
from data_pipelines.datasets import PoseDataset
from data_pipelines.top_down.crops import Crop
from pose_common.prediction.pictures import Picture


def crops_of(
    picture: Picture, boxes: np.ndarray, dataset: PoseDataset, input_size: tuple[int, int]
) -> list[dict[str, np.ndarray]]:
    """`image` uint8 [H, W, 3] and `inverse_warp` [2, 3] (crop -> picture pixels) of every box, as in evaluation."""
    crop = Crop(input_size, dataset.codec == "udp")
    bgr = np.ascontiguousarray(picture.image[..., ::-1])
    aspect = input_size[0] / input_size[1] if dataset.aspect_box else None
    nothing = np.zeros((0, 2), np.float32)
    rows = []
    for box in boxes:
        centre, scale = geometry.box_to_crop(box, aspect, dataset.padding)
        sample = {"centre": centre, "scale": scale, "rotation": 0.0, "mirrored": False, "keypoints": nothing}
        cropped = crop(sample | {"visible": nothing[:, 0], "size": picture.image.shape[1::-1]}, bgr)
        rows.append({"image": cropped["image"], "inverse_warp": np.float32(geometry.invert(cropped["matrix"]))})
    return rows
