"""Images (BoIR) or crops (PoseBH) a second in prediction, flip test and decoding included, compilation apart.

    python -m scripts.benchmarks.inference --config=configs/boir.py:coco_w32 --batches=1,8
    python -m scripts.benchmarks.inference --config=configs/mdt.py:base --batches=1,64

Weights and pictures are random and already on the device. BoIR's pictures are squares of `config.input_size`; how many
people the heads find does not change the time, because proposals have a fixed cap.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from boir_jax.weights.convert import METHOD as BOIR
from pose_common.evaluation import result_table as tables
from pose_common.training.distributed import use_compilation_cache
from pose_common.training.mesh import make_mesh
from scripts.benchmarks.batches import build_of, parse_arguments


def make_predict(config: ConfigDict) -> Callable:
    """(images [B, H, W, 3], inverse warps [B, 2, 3]) -> people or keypoints, with newly initialised weights."""
    build = build_of(config)
    method = build.make_method(config, steps_per_epoch=1)
    weights = jax.jit(method.init)(jax.random.PRNGKey(0)).weights
    evaluator = build.make_evaluator(config, method.model, make_mesh(), "")
    if config.method == BOIR:
        predictor = evaluator.tasks[0].predictor
        return lambda image, inverse_warp: predictor(weights, image, inverse_warp)
    predictor, protocol = evaluator.predictor, evaluator.tasks[0].protocol
    return lambda image, inverse_warp: predictor(weights, image, inverse_warp, head=0, protocol=protocol)


def run(config: ConfigDict, batches: list[int], rounds: int) -> list[dict]:
    """Rows of the table."""
    predict = make_predict(config)
    width, height = (config.input_size,) * 2 if config.method == BOIR else config.input_size
    rows = []
    for size in batches:
        rng = np.random.default_rng(0)
        image = jnp.asarray(rng.integers(0, 256, (size, height, width, 3), dtype=np.uint8))
        inverse_warp = jnp.broadcast_to(jnp.eye(2, 3), (size, 2, 3))
        times = []
        for _ in range(rounds + 1):
            began = time.perf_counter()
            jax.block_until_ready(predict(image, inverse_warp))
            times.append(time.perf_counter() - began)
        median = statistics.median(times[1:])
        rows.append(
            {
                "batch": size,
                "pixels": f"{width}x{height}",
                "compile s": round(times[0] - median, 1),
                "batch ms": round(1e3 * median, 1),
                "a second": round(size / median, 2),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=lambda text: [int(size) for size in text.split(",")], default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of each row, after one that compiles")
    parser.add_argument("--out", default="", help="also write the table to this path (.json, .csv, .md)")
    config, options = parse_arguments(parser, "configs/boir.py:coco_w32")
    use_compilation_cache(config.compilation_cache)
    rows = run(config, options.batches, options.rounds)
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    tables.show(rows, title=f"{config.method}, {config.size}, {config.eval_dtype}, {devices}")
    if options.out:
        tables.save(rows, options.out)


if __name__ == "__main__":
    main()
