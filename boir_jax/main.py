"""Trains or evaluates BoIR.

    python -m boir_jax.main --config=configs/boir.py:coco_w32 --workdir=workdir/boir_coco_w32
    python -m boir_jax.main --workdir=... --config.mode=evaluate --config.checkpoint=...

A run that finds checkpoints in its working directory goes on from the newest, without --config by its own settings.
What is evaluated says its own size and dataset; a configuration or single settings may say otherwise.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

from ml_collections import ConfigDict

from boir_jax import build, configuration, sources
from pose_common.training import cli
from pose_common.training.mesh import make_mesh


def train(config: ConfigDict, workdir: pathlib.Path) -> bool:
    """Trains from the newest checkpoint in `workdir`, or from the start; False when a signal stopped it."""
    strategy = cli.make_strategy(config)
    data = build.make_loader(config)
    method = build.make_method(config, cli.steps_per_epoch(config, data))
    evaluate = build.make_evaluator(config, method.model, strategy.mesh, workdir)
    evaluate.check()
    best = evaluate.best_metric(config.best_metric)
    return cli.train(config, workdir, data, method, strategy, evaluate, best, sources.make_start(config))


def evaluate(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Mapping[str, float]]:
    """Evaluates `config.checkpoint` on everything that is prepared; prints and saves the table, and says where."""
    mesh = make_mesh()
    model, weights, step = sources.load(config, mesh)
    figures = build.make_evaluator(config, model, mesh, workdir)(weights, step)
    return cli.conclude_evaluation(config, workdir, figures, step)


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """What `config.mode` asks for."""
    cli.render(config, [config.dataset])
    {"train": train, "evaluate": evaluate}[config.mode](config, workdir)


def main() -> None:
    """The program."""
    methods, free = configuration.METHODS, configuration.FREE
    cli.main(
        sources.read_configuration, run, default=sources.DEFAULT, workdir="workdir/boir", methods=methods, free=free
    )


if __name__ == "__main__":
    main()
