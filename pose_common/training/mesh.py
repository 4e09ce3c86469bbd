"""The device mesh and who holds what.

Axes: `data` and `fsdp`. A batch is split over both; parameters and optimizer moments are split over `fsdp` only (and
copied over `data`), each along its largest divisible axis. Small arrays and everything else are copied to every device.
"""

from __future__ import annotations

import logging
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

BATCH_AXES = ("data", "fsdp")
SHARDED_FIELDS = ("params", "opt_state")


def make_mesh(fsdp: int = 1) -> Mesh:
    """All devices of all processes as a (data, fsdp) mesh, in process order, so that rows of a batch stay in theirs.

    Raises:
      ValueError: `fsdp` does not divide the number of devices.
    """
    devices = np.array(sorted(jax.devices(), key=lambda device: (device.process_index, device.id)))
    if fsdp < 1 or devices.size % fsdp:
        raise ValueError(f"config.fsdp={fsdp} does not divide the {devices.size} devices")
    return Mesh(devices.reshape(-1, fsdp), BATCH_AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    """On every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over all devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def state_shardings(shapes: Any, mesh: Mesh, min_size: int, log: bool = False) -> Any:
    """A sharding for every leaf of a train state given by its shapes.

    Args:
      shapes: pytree with `.shape` leaves whose first path entry is the name of the state's field.
      mesh: from `make_mesh`.
      min_size: number of elements below which an array is copied.
      log: writes one line for every split array.
    """

    def choose(path, leaf):
        spec = PartitionSpec()
        if _field(path) in SHARDED_FIELDS and leaf.size >= min_size:
            spec = _split_largest_axis(leaf.shape, mesh.shape["fsdp"])
        if log and any(spec):
            logging.info("sharding %-70s %-24s %s", jax.tree_util.keystr(path), leaf.shape, spec)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(choose, shapes)


def _field(path) -> str:
    entry = path[0]
    return str(getattr(entry, "name", getattr(entry, "key", entry)))


def _split_largest_axis(shape: tuple[int, ...], parts: int) -> PartitionSpec:
    divisible = [axis for axis, length in enumerate(shape) if length % parts == 0 and length >= parts]
    if parts == 1 or not divisible:
        return PartitionSpec()
    largest = max(divisible, key=lambda axis: shape[axis])
    return PartitionSpec(*("fsdp" if axis == largest else None for axis in range(len(shape))))
