"""Compiles every stage's training step for a TPU slice, without one, and says whether it fits and what it would take.

    pip install '.[tpu]'
    python -m scripts.tpu_compile_check --config=configs/mdt.py:base --topology=v5e:4x4
    python -m scripts.tpu_compile_check --config=configs/boir.py:coco_w32 --topology=v5e:2x2 --top=10

A program that this accepts does not fail on the pod for a layout, a dtype, a shape or memory. It runs on any Linux
machine: the TPU compiler is part of the `tpu` extra. Times are the compiler's own estimates for one chip, collectives
between chips left out, so MFU is a bound. Stages that run the same program are compiled once.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import json
import math
import multiprocessing
import os
import pathlib
import re
import tempfile
import time
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # only the compiler is needed, not a device

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pose_common.evaluation import result_table as tables
from pose_common.folding import LANES
from pose_common.training import flops
from pose_common.training.loop import Method
from pose_common.training.mesh import BATCH_AXES, batch_sharding
from pose_common.training.parallel import ShardedStrategy
from pose_common.training.stages import Stage, unlike
from pose_common.training.step import train_step
from scripts import tpu_cycles
from scripts.benchmarks.batches import build_of, parse_arguments, random_batch


class Chip(NamedTuple):
    """Clock in Hz and memory in GiB of a chip (a device of JAX), for which estimates are cycles and bytes."""

    clock: float
    memory: float


CHIPS = {
    "TPU v4": Chip(1.05e9, 32),
    "TPU v5 lite": Chip(1.5e9, 16),
    "TPU v5": Chip(1.75e9, 95),
    "TPU v6 lite": Chip(1.75e9, 32),
}
"""By JAX's `device_kind`: v4, v5e, v5p, v6e. The clock follows from the published peak and the chip's matrix units."""


class Slice(NamedTuple):
    """What is compiled for: devices of a topology, and the parts of a configuration on them."""

    devices: list[jax.Device]
    strategy: ShardedStrategy
    method: Method

    @classmethod
    def of(cls, config: ConfigDict, topology: str) -> Slice:
        """Of a topology's name and a configuration, whose `fold_channels` is set."""
        devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
        mesh = Mesh(np.array(devices).reshape(-1, config.fsdp), BATCH_AXES)
        if config.get("fold_channels", 0) < 0:
            config.fold_channels = LANES  # as on the devices that are compiled for
        method = build_of(config).make_method(config, steps_per_epoch=1)
        return cls(devices, ShardedStrategy(mesh, config.fsdp_min_size), method)


def trace(target: Slice, stage: Stage, config: ConfigDict, clusters: int) -> jax.stages.Traced:
    """The step of a stage; its jaxpr has all chips' batch."""
    _, strategy, method = target
    notes = {"num_clusters": config.num_clusters or clusters} if "cluster" in stage.losses else {}
    shapes = method.shapes(stage, notes)
    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, strategy.shardings(shapes)
    )
    rows = batch_sharding(strategy.mesh)
    batch = {
        name: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=rows)
        for name, value in random_batch(config, method).items()
    }
    step = functools.partial(train_step, method=method, stage=stage)
    return strategy.compile(step, state).trace(state, batch)


def kernel_cycles(config: ConfigDict, topology: str, stage: str, clusters: int) -> dict[str, int]:
    """`tpu_cycles.kernel_cycles` of a stage, in a process of its own: the compiler reads its flags once."""
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as child:
        return child.submit(_kernel_cycles, config.to_json(), topology, stage, clusters).result()


def _kernel_cycles(config: str, topology: str, stage: str, clusters: int) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LIBTPU_INIT_ARGS"] = tpu_cycles.KERNEL_DUMP.format(folder)
        os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
        settings = ConfigDict(json.loads(config))
        target = Slice.of(settings, topology)
        (wanted,) = [each for each in target.method.stages if each.name == stage]
        program = trace(target, wanted, settings, clusters).jaxpr
        return tpu_cycles.kernel_cycles(program, target.devices[0], pathlib.Path(folder))


def row(
    compiled: Any, operations: list[tpu_cycles.Operation], total_flops: float, device: jax.Device, chips: int
) -> dict:
    """What a compiled step takes a chip."""
    memory, chip = compiled.memory_analysis(), CHIPS.get(device.device_kind)
    peak, cycles = flops.peak_flops(device.device_kind), sum(each.cycles for each in operations)
    seconds = cycles / chip.clock if chip else math.nan
    sent = sum(tpu_cycles.shape_bytes(each.shape) * each.runs for each in operations if each.is_collective)
    return {
        "fits": f"yes, {memory.peak_memory_in_bytes / 2**30:.1f} of {chip.memory:g} GiB" if chip else "yes",
        "arguments GiB": round(memory.argument_size_in_bytes / 2**30, 2),
        "temporary GiB": round(memory.temp_size_in_bytes / 2**30, 2),
        "TFLOP a chip": round(total_flops / chips / 1e12, 2),
        "Mcycles": round(cycles / 1e6, 1),
        "ms": round(1e3 * seconds, 1),
        "MFU at most": f"{total_flops / chips / peak / seconds:.0%}" if peak and chip else "",
        "collectives MiB": round(sent / 2**20, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:4x4", help="name of the slice")
    parser.add_argument("--clusters", type=int, default=64, help="of the bank, where config.num_clusters is 0")
    parser.add_argument("--stages", default="", help="names of the stages, by commas; all otherwise")
    parser.add_argument("--top", type=int, default=0, help="also the so many operations that take most of the time")
    parser.add_argument("--out", default="", help="also write the table to this path (.json, .csv, .md)")
    config, options = parse_arguments(parser, "configs/mdt.py:base")
    target = Slice.of(config, options.topology)
    devices, _, method = target
    wanted = [name for name in options.stages.split(",") if name]
    if unknown := set(wanted) - {stage.name for stage in method.stages}:
        parser.error(f"--stages: there is no {min(unknown)!r}; known: {', '.join(s.name for s in method.stages)}")
    found, title = [], f"{config.size}, batch {config.batch_size}, fsdp {config.fsdp} on {options.topology}, a chip"
    for stage in unlike([stage for stage in method.stages if stage.name in (wanted or [stage.name])]):
        traced = trace(target, stage, config, options.clusters)
        lowered, total_flops = traced.lower(), flops.jaxpr_flops(traced.jaxpr)
        began = time.perf_counter()
        try:
            compiled = lowered.compile()
            seconds = time.perf_counter() - began
            of_kernels = {}
            if any(tpu_cycles.kernels(traced.jaxpr)):
                of_kernels = kernel_cycles(config, options.topology, stage.name, options.clusters)
            operations = tpu_cycles.operations(compiled.as_text(), of_kernels)
            figures = row(compiled, operations, total_flops, devices[0], len(devices))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            seconds = time.perf_counter() - began
            operations, figures = [], {"fits": out_of_memory(str(error))}
        found.append({"stage": stage.name, **figures, "compile s": round(seconds, 1)})
        tables.show(found[-1:], title=title)
        if options.top and operations:
            tables.show(tpu_cycles.longest(operations, options.top), title=f"{stage.name}: most of the estimated time")
    if len(found) > 1:
        tables.show(found, title=title)
    if options.out:
        tables.save(found, options.out)


def out_of_memory(message: str) -> str:
    """What the compiler says of a program that does not fit: "no, 16.52G of 15.75G"."""
    used = re.search(r"Used ([\d.]+[KMG]?) of ([\d.]+[KMG]?) hbm", message) or re.search(
        r"temporaries \(([\d.]+[KMG]?)\) exceeds available HBM \(([\d.]+[KMG]?)\)", message
    )
    return f"no, {used[1]} of {used[2]}" if used else f"no: {message.splitlines()[0][:120]}"


if __name__ == "__main__":
    main()
