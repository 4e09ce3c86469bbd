"""Exports a model, decoding included, as one file that runs without this code.

    python -m scripts.export workdir/base --format=stablehlo --dataset=coco --out=pose.stablehlo
    python -m scripts.export vitpose++_base.pth --format=onnx --dataset=coco --out=pose.onnx
    python -m scripts.export boir_w32.pth --format=onnx --size=768,512 --out=people.onnx

SOURCE is whatever `posebh_jax.load` or `boir_jax.load` takes, by default the embedded model. Pictures go in (uint8,
RGB), decoded keypoints come out; `<out>.json` describes them. ONNX files need jax2onnx: docs/export.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

import cv2
import numpy as np

import boir_jax.export
import boir_jax.pose_model
import boir_jax.predict
import posebh_jax.export
import posebh_jax.pose_model
import posebh_jax.predict
from data_pipelines.paths import as_file
from pose_common.console import outlive_console
from pose_common.export.onnx import read_onnx, write_onnx
from pose_common.export.program import Program, describe, largest_differences
from pose_common.export.stablehlo import read_stablehlo, write_stablehlo
from pose_common.prediction.command import rendered_pictures
from pose_common.training.logs import hide_abandoned_tasks
from pose_common.training.processes import one_line
from posebh_jax.predictor import HEAD_MAPS, PROTOTYPE_MAPS

FORMATS = {"stablehlo": (write_stablehlo, read_stablehlo), "onnx": (write_onnx, read_onnx)}
METHODS = ("posebh", "boir")
FLAGS = {"posebh": ("dataset", "datasets", "maps", "flip"), "boir": ("size",)}
"""Of one method alone."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    outlive_console()
    args = _parse(argv)
    hide_abandoned_tasks()
    try:
        if args.batch_size is not None and args.batch_size < 1:
            raise ValueError(f"--batch_size={args.batch_size}: expected 1 or more")
        program, batch = program_of(args), args.batch_size
        write, read = FORMATS[args.format]
        began = time.perf_counter()
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write(program, args.out, batch)
        about = describe(program, args.out, batch)
        seconds = time.perf_counter() - began
        images = example(program, batch or 2)
        differences = largest_differences(read(args.out)(images), program.function(images))
    except (ValueError, KeyError, OSError, NotImplementedError) as error:
        if args.debug:
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    print(program.about["model"])
    shape = ", ".join(map(str, [batch or "batch", *reversed(program.size), 3]))
    print(f"image uint8 [{shape}] -> {', '.join(program.outputs)}")
    named = ", ".join(f"{name} {value:.1e}" for name, value in zip(program.outputs, differences, strict=True))
    print(f"largest difference from JAX on rendered pictures: {named}")
    print(f"{args.out} ({args.out.stat().st_size / 2**20:.1f} MiB, {seconds:.0f} s); {about} describes it")
    return 0


def example(program: Program, batch: int) -> np.ndarray:
    """Rendered pictures, uint8 [batch, H, W, 3]."""
    return np.stack([cv2.resize(picture.image, program.size) for picture in rendered_pictures(batch)])


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, and what of it."""
    parser.add_argument("source", nargs="?", help="weights; without, the embedded model of --method")
    parser.add_argument("--method", choices=METHODS, help="what the weights are; found out by default")
    parser.add_argument("--dataset", help="PoseBH: the skeleton to draw; the model's first by default")
    parser.add_argument("--datasets", help="PoseBH: the datasets of the weights' heads, where the file does not say")
    parser.add_argument(
        "--maps", choices=(HEAD_MAPS, PROTOTYPE_MAPS), help="PoseBH: what to decode; heads where it has some"
    )
    parser.add_argument("--flip", action="store_true", help="PoseBH: average with the mirrored crop, at twice the cost")
    parser.add_argument("--size", help="BoIR: width,height of the pictures, multiples of 64")


def program_of(args: argparse.Namespace) -> Program:
    """What the flags of `add_model_arguments` ask for. Raises ValueError."""
    model = _load(args)
    other = "boir" if isinstance(model, posebh_jax.pose_model.PoseModel) else "posebh"
    if given := [f"--{flag}" for flag in FLAGS[other] if getattr(args, flag)]:
        raise ValueError(f"{', '.join(given)} does not apply to {model.title}")
    if isinstance(model, posebh_jax.pose_model.PoseModel):
        return posebh_jax.export.program(model, args.dataset, flip=args.flip, maps=args.maps)
    size = args.size.split(",") if args.size else None
    if size is not None and (len(size) != 2 or not all(side.isdigit() for side in size)):
        raise ValueError(f"--size={args.size}: expected width,height")
    return boir_jax.export.program(model, (int(size[0]), int(size[1])) if size else None)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m scripts.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_arguments(parser)
    parser.add_argument("--format", choices=sorted(FORMATS), required=True)
    parser.add_argument("--out", type=as_file, required=True, help="the file to write")
    parser.add_argument("--batch_size", type=int, help="pictures at once; any number by default")
    parser.add_argument("--debug", action="store_true", help="show errors with their traceback")
    return parser.parse_args(argv)


def _load(args: argparse.Namespace) -> posebh_jax.pose_model.PoseModel | boir_jax.pose_model.PoseModel:
    """The model, of the method that was named or else of the first that knows the weights."""
    datasets = args.datasets.split(",") if args.datasets else None
    if args.method == "boir":
        return boir_jax.load(args.source)
    try:
        return posebh_jax.load(args.source, datasets=datasets)
    except ValueError as posebh_error:
        if args.method:
            raise
        try:
            return boir_jax.load(args.source)
        except ValueError as boir_error:
            raise posebh_error from boir_error


if __name__ == "__main__":
    sys.exit(main())
