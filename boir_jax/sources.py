"""The weights that a path means, of a run, a folder or a file, and what they tell of themselves."""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from boir_jax import build, configuration
from boir_jax.method import weight_shapes
from boir_jax.model import variant_name
from boir_jax.predictor import TRAINING_HEADS, without_training_heads
from boir_jax.weights.convert import describe_weights, manifest_of, model_of, read_weights
from boir_jax.weights.transfer import start_from
from data_pipelines.datasets import PoseDataset
from pose_common.training import restore
from pose_common.training.checks import ConfigError
from pose_common.training.configuration import Override, evaluated
from pose_common.training.state import TrainState
from pose_common.weights.hub_folders import local_path
from pose_common.weights.keys import Conversion, own_weights

DEFAULT = "boir"


def read_configuration(source: str, overrides: Sequence[Override] = (), workdir: str = "") -> ConfigDict:
    """The configuration of the command line. Where it names none, what is evaluated, or the run in `workdir`, says it.

    Raises:
      ValueError: a setting that cannot be, or a checkpoint that is none.
    """
    if source:
        return configuration.read(source, overrides)
    checkpoint = evaluated(overrides)
    path = local_path(checkpoint) if checkpoint else workdir
    run = (restore.find_run if checkpoint else restore.run_of)(path, configuration.METHODS)
    if run is not None:
        # The data may be elsewhere by now, with the definition of a custom dataset.
        saved = run.config | dict(override for override in overrides if override[0] == "data_dir")
        return configuration.with_overrides(configuration.of_run(saved), overrides)
    if not checkpoint:
        return configuration.read(DEFAULT, overrides)
    manifest = describe_weights(path, dict(overrides).get("dataset"))
    return configuration.with_overrides(configuration.of_weights(manifest), overrides)


def read(source: str | pathlib.Path, dataset: str | None = None) -> Conversion:
    """The weights of a run (its newest checkpoint), of a checkpoint, a folder of weights, or a file.

    Args:
      source: a path, or `hf://owner/name`.
      dataset: whose keypoints those of a file are, which does not say it; else the published ones of their number.

    Raises:
      ValueError: there are no weights of this method, or they are damaged.
    """
    path = local_path(source)
    run = restore.find_run(path, configuration.METHODS)
    if run is None:
        return read_weights(path, dataset)
    config = configuration.of_run(run.config)
    weights, step = restore.read_run(run)
    skeleton, title = configuration.dataset(config).keypoint_set, f"BoIR run on {config.dataset}, step {step}"
    manifest = manifest_of(build.make_model(config), skeleton, title)
    return own_weights(weights, manifest | configuration.for_manifest(config) | {"step": step})


def load(config: ConfigDict, mesh: Mesh) -> restore.Loaded:
    """What `config.checkpoint` names; the keypoints of a file are those of `config.dataset`.

    Raises:
      ValueError: there are no weights, or not of the configuration's size and skeleton.
    """
    conversion = read(config.checkpoint, config.dataset)
    own = configuration.dataset(config)
    _require_same(conversion, config, own)
    model = model_of(conversion.manifest, remat=config.remat, fold_channels=build.fold_channels(config))
    start = start_from(conversion, weight_shapes(model), own.keypoint_set)
    if missing := set(start.initialised) - set(TRAINING_HEADS):
        raise ConfigError(f"{_title(conversion, config)} has nothing for {', '.join(sorted(missing))}")
    logging.info("evaluating %s", _title(conversion, config))
    needed = {name: without_training_heads(start.tree[name]) for name in ("params", "batch_stats")}
    weights = restore.replicate(config.checkpoint, needed, mesh)
    return restore.Loaded(model, weights, conversion.manifest.get("step", 0))


def make_start(config: ConfigDict) -> Callable[[TrainState], TrainState] | None:
    """What fills a newly initialised state with `config.init_from`; None where the run starts from nothing.

    The function reads the weights, which a run that goes on does not need; ValueError where there are none. A file is
    taken for a published one: as many keypoints as the dataset has need not be the same.
    """
    if not config.init_from:
        return None
    skeleton = configuration.dataset(config).keypoint_set

    def start(initial: Mapping[str, Any]) -> restore.Start:
        conversion = read(config.init_from)
        if (name := variant_name(conversion.manifest["network"]["width"])) != config.size:
            raise ConfigError(
                f"config.init_from={config.init_from!r}: {conversion.title} is {name or 'of no published size'}; the"
                f" configuration is {config.size}: give weights of that size, or a configuration of theirs"
            )
        return start_from(conversion, initial, skeleton)

    return restore.filler(config.init_from, start)


def _require_same(conversion: Conversion, config: ConfigDict, own: PoseDataset) -> None:
    """Raises ConfigError, one sentence, where the weights are not of the configuration's size and skeleton."""
    manifest, title = conversion.manifest, _title(conversion, config)
    leave_out = "or leave --config out and let the weights say it"
    if manifest["keypoint_set"] is None:
        raise ConfigError(f"{title} finds no people: it has no heads, or those of an unknown skeleton")
    if manifest["keypoint_set"] != own.keypoint_set:
        raise ConfigError(
            f"{title} draws the keypoints of {manifest['keypoint_set']}; config.dataset={config.dataset!r} has those of"
            f" {own.keypoint_set}: give a dataset of the same, {leave_out}"
        )
    if (count := manifest["network"]["num_keypoints"]) != own.num_keypoints:
        raise ConfigError(
            f"{title} draws {count} keypoints; config.dataset={config.dataset!r} has {own.num_keypoints}: give a"
            f" dataset of as many, {leave_out}"
        )
    if config.size and (name := variant_name(manifest["network"]["width"])) != config.size:
        raise ConfigError(
            f"{title} is {name or 'of no published size'}; the configuration is {config.size}; {leave_out}"
        )


def _title(conversion: Conversion, config: ConfigDict) -> str:
    return f"{config.checkpoint} ({conversion.title})"
