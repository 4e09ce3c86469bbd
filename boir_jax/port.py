"""Published weights in: BoIR's of the original code, and HRNet's ImageNet weights for the backbone."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from boir_jax.model import VARIANTS, BoIR
from boir_jax.tables import CLASSIFIER, COUNTERS, backbone_rules, boir_rules
from pose_common import port
from pose_common.port import COUNTER, VARIANCE, Conversion, Ported, PortError, flatten, unflatten
from pose_common.state_files import read_state
from pose_common.weights import is_weights, load_weights

WIDTH = "stage2.0.branches.0.0.conv1.weight"
KEYPOINTS = "kpt_head.heatmap_conv.weight"
TRAINING = "multihead.buk_head."
SKELETONS = {17: "coco", 14: "crowdpose"}
"""Keypoint sets of the published models, by their number of keypoints."""


def read_weights(path: str | os.PathLike) -> Conversion:
    """The weights of a folder of weights, or of a file in the original codes' names.

    The manifest's `size` is one of `VARIANTS`; `keypoint_set` is None for a backbone alone.

    Raises:
      ValueError: a damaged or foreign file, or weights that do not fit.
    """
    if is_weights(path):
        weights, manifest = load_weights(path)
        return Conversion(manifest["family"], weights, manifest, Ported({}, tuple(flatten(weights)), (), ()))
    conversion = convert(read_state(path))
    if conversion is None:
        raise PortError("not recognised", [f"{path} holds no weights of BoIR or HRNet"])
    return conversion


def convert(state: MutableMapping[str, np.ndarray]) -> Conversion | None:
    """Recognises a state dict and converts it; None where it is none of this method's weights.

    Args:
      state: torch name -> array; it is emptied on the way.

    Raises:
      PortError: it is recognised, but something does not fit; everything that does not is listed.
    """
    whole = KEYPOINTS in state
    narrowest = state.get(f"backbone.{WIDTH}" if whole else WIDTH)
    if narrowest is None:
        return None
    sizes = {settings["width"]: name for name, settings in VARIANTS.items()}
    if narrowest.shape[0] not in sizes:
        raise PortError("unknown size", [f"HRNet-W{narrowest.shape[0]}; known: {tuple(VARIANTS)}"])
    size = sizes[narrowest.shape[0]]
    if not whole:
        manifest = {"family": f"HRNet-{size.upper()}, ImageNet", "size": size, "keypoint_set": None}
        targets = {name: value for name, value in shapes(size, 1).items() if "/backbone/" in name}
        ported = port.to_flax(state, backbone_rules(), targets, dropped=(COUNTERS, CLASSIFIER))
    else:
        count = state[KEYPOINTS].shape[0]
        training = any(name.startswith(TRAINING) for name in state)
        manifest = {
            "family": f"BoIR-{size.upper()}, {count} keypoints" + ("" if training else ", for inference"),
            "size": size,
            "keypoint_set": SKELETONS.get(count),
        }
        ported = port.to_flax(state, boir_rules(), shapes(size, count, training), dropped=(COUNTERS,))
    return Conversion(manifest["family"], unflatten(ported.tree), manifest, ported)


def shapes(size: str, num_keypoints: int, training_heads: bool = True) -> dict[str, jax.ShapeDtypeStruct]:
    """Flat tree of the shapes of a model's variables."""
    model = BoIR(num_keypoints=num_keypoints, training_heads=training_heads, **VARIANTS[size])
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    return flatten(jax.eval_shape(model.init, jax.random.key(0), image))


def to_torch(weights: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The original code's state dict of a whole model's weights."""
    tree = {path: np.asarray(value) for path, value in flatten(weights).items()}
    state = port.to_torch(tree, boir_rules())
    counters = [name.replace(VARIANCE, COUNTER) for name in state if name.endswith(VARIANCE)]
    return state | {name: np.zeros((), np.int64) for name in counters}
