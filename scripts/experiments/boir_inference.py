"""What BoIR's training heads would cost at inference, where they are left out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from boir_jax.method import BoIRMethod
from boir_jax.predictor import without_training_heads
from pose_common.images import normalise_pixels


def inference_cost(method: BoIRMethod, people: int, size: tuple[int, int] = (192, 128)) -> list[dict[str, Any]]:
    """The network on one picture of (width, height), with and without the training heads: file, FLOPs, time."""
    variables = method.init_variables(jax.random.PRNGKey(0))
    images = np.zeros((1, size[1], size[0], 3), np.uint8)
    cells = np.zeros((1, people, 2), np.int32)
    rows, compiled = [], []
    for heads in (True, False):
        model = method.model.clone(training_heads=heads)
        needed = variables if heads else {name: without_training_heads(group) for name, group in variables.items()}

        def network(images, model=model, needed=needed):
            bound = model.bind(needed)
            features = bound.features(normalise_pixels(images), False)
            dense = bound.dense(features, False)
            return dense, bound.instance_maps(features[:, None], cells[..., 0], cells)

        function = jax.jit(network)
        exported = len(jax.export.export(function)(images).mlir_module_serialized)
        compiled.append(function.lower(images).compile())
        rows.append(
            {
                "network": "with training heads" if heads else "as exported",
                "parameters": sum(leaf.size for leaf in jax.tree.leaves(needed["params"])),
                "StableHLO bytes": exported,
                "GFLOP": round(compiled[-1].cost_analysis()["flops"] / 1e9, 3),
            }
        )
    return [{**row, "ms": least} for row, least in zip(rows, least_milliseconds(compiled, images), strict=True)]


def least_milliseconds(functions: Sequence[Any], images: np.ndarray, rounds: int = 40) -> list[float]:
    """The shortest of each function's calls, in turns, which what else the machine does disturbs least."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, own in zip(functions, times, strict=True):
            began = time.perf_counter()
            jax.block_until_ready(function(images))
            own.append(time.perf_counter() - began)
    return [round(1e3 * min(own), 1) for own in times]
