"""From a configuration to the parts of a run."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines.keypoint_sets import get_dataset
from data_pipelines.loader import Entry, Reading, TrainIterator, train_loader
from pose_common.training.checkpoints import Checkpoints, find_checkpoint
from pose_common.training.mesh import replicated
from pose_common.training.optimizers import GroupedAdamW, step_schedule
from pose_common.training.stages import make_stages
from posebh_jax.evaluate import Evaluator, Task
from posebh_jax.model import PoseBH, layer_ids, weight_decay_mask
from posebh_jax.predict import Predictor
from posebh_jax.prototypes import PrototypeConfig
from posebh_jax.train import PoseBHMethod
from posebh_jax.vit import SIZES

METHODS = ("posebh", "multi_head")


def make_model(config: ConfigDict) -> PoseBH:
    """The network of a configuration.

    Raises:
      ValueError: an unknown method or size.
    """
    if config.method not in METHODS:
        raise ValueError(f"config.method={config.method!r}: expected one of {METHODS}")
    if config.size not in SIZES:
        raise ValueError(f"config.size={config.size!r}: expected one of {tuple(SIZES)}")
    if len(set(config.head_filters)) != 1:
        raise ValueError(f"config.head_filters={config.head_filters}: both deconvolutions have the same width")
    return PoseBH(
        size=SIZES[config.size],
        datasets=tuple((name, get_dataset(name).num_keypoints) for name in config.datasets),
        num_experts=len(config.datasets),
        embedding_dim=config.embedding_dim if config.method == "posebh" else 0,
        embedding_channels=config.embedding_width,
        filters=config.head_filters[0],
        dtype=jnp.dtype(config.dtype),
        remat=config.remat,
    )


def make_method(config: ConfigDict, steps_per_epoch: int) -> PoseBHMethod:
    """The method with its stages and optimizer."""
    model = make_model(config)
    image = jax.ShapeDtypeStruct((1, config.input_size[1], config.input_size[0], 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.PRNGKey(0), image, jax.ShapeDtypeStruct((1,), jnp.int32))["params"]
    decay = SIZES[config.size].layer_decay
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
        clip_norm=config.clip_norm,
        factors=jax.tree.map(lambda layer: jnp.float32(decay) ** (top - layer), ids),
        decayed=jax.tree.map(float, weight_decay_mask(shapes)),
    )
    return PoseBHMethod(
        model=model,
        datasets=tuple(get_dataset(name) for name in config.datasets),
        input_size=tuple(config.input_size),
        stages=make_stages(config.stages),
        optimizer=optimizer,
        weights=PrototypeConfig(**config.losses),
        num_clusters=config.num_clusters,
    )


def make_reading(config: ConfigDict) -> Reading:
    """How this process reads ahead."""
    return Reading(num_threads=config.loader_threads, num_workers=config.loader_workers)


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
    """Evaluation of every dataset of the mixture, each by its own head."""
    predictor = Predictor(
        make_model(config), tuple(get_dataset(name) for name in config.datasets), tuple(config.input_size)
    )
    tasks = [
        Task(name, config.eval_splits.get(name, config.default_eval_split), head, config.boxes.get(name, "ground_truth"))
        for head, name in enumerate(config.datasets)
    ]
    return Evaluator(
        predictor, tasks, config.data_dir, config.eval_batch_size, mesh, pathlib.Path(workdir), make_reading(config),
        config.pictures,
    )  # fmt: skip


def load_weights(config: ConfigDict, mesh: Mesh) -> tuple[dict[str, Any], int]:
    """The weights that `config.checkpoint` names, on every device, and the step they come from.

    Raises:
      ValueError: there is no checkpoint, or it does not fit the configuration.
    """
    found = find_checkpoint(config.checkpoint) if config.checkpoint else None
    if found is None:
        raise ValueError(
            f"config.checkpoint={config.checkpoint!r} is neither a working directory with checkpoints nor one of them"
        )
    directory, step = found
    checkpoints = Checkpoints(directory)
    info = checkpoints.read_info(step)
    method = make_method(config, steps_per_epoch=1)
    shapes = method.shapes(method.stages[0], info["notes"]).weights
    weights = checkpoints.restore_weights(step, shapes, jax.tree.map(lambda _: replicated(mesh), shapes))
    return weights, step
