"""Time of a training step in every stage, and what the prototype and cross-type terms add to it.

    python -m scripts.benchmarks.train_step --config=configs/mdt.py:base --config.batch_size=64 --steps=20
    python -m scripts.benchmarks.train_step --config=configs/boir.py:coco_w32 --config.batch_size=20

Batches are random, already on the device; compilation is timed apart. PoseBH's last rows train everything and add one
loss term after the other, so that a term's cost is the difference of two rows; its share is of the step with all terms.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time

import jax
from absl import flags
from ml_collections import ConfigDict

from pose_common.evaluation import result_table as tables
from pose_common.training import parallel
from pose_common.training.distributed import use_compilation_cache
from pose_common.training.loop import Method
from pose_common.training.stages import Stage
from pose_common.training.step import train_step
from scripts.benchmarks.batches import build_of, random_batch, run_with_config

_STEPS = flags.DEFINE_integer("steps", 10, "Timed steps of each row, after two that are not.")
_OUT = flags.DEFINE_string("out", "", "Also write the table to this path (.json, .csv, .md).")

GROUPS = ("backbone", "heads", "embedding")
LADDER = {
    "multi-head": ("heatmap",),
    "+ prototype": ("heatmap", "prototype", "prototype_heatmap"),
    "+ cluster": ("heatmap", "prototype", "prototype_heatmap", "cluster"),
    "+ cross-type": ("heatmap", "prototype", "prototype_heatmap", "cluster", "cross_type"),
}


def time_stage(method: Method, strategy: parallel.Strategy, stage: Stage, batch, steps: int) -> dict[str, float]:
    """Seconds to compile and the median milliseconds of a step."""
    state = strategy.create(method.init, jax.random.PRNGKey(0))
    change, _ = method.enter_stage(strategy.to_global(state), stage)
    state = strategy.transform(change, state)
    step = functools.partial(train_step, method=method, stage=stage)
    step = strategy.compile(step, state)
    began = time.perf_counter()
    state, metrics = jax.block_until_ready(step(state, batch))
    compiled = time.perf_counter() - began
    state, metrics = jax.block_until_ready(step(state, batch))
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        state, metrics = jax.block_until_ready(step(state, batch))
        times.append(time.perf_counter() - began)
    median = statistics.median(times)
    return {"compile s": round(compiled - median, 1), "step ms": round(1e3 * median, 2)}


def run(config: ConfigDict, steps: int) -> list[dict]:
    """Rows of the table."""
    method = build_of(config).make_method(config, steps_per_epoch=1)
    strategy = parallel.make_strategy(config.parallel, config.fsdp, config.fsdp_min_size)
    batch = strategy.put(random_batch(config, method))
    ladder = [Stage(name, 1, GROUPS, losses) for name, losses in LADDER.items()] if config.method == "posebh" else []
    rows = []
    for stage in (*method.stages, *ladder):
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


def main(config: ConfigDict) -> None:
    use_compilation_cache(config.compilation_cache)
    rows = run(config, _STEPS.value)
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    tables.show(rows, title=f"{config.size}, {config.dtype}, batch {config.batch_size}, {devices}")
    if _OUT.value:
        tables.save(rows, _OUT.value)


if __name__ == "__main__":
    run_with_config(main, "configs/mdt.py:demo")
