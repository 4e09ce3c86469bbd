"""A model with its weights, ready for pictures: `boir_jax.load(weights)("street.jpg")`. No boxes are needed.

Resizing, proposals and suppression are those of evaluation (`boir_jax/predictor.py`, `data_pipelines/whole_image`).
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from boir_jax import configuration, sources
from boir_jax.predictor import Predictor
from boir_jax.proposals import ProposalConfig
from boir_jax.weights.convert import model_of
from data_pipelines import geometry
from data_pipelines.skeletons import KeypointSet
from data_pipelines.whole_image.loader import LONGEST, resize
from pose_common.metrics import nms
from pose_common.prediction import command
from pose_common.prediction.batches import Job, ahead, in_batches, require_batch_size, require_number
from pose_common.prediction.pictures import Picture, PictureError
from pose_common.prediction.result import Result, extent_boxes
from pose_common.prediction.sources import is_single, pictures_of
from pose_common.training import restore
from pose_common.training.checks import ConfigError
from pose_common.weights.embedded import read_embedded
from pose_common.weights.hub_folders import local_path

EMBEDDED = pathlib.Path(__file__).parent / "embedded.safetensors"
THRESHOLD = 0.05
"""Smallest score of a pose that is shown; below lie proposals that a picture is better without."""
DRAW_THRESHOLD = 0.1
"""Smallest confidence (keypoint peak x centre score) of a keypoint that is drawn."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PoseModel:
    """A BoIR model with its weights, ready for pictures.

    Attributes:
      title: what the weights are.
      predictor: the compiled prediction.
      weights: on the device.
      skeleton: what it draws.
      dataset: name of it.
      input_size: short side of the resized picture.
      oks_nms: similarity beyond which the weaker of two poses is dropped.
    """

    title: str
    predictor: Predictor
    weights: Mapping[str, Any]
    skeleton: KeypointSet
    dataset: str
    input_size: int
    oks_nms: float

    def __repr__(self) -> str:
        return f"<PoseModel: {self.title}; draws {self.dataset}>"

    def __call__(
        self, source: Any, *, batch_size: int = 1, threshold: float = THRESHOLD, left_out: list | None = None
    ) -> Any:
        """Finds people and their poses in one picture or several, those of highest score first.

        Args:
          source: a path, an array, a folder, a video and more; see `pose_common.prediction.sources.pictures_of`.
          batch_size: pictures of one size that go through the network together.
          threshold: lowest score of a pose; evaluation keeps all (0).
          left_out: a list, to which the errors of pictures that cannot be read are added, if there are several; without
            it the first error is raised.

        Returns:
          A `Result` for one picture; for several an iterator of results, which reads pictures as it goes.

        Raises:
          ValueError: there is no picture, `batch_size` or `threshold` is no such number, or a picture's longer side is
            more than `LONGEST` times the shorter one.
        """
        require_batch_size(batch_size)
        require_number("threshold", threshold)
        told = None if left_out is None or is_single(source) else left_out.append
        results = self.results(fitting(pictures_of(source, told), told), batch_size, threshold)
        return next(iter(results)) if is_single(source) else results

    def results(self, pictures: Iterable[Picture], batch_size: int, threshold: float) -> Iterator[Result]:
        """The result of every picture (of those that are `fitting`), in order."""

        def jobs() -> Iterator[Job]:
            for picture in pictures:
                image, matrix = resize(np.ascontiguousarray(picture.image[..., ::-1]), self.input_size)
                rows = [{"image": image, "inverse_warp": np.float32(geometry.invert(matrix))}]
                yield Job(picture, image.shape, rows, picture.image.nbytes)

        def run(kind, rows):
            return self.predictor(self.weights, rows["image"], rows["inverse_warp"])

        for picture, (row,) in in_batches(ahead(jobs()), run, batch_size):
            yield self._result(picture, row, threshold)

    def _result(self, picture: Picture, row: Mapping[str, np.ndarray], threshold: float) -> Result:
        rank = np.flatnonzero(row["found"] & (row["score"] >= threshold))
        keypoints, scores = row["keypoints"][rank], row["score"][rank]
        sigmas = self.skeleton.oks_sigmas
        kept = nms.oks_nms(keypoints, nms.extent_area(keypoints), scores, sigmas, self.oks_nms)
        keypoints, scores = keypoints[kept], scores[kept]
        boxes = extent_boxes(keypoints)
        return Result(picture, self.dataset, self.skeleton, keypoints, boxes, scores, draw_threshold=DRAW_THRESHOLD)


def load(
    source: str | pathlib.Path | None = None,
    *,
    input_size: int | None = None,
    device: str | jax.Device | None = None,
    dtype: str = "float32",
) -> PoseModel:
    """Loads a model with its weights.

    Args:
      source: a run's working directory, one of its checkpoints, a folder of weights, or a `.pth` (PyTorch needed) or
        `.safetensors` file of the original repository. None loads the embedded demonstration model, which knows
        rendered figures only.
      input_size: short side of the resized picture, rounded up to a multiple of 64; that of the run or of the release
        by default, as all settings of prediction are.
      device: where to compute, such as "cpu", "gpu", "cuda:1"; JAX's first by default.
      dtype: of the network's products: "float32", as evaluation has it, or "bfloat16", for accelerators: a
        CPU convolves it no faster. Keypoints are cells of a map, here and there the next one instead.

    Raises:
      ValueError: there are no weights, or none of this method; a size of no pixels; another dtype.
    """
    arithmetic = command.find_dtype(dtype)
    if input_size is not None and input_size < 1:
        raise ValueError(f"input_size={input_size}: expected the short side in pixels, 1 or more")
    path = local_path(EMBEDDED if source is None else source)
    conversion = sources.read(path) if source is not None else read_embedded(EMBEDDED)
    run = restore.find_run(path, configuration.METHODS)
    try:
        config = configuration.of_run(run.config) if run else configuration.of_weights(conversion.manifest)
        skeleton = configuration.dataset(config).keypoints
    except ConfigError as error:
        raise ValueError(f"{source}: {error}") from error
    model = model_of(conversion.manifest, num_keypoints=skeleton.num_keypoints, dtype=arithmetic)
    smoothing, oks_nms = (table.get(config.dataset, table.default) for table in (config.smoothing, config.oks_nms))
    predictor = Predictor(model, skeleton, ProposalConfig(smoothing=smoothing, **config.proposals))
    needed = {key: conversion.weights[key] for key in ("params", "batch_stats")}
    weights = jax.device_put(needed, command.find_device(device))
    size = input_size or config.input_size
    return PoseModel(conversion.title, predictor, weights, skeleton, config.dataset, size, oks_nms)


def fitting(pictures: Iterable[Picture], left_out: Callable[[PictureError], None] | None) -> Iterator[Picture]:
    """The pictures whose long side is at most `LONGEST` short ones; `left_out` is given the errors of the others.

    Raises:
      PictureError: another picture, without `left_out`.
    """
    for picture in pictures:
        height, width = picture.image.shape[:2]
        if max(width, height) <= LONGEST * min(width, height):
            yield picture
            continue
        error = f"{picture.name}: {width}x{height}; the longer side may be {LONGEST} times the shorter one"
        if left_out is None:
            raise PictureError(error)
        left_out(PictureError(error))
