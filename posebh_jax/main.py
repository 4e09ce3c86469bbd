"""Trains or evaluates PoseBH, or its multi-head baseline.

    python -m posebh_jax.main --config=configs/mdt.py:base --workdir=workdir/base
    python -m posebh_jax.main --config=configs/mdt.py --workdir=... --config.mode=evaluate --config.checkpoint=...

A run that finds checkpoints in its working directory goes on from the newest.
"""

from __future__ import annotations

import json
import logging
import pathlib
import sys

import jax
from absl import app, flags
from jax.experimental import multihost_utils
from ml_collections import ConfigDict, config_flags

from data_pipelines.builders.synthetic import SYNTHETIC, prepare_synthetic
from data_pipelines.records import DatasetNotPrepared
from pose_common.training import distributed, loop, parallel, report
from pose_common.training.mesh import make_mesh
from pose_common.training.writers import draw_curves
from posebh_jax import build

_CONFIG = config_flags.DEFINE_config_file("config", "configs/mdt.py", "Configuration, `path[:argument]`.")
_WORKDIR = flags.DEFINE_string("workdir", "workdir/posebh", "Checkpoints, figures, results and pictures go here.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "address:port of process 0, where JAX cannot find it by itself.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes, with --coordinator.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "This process, with --coordinator.")


def train(config: ConfigDict, workdir: pathlib.Path) -> bool:
    """Trains from the newest checkpoint in `workdir`, or afresh; False when a signal stopped it before the end."""
    data = build.make_loader(config)
    steps_per_epoch = config.steps_per_epoch or max(1, data.num_examples // config.batch_size)
    logging.info("%d instances, %d steps an epoch", data.num_examples, steps_per_epoch)
    method = build.make_method(config, steps_per_epoch)
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
    evaluate = build.make_evaluator(config, plan.mesh, workdir)
    _, complete = loop.train(
        method,
        data,
        plan,
        settings,
        workdir,
        evaluate=evaluate,
        key=jax.random.PRNGKey(config.seed),
        prepare=build.make_start(config, method.model, plan.mesh),
    )
    if jax.process_index() == 0:
        draw_curves(workdir / "metrics.jsonl", workdir / "curves.png")
    return complete


def evaluate(config: ConfigDict, workdir: pathlib.Path) -> dict[str, dict[str, float]]:
    """Evaluates `config.checkpoint` on every dataset of the mixture and of `eval_also`; prints and saves the table."""
    mesh = make_mesh()
    weights, step = build.load_weights(config, mesh)
    figures = build.make_evaluator(config, mesh, workdir)(weights, step)
    if not figures:
        raise DatasetNotPrepared("none of the datasets is prepared; see the messages above")
    return figures


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """What `config.mode` asks for."""
    workdir.mkdir(parents=True, exist_ok=True)
    distributed.use_compilation_cache(config.compilation_cache)
    if config.synthetic:
        if jax.process_index() == 0:
            rendered = [name for name in config.datasets if name in SYNTHETIC]
            prepare_synthetic(config.data_dir, rendered, progress=True, **config.synthetic)
        multihost_utils.sync_global_devices("synthetic data")
    if config.mode == "train":
        if not train(config, workdir):
            logging.warning("stopped before the end; the same command goes on from the checkpoint in %s", workdir)
    elif config.mode == "evaluate":
        evaluate(config, workdir)
    else:
        raise ValueError(f"config.mode={config.mode!r}: expected 'train' or 'evaluate'")


def main(argv: list[str]) -> None:
    del argv
    report.start_logging()
    distributed.start(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    try:
        run(_CONFIG.value, pathlib.Path(_WORKDIR.value))
    except (DatasetNotPrepared, report.NonFiniteLossError) as error:
        # Said in full already: a traceback would only hide the advice.
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    app.run(main)
