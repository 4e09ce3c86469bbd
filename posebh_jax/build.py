"""From a configuration to the parts of a run."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines.top_down.instances import GROUND_TRUTH
from data_pipelines.datasets import PoseDataset, find_dataset
from data_pipelines.top_down.loader import Entry, TrainIterator, train_loader
from pose_common.weights.keys import Conversion, own_weights
from pose_common.training import restore as starts
from pose_common.training.optimizers import GroupedAdamW, step_schedule
from pose_common.training.cli import make_reading
from pose_common.training.stages import make_stages
from pose_common.training.state import TrainState
from posebh_jax.evaluate import Evaluator, Task
from posebh_jax.heads import ACTIVATIONS, KERNELS, NECKS
from posebh_jax.weights.transfer import start_from
from posebh_jax.model import PoseBH, layer_ids, weight_decay_mask
from posebh_jax.weights.convert import Options, manifest_of, read_weights
from posebh_jax.predict import Predictor
from posebh_jax.prototypes import PrototypeConfig
from posebh_jax.published import model_name
from posebh_jax.method import PoseBHMethod
from posebh_jax.vit import SIZES

METHODS = ("posebh", "multi_head")
KNOWN = {
    "method": METHODS, "size": SIZES,
    "embedding_neck": NECKS, "embedding_kernel": KERNELS, "embedding_activation": ACTIVATIONS,
}  # fmt: skip
"""Fields that take one of a few values."""


def dataset_names(config: ConfigDict) -> tuple[str, ...]:
    """The datasets of the mixture."""
    return tuple(config.datasets)


def protocols(config: ConfigDict) -> tuple[PoseDataset, ...]:
    """The datasets of the mixture, in its order; those of one's own are read from `config.data_dir`."""
    return tuple(find_dataset(name, config.data_dir) for name in config.datasets)


def make_model(config: ConfigDict) -> PoseBH:
    """The network of a configuration.

    Raises:
      ValueError: an unknown method, size or form of the heads, or a transfer to several datasets.
    """
    if config.fold and len(config.datasets) != 1:
        raise ValueError(f"config.fold={config.fold!r}: a transfer is to one dataset, not to {config.datasets}")
    for name, known in KNOWN.items():
        if config[name] not in known:
            raise ValueError(f"config.{name}={config[name]!r}: expected one of {tuple(known)}")
    if len(config.head_filters) != 2:
        raise ValueError(f"config.head_filters={config.head_filters}: expected the widths of two deconvolutions")
    return PoseBH(
        size=SIZES[config.size],
        datasets=tuple((dataset.name, dataset.num_keypoints) for dataset in protocols(config)),
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
    decay = SIZES[config.size].layer_decay if config.layer_decay else 1.0
    ids = layer_ids(shapes)
    top = SIZES[config.size].depth + 1
    optimizer = GroupedAdamW(
        schedule=step_schedule(
            config.learning_rate,
            [epoch * steps_per_epoch for epoch in config.decay_epochs],
            config.decay_factor,
            config.warmup_steps,
        ),
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm or None,
        factors=jax.tree.map(lambda layer: jnp.float32(decay) ** (top - layer), ids),
        decayed=jax.tree.map(float, weight_decay_mask(shapes)),
    )
    return PoseBHMethod(
        model=model,
        datasets=protocols(config),
        input_size=tuple(config.input_size),
        stages=make_stages(config.stages),
        optimizer=optimizer,
        weights=PrototypeConfig(**config.losses),
        num_clusters=config.num_clusters,
        prototypes_per_keypoint=config.prototypes_per_keypoint,
    )


def make_loader(config: ConfigDict) -> TrainIterator:
    """This process's training batches."""
    splits = [config.train_splits.get(name, config.default_train_split) for name in config.datasets]
    mixture = config.mixture
    if isinstance(mixture, ConfigDict):
        mixture = [mixture[name] for name in config.datasets]
    return train_loader(
        [Entry(name, split) for name, split in zip(config.datasets, splits, strict=True)],
        data_dir=config.data_dir,
        batch_size=config.batch_size,
        input_size=tuple(config.input_size),
        seed=config.seed,
        mixture=mixture,
        augment=config.augment,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        reading=make_reading(config),
    )


def make_evaluator(config: ConfigDict, mesh: Mesh, workdir: str | pathlib.Path) -> Evaluator:
    """Evaluation of every dataset of the mixture by its own head, and of `config.eval_also`."""
    predictor = Predictor(make_model(config), protocols(config), tuple(config.input_size))
    return Evaluator(
        predictor, make_tasks(config), config.data_dir, config.eval_batch_size, mesh, pathlib.Path(workdir),
        make_reading(config), config.pictures, model_name(config.method, config.size),
    )  # fmt: skip


def make_tasks(config: ConfigDict) -> list[Task]:
    """The rows of the table.

    Raises:
      ValueError: a row of `config.eval_also` that is none, or names a head that the model has not.
    """
    names = list(config.datasets)
    tasks = [
        Task(
            find_dataset(name, config.data_dir), config.eval_splits.get(name, config.default_eval_split), head,
            config.boxes.get(name, GROUND_TRUTH), name,
        )
        for head, name in enumerate(names)
    ]  # fmt: skip
    for row in config.eval_also:
        if len(row) not in (3, 4) or row[2] not in names:
            raise ValueError(
                f"config.eval_also: {tuple(row)} is not (dataset, split, head[, boxes]) with a head among {names}"
            )
        dataset, split, head, *boxes = row
        protocol = find_dataset(dataset, config.data_dir)
        tasks.append(
            Task(protocol, split, names.index(head), boxes[0] if boxes else GROUND_TRUTH, f"{dataset}_{split}")
        )
    return tasks


def load_weights(config: ConfigDict, mesh: Mesh) -> tuple[dict[str, Any], int]:
    """The weights that `config.checkpoint` names, on every device, and the step they come from (0: of no run).

    Raises:
      ValueError: there are no weights, or they do not fit the configuration.
    """
    method = make_method(config, steps_per_epoch=1)

    def convert(shapes: starts.Weights) -> starts.Weights:
        start = start_from(read_weights(config.checkpoint, _options(config)), shapes, method.model)
        if start.fresh:
            raise ValueError(
                f"{config.checkpoint} ({start.title}) has nothing for {', '.join(start.fresh)}; the multi-head "
                "baseline is evaluated by configs/multi_head.py"
            )
        return start.tree

    return starts.load_weights(config.checkpoint, method, mesh, convert)


def make_start(config: ConfigDict, model: PoseBH, mesh: Mesh) -> Callable[[TrainState], TrainState] | None:
    """What fills a fresh state with `config.init_from`; None where the run starts from nothing.

    Raises:
      ValueError: there are no weights.
    """
    if not config.init_from:
        if config.fold:
            raise ValueError("a transfer starts from weights: give them as config.init_from")
        return None
    conversion = read_run(config.init_from, mesh) or read_weights(config.init_from, _options(config))
    return starts.filler(config.init_from, lambda initial: start_from(conversion, initial, model, fold=config.fold))


def read_run(path: str | pathlib.Path, mesh: Mesh) -> Conversion | None:
    """The weights of a training run, on the host; None where `path` is no run of this method or checkpoint of one."""
    config = starts.run_config(path, METHODS)
    if config is None:
        return None
    weights, step = load_weights(config, mesh)
    manifest = manifest_of(make_model(config), tuple(config.input_size), f"{config.method} run, step {step}")
    return own_weights(starts.on_host(weights), manifest)


def _options(config: ConfigDict) -> Options:
    return Options(
        num_heads=SIZES[config.size].num_heads,
        input_size=tuple(config.input_size),
        activation=config.embedding_activation,
    )
