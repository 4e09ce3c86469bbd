"""The network against Hugging Face's VitPose-plus of the same size: forward, and forward with backward, in one process.

    python -m scripts.benchmarks.peer --size=base --batch=4
    taskset --cpu-list 0 python -m scripts.benchmarks.peer --size=base --batch=4

Backbone with six experts and one heatmap head, random weights, crops of 192x256; the loss is the mean
square of the heatmaps and the gradient that of all parameters. Both run in turn on the same cores (the second
line: on one), or on the same GPU; the minimum of `--rounds` of wall and of processor time is reported after one
round that compiles. On a shared machine compare processor time on one core: threads of either side that wait for
each other count as busy.
Needs PyTorch (the `torch` extra) and transformers.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from pose_common import host_memory
from pose_common.evaluation import result_table as tables
from posebh_jax.model import PoseBH
from posebh_jax.vit import SIZES, ViTSize
from scripts.benchmarks.originals import torch_device

WIDTH, HEIGHT = 192, 256
KEYPOINTS, EXPERTS = 17, 6
PASSES = ("forward", "forward + backward")
Steps = tuple[Callable[[], object], ...]
"""One call for each of `PASSES`; its result is there when it returns."""
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def ours(size: ViTSize, batch: int, dtype: str) -> Steps:
    """The two passes of PoseBH, compiled by their first call."""
    model = PoseBH(size, (("coco", KEYPOINTS),), EXPERTS, embedding_dim=0, dtype=jnp.dtype(dtype))
    image = jnp.asarray(np.random.default_rng(0).normal(size=(batch, HEIGHT, WIDTH, 3)), jnp.float32)
    dataset = jnp.arange(batch, dtype=jnp.int32) % EXPERTS
    variables = jax.jit(model.init)(jax.random.key(0), image, dataset)

    def maps(params, train):
        def run(model):
            return model.heatmaps(model.features(image, dataset), train)

        bound = variables | {"params": params}
        return model.apply(bound, method=run, mutable=["batch_stats"] if train else False)

    forward = jax.jit(lambda params: maps(params, False))
    backward = jax.jit(jax.grad(lambda params: jnp.square(maps(params, True)[0]).mean()))
    return tuple(lambda step=step: jax.block_until_ready(step(variables["params"])) for step in (forward, backward))


def theirs(size: ViTSize, batch: int, dtype: str, compiled: bool) -> Steps:
    """The same of the `transformers` model, eager or by `torch.compile`; bfloat16 by autocast, as one trains."""
    import torch
    import transformers

    device, finish = torch_device()
    backbone = transformers.VitPoseBackboneConfig(
        image_size=[HEIGHT, WIDTH],
        patch_size=[16, 16],
        hidden_size=size.dim,
        num_hidden_layers=size.depth,
        num_attention_heads=size.num_heads,
        mlp_ratio=size.mlp_ratio,
        num_experts=EXPERTS,
        part_features=size.part_features,
        out_features=[f"stage{size.depth}"],
    )
    config = transformers.VitPoseConfig(
        backbone_config=backbone, num_labels=KEYPOINTS, use_simple_decoder=False, attn_implementation="eager"
    )
    model = transformers.VitPoseForPoseEstimation(config).to(device)
    network = torch.compile(model) if compiled else model
    half = torch.autocast(device, dtype=getattr(torch, dtype), enabled=dtype != "float32")
    image = torch.randn(batch, 3, HEIGHT, WIDTH, device=device)
    dataset = torch.arange(batch, device=device) % EXPERTS

    def forward():
        model.eval()
        with torch.no_grad(), half:
            network(image, dataset_index=dataset)
        finish()

    def backward():
        model.train()
        model.zero_grad()
        with half:
            loss = network(image, dataset_index=dataset).heatmaps.float().square().mean()
        loss.backward()
        finish()

    return forward, backward


def seconds_of(step: Callable[[], object]) -> dict[str, float]:
    """Seconds of one call by each clock."""
    started = {name: clock() for name, clock in CLOCKS.items()}
    step()
    return {name: clock() - started[name] for name, clock in CLOCKS.items()}


def run(
    size: ViTSize, batch: int, rounds: int, *, dtype: str = "float32", compiled: bool = False
) -> list[dict[str, str | float]]:
    """Rows of the table."""
    return compared(ours(size, batch, dtype), theirs(size, batch, dtype, compiled), rounds)


def compared(ours: Steps, theirs: Steps, rounds: int) -> list[dict[str, str | float]]:
    """Rows of the table of two networks' `PASSES`, run in turn."""
    sides, rows = {"ours": ours, "theirs": theirs}, []
    for number, name in enumerate(PASSES):
        least: dict[tuple[str, str], float] = {}
        for turn in range(rounds + 1):
            for side, steps in sides.items():
                for clock, seconds in seconds_of(steps[number]).items():
                    if turn:
                        least[side, clock] = min(seconds, least.get((side, clock), float("inf")))
        row: dict[str, str | float] = {"pass": name}
        for clock in CLOCKS:
            row |= {f"{side} {clock}, ms": round(1e3 * least[side, clock], 1) for side in sides}
            row[f"ratio {clock}"] = round(least["theirs", clock] / least["ours", clock], 2)
        rows.append(row)
    return rows


def main(argv: list[str] | None = None) -> list[dict]:
    """Prints the table and returns its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(SIZES), default="base")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--compiled", action="store_true", help="theirs by torch.compile")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", default="", help="also write the table to this path (.json, .csv, .md)")
    args = parser.parse_args(argv)
    host_memory.keep()
    rows = run(SIZES[args.size], args.batch, args.rounds, dtype=args.dtype, compiled=args.compiled)
    tables.show(rows, title=f"ViT {args.size}, batch {args.batch}, {args.dtype}, {jax.devices()[0].device_kind}")
    if args.out:
        tables.save(rows, args.out)
    return rows


if __name__ == "__main__":
    main()
