"""The weights that a path means, of a run, a folder or a file, and what they tell of themselves."""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from pose_common.training import restore
from pose_common.training.checks import ConfigError
from pose_common.training.configuration import Override, evaluated
from pose_common.training.state import TrainState
from pose_common.weights.hub_folders import local_path
from pose_common.weights.keys import Conversion, own_weights
from posebh_jax import build, configuration
from posebh_jax.method import weight_shapes
from posebh_jax.model import PoseBH
from posebh_jax.vit import SIZES, size_name
from posebh_jax.weights.convert import describe_weights, read_weights
from posebh_jax.weights.manifest import Options, manifest_of, model_of, unnamed
from posebh_jax.weights.transfer import at_input_size, start_from

DEFAULT = "mdt"


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
        # The data may be elsewhere by now, with the definitions of custom datasets.
        saved = run.config | dict(override for override in overrides if override[0] == "data_dir")
        return configuration.with_overrides(configuration.of_run(saved), overrides)
    if not checkpoint:
        return configuration.read(DEFAULT, overrides)
    options = Options(expected=configuration.asked_datasets(DEFAULT, overrides))
    manifest = describe_weights(path, options)
    _require_named(checkpoint, manifest)
    return configuration.with_overrides(configuration.of_weights(manifest), overrides)


def read(source: str | pathlib.Path, options: Options = Options()) -> Conversion:
    """The weights of a run (its newest checkpoint), of a checkpoint, a folder of weights, or a file.

    Args:
      source: a path, or `hf://owner/name`.
      options: what a file does not say of itself.

    Raises:
      ValueError: there are no weights of this method, or they are damaged.
    """
    path = local_path(source)
    run = restore.find_run(path, configuration.METHODS)
    if run is None:
        return read_weights(path, options)
    config = configuration.of_run(run.config)
    weights, step = restore.read_run(run)
    title = f"{config.method} run, {config.size}, step {step}"
    manifest = manifest_of(build.make_model(config), tuple(config.input_size), title)
    settings = configuration.for_manifest(
        configuration.datasets(config), config.dark_kernel, config.dark_blur, config.rescoring_threshold
    )
    return own_weights(weights, manifest | settings | {"step": step})


def load(config: ConfigDict, mesh: Mesh) -> restore.Loaded:
    """What `config.checkpoint` names, with the heads of `config.datasets`.

    A model without prototypes is the multi-head baseline, whatever `config.method` says.

    Raises:
      ValueError: there are no weights, or not of the configuration's size, crop and datasets.
    """
    asked = tuple((dataset.name, dataset.num_keypoints) for dataset in configuration.datasets(config))
    num_heads = SIZES[config.size].num_heads if config.size else None
    options = _options(config, asked, num_heads)
    conversion = read(config.checkpoint, options)
    _require_same(conversion, config, asked)
    manifest, bank = conversion.manifest, conversion.weights["prototypes"].get("bank")
    if asked != tuple((name, count) for name, count in manifest["datasets"]):
        manifest = {**manifest, "datasets": asked, "num_experts": len(asked) if manifest["num_experts"] else 0}
    if bank is None:
        manifest = {**manifest, "embedding": None}
    model = model_of(manifest, remat=config.remat, tpu_kernels=config.tpu_kernels)
    shapes = weight_shapes(model, tuple(manifest["input_size"]), 0 if bank is None else bank.shape[1], 0)
    start = start_from(conversion, shapes, model)
    if start.initialised:
        raise ConfigError(f"{_title(conversion, config)} has nothing for {', '.join(start.initialised)}")
    logging.info("evaluating %s", _title(conversion, config))
    weights = restore.replicate(config.checkpoint, start.tree, mesh)
    return restore.Loaded(model, weights, manifest.get("step", 0))


def make_start(config: ConfigDict, model: PoseBH) -> Callable[[TrainState], TrainState] | None:
    """What fills a newly initialised state with `config.init_from`; None where the run starts from nothing.

    The function reads the weights, which a run that goes on does not need; ValueError where there are none.
    """
    if not config.init_from:
        return None

    def start(initial: Mapping[str, Any]) -> restore.Start:
        conversion = read(config.init_from, _options(config, model.datasets, model.size.num_heads))
        own, wanted = _size(conversion.manifest["backbone"]), _size(vars(model.size))
        if own != wanted:
            shipped = f", such as --config=mdt:{own}" if own in configuration.SHIPPED else ""
            raise ConfigError(
                f"config.init_from={config.init_from!r}: {conversion.title} is {own}; the configuration is {wanted}: "
                f"give weights of that size, or a configuration of theirs{shipped}"
            )
        conversion = at_input_size(conversion, tuple(config.input_size))
        found = start_from(conversion, initial, model, fold=config.fold)
        learned = {group for stage in config.stages if stage.epochs for group in stage.train}
        if "embedding" in set(found.initialised) - learned:
            logging.warning(
                "config.init_from=%r: %s has no embedding head, and no stage learns the new one, so that prototypes "
                "will mean nothing: start from PoseBH weights, or transfer without prototypes, by "
                "--config=transfer:<dataset>,multi_head",
                *(config.init_from, conversion.title),
            )
        return found

    return restore.filler(config.init_from, start)


def _require_named(checkpoint: str, manifest: Mapping[str, Any]) -> None:
    """Raises ConfigError for heads of which neither the file nor the command line says the datasets."""
    names, counts = zip(*manifest["datasets"], strict=True) if manifest["datasets"] else ((), ())
    if names and names == unnamed(len(names)):
        keypoints = " and ".join(map(str, counts))
        raise ConfigError(
            f"config.checkpoint={checkpoint!r} does not say of which datasets its heads of {keypoints} keypoints are: "
            "name them all, in this order, by --config.datasets=..., with --config.data_dir=<where custom ones are "
            "prepared>"
        )


def _options(config: ConfigDict, datasets: tuple[tuple[str, int], ...], num_heads: int | None) -> Options:
    """What the configuration says of a file that does not."""
    return Options(
        expected=datasets,
        num_heads=num_heads,
        expected_size=tuple(config.input_size),
        activation=config.embedding_activation,
    )


def _require_same(conversion: Conversion, config: ConfigDict, asked: Sequence[tuple[str, int]]) -> None:
    """Raises ConfigError, one sentence, where the weights are not of the configuration's size, crop and datasets."""
    manifest, title = conversion.manifest, _title(conversion, config)
    own = _size(manifest["backbone"])
    wanted = config.size or own
    leave_out = "or leave --config out and let the weights say it"
    if own != wanted:
        advice = f"use --config=mdt:{own}, {leave_out}" if own in configuration.SHIPPED else leave_out[3:]
        raise ConfigError(f"{title} is {own}; the configuration is {wanted}: {advice}")
    if tuple(manifest["input_size"]) != tuple(config.input_size):
        crops = "x".join(map(str, manifest["input_size"]))
        raise ConfigError(
            f"{title} takes crops of {crops} (width x height), not config.input_size={config.input_size}: leave that "
            "and --config out and let the weights say it"
        )
    heads: Mapping[str, int] = dict(manifest["datasets"])
    absent = [name for name, count in asked if heads.get(name) != count]
    if absent:
        there = ", ".join(f"{name} ({count} keypoints)" for name, count in heads.items())
        raise ConfigError(
            f"{title} has {f'the heads {there}' if heads else 'no head'}; you asked for {', '.join(absent)}: name those"
            f" to evaluate by --config.datasets=..., {leave_out}"
        )


def _size(backbone: Mapping[str, Any]) -> str:
    """Of a `ViTSize`'s fields: its name, or width and depth where it has none."""
    return size_name(backbone["dim"], backbone["depth"]) or f"width {backbone['dim']}, depth {backbone['depth']}"


def _title(conversion: Conversion, config: ConfigDict) -> str:
    return f"{config.checkpoint} ({conversion.title})"
