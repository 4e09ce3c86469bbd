"""Compiles every stage's training step for a TPU slice, without one, and says whether it fits and what it would take.

    pip install '.[tpu]'
    python -m scripts.tpu_compile_check --config=configs/mdt.py:base --topology=v5e:4x4
    python -m scripts.tpu_compile_check --config=configs/boir.py:coco_w32 --topology=v5e:2x2 --top=10

A program that this accepts does not fail on the pod for a layout, a dtype, a shape or memory. It runs on any Linux
machine: the TPU compiler is part of the `tpu` extra. Stages that run the same program are compiled once.

Times are of one chip, exchanges between chips left out. "ms": each operation takes as long as the instructions that
the compiler scheduled for it, or as the memory takes to move its bytes, whichever is longer. Waiting is not in it, so
that MFU is a bound. "ms estimated": by the compiler's own estimates, which are two to three times that for whatever is
no product of matrices. To write what it scheduled takes the compiler as long again.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import os
import pathlib
import re
import tempfile
import time
from collections.abc import Sequence
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
from scripts import tpu_cycles, tpu_schedules
from scripts.benchmarks.batches import build_of, parse_arguments, random_batch


class Chip(NamedTuple):
    """A chip (a device of JAX): its clock in Hz, its memory in GiB, how many bytes a second go to and from that."""

    clock: float
    memory: float
    bandwidth: float

    @property
    def bytes_a_cycle(self) -> float:
        return self.bandwidth / self.clock


CHIPS = {
    "TPU v4": Chip(1.05e9, 32, 1.228e12),
    "TPU v5 lite": Chip(1.5e9, 16, 0.819e12),
    "TPU v5": Chip(1.75e9, 95, 2.765e12),
    "TPU v6 lite": Chip(1.75e9, 32, 1.64e12),
}
"""By JAX's `device_kind`: v4, v5e, v5p, v6e. Memory and its bandwidth are as published; the clock follows from the
published peak and the chip's matrix units."""


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


def row(
    compiled: Any, operations: list[tpu_cycles.Operation], total_flops: float, device: jax.Device, chips: int
) -> dict:
    """What a compiled step takes a chip."""
    memory, chip, peak = compiled.memory_analysis(), CHIPS[device.device_kind], flops.peak_flops(device.device_kind)
    alone = [each for each in operations if not each.is_collective]
    seconds = sum(each.cycles(chip.bytes_a_cycle) for each in alone) / chip.clock
    estimated = sum(each.estimate or each.schedule for each in alone) / chip.clock
    sent = sum(tpu_cycles.shape_bytes(each.shape) * each.runs for each in operations if each.is_collective)
    return {
        "fits": f"yes, {memory.peak_memory_in_bytes / 2**30:.1f} of {chip.memory:g} GiB",
        "arguments GiB": round(memory.argument_size_in_bytes / 2**30, 2),
        "temporary GiB": round(memory.temp_size_in_bytes / 2**30, 2),
        "TFLOP a chip": round(total_flops / chips / 1e12, 2),
        "ms": round(1e3 * seconds, 1),
        "MFU at most": f"{total_flops / chips / peak / seconds:.0%}" if peak else "",
        "ms estimated": round(1e3 * estimated, 1),
        "collectives MiB": round(sent / 2**20, 1),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m scripts.tpu_compile_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--topology", default="v5e:4x4", help="name of the slice")
    parser.add_argument("--clusters", type=int, default=64, help="of the bank, where config.num_clusters is 0")
    parser.add_argument("--stages", default="", help="names of the stages, by commas; all otherwise")
    parser.add_argument("--top", type=int, default=0, help="also the so many operations that take most of the time")
    parser.add_argument("--out", default="", help="also write the table to this path (.json, .csv, .md)")
    config, options = parse_arguments(parser, "configs/mdt.py:base", arguments)
    if importlib.util.find_spec("libtpu") is None:
        parser.error("the TPU compiler is not installed: pip install '.[tpu]'")
    with tempfile.TemporaryDirectory() as folder:
        # Before the compiler is loaded, which reads its flags once.
        os.environ["LIBTPU_INIT_ARGS"] = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {tpu_schedules.DUMP.format(folder)}"
        target = Slice.of(config, options.topology)
        known = [stage.name for stage in target.method.stages]
        wanted = [name for name in options.stages.split(",") if name]
        if unknown := set(wanted) - set(known):
            parser.error(f"--stages: there is no {min(unknown)!r}; known: {', '.join(known)}")
        if (kind := target.devices[0].device_kind) not in CHIPS:
            parser.error(f"--topology: nothing is known of the chip {kind!r}; of these it is: {', '.join(CHIPS)}")
        found, title = [], f"{config.size}, batch {config.batch_size}, fsdp {config.fsdp} on {options.topology}, a chip"
        for stage in unlike([stage for stage in target.method.stages if stage.name in (wanted or known)]):
            figures, longest = check(target, stage, config, options.clusters, pathlib.Path(folder), options.top)
            found.append({"stage": stage.name, **figures})
            tables.show(found[-1:], title=title)
            if longest:
                tables.show(longest, title=f"{stage.name}: most of the time")
    if len(found) > 1:
        tables.show(found, title=title)
    if options.out:
        tables.save(found, options.out)


def check(
    target: Slice, stage: Stage, config: ConfigDict, clusters: int, folder: pathlib.Path, top: int
) -> tuple[dict, list[dict]]:
    """(what a stage takes, its `top` operations that take most), of the compiler that writes schedules to `folder`."""
    traced = trace(target, stage, config, clusters)
    lowered, total_flops, device = traced.lower(), flops.jaxpr_flops(traced.jaxpr), target.devices[0]
    began = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"fits": out_of_memory(str(error)), "compile s": round(time.perf_counter() - began, 1)}, []
    seconds = time.perf_counter() - began
    operations = tpu_cycles.operations(compiled.as_text(), tpu_schedules.read_schedules(folder))
    figures = row(compiled, operations, total_flops, device, len(target.devices))
    longest = tpu_cycles.longest(operations, top, CHIPS[device.device_kind].bytes_a_cycle)
    return {**figures, "compile s": round(seconds, 1)}, longest


def out_of_memory(message: str) -> str:
    """What the compiler says of a program that does not fit: "no, 16.52G of 15.75G"."""
    used = re.search(r"Used ([\d.]+[KMG]?) of ([\d.]+[KMG]?) hbm", message) or re.search(
        r"temporaries \(([\d.]+[KMG]?)\) exceeds available HBM \(([\d.]+[KMG]?)\)", message
    )
    return f"no, {used[1]} of {used[2]}" if used else f"no: {message.splitlines()[0][:120]}"


if __name__ == "__main__":
    main()
