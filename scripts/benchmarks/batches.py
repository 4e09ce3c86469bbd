"""Made-up batches of either method, for timing and compiling."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from types import ModuleType

import numpy as np
from ml_collections import ConfigDict

from boir_jax import build as boir_build
from boir_jax import configuration as boir_configuration
from boir_jax.method import BoIRMethod
from boir_jax.weights.convert import METHOD as BOIR
from pose_common.training import configuration
from posebh_jax import build as posebh_build
from posebh_jax import configuration as posebh_configuration
from posebh_jax.method import PoseBHMethod


def build_of(config: ConfigDict) -> ModuleType:
    """What makes the parts of a configuration: the `build` module of its method."""
    return boir_build if config.method == BOIR else posebh_build


def parse_arguments(
    parser: argparse.ArgumentParser, default: str, arguments: Sequence[str] | None = None
) -> tuple[ConfigDict, argparse.Namespace]:
    """(configuration of --config, or of `default`, with the settings of --config.<leaf>; the parser's own options).

    Exits with a message where a setting cannot be. `arguments`: of the command line, by default this program's.
    """
    source, overrides, others = configuration.split_arguments(sys.argv[1:] if arguments is None else arguments)
    parser.add_argument("--config", default=default, help="as of the training programs; --config.<leaf> as well")
    options = parser.parse_args(others)
    try:
        method = configuration.read(source or default).method
        read = boir_configuration.read if method == BOIR else posebh_configuration.read
        return read(source or default, overrides), options
    except configuration.ConfigError as error:
        parser.error(str(error))


def random_batch(config: ConfigDict, method: PoseBHMethod | BoIRMethod) -> dict[str, np.ndarray]:
    """A global batch with every field that the method's training step reads."""
    if isinstance(method, PoseBHMethod):
        return random_crops(method, config.batch_size)
    return random_scenes(config.batch_size, config.input_size, config.instances, method.model.num_keypoints)


def random_crops(method: PoseBHMethod, size: int) -> dict[str, np.ndarray]:
    """People spread over the crop, datasets in turn."""
    rng = np.random.default_rng(0)
    width, height = method.input_size
    longest = method.keypoint_index.longest
    dataset = np.arange(size, dtype=np.int32) % len(method.datasets)
    counts = np.array(method.keypoint_index.counts)[dataset]
    return {
        "image": rng.integers(0, 256, (size, height, width, 3), dtype=np.uint8),
        "keypoints": (rng.random((size, longest, 2)) * (width, height)).astype(np.float32),
        "visible": (np.arange(longest) < counts[:, None]).astype(np.float32),
        "dataset": dataset,
        "valid": np.ones(size, bool),
    }


def random_scenes(images: int, side: int, people: int, keypoints: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Square images with 1 to `people` overlapping people; the last has nobody. One keypoint in five is unlabelled."""
    rng = np.random.default_rng(seed)
    cells = side // 4
    low, extent = (scale * rng.random((images, people, 2)) * cells for scale in (0.6, 0.2))
    extent += 0.2 * cells
    points = low[:, :, None] + rng.random((images, people, keypoints, 2)) * extent[:, :, None]
    labelled = rng.random((images, people, keypoints, 1)) < 0.8
    there = np.arange(people) < rng.integers(1, people + 1, (images, 1))
    there[-1] = False
    return {
        "image": rng.integers(0, 256, (images, side, side, 3), dtype=np.uint8),
        "keypoints": (np.concatenate([points, labelled], axis=-1) * there[..., None, None]).astype(np.float32),
        "boxes": np.concatenate([low, extent], axis=-1).astype(np.float32),
        "radius": np.full((images, people), 2, np.int32),
        "area": extent.prod(-1).astype(np.float32),
        "sample_cell": (low + extent / 2).astype(np.int32),
        "has_centre": there,
        "instance_valid": there,
        "ignore": np.zeros((images, cells, cells), bool),
    }
