"""Time of a training step in every stage, and what the prototype and cross-type terms add to it.

    python -m scripts.benchmarks.train_step --config=configs/mdt.py:base --config.batch_size=64 --steps=20
    python -m scripts.benchmarks.train_step --config=configs/boir.py:coco_w32 --config.batch_size=20

Batches are random, already on the device; compilation is timed apart; steps are sharded, whatever `config.parallel`
says. PoseBH's last rows train everything and add one loss term after the other, so that a term's cost is the difference
of two rows; its share is of the step with all terms.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from pose_common import host_memory
from pose_common.evaluation import result_table as tables
from pose_common.training import flops, parallel
from pose_common.training.distributed import use_compilation_cache
from pose_common.training.loop import Method
from pose_common.training.mesh import make_mesh
from pose_common.training.stages import Stage, unlike
from pose_common.training.step import train_step
from scripts.benchmarks.batches import build_of, parse_arguments, random_batch

GROUPS = ("backbone", "heads", "embedding")
LADDER = {
    "multi-head": ("heatmap",),
    "+ prototype": ("heatmap", "prototype", "prototype_heatmap"),
    "+ cluster": ("heatmap", "prototype", "prototype_heatmap", "cluster"),
    "+ cross-type": ("heatmap", "prototype", "prototype_heatmap", "cluster", "cross_type"),
}


def time_stage(method: Method, strategy: parallel.ShardedStrategy, stage: Stage, batch, steps: int) -> dict[str, Any]:
    """Seconds to compile, the median milliseconds of a step, its FLOPs, and memory a device.

    MFU is the share of the device's peak in bfloat16 (`pose_common.training.flops`); nothing where that is unknown.
    """
    state = strategy.create(method.init, jax.random.PRNGKey(0))
    change, _ = method.enter_stage(strategy.to_global(state), stage)
    state = strategy.transform(change, state)
    traced = strategy.compile(functools.partial(train_step, method=method, stage=stage), state).trace(state, batch)
    began = time.perf_counter()
    step = traced.lower().compile()
    compiled = time.perf_counter() - began
    times = []
    for _ in range(steps + 2):
        began = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, batch))
        times.append(time.perf_counter() - began)
    seconds, operations = statistics.median(times[2:]), flops.jaxpr_flops(traced.jaxpr)
    peak, memory = flops.peak_flops(jax.devices()[0].device_kind), step.memory_analysis()
    return {
        "compile s": round(compiled, 1),
        "step ms": round(1e3 * seconds, 2),
        "TFLOP": round(operations / 1e12, 3),
        "MFU": f"{operations / seconds / peak / strategy.mesh.size:.1%}" if peak else "",
        "GiB": round((memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**30, 2),
    }


def run(config: ConfigDict, steps: int, strategy: parallel.ShardedStrategy) -> list[dict]:
    """Rows of the table."""
    method = build_of(config).make_method(config, steps_per_epoch=1)
    batch = strategy.put(random_batch(config, method))
    ladder = [Stage(name, 1, GROUPS, losses) for name, losses in LADDER.items()] if config.method == "posebh" else []
    rows = []
    for stage in (*unlike(method.stages), *ladder):
        # A PoseBH that starts in the stage; BoIR has but one.
        one = dataclasses.replace(method, stages=(stage,)) if ladder else method
        times = time_stage(one, strategy, stage, batch, steps)
        rows.append(
            {
                "stage": stage.name,
                "trains": ", ".join(stage.train),
                **times,
                "images/s": round(1e3 * config.batch_size / times["step ms"], 1),
            }
        )
    if ladder:
        whole = rows[-1]["step ms"]
        for row, before in zip(rows[-len(ladder) + 1 :], rows[-len(ladder) : -1], strict=True):
            row["share of the step"] = f"{(row['step ms'] - before['step ms']) / whole:.1%}"
    return [{"share of the step": "", **row} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each row, after two that are not")
    parser.add_argument("--out", default="", help="also write the table to this path (.json, .csv, .md)")
    config, options = parse_arguments(parser, "configs/mdt.py:demo")
    host_memory.keep()
    use_compilation_cache(config.compilation_cache)
    strategy = parallel.ShardedStrategy(make_mesh(config.fsdp), config.fsdp_min_size)
    rows = run(config, options.steps, strategy)
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    tables.show(rows, title=f"{config.size}, {config.dtype}, batch {config.batch_size}, {devices}")
    if options.out:
        tables.save(rows, options.out)


if __name__ == "__main__":
    main()
