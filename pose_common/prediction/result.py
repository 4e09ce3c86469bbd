"""What was found in one picture."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipelines.paths import as_path, write_whole
from data_pipelines.skeletons import KeypointSet
from pose_common.evaluation import draw
from pose_common.prediction.pictures import Picture

FIELDS = ("image", "time", "dataset", "instance", "score", "keypoint", "x", "y", "confidence")
"""Columns of a table of keypoints; a still has no time."""


@dataclasses.dataclass(frozen=True, repr=False)
class Result:
    """The people (or animals, or hands) of one picture with one skeleton.

    Coordinates are pixels of the picture, (x, y) with the centre of the top-left pixel at (0, 0).

    Attributes:
      picture: where they were found.
      dataset: whose skeleton it is.
      skeleton: names, limbs and mirror pairs of the K keypoints.
      keypoints: float32 [N, K, 3], x, y and confidence.
      boxes: float32 [N, 4], x, y, width, height: those that were given, or found.
      scores: float32 [N], of whole poses.
      ids: int [N], the same for the same person from frame to frame; None where nothing was tracked.
      draw_threshold: keypoints with less confidence are not drawn, unless `draw` says otherwise.
    """

    picture: Picture
    dataset: str
    skeleton: KeypointSet
    keypoints: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    ids: np.ndarray | None = None
    draw_threshold: float = 0.3

    def __len__(self) -> int:
        return len(self.keypoints)

    def __repr__(self) -> str:
        return f"<Result: {self.name}, {len(self)} of {self.dataset}>"

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        return draw.encode(self.draw(), ".png")

    @property
    def name(self) -> str:
        """Of the picture."""
        return self.picture.name

    @property
    def names(self) -> tuple[str, ...]:
        """Of the keypoints."""
        return self.skeleton.keypoints

    def draw(self, threshold: float | None = None, boxes: bool = False) -> np.ndarray:
        """The picture, uint8 [H, W, 3] RGB, with everybody on it; keypoints below `threshold` are left out."""
        image = self.picture.image.copy()
        threshold = self.draw_threshold if threshold is None else threshold
        for number in range(len(self)):
            # Of a track always the same; one figure alone is drawn in the colours of its sides.
            identity = number if self.ids is None else int(self.ids[number])
            colour = draw.instance_colour(identity) if len(self) > 1 or self.ids is not None else None
            image = draw.draw_skeleton(image, self.keypoints[number], self.skeleton, threshold=threshold, colour=colour)
            if boxes or self.ids is not None:
                label = "" if self.ids is None else str(self.ids[number])
                image = draw.draw_box(image, self.boxes[number], colour=colour or (255, 220, 0), label=label)
        return image

    def to_coco(self, image_id: int = 0, category_id: int = 1) -> list[dict[str, Any]]:
        """Entries of a COCO results file; `image`, and of a track `track_id` and `time`, are added to them."""
        entries = []
        for number in range(len(self)):
            entry = {
                "image_id": image_id,
                "category_id": category_id,
                "image": self.name,
                "keypoints": [round(float(value), 3) for value in self.keypoints[number].ravel()],
                "bbox": [round(float(value), 2) for value in self.boxes[number]],
                "score": round(float(self.scores[number]), 5),
            }
            if self.ids is not None:
                entry["track_id"] = int(self.ids[number])
            if self.picture.time is not None:
                entry["time"] = round(self.picture.time, 6)
            entries.append(entry)
        return entries

    def to_rows(self) -> list[dict[str, Any]]:
        """One row a keypoint with the values of `FIELDS`; that of a still has no `time`."""
        return [
            {
                "image": self.name,
                **({} if self.picture.time is None else {"time": self.picture.time}),
                "dataset": self.dataset,
                "instance": number if self.ids is None else int(self.ids[number]),
                "score": float(self.scores[number]),
                "keypoint": name,
                "x": float(x),
                "y": float(y),
                "confidence": float(confidence),
            }
            for number in range(len(self))
            for name, (x, y, confidence) in zip(self.names, self.keypoints[number], strict=True)
        ]

    def to_table(self) -> Any:
        """`to_rows` as a pandas table of `FIELDS`; as a list where pandas is not installed."""
        try:
            import pandas
        except ImportError:
            return self.to_rows()
        return pandas.DataFrame(self.to_rows(), columns=FIELDS)

    def save(self, path: str | pathlib.Path, threshold: float | None = None) -> pathlib.Path:
        """Writes the drawn picture (.png, .jpg), or the numbers (.json: COCO entries); in `path`, ~ is one's home.

        Raises:
          ValueError: another suffix, or an address that is no path.
        """
        path = as_path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() == ".json":
            write_whole(path, json.dumps(self.to_coco(), indent=1))
        elif path.suffix.lower() in (".png", ".jpg", ".jpeg"):
            draw.save_image(path, self.draw(threshold))
        else:
            raise ValueError(f"{path}: expected a name that ends in .png, .jpg or .json")
        return path


def extent_boxes(keypoints: np.ndarray, share: float = 0.3, margin: float = 0.1) -> np.ndarray:
    """Boxes [N, 4] around keypoints [N, K, 3], wider by `margin` of a side each way.

    Keypoints with less than `share` of a pose's highest confidence do not count: they are where nothing was seen.
    """
    seen = keypoints[..., 2] >= share * keypoints[..., 2].max(axis=1, keepdims=True, initial=0.0)
    seen |= ~seen.any(axis=1, keepdims=True)  # nobody is left without a box
    points = keypoints[..., :2]
    low = np.where(seen[..., None], points, np.inf).min(axis=1, initial=np.inf)
    high = np.where(seen[..., None], points, -np.inf).max(axis=1, initial=-np.inf)
    side = np.maximum(high - low, 1.0)
    return np.concatenate([low - margin * side, (1 + 2 * margin) * side], axis=1).astype(np.float32)


def with_ids(result: Result, ids: Sequence[int]) -> Result:
    """The result with identities from frame to frame."""
    return dataclasses.replace(result, ids=np.asarray(ids, np.int64))
