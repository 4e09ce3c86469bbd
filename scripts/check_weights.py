"""Says what a file or folder of weights contains and how it would be used; writes nothing.

    python -m scripts.check_weights vitpose++_base.pth
    python -m scripts.check_weights hf://usyd-community/vitpose-plus-base
    python -m scripts.check_weights workdir/base

It prints the kind and the size, the SHA-256 (compared with the file's name if that has one, as PyTorch's
`name-36af842e.pth` and files in the Hugging Face hub's cache do), what is used, left out or to be initialised, what a
PoseBH training would still initialise, and the command that evaluates it. The exit status is 1 if it cannot be used.
"""

from __future__ import annotations

import argparse
import hashlib
import pathlib
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from boir_jax.weights import convert as boir
from pose_common.console import outlive_console
from pose_common.training.logs import hide_abandoned_tasks
from pose_common.weights.hub_folders import find_weights, local_path
from pose_common.weights.keys import COUNTER, Conversion
from posebh_jax.vit import ViTSize, size_name
from posebh_jax.weights.manifest import Options

# Relative: an installed command, whose package is `posebh_jax.scripts`.
from .convert_weights import PREDICTED_FROM, custom_heads, foreign_weights, own_weights, without_heads

MOST = 12
"""Names of entries that are printed of each kind."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    outlive_console()
    parser = argparse.ArgumentParser(
        "python -m scripts.check_weights", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="a file or folder of weights, a run, a checkpoint, or hf://owner/name")
    parser.add_argument("--datasets", help="names of the heads, in order, separated by commas")
    parser.add_argument("--num_heads", type=int, help="attention heads, where the size is none of the published")
    args = parser.parse_args(arguments)
    hide_abandoned_tasks()
    try:
        path = pathlib.Path(local_path(args.source))
        for line in _bytes(path):
            print(line)
        options = Options(tuple(args.datasets.split(",")) if args.datasets else None, num_heads=args.num_heads)
        own = own_weights(path)
        conversion = foreign_weights(path, options) if own is None else own
        print("\n".join([conversion.title, *_described(args, conversion, own is not None)]))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _bytes(path: pathlib.Path) -> list[str]:
    """Size and checksum of the file that `path` means; nothing of a run or a folder of weights.

    Raises:
      ValueError: the file's name carries another checksum.
    """
    try:
        file = find_weights(path)
    except ValueError:
        return []
    if not file.is_file():
        return []
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    expected = _expected_checksum(file)
    if not found.startswith(expected):
        raise ValueError(f"{file}: its SHA-256 is {found}, its name says {expected}: damaged; download it again")
    verdict = ", as its name says" if expected else ""
    return [f"{file}: {file.stat().st_size:,} bytes, SHA-256 {found}{verdict}"]


def _expected_checksum(file: pathlib.Path) -> str:
    """The (start of the) SHA-256 in a file's name, or in that of the hub's blob behind it; "" without one."""
    blob = file.resolve().name
    if re.fullmatch("[0-9a-f]{64}", blob):
        return blob
    named = re.search(r"-([0-9a-f]{8,64})\.(pth|pt|bin|safetensors|pth\.tar)$", file.name)
    return named[1] if named else ""


def _described(args: argparse.Namespace, conversion: Conversion, own: bool) -> list[str]:
    manifest, converted = conversion.manifest, conversion.converted
    lines = _of_boir(manifest) if manifest["method"] == boir.METHOD else _of_posebh(manifest, conversion.weights)
    lines.append(f"used: {len(converted.used)} entries")
    left_out = [name for name in converted.dropped if not name.endswith(COUNTER)]
    for title, names in (("left out", left_out), ("to be initialised", list(converted.initialised))):
        if names:
            lines.append(f"{title}: {', '.join(names[:MOST])}{f' and {len(names) - MOST} more' * (len(names) > MOST)}")
    if own or args.num_heads is None:
        return [*lines, *_commands(args.source, manifest, conversion.weights, args.datasets)]
    # The other commands have no such flag; a folder says it itself, and the names of its heads.
    heads = args.datasets or ",".join(f"<{name}>" for name in custom_heads(manifest))
    named = f" --datasets={shlex.quote(heads)}" if heads else ""
    convert = f"python -m scripts.convert_weights {shlex.quote(args.source)} --to=FOLDER --num_heads={args.num_heads}"
    return [*lines, f"first: {convert}{named}", *_commands("FOLDER", manifest, conversion.weights)]


def _commands(
    source: str, manifest: Mapping[str, Any], weights: Mapping[str, Any], datasets: str | None = None
) -> list[str]:
    """What to do with the weights; <> stands for what they do not say. `datasets`: of the heads, where they were named,
    which the commands have to be told, too."""
    source, boir_weights = shlex.quote(source), manifest["method"] == boir.METHOD
    program = "boir_jax" if boir_weights else "posebh_jax"
    heads = [manifest["keypoint_set"]] if boir_weights else [name for name, _ in manifest["datasets"]]
    unknown = [name for name in custom_heads(manifest) if name not in manifest.get("definitions", {})]
    if not any(heads) and not unknown:
        return [f"start a training: python -m {program}.main --config=... --config.init_from={source}"]
    evaluate = f"evaluate: python -m {program}.main --config.mode=evaluate --config.checkpoint={source}"
    predict = f"predict: python -m {program}.predict PICTURE --checkpoint={source}"
    if not unknown:
        if datasets:
            evaluate += f" --config.dataset{'' if boir_weights else 's'}={datasets}"
            predict += "" if boir_weights else f" --datasets={datasets}"
        return [predict] if without_heads(weights, manifest) else [evaluate, predict]
    named = tuple(f"<{name}>" if name in unknown else name for name in heads)
    asked = f"dataset='<{unknown[0]}>'" if boir_weights else f'datasets="{named}"'
    return [
        f"{evaluate} --config.{asked} --config.data_dir='<where that is prepared>'",
        f"predict: this does not say the skeleton of {', '.join(unknown)}: {PREDICTED_FROM}",
    ]


def _of_posebh(manifest: Mapping[str, Any], weights: Mapping[str, Any]) -> list[str]:
    size = ViTSize(**manifest["backbone"])
    bank = weights.get("prototypes", {}).get("bank")  # a folder has no empty collection
    missing = [
        name
        for name, there in (
            ("heads", "heads" in weights["params"]),
            ("experts (made of the last features of fc2)", manifest["num_experts"]),
            ("embedding head", manifest["embedding"]),
            ("prototypes", bank is not None),
        )
        if not there
    ]
    heads = ", ".join(f"{name} ({count})" for name, count in manifest["datasets"]) or "none"
    if without_heads(weights, manifest):
        heads = f"none; prototypes alone draw {heads}"
    return [
        f"backbone: {size_name(size.dim, size.depth) or 'no published size'} (width {size.dim}, depth {size.depth}, "
        f"{size.num_heads} attention heads), {manifest['num_experts']} experts, "
        f"crops of {'x'.join(map(str, manifest['input_size']))}",
        f"heads (keypoints): {heads}",
        f"prototypes: {'none' if bank is None else 'x'.join(map(str, bank.shape))}",
        f"a PoseBH training would initialise: {', '.join(missing) or 'nothing'}",
    ]


def _of_boir(manifest: Mapping[str, Any]) -> list[str]:
    network = manifest["network"]
    if "num_keypoints" not in network:
        return [f"backbone: HRNet, width {network['width']}; a BoIR training would initialise neck and heads"]
    kind = "with" if network["training_heads"] else "without"
    skeleton = manifest["keypoint_set"] or "an unknown skeleton"
    return [
        f"network: width {network['width']}, {network['num_keypoints']} keypoints of {skeleton}, {kind} training heads"
    ]


if __name__ == "__main__":
    sys.exit(main())
