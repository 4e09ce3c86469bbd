"""Predictions beside the truth, drawn on the pictures."""

from __future__ import annotations

import pathlib

import cv2
import numpy as np

from data_pipelines.paths import as_path
from data_pipelines.top_down.crops import TopDownSource, decode
from pose_common.evaluation import draw
from pose_common.metrics.columns import Poses

TILE = (192, 256)
"""Width and height of one picture of a contact sheet."""


def draw_predictions(path: str | pathlib.Path, source: TopDownSource, predictions: Poses, count: int) -> None:
    """Writes a contact sheet: pairs of tiles, the truth on the left, the prediction on the right.

    Args:
      path: of the picture file.
      source: the evaluated crops.
      predictions: their predictions; matched by image and instance.
      count: number of instances to draw, spread evenly over the split.
    """
    row_of = {key: row for row, key in enumerate(zip(predictions.image_id, predictions.instance_id, strict=True))}
    tiles = []
    for index in np.unique(np.linspace(0, len(source) - 1, count).astype(int)):
        sample = source.describe(index)
        picture = decode(source.read(sample["image_index"]), sample)[..., ::-1]
        truth = np.concatenate([sample["keypoints"], sample["visible"][:, None]], axis=1)
        predicted = predictions.keypoints[row_of[sample["image_id"], sample["instance_id"]]]
        window = _window(sample["centre"], sample["scale"])
        tiles += [_tile(picture, keypoints, window, source) for keypoints in (truth, predicted)]
    sheet = draw.contact_sheet(tiles, columns=8)
    path = as_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draw.save_image(path, sheet)


def _window(centre: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The similarity [2, 3] that fits the padded box into a tile."""
    factor = float(np.min(np.array(TILE) / (200 * np.maximum(scale, 1e-3))))
    return np.column_stack([np.eye(2) * factor, np.array(TILE) / 2 - factor * np.asarray(centre)])


def _tile(picture: np.ndarray, keypoints: np.ndarray, window: np.ndarray, source: TopDownSource) -> np.ndarray:
    tile = cv2.warpAffine(picture, window, TILE, flags=cv2.INTER_LINEAR)
    moved = keypoints.copy()
    moved[:, :2] = keypoints[:, :2] @ window[:, :2].T + window[:, 2]
    return draw.draw_skeleton(tile, moved, source.dataset.keypoints)
