"""Fingerprints of many arrays that lie spread over the devices of several processes; a program for two."""

from __future__ import annotations

import jax
import numpy as np

from pose_common.training.fingerprints import Summary, summarise
from pose_common.training.mesh import make_mesh
from tests.distribution import Arrays, program

COUNT = 150


def on_host() -> dict[str, Summary]:
    return summarise(dict(enumerate(_arrays())))


def run(layout: str) -> Arrays:
    """{number: fingerprint}; `layout` is that of the arrays."""
    mesh = make_mesh(fsdp=4)
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(layout))
    spread = [jax.make_array_from_callback(each.shape, rows, each.__getitem__) for each in _arrays()]
    return {name: np.uint32(found.fingerprint) for name, found in summarise(dict(enumerate(spread))).items()}


def _arrays() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(COUNT, 64, 8)).astype(np.float32)


if __name__ == "__main__":
    program(run)
