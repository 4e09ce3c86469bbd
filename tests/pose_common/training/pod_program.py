"""A program of the toy method with the command line of the real ones, for tests of several processes.

    python -m tests.pose_common.training.pod_program --workdir=... [--config.seed=0]

What goes wrong in one of them is asked for by the environment: FAULT is `data`, `error:<step>` or `known:<step>`, and
TPU_VM makes JAX take the machine for a Cloud TPU VM, whose metadata server is at GCE_METADATA_IP.
"""

from __future__ import annotations

import os
import pathlib

import jax
from jax._src.clusters import cloud_tpu_cluster
from ml_collections import ConfigDict

from data_pipelines.records import DatasetNotPrepared
from pose_common.training import cli, loop, parallel, processes
from tests.pose_common.training.toy import ToyData, ToyMethod


class FaultyData(ToyData):
    """Raises at the step that FAULT names."""

    num_examples = 16

    def __next__(self):
        kind, _, step = os.environ.get("FAULT", "").partition(":")
        if step and self.position == int(step):
            raise {"error": RuntimeError, "known": OSError}[kind](f"records.array_record cannot be read at {step}")
        return super().__next__()


def read(source, overrides, workdir) -> ConfigDict:
    """The toy's configuration."""
    given = dict(overrides)
    config = ConfigDict(
        {"mode": "train", "method": "toy", "init_from": "", "seed": 0, "compilation_cache": "", "steps": 4}
    )
    config.update({name: int(value) for name, value in given.items()})
    return config


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Trains four epochs of `config.steps` steps."""
    if os.environ.get("FAULT") == "data":
        raise DatasetNotPrepared("toy (train) is not prepared")
    data = FaultyData(rank=jax.process_index(), ranks=jax.process_count())
    processes.require_alike("data", {"examples": data.num_examples})
    settings = loop.LoopSettings(
        config.steps, log_every=2, checkpoint_every=2, evaluate_every=100, config=config.to_dict()
    )
    strategy = parallel.make_strategy("sharded")
    loop.train(ToyMethod(), data, strategy, settings, workdir, key=jax.random.PRNGKey(config.seed))


if __name__ == "__main__":
    if os.environ.get("TPU_VM"):
        os.environ.pop("TPU_SKIP_MDS_QUERY", None)
        cloud_tpu_cluster.running_in_cloud_tpu_vm = True
    cli.main(cli.Program(read, run, default="toy", workdir="workdir/toy", methods=("toy",), free=()))
