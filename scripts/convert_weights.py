"""Converts published weights to a folder that training and evaluation read, and back.

    python -m scripts.convert_weights vitpose++_base.pth --to=weights/vitpose_base
    python -m scripts.convert_weights weights/posebh_base --to=posebh_base.pth
    python -m scripts.convert_weights workdir/mdt --to=mdt.pth

The first form recognises PoseBH, ViTPose++, single-dataset and plain ViTPose, MAE backbones, Hugging Face's
VitPose, BoIR, and HRNet's ImageNet weights, in files or in folders as the Hugging Face hub has them; it prints what it
recognised and what became of each entry. The other two go back: from a folder of weights, or a model trained here (the
newest checkpoint of a working directory, or one checkpoint's folder), they write a `.pth`, `.pth.tar` or `.safetensors`
file with the original code's names. If `--to` is a folder, a model trained here becomes a folder of weights. `.pth`
files need PyTorch (the `torch` extra), and no code from a file is ever run.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from boir_jax import configuration as boir_configuration
from boir_jax import sources as boir_sources
from boir_jax.weights import convert as boir
from data_pipelines.datasets import DATASETS
from data_pipelines.paths import as_path, is_remote, local
from data_pipelines.skeletons import KEYPOINT_SETS
from pose_common.console import outlive_console
from pose_common.training import restore
from pose_common.training.logs import hide_abandoned_tasks
from pose_common.weights import keys
from pose_common.weights.embedded import is_embedded, read_embedded
from pose_common.weights.folder import is_weights, load_weights, require_new, save_weights
from pose_common.weights.keys import COUNTER, Conversion, flatten, naming
from pose_common.weights.torch_files import SUFFIXES, read_state, write_state
from posebh_jax import sources as posebh_sources
from posebh_jax.weights import convert as posebh
from posebh_jax.weights.manifest import Options
from posebh_jax.weights.transfer import expand_experts, single_dataset

POSEBH_ONLY = ("num_heads", "input_size", "num_experts", "part_features", "activation", "fold")
FOREIGN_ONLY = ("datasets", "num_heads", "input_size", "activation")
"""What files of another code do not say of themselves."""
UNNAMED = "dataset"
"""A head of BoIR in a file of another code, which does not say of which skeleton it is."""
PREDICTED_FROM = "prediction needs the run, or a folder of weights that is made of the run"
METHODS = {module.METHOD: module for module in (posebh, boir)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    outlive_console()
    args = _parse(arguments)
    hide_abandoned_tasks()
    try:
        if not args.to.name.endswith(SUFFIXES):
            require_new(args.to)  # before what may take minutes
        own = own_weights(args.source)
        if own is not None:
            _export(args, own.weights, own.manifest)
        else:
            with local(args.source) as source:
                _convert(args, source)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m scripts.convert_weights", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=as_path, help="file or folder of weights, or working directory of a run")
    parser.add_argument("--to", type=as_path, required=True, help="folder to make, or file to write")
    parser.add_argument("--datasets", help="names of the heads, in order, separated by commas")
    parser.add_argument("--num_heads", type=int, help="attention heads, where the size is none of the published")
    parser.add_argument(
        "--input_size",
        type=_size,
        help="width,height of the crops; by default 3:4 with as many patches as the weights have positions, and "
        "192,256 for a backbone without heads",
    )
    parser.add_argument("--num_experts", type=int, help="make so many experts where the weights have none")
    parser.add_argument("--part_features", type=int, help="features of each of them")
    parser.add_argument("--activation", help="of the embedding head: silu (default) or relu")
    parser.add_argument(
        "--fold", metavar="DATASET", help="keep this dataset alone, its expert folded into the backbone"
    )
    args = parser.parse_args(arguments)
    if args.part_features and not args.num_experts:
        parser.error("--part_features is of the experts that --num_experts makes")
    return args


def _size(text: str) -> tuple[int, int]:
    sides = text.split(",")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is not width,height in pixels, such as 192,256")
    return int(sides[0]), int(sides[1])


def _convert(args: argparse.Namespace, source: pathlib.Path) -> None:
    if args.to.name.endswith(SUFFIXES):
        raise ValueError(f"{args.source} is converted to a folder; {args.to} looks like a file")
    options = Options(
        datasets=tuple(args.datasets.split(",")) if args.datasets else None,
        num_heads=args.num_heads,
        input_size=args.input_size,
        activation=args.activation,
    )
    conversion = foreign_weights(source, options)
    weights, manifest = _reshaped(args, conversion.weights, conversion.manifest)
    save_weights(args.to, weights, manifest)
    _report(args, conversion, manifest)


def _report(args: argparse.Namespace, conversion: Conversion, manifest: Mapping[str, Any]) -> None:
    converted = conversion.converted
    print(f"{args.source}: {conversion.title}")
    if manifest["method"] == posebh.METHOD:
        heads = ", ".join(f"{name} {count}" for name, count in manifest["datasets"])
        print(f"  heads: {heads or 'none'}; experts: {manifest['num_experts']}")
    used, dropped, initialised = len(converted.used), len(converted.dropped), len(converted.initialised)
    print(f"  {used} entries used, {dropped} left out, {initialised} arrays left to fill")
    counters = [name for name in converted.dropped if name.endswith(COUNTER)]
    if counters:
        print(f"    left out: {len(counters)} counters of batches")
    for name in converted.dropped:
        if name not in counters:
            print(f"    left out: {name}")
    for name in converted.initialised:
        print(f"    to be initialised: {name}")
    print(f"  written to {args.to}")


def _reshaped(
    args: argparse.Namespace, weights: Mapping[str, Any], manifest: Mapping[str, Any]
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """(weights, manifest) with experts, or of one dataset, where the arguments say so."""
    given = [f"--{option}" for option in POSEBH_ONLY if getattr(args, option)]
    if given and manifest["method"] != posebh.METHOD:
        raise ValueError(f"{', '.join(given)} does not apply to {manifest['family']}")
    if args.num_experts and not manifest["num_experts"]:
        weights, manifest = expand_experts(weights, manifest, args.num_experts, args.part_features)
    return single_dataset(weights, manifest, args.fold) if args.fold else (weights, manifest)


def own_weights(source: pathlib.Path) -> Conversion | None:
    """The weights of a folder of weights, a run, or an embedded file; None where `source` is something else."""
    if is_embedded(source):
        return read_embedded(source)
    if is_weights(source):
        return keys.own_weights(*load_weights(source))
    run = restore.find_run(source)
    if run is None:
        return None
    method = boir_sources if run.config["method"] in boir_configuration.METHODS else posebh_sources
    return method.read(source)


def foreign_weights(source: pathlib.Path, options: Options) -> Conversion:
    """The weights of a file, or a folder of the hub, in the names of another code.

    Raises:
      ValueError: it is not recognised, or does not fit.
    """
    state = read_state(source)
    dataset = options.datasets[0] if options.datasets else None
    with naming(source):
        conversion = posebh.convert(state, options, source) or boir.convert(state, dataset)
    if conversion is None:
        raise ValueError(f"{source} holds no weights that are recognised but {keys.unrecognised(state)}")
    return conversion


def _export(args: argparse.Namespace, weights: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
    if manifest.get("method") not in METHODS:
        raise ValueError(f"{args.source} holds weights of an unknown method: {manifest.get('family')}")
    given = [f"--{option}" for option in FOREIGN_ONLY if getattr(args, option)]
    if given:
        raise ValueError(f"{', '.join(given)} is for files of another code; {args.source} says it itself")
    weights, manifest = _reshaped(args, weights, manifest)
    if args.to.name.endswith(SUFFIXES):
        if without_heads(weights, manifest):
            raise ValueError(
                f"{args.source} is a skeleton learned without training, which no file holds: use the folder"
            )
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / args.to.name if is_remote(args.to) else args.to
            write_state(file, METHODS[manifest["method"]].to_torch(weights, manifest))
            if is_remote(args.to):
                args.to.write_bytes(file.read_bytes())
    else:
        save_weights(args.to, weights, manifest)
    count = sum(np.size(value) for value in flatten(weights).values())
    print(f"{args.source}: {manifest['family']}; {count:,} numbers written to {args.to}")
    if args.to.name.endswith(SUFFIXES) and (custom := custom_heads(manifest)):
        print(f"  such a file has no skeletons, and that of {', '.join(custom)} is not built in: {PREDICTED_FROM}")


def without_heads(weights: Mapping[str, Any], manifest: Mapping[str, Any]) -> bool:
    """Whether prototypes alone draw its skeleton, which was learned without training (`posebh_jax/skeleton.py`)."""
    return manifest["method"] == posebh.METHOD and bool(manifest["datasets"]) and "heads" not in weights["params"]


def custom_heads(manifest: Mapping[str, Any]) -> list[str]:
    """The heads whose skeleton is not built in."""
    if manifest["method"] == posebh.METHOD:
        return [name for name, _ in manifest["datasets"] if name not in DATASETS]
    if "num_keypoints" not in manifest["network"]:
        return []  # a backbone alone
    return [manifest["keypoint_set"] or UNNAMED] if manifest["keypoint_set"] not in KEYPOINT_SETS else []


if __name__ == "__main__":
    sys.exit(main())
