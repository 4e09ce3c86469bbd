"""From a configuration to the parts of a run."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines.top_down.instances import GROUND_TRUTH
from data_pipelines.top_down.loader import Entry, TrainIterator, train_loader
from pose_common.training import restore
from pose_common.training.cli import make_reading
from pose_common.training.configuration import whole_eval_batch
from pose_common.training.optimizers import GroupedAdamW, step_schedule
from pose_common.training.stages import make_stages
from pose_common.training.state import TrainState
from pose_common.weights.keys import Conversion, own_weights
from posebh_jax import configuration
from posebh_jax.clusters import ClusterConfig
from posebh_jax.evaluate import Evaluator, Task
from posebh_jax.method import PoseBHMethod, weight_shapes
from posebh_jax.model import PoseBH, layer_ids, weight_decay_mask
from posebh_jax.predictor import Predictor
from posebh_jax.prototypes import PrototypeConfig
from posebh_jax.published import model_name
from posebh_jax.vit import SIZES
from posebh_jax.weights.convert import Options, manifest_of, read_weights
from posebh_jax.weights.transfer import start_from


def make_model(config: ConfigDict) -> PoseBH:
    """The network of a configuration."""
    return PoseBH(
        size=dataclasses.replace(SIZES[config.size], drop_path=config.drop_path),
        datasets=tuple((dataset.name, dataset.num_keypoints) for dataset in configuration.datasets(config)),
        num_experts=0 if config.fold else len(config.datasets),
        embedding_dim=config.embedding_dim if config.method == "posebh" else 0,
        embedding_channels=config.embedding_width,
        embedding_neck=config.embedding_neck,
        embedding_kernel=config.embedding_kernel,
        embedding_activation=config.embedding_activation,
        filters=tuple(config.head_filters),
        dtype=jnp.dtype(config.dtype),
        remat=config.remat,
    )


def make_method(config: ConfigDict, steps_per_epoch: int) -> PoseBHMethod:
    """The method with its stages and optimizer."""
    model = make_model(config)
    image = jax.ShapeDtypeStruct((1, config.input_size[1], config.input_size[0], 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.PRNGKey(0), image, jax.ShapeDtypeStruct((1,), jnp.int32))["params"]
    top = SIZES[config.size].depth + 1
    optimizer = GroupedAdamW(
        schedule=step_schedule(
            config.learning_rate,
            [epoch * steps_per_epoch for epoch in config.decay_epochs],
            config.decay_factor,
            config.warmup_steps,
            config.warmup_ratio,
        ),
        **config.adam,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm or None,
        factors=jax.tree.map(lambda layer: jnp.float32(config.layer_decay) ** (top - layer), layer_ids(shapes)),
        decayed=jax.tree.map(float, weight_decay_mask(shapes)),
    )
    return PoseBHMethod(
        model=model,
        datasets=configuration.datasets(config),
        input_size=tuple(config.input_size),
        stages=make_stages(config.stages),
        optimizer=optimizer,
        losses=PrototypeConfig(**config.losses),
        clusters=ClusterConfig(**config.clusters),
        heatmap_sigma=config.heatmap_sigma,
        num_clusters=config.num_clusters,
        prototypes_per_keypoint=config.prototypes_per_keypoint,
    )


def make_loader(config: ConfigDict) -> TrainIterator:
    """This process's training batches."""
    return train_loader(
        [
            Entry(dataset, config.train_splits.get(dataset.name, config.default_train_split))
            for dataset in configuration.datasets(config)
        ],
        data_dir=config.data_dir,
        batch_size=config.batch_size,
        input_size=tuple(config.input_size),
        seed=config.seed,
        mixture=configuration.mixture(config),
        augmentation=configuration.augmentation(config),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        reading=make_reading(config),
    )


def make_evaluator(config: ConfigDict, mesh: Mesh, workdir: str | pathlib.Path) -> Evaluator:
    """Evaluation of every dataset of the mixture by its own head, and of `config.eval_also`."""
    predictor = Predictor(
        make_model(config),
        configuration.datasets(config),
        tuple(config.input_size),
        config.flip_test,
        config.dark_kernel,
    )
    return Evaluator(
        predictor,
        make_tasks(config),
        _selection(config),
        config.detection_threshold,
        config.data_dir,
        whole_eval_batch(config),
        mesh,
        pathlib.Path(workdir),
        make_reading(config),
        config.pictures,
        model_name(config.method, config.size),
    )


def _selection(config: ConfigDict) -> dict[str, Any]:
    return {
        "confidence_threshold": config.rescoring_threshold,
        "suppression": config.suppression,
        "oks_threshold": config.oks_nms,
    }


def make_tasks(config: ConfigDict) -> list[Task]:
    """The rows of the table."""
    names = list(config.datasets)
    own = [
        Task(
            configuration.dataset(config, name),
            config.eval_splits.get(name, config.default_eval_split),
            head,
            config.boxes.get(name, GROUND_TRUTH),
            name,
            f"eval_splits.{name}",
        )
        for head, name in enumerate(names)
    ]
    return own + [
        Task(
            configuration.dataset(config, name),
            split,
            names.index(head),
            boxes[0] if boxes else GROUND_TRUTH,
            f"{name}_{split}",
        )
        for name, split, head, *boxes in config.eval_also
    ]


def load_weights(config: ConfigDict, mesh: Mesh) -> tuple[dict[str, Any], int]:
    """The weights of `restore_weights`, and the step they come from (0: of no run)."""
    return restore_weights(config, mesh)[:2]


def restore_weights(config: ConfigDict, mesh: Mesh) -> restore.Restored:
    """The weights that `config.checkpoint` names.

    Raises:
      ValueError: there are no weights, or they do not fit the configuration.
    """
    model = make_model(config)

    def shapes(notes: Mapping[str, Any]) -> restore.Weights:
        size, per_keypoint = tuple(config.input_size), config.prototypes_per_keypoint
        return weight_shapes(model, size, per_keypoint, notes.get("num_clusters", 0))

    def convert(shapes: restore.Weights) -> restore.Weights:
        start = start_from(read_weights(config.checkpoint, _options(config)), shapes, model)
        if start.initialised:
            raise ValueError(
                f"{config.checkpoint} ({start.title}) has nothing for {', '.join(start.initialised)}; the multi-head "
                "baseline is evaluated by configs/multi_head.py"
            )
        return start.tree

    return restore.weights_at(config.checkpoint, mesh, shapes, convert)


def make_start(config: ConfigDict, model: PoseBH, mesh: Mesh) -> Callable[[TrainState], TrainState] | None:
    """What fills a newly initialised state with `config.init_from`; None where the run starts from nothing.

    Raises:
      ValueError: there are no weights.
    """
    if not config.init_from:
        return None
    conversion = read_run(config.init_from, mesh) or read_weights(config.init_from, _options(config))
    return restore.filler(config.init_from, lambda initial: start_from(conversion, initial, model, fold=config.fold))


def read_run(path: str | pathlib.Path, mesh: Mesh) -> Conversion | None:
    """The weights of a training run, on the host; None where `path` is no run of this method or checkpoint of one."""
    found = restore.find_run(path, configuration.METHODS)
    if found is None:
        return None
    config = configuration.of_run(found.config)
    config.checkpoint = found.checkpoint
    weights, step = load_weights(config, mesh)
    manifest = manifest_of(make_model(config), tuple(config.input_size), f"{config.method} run, step {step}")
    return own_weights(restore.on_host(weights), manifest)


def _options(config: ConfigDict) -> Options:
    return Options(
        expected=tuple((dataset.name, dataset.num_keypoints) for dataset in configuration.datasets(config)),
        num_heads=SIZES[config.size].num_heads,
        input_size=tuple(config.input_size),
        activation=config.embedding_activation,
    )
