"""From a configuration to the parts of a run."""

from __future__ import annotations

import functools
import pathlib

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from boir_jax import configuration
from boir_jax.evaluate import Evaluator, Task
from boir_jax.losses import LossConfig
from boir_jax.method import BoIRMethod
from boir_jax.model import VARIANTS, BoIR
from boir_jax.predictor import Predictor
from boir_jax.proposals import ProposalConfig
from data_pipelines.datasets import find_dataset
from data_pipelines.paths import as_path
from data_pipelines.sharing import Share
from data_pipelines.top_down.loader import TrainIterator
from data_pipelines.whole_image.loader import train_loader
from data_pipelines.whole_image.pictures import Augmentation
from pose_common.evaluation.tasks import require_distinct
from pose_common.folding import LANES
from pose_common.layers import BatchNorm
from pose_common.training.checks import whole_eval_batch
from pose_common.training.cli import make_reading
from pose_common.training.optimizers import GroupedAdamW, cosine_schedule


def make_model(config: ConfigDict) -> BoIR:
    """The network of a configuration."""
    return BoIR(
        num_keypoints=configuration.dataset(config).num_keypoints,
        norm=functools.partial(BatchNorm, group=config.norm_group or None),
        dtype=jnp.dtype(config.dtype),
        remat=config.remat,
        fold_channels=fold_channels(config),
        embedding_prior=config.embedding_prior,
        **VARIANTS[config.size],
    )


def fold_channels(config: ConfigDict) -> int:
    """Of `BoIR`, by `config.fold_channels` and the kind of the devices."""
    automatic = LANES if jax.default_backend() == "tpu" else 0
    return automatic if config.fold_channels < 0 else config.fold_channels


def make_method(config: ConfigDict, steps_per_epoch: int) -> BoIRMethod:
    """The method with its optimizer.

    Raises:
      ConfigError: groups of images that straddle devices.
    """
    configuration.check_batch(config)
    optimizer = GroupedAdamW(
        schedule=cosine_schedule(
            config.learning_rate,
            config.final_learning_rate,
            total_steps=config.epochs * steps_per_epoch,
            warmup_steps=round(config.warmup_epochs * steps_per_epoch),
            start=config.warmup_start,
        ),
        **config.adam,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm or None,
    )
    losses = LossConfig(**config.losses)
    return BoIRMethod(make_model(config), config.epochs, optimizer, losses, config.instance_group, config.instance_cap)


def make_loader(config: ConfigDict) -> TrainIterator:
    """This process's training batches."""
    return train_loader(
        config.dataset,
        config.train_split,
        data_dir=config.data_dir,
        batch_size=config.batch_size,
        input_size=config.input_size,
        seed=config.seed,
        instances=config.instances,
        rules=configuration.rules(config),
        augmentation=Augmentation(**config.augmentation),
        share=Share(jax.process_index(), jax.process_count()),
        reading=make_reading(config),
    )


def make_evaluator(config: ConfigDict, model: BoIR, mesh: Mesh, workdir: str | pathlib.Path) -> Evaluator:
    """Evaluation of the dataset and of `config.eval_also`."""
    return Evaluator(
        make_tasks(config, model),
        config.data_dir,
        whole_eval_batch(config),
        config.input_size,
        mesh,
        as_path(workdir),
        make_reading(config),
        config.pictures,
        config.published_as if config.size and config.published_as.startswith(config.size.upper()) else "",
    )


def make_tasks(config: ConfigDict, model: BoIR) -> list[Task]:
    """The rows of the table. Raises ConfigError for two of one name."""
    own, model = configuration.dataset(config), model.clone(dtype=jnp.dtype(config.eval_dtype))

    @functools.cache
    def predictor(smoothing: int) -> Predictor:
        return Predictor(model, own.keypoints, ProposalConfig(smoothing=smoothing, **config.proposals))

    tasks = []
    for dataset, split, *field in ((config.dataset, config.eval_split, "eval_split"), *config.eval_also):
        protocol = find_dataset(dataset, config.data_dir, config.definitions)
        smoothing, threshold = (table.get(dataset, table.default) for table in (config.smoothing, config.oks_nms))
        tasks.append(Task(protocol, split, predictor(smoothing), threshold, *field))
    require_distinct(task.name for task in tasks)
    return tasks
