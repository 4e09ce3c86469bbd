"""The command line that both methods share: train, go on, evaluate."""

from __future__ import annotations

import json
import logging
import pathlib
import sys
from collections.abc import Callable
from typing import Any, Protocol

import jax
from absl import app, flags
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict, config_flags

from data_pipelines.builders.synthetic import SYNTHETIC, prepare_synthetic
from data_pipelines.top_down.loader import Reading, TrainIterator
from data_pipelines.records import DatasetNotPrepared
from pose_common.training import distributed, loop, parallel, report
from pose_common.training.mesh import make_mesh
from pose_common.training.state import TrainState
from pose_common.training.writers import draw_curves


class Parts(Protocol):
    """What a method makes of a configuration: its `build` module."""

    def dataset_names(self, config: ConfigDict) -> tuple[str, ...]:
        """What it trains on."""

    def make_loader(self, config: ConfigDict) -> TrainIterator:
        """This process's training batches."""

    def make_method(self, config: ConfigDict, steps_per_epoch: int) -> loop.Method:
        """The method, with a `model`."""

    def make_evaluator(self, config: ConfigDict, mesh: Mesh, workdir: pathlib.Path) -> loop.Evaluate:
        """Evaluation of everything that the configuration asks for."""

    def make_start(self, config: ConfigDict, model: Any, mesh: Mesh) -> Callable[[TrainState], TrainState] | None:
        """What fills a fresh state with `config.init_from`; None where the run starts from nothing."""

    def load_weights(self, config: ConfigDict, mesh: Mesh) -> tuple[dict[str, Any], int]:
        """The weights that `config.checkpoint` names, on every device, and their step."""


def train(parts: Parts, config: ConfigDict, workdir: pathlib.Path) -> bool:
    """Trains from the newest checkpoint in `workdir`, or afresh; False when a signal stopped it before the end."""
    data = parts.make_loader(config)
    steps_per_epoch = config.steps_per_epoch or max(1, data.num_examples // config.batch_size)
    logging.info("%d examples, %d steps an epoch", data.num_examples, steps_per_epoch)
    method = parts.make_method(config, steps_per_epoch)
    plan = parallel.make_plan(config.parallel, config.fsdp, config.fsdp_min_size)
    settings = loop.LoopSettings(
        steps_per_epoch=steps_per_epoch,
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
        evaluate_every=config.evaluate_every,
        evaluate_stages=config.evaluate_stages,
        keep=config.keep_checkpoints,
        keep_every=config.keep_checkpoints_every or None,
        config=json.loads(config.to_json()),
    )
    evaluate = parts.make_evaluator(config, plan.mesh, workdir)
    _, complete = loop.train(
        method,
        data,
        plan,
        settings,
        workdir,
        evaluate=evaluate,
        key=jax.random.PRNGKey(config.seed),
        prepare=parts.make_start(config, method.model, plan.mesh),
    )
    if jax.process_index() == 0:
        draw_curves(workdir / "metrics.jsonl", workdir / "curves.png")
    return complete


def evaluate(parts: Parts, config: ConfigDict, workdir: pathlib.Path) -> dict[str, dict[str, float]]:
    """Evaluates `config.checkpoint` on everything that is prepared; prints and saves the table."""
    mesh = make_mesh()
    weights, step = parts.load_weights(config, mesh)
    figures = parts.make_evaluator(config, mesh, workdir)(weights, step)
    if not figures:
        raise DatasetNotPrepared("none of the datasets is prepared; see the messages above")
    return figures


def run(parts: Parts, config: ConfigDict, workdir: pathlib.Path) -> None:
    """What `config.mode` asks for."""
    workdir.mkdir(parents=True, exist_ok=True)
    distributed.use_compilation_cache(config.compilation_cache)
    if config.synthetic:
        if jax.process_index() == 0:
            rendered = [name for name in parts.dataset_names(config) if name in SYNTHETIC]
            prepare_synthetic(config.data_dir, rendered, progress=True, **config.synthetic)
        multihost_utils.sync_global_devices("synthetic data")
    if config.mode == "train":
        if not train(parts, config, workdir):
            logging.warning("stopped before the end; the same command goes on from the checkpoint in %s", workdir)
    elif config.mode == "evaluate":
        evaluate(parts, config, workdir)
    else:
        raise ValueError(f"config.mode={config.mode!r}: expected 'train' or 'evaluate'")


def make_reading(config: ConfigDict) -> Reading:
    """How this process reads ahead."""
    return Reading(num_threads=config.loader_threads, num_workers=config.loader_workers)


def main(parts: Parts, config: str, workdir: str) -> None:
    """The program; `config` and `workdir` are the defaults of its flags."""
    configuration = config_flags.DEFINE_config_file("config", config, "Configuration, `path[:argument]`.")
    folder = flags.DEFINE_string("workdir", workdir, "Checkpoints, figures, results and pictures go here.")
    coordinator = flags.DEFINE_string("coordinator", None, "address:port of process 0, where JAX cannot find it.")
    num_processes = flags.DEFINE_integer("num_processes", None, "Number of processes, with --coordinator.")
    process_id = flags.DEFINE_integer("process_id", None, "This process, with --coordinator.")

    def start(argv: list[str]) -> None:
        del argv
        report.start_logging()
        distributed.start(coordinator.value, num_processes.value, process_id.value)
        try:
            run(parts, configuration.value, pathlib.Path(folder.value))
        except (DatasetNotPrepared, report.NonFiniteLossError) as error:
            # Said in full already: a traceback would only hide the advice.
            sys.exit(f"error: {error}")

    app.run(start)
