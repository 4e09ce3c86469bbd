"""From a configuration to the parts of a run."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines.paths import as_path
from data_pipelines.sharing import Share
from data_pipelines.top_down.instances import GROUND_TRUTH
from data_pipelines.top_down.loader import Entry, TrainIterator, train_loader
from pose_common.evaluation.tasks import require_distinct
from pose_common.training.checks import whole_eval_batch
from pose_common.training.cli import make_reading
from pose_common.training.optimizers import GroupedAdamW, step_schedule
from pose_common.training.stages import make_stages
from posebh_jax import configuration
from posebh_jax.clusters import ClusterConfig
from posebh_jax.evaluate import Evaluator, Task
from posebh_jax.method import PoseBHMethod, weight_shapes
from posebh_jax.model import PoseBH, layer_ids, weight_decay_mask
from posebh_jax.predictor import Predictor
from posebh_jax.prototypes import PrototypeConfig
from posebh_jax.published import model_name
from posebh_jax.vit import SIZES, size_name


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
        tpu_kernels=config.tpu_kernels,
    )


def make_method(config: ConfigDict, steps_per_epoch: int) -> PoseBHMethod:
    """The method with its stages and optimizer."""
    model = make_model(config)
    shapes = weight_shapes(model, tuple(config.input_size), config.prototypes_per_keypoint, 0)["params"]
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
        together=config.people_together,
        augmentation=configuration.augmentation(config),
        share=Share(jax.process_index(), jax.process_count()),
        reading=make_reading(config),
    )


def make_evaluator(config: ConfigDict, model: PoseBH, mesh: Mesh, workdir: str | pathlib.Path) -> Evaluator:
    """Evaluation of every dataset of the mixture by its own head, and of `config.eval_also`."""
    predictor = Predictor(
        model.clone(dtype=jnp.dtype(config.eval_dtype)),
        configuration.datasets(config),
        tuple(config.input_size),
        config.flip_test,
        config.dark_kernel,
        config.dark_blur,
    )
    return Evaluator(
        predictor,
        make_tasks(config),
        _selection(config),
        config.detection_threshold,
        config.data_dir,
        whole_eval_batch(config),
        mesh,
        as_path(workdir),
        make_reading(config),
        config.pictures,
        model_name(bool(model.embedding_dim), size_name(model.size.dim, model.size.depth)),
    )


def _selection(config: ConfigDict) -> dict[str, Any]:
    return {
        "confidence_threshold": config.rescoring_threshold,
        "suppression": config.suppression,
        "oks_threshold": config.oks_nms,
    }


def make_tasks(config: ConfigDict) -> list[Task]:
    """The rows of the table. Raises ConfigError for two of one name."""
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
    also = [
        Task(
            configuration.dataset(config, name),
            split,
            names.index(head),
            boxes[0] if boxes else GROUND_TRUTH,
            "_".join([name, split, *(pathlib.PurePath(file).stem for file in boxes)]),
        )
        for name, split, head, *boxes in config.eval_also
    ]
    require_distinct(task.name for task in own + also)
    return own + also
