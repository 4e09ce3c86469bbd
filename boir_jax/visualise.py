"""People told apart: a colour for each, the truth beside what was found."""

from __future__ import annotations

import pathlib

import cv2
import numpy as np

from data_pipelines.top_down.crops import decode
from data_pipelines.whole_image.pictures import WholeImageSource
from pose_common.evaluation import draw
from pose_common.metrics.columns import Poses

TILE = 320
"""Longer side of one picture of a contact sheet."""
SHOWN = 0.1
"""Score from which a found person is drawn."""


def draw_people(path: pathlib.Path, source: WholeImageSource, found: Poses, count: int) -> None:
    """Writes a contact sheet: pairs of tiles, the annotated people on the left, the found ones on the right.

    Args:
      path: of the picture file.
      source: the evaluated images.
      found: their people.
      count: number of images to draw, spread evenly over the split.
    """
    tiles = []
    for index in np.unique(np.linspace(0, len(source) - 1, count).astype(int)):
        sample = source[index]
        picture = decode(sample["encoded"], sample)[..., ::-1]
        rows = (found.image_id == sample["image_id"]) & (found.score >= SHOWN)
        tiles += [_tile(picture, people, source) for people in (sample["keypoints"], found.keypoints[rows])]
    path.parent.mkdir(parents=True, exist_ok=True)
    draw.save_image(path, draw.contact_sheet(tiles, columns=6))


def _tile(picture: np.ndarray, people: np.ndarray, source: WholeImageSource) -> np.ndarray:
    factor = TILE / max(picture.shape[:2])
    height, width = (max(1, round(side * factor)) for side in picture.shape[:2])
    tile = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    # From left to right, so that the same person has the same colour on both sides where nobody is missed.
    people = people[np.argsort(people[:, :, 0].mean(1), kind="stable")] * (factor, factor, 1)
    for number, keypoints in enumerate(people):
        colour = draw.instance_colour(number)
        tile = draw.draw_skeleton(tile, keypoints, source.dataset.keypoints, colour=colour)
    return tile
