"""Published weights in, weights for the original code out: BoIR's, and HRNet's of ImageNet."""

from __future__ import annotations

import collections
import functools
import pathlib
import re
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from boir_jax.aspp import DILATIONS
from boir_jax.hrnet import branch_widths
from boir_jax.model import BoIR
from boir_jax.weights.keys import CLASSIFIER, backbone_rules, boir_rules
from data_pipelines.datasets import DATASETS
from pose_common.weights import keys, reading
from pose_common.weights.keys import (
    EXTRAS,
    Conversion,
    ConversionError,
    Shapes,
    flatten,
    shapes_of,
    unflatten,
)

METHOD = "boir"
FILES = "BoIR or HRNet"
"""Of which weights are read, for messages."""
SKELETONS = {17: "coco", 14: "crowdpose"}
"""Keypoint sets of the published models, by their number of keypoints."""

# Entries whose first axis has each of the network's widths. Most of them decide, so that one damaged entry
# does not change what the rest is recognised as and is then reported by its name.
BRANCHES = [rf"backbone\.stage\d\.\d+\.branches\.{b}\.\d+\.bn\d\.\w+" for b in range(4)]
BACKBONE_WIDTHS = {"stem": r"backbone\.(conv|bn)1\.\w+"}
WIDTHS = BACKBONE_WIDTHS | {
    "neck_middle": r"multihead\.neck\.0\.convs\.\d\.\d\.\w+",
    "neck_features": r"multihead\.neck\.0\.project\.\d\.\w+",
    "head_features": r"multihead\.center_head\.head\.0\.bn\d\.\w+",
    "instance_features": r"kpt_head\.(conv_down|[cs]_attn\.atn\.\d)\.\w+",
    "num_keypoints": r"(kpt_head\.heatmap_conv|multihead\.buk_head\.head\.1)\.\w+",
}
TRAINING_WIDTHS = WIDTHS | {"embedding_features": r"multihead\.emb_head\.head\.1\.\w+"}
TRAINING = r"multihead\.(buk|emb|bbox)_head\..*"


class Recognised(NamedTuple):
    """What a state dict holds: the manifest, its table of names, the entries that are no weights of it."""

    manifest: dict[str, Any]
    rules: Sequence[keys.Rule]
    dropped: tuple[str, ...]


def read_weights(
    path: str | pathlib.Path, dataset: str | None = None, dilations: Sequence[int] = DILATIONS
) -> Conversion:
    """The weights of a folder of weights, or of a file in the original codes' names.

    Args:
      path: the folder or file.
      dataset, dilations: of a file; see `convert`.

    Raises:
      ValueError: see `reading.read_weights`.
    """
    return reading.read_weights(path, METHOD, FILES, lambda state, _: convert(state, dataset, dilations))


def describe_weights(path: str | pathlib.Path, dataset: str | None = None) -> dict[str, Any]:
    """The manifest alone of what `read_weights` would give.

    Raises:
      ValueError: see there.
    """

    def manifest_of_file(state: Mapping[str, np.ndarray], _: pathlib.Path) -> dict[str, Any] | None:
        recognised = recognise(shapes_of(state), dataset)
        return None if recognised is None else recognised.manifest

    return reading.describe_weights(path, METHOD, FILES, manifest_of_file)


def convert(
    state: MutableMapping[str, np.ndarray], dataset: str | None = None, dilations: Sequence[int] = DILATIONS
) -> Conversion | None:
    """Recognises a state dict and converts it; None where it is none of this method's weights.

    The manifest's `network` holds the sizes, for `model_of`; its `keypoint_set` is None for a backbone alone.

    Args:
      state: torch name -> array; it is emptied on the way.
      dataset: whose keypoints they are, where 17 are not COCO's or 14 not CrowdPose's.
      dilations: of the neck's convolutions, which nothing in a state dict tells.

    Raises:
      ConversionError: it is recognised, but something does not fit; everything that does not is listed.
    """
    recognised = recognise(shapes_of(state), dataset, dilations)
    if recognised is None:
        return None
    manifest, rules, dropped = recognised
    converted = keys.to_flax(state, rules, targets(manifest), dropped=dropped)
    return Conversion(manifest["family"], unflatten(converted.tree), manifest, converted)


def recognise(shapes: Shapes, dataset: str | None = None, dilations: Sequence[int] = DILATIONS) -> Recognised | None:
    """What a state dict of these shapes holds; None where it is none of this method's weights.

    Args:
      dataset, dilations: see `convert`.

    Raises:
      ConversionError: nothing tells one of the sizes.
    """
    if any(name.startswith("stage2.0.branches.0.") for name in shapes):
        network = network_sizes({f"backbone.{name}": shape for name, shape in shapes.items()}, BACKBONE_WIDTHS)
        manifest = {
            "method": METHOD,
            "family": f"HRNet-W{branch_widths(network['width'])[0]}, ImageNet",
            "keypoint_set": None,
            "network": network,
        }
        return Recognised(manifest, backbone_rules(), (*EXTRAS, CLASSIFIER))
    heads = any(name.startswith(("kpt_head.", "multihead.")) for name in shapes)
    if not heads or not any(name.startswith("backbone.stage2.") for name in shapes):
        return None
    training = any(re.fullmatch(TRAINING, name) for name in shapes)
    network = network_sizes(shapes, TRAINING_WIDTHS if training else WIDTHS)
    network["training_heads"] = training
    network |= _other_dilations(dilations)
    keypoint_set = _keypoint_set(network["num_keypoints"], dataset)
    family = f"BoIR-W{branch_widths(network['width'])[0]}, {network['num_keypoints']} keypoints"
    family += (f" of {keypoint_set}" if keypoint_set else "") + ("" if training else ", for inference")
    manifest = {"method": METHOD, "family": family, "keypoint_set": keypoint_set, "network": network}
    return Recognised(manifest, boir_rules(dilations), EXTRAS)


def network_sizes(shapes: Shapes, widths: Mapping[str, str]) -> dict[str, Any]:
    """Fields of `BoIR`, from the names and shapes of a state dict.

    Args:
      shapes: torch name -> shape.
      widths: field -> regular expression of the entries whose first axis is as long.

    Raises:
      ConversionError: nothing tells one of the sizes.
    """
    blocks = [_count(shapes, rf"backbone\.stage{stage}\.0\.branches\.0\.(\d+)\..*") for stage in (2, 3, 4)]
    branches = [_length(shapes, pattern) for pattern in BRANCHES]
    sizes: dict[str, Any] = {
        "modules": [_count(shapes, rf"backbone\.stage{stage}\.(\d+)\..*") for stage in (2, 3, 4)],
        # One number where it says all, as in every published model.
        "blocks": blocks[0] if len(set(blocks)) == 1 else blocks,
        "width": branches[0] if branch_widths(branches[0]) == tuple(branches) else branches,
    }
    sizes |= {field: _length(shapes, pattern) for field, pattern in widths.items()}
    unknown = [field for field, size in sizes.items() if not np.all(size)]
    if unknown:
        raise ConversionError("the weights do not fit", [f"no entries that tell {field}" for field in unknown])
    return sizes


def model_of(manifest: Mapping[str, Any], **settings: Any) -> BoIR:
    """The model that a manifest describes; `settings` are further fields of `BoIR` (dtype, remat ...)."""
    network = {name: tuple(size) if isinstance(size, list) else size for name, size in manifest["network"].items()}
    return BoIR(**{"num_keypoints": 1, **network, **settings})


def manifest_of(model: BoIR, keypoint_set: str, family: str) -> dict[str, Any]:
    """The description of a model's own weights; `model_of` makes the model from it."""
    fields = ("modules", "blocks", "width", *TRAINING_WIDTHS, "training_heads")
    sizes = {field: getattr(model, field) for field in fields} | _other_dilations(model.dilations)
    network = {name: list(size) if isinstance(size, tuple) else size for name, size in sizes.items()}
    return {"method": METHOD, "family": family, "keypoint_set": keypoint_set, "network": network}


def targets(manifest: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """Flat tree of the shapes of the weights that a manifest describes."""
    whole = _model_shapes(model_of(manifest))
    if _is_whole(manifest):
        return whole
    return {path: shape for path, shape in whole.items() if path.split("/")[1] == "backbone"}


def to_torch(weights: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The original code's state dict of weights (HRNet's of a backbone alone); the inverse of `convert`."""
    tree = {path: np.asarray(value) for path, value in flatten(weights).items()}
    dilations = manifest["network"].get("dilations", DILATIONS)
    state = keys.to_torch(tree, boir_rules(dilations) if _is_whole(manifest) else backbone_rules())
    return state | {name: np.zeros((), np.int64) for name in keys.counters_of(state)}


@functools.cache
def _model_shapes(model: BoIR) -> dict[str, jax.ShapeDtypeStruct]:
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    return flatten(jax.eval_shape(model.init, jax.random.key(0), image))


def _is_whole(manifest: Mapping[str, Any]) -> bool:
    return "num_keypoints" in manifest["network"]


def _other_dilations(dilations: Sequence[int]) -> dict[str, list[int]]:
    """What a manifest says of them: nothing of the published ones."""
    return {} if tuple(dilations) == DILATIONS else {"dilations": list(dilations)}


def _length(shapes: Shapes, pattern: str) -> int:
    """The commonest first axis of the entries that match; 0 where there is none."""
    lengths = (shape[0] for name, shape in shapes.items() if shape and re.fullmatch(pattern, name))
    return max(collections.Counter(lengths).items(), key=lambda item: item[1], default=(0, 0))[0]


def _count(names: Shapes, pattern: str) -> int:
    """How many indices the names have in the pattern's group. One entry makes none: it may be misnamed."""
    indices = collections.Counter(match[1] for name in names if (match := re.fullmatch(pattern, name)))
    return sum(entries > 1 for entries in indices.values())


def _keypoint_set(count: int, dataset: str | None) -> str | None:
    if dataset is None:
        return SKELETONS.get(count)
    known = DATASETS.get(dataset)
    if known is not None and known.num_keypoints != count:
        problem = f"{dataset} has {known.num_keypoints} keypoints, the head {count}"
        raise ConversionError("the datasets do not fit", [problem])
    return dataset if known is None else known.keypoint_set
