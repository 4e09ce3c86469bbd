"""Meshes, and which device holds what."""

from __future__ import annotations

import logging
import math
import types

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from pose_common.training import mesh as mesh_module
from pose_common.training.mesh import batch_sharding, make_mesh, replicated, state_shardings

DEVICES = 8


def array(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, np.float32)


def spec_of(shape: tuple[int, ...], fsdp: int = 4, field: str = "params", min_size: int = 1) -> PartitionSpec:
    return state_shardings({field: array(*shape)}, make_mesh(fsdp), min_size)[field].spec


@pytest.mark.parametrize("fsdp", [1, 2, 4, 8])
def test_all_devices_are_in_a_mesh_in_their_order(fsdp):
    mesh = make_mesh(fsdp)
    assert dict(mesh.shape) == {"data": DEVICES // fsdp, "fsdp": fsdp}
    assert list(mesh.devices.flat) == jax.devices()


def test_a_processs_devices_are_together(monkeypatch):
    """However the backend lists them: rows of a batch lie where the process that read them is."""
    owners = (0, 0, 1, 1, 0, 0, 1, 1)
    chips = [types.SimpleNamespace(id=number, process_index=process) for number, process in enumerate(owners)]
    monkeypatch.setattr(jax, "devices", lambda: chips)
    monkeypatch.setattr(mesh_module, "Mesh", lambda devices, axes: devices)
    assert [device.id for device in make_mesh().flat] == [0, 1, 4, 5, 2, 3, 6, 7]


@pytest.mark.parametrize("fsdp", [0, -1, 3, 16])
def test_an_axis_that_does_not_divide_the_devices(fsdp):
    with pytest.raises(ValueError, match=f"config.fsdp={fsdp} does not divide the {DEVICES} devices"):
        make_mesh(fsdp)


@pytest.mark.parametrize("fsdp", [1, 4])
def test_rows_are_split_over_all_devices_in_order(fsdp):
    rows = jax.device_put(np.arange(16), batch_sharding(make_mesh(fsdp)))
    parts = sorted(rows.addressable_shards, key=lambda shard: shard.device.id)
    assert [part.data.tolist() for part in parts] == np.arange(16).reshape(DEVICES, 2).tolist()


def test_copies_are_on_every_device():
    copies = jax.device_put(np.arange(3), replicated(make_mesh(4)))
    assert len(copies.addressable_shards) == DEVICES and copies.is_fully_replicated


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((8, 12), (None, "fsdp")),
        ((12, 8), ("fsdp", None)),
        ((8, 8), ("fsdp", None)),  # the first of equals
        ((100, 7, 4), ("fsdp", None, None)),
        ((7, 4), (None, "fsdp")),  # the only one that four devices divide
        ((7, 9), ()),
        ((2, 2), ()),
        ((), ()),
        ((0, 3), ()),
    ],
)
def test_the_largest_axis_that_divides_is_split(shape, spec):
    assert spec_of(shape) == PartitionSpec(*spec)


def test_small_arrays_are_copied():
    assert spec_of((8, 8), min_size=64) == PartitionSpec("fsdp", None)
    assert spec_of((8, 8), min_size=65) == PartitionSpec()
    assert spec_of((8, 8), fsdp=1) == PartitionSpec()


@pytest.mark.parametrize("field", ["batch_stats", "method_state", "step", "rng"])
def test_only_parameters_and_moments_are_split(field):
    assert spec_of((8, 8), field=field) == PartitionSpec()
    assert spec_of((8, 8), field="opt_state") == PartitionSpec("fsdp", None)


def test_any_shape_is_laid_out_and_comes_back():
    """What the rule says must be something that JAX accepts."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        shape = tuple(rng.integers(1, 17, rng.integers(0, 5)))
        values = rng.normal(size=shape).astype(np.float32)
        sharding = state_shardings({"params": values}, make_mesh(int(2 ** rng.integers(0, 4))), 1)["params"]
        placed = jax.device_put(values, sharding)
        np.testing.assert_array_equal(placed, values)
        part = placed.addressable_shards[0].data.size
        assert part * (sharding.mesh.shape["fsdp"] if any(sharding.spec) else 1) == math.prod(shape)


def test_split_arrays_are_logged(caplog):
    with caplog.at_level(logging.INFO):
        state_shardings({"params": {"large": array(8, 8), "odd": array(7)}}, make_mesh(4), 1, log=True)
    assert "['large']" in caplog.text and "odd" not in caplog.text
