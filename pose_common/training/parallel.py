"""The two ways to run a step on many devices: sharded `jit`, and `pmap`.

Both take the same plain step `step(state, batch, axis_name)` and give the same numbers as one device on the same global
batch. A strategy knows how state and batches are laid out on devices; nothing else in the project does.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from pose_common.training import mesh as meshes

PMAP_AXIS = "devices"


@dataclasses.dataclass(frozen=True)
class ShardedStrategy:
    """`jit` over a (data, fsdp) mesh: arrays are global, collectives are the compiler's."""

    mesh: Mesh
    fsdp_min_size: int = 2**16

    def shardings(self, shapes: Any, log: bool = False) -> Any:
        """Where each leaf of a state (or of one with `.shape` leaves) lives."""
        return meshes.state_shardings(shapes, self.mesh, self.fsdp_min_size, log)

    def create(self, init: Callable, *args) -> Any:
        """`init(*args)`, compiled so that every leaf is born in its shards."""
        shardings = self.shardings(jax.eval_shape(init, *args), log=True)
        return jax.jit(init, out_shardings=shardings)(*args)

    def transform(self, function: Callable, state: Any) -> Any:
        """A host-side change of the state's structure (a new stage, say)."""
        shardings = self.shardings(jax.eval_shape(function, state))
        return jax.jit(function, out_shardings=shardings)(state)

    def compile(self, step: Callable, state: Any) -> Callable:
        """(state, batch) -> (state, metrics); the old state's memory is given to the new one."""
        out = (self.shardings(state), meshes.replicated(self.mesh))
        return jax.jit(functools.partial(step, axis_name=None), donate_argnums=0, out_shardings=out)

    def put(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """This process's rows -> arrays of the global batch."""
        return put_rows(batch, self.mesh)

    def to_global(self, state: Any) -> Any:
        """The state as global arrays, for checkpoints and evaluation."""
        return state

    from_global = to_global


@dataclasses.dataclass(frozen=True)
class PmapStrategy:
    """`pmap`: every device holds a copy of the state and its own rows, and sums are explicit."""

    mesh: Mesh

    def shardings(self, shapes: Any, log: bool = False) -> Any:
        """Global layout used for checkpoints: copies."""
        del log
        return jax.tree.map(lambda _: meshes.replicated(self.mesh), shapes)

    def create(self, init: Callable, *args) -> Any:
        """`init(*args)` copied to every device."""
        return self._replicate(jax.jit(init)(*args))

    def transform(self, function: Callable, state: Any) -> Any:
        """A host-side change of the state's structure."""
        return self._replicate(jax.jit(function)(jax.tree.map(_first_copy, state)))

    def compile(self, step: Callable, state: Any) -> Callable:
        """(state, batch) -> (state, metrics)."""
        del state
        mapped = jax.pmap(functools.partial(step, axis_name=PMAP_AXIS), axis_name=PMAP_AXIS, donate_argnums=0)

        def run(state, batch):
            state, metrics = mapped(state, batch)
            return state, jax.tree.map(_first_copy, metrics)

        return run

    def put(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """This process's rows, split over its devices: [B, ...] -> [devices, B / devices, ...].

        Raises:
          ValueError: they do not divide over the devices.
        """
        count = jax.local_device_count()
        _check_rows(batch, count)
        return {name: rows.reshape(count, -1, *rows.shape[1:]) for name, rows in batch.items()}

    def to_global(self, state: Any) -> Any:
        """One copy, as arrays over the mesh."""
        sharding = meshes.replicated(self.mesh)
        return jax.tree.map(lambda x: jax.device_put(np.asarray(_first_copy(x)), sharding), state)

    def from_global(self, state: Any) -> Any:
        """The way back."""
        return self._replicate(state)

    def _replicate(self, state: Any) -> Any:
        devices = jax.local_devices()
        local = jax.sharding.Mesh(np.array(devices), (PMAP_AXIS,))
        split = jax.sharding.NamedSharding(local, jax.sharding.PartitionSpec(PMAP_AXIS))

        def copy(x):
            x = np.asarray(x.addressable_data(0) if isinstance(x, jax.Array) else x)
            return jax.device_put(np.broadcast_to(x, (len(devices), *x.shape)), split)

        return jax.tree.map(copy, state)


def _first_copy(x: jax.Array) -> jax.Array:
    """This process's first copy of a mapped array: [devices, ...] -> [...]."""
    return x.addressable_data(0)[0]


Strategy = ShardedStrategy | PmapStrategy


def make_strategy(parallel: str, fsdp: int = 1, fsdp_min_size: int = 2**16) -> Strategy:
    """The strategy that `config.parallel` names.

    Raises:
      ValueError: neither 'sharded' nor 'pmap', or fsdp asked of pmap.
    """
    if parallel == "sharded":
        return ShardedStrategy(meshes.make_mesh(fsdp), fsdp_min_size)
    if parallel == "pmap":
        if fsdp != 1:
            raise ValueError("config.parallel='pmap' keeps a copy on every device; set config.fsdp=1 or use 'sharded'")
        return PmapStrategy(meshes.make_mesh())
    raise ValueError(f"config.parallel={parallel!r}: expected 'sharded' or 'pmap'")


def put_rows(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch -> arrays of the global batch, rows split over all devices.

    Raises:
      ValueError: they do not divide over this process's devices.
    """
    _check_rows(batch, len(mesh.local_devices))
    sharding = meshes.batch_sharding(mesh)
    arrays = {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}
    if mesh.devices.flat[0].platform == "cpu":
        jax.block_until_ready(arrays)  # else the step would not run in this thread: `host_memory.keep`
    return arrays


def _check_rows(batch: dict[str, np.ndarray], devices: int) -> None:
    for name, rows in batch.items():
        if len(rows) % devices:
            raise ValueError(
                f"{len(rows)} rows of {name!r} do not divide over {devices} devices; config.batch_size and "
                "config.eval_batch_size must be multiples of the number of devices"
            )
