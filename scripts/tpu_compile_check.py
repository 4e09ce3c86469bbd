"""Compiles every stage's training step for a TPU slice, without one, and prints what it would need of memory.

    pip install '.[tpu]'
    python -m scripts.tpu_compile_check --config=configs/mdt.py:base --topology=v5e:4x4
    python -m scripts.tpu_compile_check --config=configs/boir.py:coco_w32 --topology=v5e:2x2

A program that this accepts does not fail on the pod for a layout, a dtype or a shape. It runs on any Linux machine: the
TPU compiler is part of the `tpu` extra.
"""

from __future__ import annotations

import functools
import os
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # only the compiler is needed, not a device

import jax
import numpy as np
from absl import flags
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pose_common.evaluation import result_table as tables
from pose_common.training.mesh import BATCH_AXES, batch_sharding
from pose_common.training.parallel import ShardedStrategy
from pose_common.training.step import train_step
from scripts.benchmarks.batches import build_of, random_batch, run_with_config

_TOPOLOGY = flags.DEFINE_string("topology", "v5e:4x4", "Name of the slice.")
_CLUSTERS = flags.DEFINE_integer("clusters", 64, "Size of the cluster bank, where config.num_clusters leaves it open.")


def main(config: ConfigDict) -> None:
    devices = topologies.get_topology_desc(platform="tpu", topology_name=_TOPOLOGY.value).devices
    strategy = ShardedStrategy(Mesh(np.array(devices).reshape(-1, config.fsdp), BATCH_AXES), config.fsdp_min_size)
    method = build_of(config).make_method(config, steps_per_epoch=1)
    rows = batch_sharding(strategy.mesh)
    batch = {
        name: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=rows)
        for name, value in random_batch(config, method).items()
    }
    found = []
    for stage in method.stages:
        notes = {"num_clusters": config.num_clusters or _CLUSTERS.value} if "cluster" in stage.losses else {}
        shapes = method.shapes(stage, notes)
        state = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, strategy.shardings(shapes)
        )
        step = functools.partial(train_step, method=method, stage=stage)
        began = time.perf_counter()
        compiled = strategy.compile(step, state).lower(state, batch).compile()
        seconds, memory = time.perf_counter() - began, compiled.memory_analysis()
        found.append(
            {
                "stage": stage.name,
                "compile s": round(seconds, 1),
                "arguments MiB": memory.argument_size_in_bytes >> 20,
                "temporary MiB": memory.temp_size_in_bytes >> 20,
            }
        )
    tables.show(found, title=f"{config.size}, batch {config.batch_size} on {_TOPOLOGY.value}, per device")


if __name__ == "__main__":
    run_with_config(main, "configs/mdt.py:base")
