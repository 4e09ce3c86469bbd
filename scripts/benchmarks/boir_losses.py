"""BoIR's box losses (embedding and box regression), forward and backward, over the number of people in an
image.

    python -m scripts.benchmarks.boir_losses
    python -m scripts.benchmarks.boir_losses --reference=<checkout of the original code>

Ours are a few matrix products over a padded instance axis; the original loops over people in Python. The
reference's side needs a checkout and PyTorch (the `torch` extra), on the same machine with the same threads;
without the option only ours run. Maps are random, 128 channels on 128x128; every image has 1 to 30 people
(drawn once), or exactly `people`. The median of `--rounds` is reported after one run that compiles.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import time
import types
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from boir_jax.losses import LossConfig, box_loss, embedding_loss
from pose_common.training import configuration
from scripts.benchmarks.originals import open_boir, torch_device

CELLS = 128
CHANNELS = 128


def make_batch(images: int, people: int | None, cap: int) -> dict[str, np.ndarray]:
    """Random maps and people; `people` per image, or 1 to `cap` of them."""
    rng = np.random.default_rng(0)
    counts = rng.integers(1, cap + 1, images) if people is None else np.full(images, people)
    size = rng.uniform(8, 60, (images, cap, 2))
    corner = rng.uniform(0, CELLS - size)
    return {
        "embedding": rng.normal(size=(images, CELLS, CELLS, CHANNELS)).astype(np.float32),
        "box": rng.uniform(1, 20, (images, CELLS, CELLS, 4)).astype(np.float32),
        "boxes": np.concatenate([corner, size], axis=-1).astype(np.float32),
        "cells": (corner + size / 2).astype(np.int32),
        "valid": np.arange(cap) < counts[:, None],
    }


def ours(batch: dict[str, np.ndarray], background: str) -> Callable[[], object]:
    """One forward and backward pass of both losses, compiled."""
    config = dataclasses.replace(
        LossConfig(**configuration.read("boir").losses), background=background, pull=background == "instance"
    )

    def loss(embedding, box, boxes, cells, valid):
        return embedding_loss(embedding, boxes, valid, config) + box_loss(box, cells, boxes, valid)

    step = jax.jit(jax.value_and_grad(loss, (0, 1)))
    arguments = [jnp.asarray(batch[name]) for name in ("embedding", "box", "boxes", "cells", "valid")]
    return lambda: jax.block_until_ready(step(*arguments))


def original(batch: dict[str, np.ndarray], background: str, checkout: pathlib.Path) -> Callable[[], object]:
    """The same with the original's modules, on the CPU or, if there is one, the GPU."""
    open_boir(checkout)
    import torch
    from models.cid_module import ParamSampler

    device, finish = torch_device()
    config = reference_config(device, background)
    sampler = ParamSampler(config, True).to(device).train()
    to_torch = {name: torch.tensor(batch[name]).to(device) for name in ("embedding", "box")}
    maps = {name: value.permute(0, 3, 1, 2).contiguous().requires_grad_() for name, value in to_torch.items()}
    features = torch.zeros(len(batch["valid"]), 1, CELLS, CELLS, device=device)
    mask = torch.ones(1, CELLS, CELLS)
    inputs = []
    for cells, boxes, valid in zip(batch["cells"], batch["boxes"], batch["valid"], strict=True):
        count = int(valid.sum())
        inputs.append(
            {
                "instance_coord": torch.tensor(cells[valid][:, ::-1].copy()).long(),
                "instance_heatmap": torch.zeros(count, 1, 1, 1),
                "instance_mask": torch.zeros(count, 1, 1, 1),
                "bbox": torch.tensor(boxes[valid].astype(np.float64)),
                "multi_mask": mask,
            }
        )

    def step():
        result = sampler(features, maps["embedding"], inputs, features, maps["box"])
        (result["bbox_mask_loss"] + result["bbox_loss"]).backward()
        finish()

    return step


def reference_config(device: str, background: str) -> types.SimpleNamespace:
    """The settings that the original's modules read."""
    space = types.SimpleNamespace
    return space(
        MODEL=space(DEVICE=device, NECK=space(IN_CHANNELS=CHANNELS)),
        DATASET=space(OUTPUT_SIZE=CELLS),
        LOSS=space(AE_BETA=10.0, BBOX_MASK_LOSS_BG_SAMPLE_LEVEL=int(background == "image")),
        TEST=space(
            REMOVE_AUX_HEAD=True,
            FLIP_TEST=True,
            MAX_PROPOSALS=30,
            KEYPOINT_THRESHOLD=0.01,
            CENTER_POOL_KERNEL=3,
            POOL_THRESHOLD1=300,
            POOL_THRESHOLD2=200,
        ),
    )


def median_seconds(step: Callable[[], object], rounds: int) -> float:
    """Median wall time after one untimed run."""
    step()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--people", type=int, nargs="*", default=[1, 5, 15, 30])
    parser.add_argument("--cap", type=int, default=30, help="rows of the padded instance axis")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--reference", type=pathlib.Path, help="a checkout of the original code")
    arguments = parser.parse_args()

    device = jax.devices()[0].device_kind
    print(f"{arguments.images} images on {device}, {os.cpu_count()} cores; seconds a step")
    for background in ("image", "instance"):
        for people in (None, *arguments.people):
            batch = make_batch(arguments.images, people, arguments.cap)
            row = {"background": background, "people": people or f"1-{arguments.cap}"}
            row["ours"] = round(median_seconds(ours(batch, background), arguments.rounds), 4)
            if arguments.reference:
                step = original(batch, background, arguments.reference)
                row["original"] = round(median_seconds(step, arguments.rounds), 4)
                row["ratio"] = round(row["original"] / row["ours"], 1)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
