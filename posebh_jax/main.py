"""Trains or evaluates PoseBH, or its multi-head baseline.

    python -m posebh_jax.main --config=configs/mdt.py:base --workdir=workdir/base
    python -m posebh_jax.main --workdir=... --config.mode=evaluate --config.checkpoint=...

A run that finds checkpoints in its working directory goes on from the newest, without --config by its own settings.
What is evaluated says its own size, crop and datasets; a configuration or single settings may say otherwise.
"""

from __future__ import annotations

import pathlib

from ml_collections import ConfigDict

from pose_common.training import checks, cli
from posebh_jax import build, configuration, sources


def train(config: ConfigDict, workdir: pathlib.Path) -> bool:
    """Trains from the newest checkpoint in `workdir`, or from the start; False when a signal stopped it."""
    return cli.train(config, workdir, build, lambda model: sources.make_start(config, model))


def evaluate(config: ConfigDict, workdir: pathlib.Path) -> cli.Metrics:
    """Evaluates `config.checkpoint` on everything that is prepared; prints and saves the table, and says where."""
    return cli.evaluate(config, workdir, build, sources.load)


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """What `config.mode` asks for."""
    if config.mode == "evaluate":
        cli.evaluate(config, workdir, build, sources.load, config.datasets)
    else:
        checks.check_batch(config)  # before anything is rendered for it
        cli.render(config, config.datasets)
        train(config, workdir)


def main() -> None:
    """The program."""
    methods, free = configuration.METHODS, configuration.FREE
    cli.main(cli.Program(sources.read_configuration, run, sources.DEFAULT, "workdir/posebh", methods, free))


if __name__ == "__main__":
    main()
