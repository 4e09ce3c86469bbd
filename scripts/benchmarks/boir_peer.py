"""BoIR's network against the original's in PyTorch: forward, and forward with backward, in one process.

    python -m scripts.benchmarks.boir_peer --reference=<checkout of the original code>

Backbone, neck and the four dense heads, random weights, pictures of 512x512 (W32) or 640x640 (W48); the loss is the sum
of the maps' mean squares and the gradient that of all parameters. Forward passes use running statistics. Runs and
clocks as in `scripts.benchmarks.peer`. Needs PyTorch (the `torch` extra) and einops, which the original imports.
"""

from __future__ import annotations

import argparse
import pathlib

import jax
import jax.numpy as jnp
import yaml
from ml_collections import ConfigDict

from boir_jax.model import BoIR
from pose_common import host_memory
from pose_common.evaluation import result_table as tables
from scripts.benchmarks.originals import open_boir, torch_device
from scripts.benchmarks.peer import Steps, compared

SIDES = {32: 512, 48: 640}
KEYPOINTS = 17


def ours(width: int, side: int, batch: int) -> Steps:
    """The two passes of BoIR, compiled by their first call."""
    model = BoIR(KEYPOINTS, width)
    image = jax.random.normal(jax.random.key(0), (batch, side, side, 3))

    def maps(variables, train):
        def run(model):
            return model.dense(model.features(image, train), train)

        return model.apply(variables, method=run, mutable=["batch_stats"] if train else False)

    def loss(params, stats):
        found = maps({"params": params, "batch_stats": stats}, True)[0]
        return sum(jnp.square(values).mean() for values in found.values())

    variables = jax.jit(model.init)(jax.random.key(1), image[:1, :64, :64])
    stats = variables["batch_stats"]
    forward = jax.jit(lambda params: maps({"params": params, "batch_stats": stats}, False))
    backward = jax.jit(jax.grad(loss))
    return (
        lambda: jax.block_until_ready(forward(variables["params"])),
        lambda: jax.block_until_ready(backward(variables["params"], stats)),
    )


def theirs(width: int, side: int, batch: int, checkout: pathlib.Path) -> Steps:
    """The same of the original's modules, on the CPU or, if there is one, the GPU."""
    open_boir(checkout)
    import torch
    from models.backbone import HRNet
    from models.boir_module import MultiHeadWrapper

    device, finish = torch_device()
    config = reference_config(checkout / "experiments" / "boir" / f"coco_w{width}.yaml", device)
    backbone, heads = HRNet(config).to(device), MultiHeadWrapper(config, True).to(device)
    network = torch.nn.ModuleList([backbone, heads])
    image = torch.randn(batch, 3, side, side, device=device)

    def maps():
        neck = heads.neck(backbone(image))
        return [head(neck) for head in (heads.center_head, heads.buk_head, heads.emb_head, heads.bbox_head)]

    def forward():
        network.eval()
        with torch.no_grad():
            maps()
        finish()

    def backward():
        network.train()
        network.zero_grad()
        sum(each.square().mean() for each in maps()).backward()
        finish()

    return forward, backward


def reference_config(path: pathlib.Path, device: str) -> ConfigDict:
    """The original's configuration file, as its modules read it; fields of inference that they ask for as well."""
    config = ConfigDict(yaml.safe_load(path.read_text()))
    config.MODEL.DEVICE, config.MODEL.BIAS_PROB = device, 0.01
    config.TEST.REMOVE_AUX_HEAD = False
    config.TEST.POOL_THRESHOLD1, config.TEST.POOL_THRESHOLD2 = 300, 200
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=pathlib.Path, required=True, help="a checkout of the original code")
    parser.add_argument("--width", type=int, choices=tuple(SIDES), default=32)
    parser.add_argument("--side", type=int, default=0, help="of the pictures, a multiple of 64; the published one else")
    parser.add_argument("--batch", type=int, default=2, help="two or more: the original normalises pooled pictures")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", default="", help="also write the table to this path (.json, .csv, .md)")
    args = parser.parse_args()
    host_memory.keep()
    side = args.side or SIDES[args.width]
    networks = ours(args.width, side, args.batch), theirs(args.width, side, args.batch, args.reference)
    rows = compared(*networks, args.rounds)
    tables.show(rows, title=f"BoIR W{args.width}, {args.batch} of {side}x{side}, {jax.devices()[0].device_kind}")
    if args.out:
        tables.save(rows, args.out)


if __name__ == "__main__":
    main()
