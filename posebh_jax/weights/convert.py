"""Published weights in, weights for the original code out."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, MutableMapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pose_common.weights import keys, reading
from pose_common.weights.keys import COLLECTIONS, EXTRAS, Conversion, flatten, shapes_of, unflatten
from posebh_jax.weights.detect import BACKBONE, HUGGING_FACE, MMPOSE, Contents, recognise
from posebh_jax.weights.keys import (
    BANK,
    CLUSTER_KEYPOINTS,
    CLUSTERS,
    PROTOTYPES,
    backbone_rules,
    hugging_face_rules,
    mmpose_rules,
    posebh_rules,
)
from posebh_jax.weights.mae import adapt_backbone, without_class_token
from posebh_jax.weights.manifest import METHOD, PATCH, Options, describe, model_of, model_targets

FILES = "PoseBH, ViTPose or a vision transformer"
"""Of which weights are read, for messages."""
# What a pretrained classifier or autoencoder has beyond the backbone; its final norm is not taken over
# either.
BEYOND_BACKBONE = (r"(cls_token|mask_token)", r"(norm|fc_norm|head|decoder\w*)\..*", r"decoder_pos_embed")
PROTOTYPES_PER_KEYPOINT = 3
"""The paper's (section 3.2), to say what is missing where the prototypes are."""
UNUSED_TOKENS = r"backbone\.(cls|mask)_token"
"""That some published files have from their pretraining; no pose model uses them."""
OTHER_DATASETS = (r"backbone\.blocks\.\d+\.mlp\.experts\..*", r"associate_keypoint_heads\..*")


def read_weights(path: str | pathlib.Path, options: Options = Options()) -> Conversion:
    """The weights of a folder of weights, or of a file in any format that is recognised.

    Raises:
      ValueError: see `reading.read_weights`.
    """
    return reading.read_weights(path, METHOD, FILES, lambda state, source: convert(state, options, source))


def describe_weights(path: str | pathlib.Path, options: Options = Options()) -> dict[str, Any]:
    """The manifest alone of what `read_weights` would give.

    Raises:
      ValueError: see there.
    """

    def manifest_of_file(state: Mapping[str, np.ndarray], source: pathlib.Path) -> dict[str, Any] | None:
        contents = recognise(shapes_of(state))
        return None if contents is None else describe(contents, options, source)[0]

    return reading.describe_weights(path, METHOD, FILES, manifest_of_file)


def convert(
    state: MutableMapping[str, np.ndarray], options: Options = Options(), source: pathlib.Path | None = None
) -> Conversion | None:
    """Recognises a state dict and converts it; None where it is none of this method's weights.

    Args:
      state: torch name -> array. It is emptied on the way, so that memory holds the weights about once.
      options: what the state dict does not say.
      source: its file or folder; its name, and Hugging Face's config.json in the folder, may say more.

    Raises:
      ConversionError: it is recognised, but something does not fit; everything that does not is listed.
    """
    contents = recognise(shapes_of(state))
    if contents is None:
        return None
    manifest, notes = describe(contents, options, source)
    names = [name for name, _ in manifest["datasets"]]
    targets = model_targets(model_of(manifest), tuple(manifest["input_size"]))
    dropped, initialised = [*EXTRAS, UNUSED_TOKENS], []
    width, height = (side // PATCH for side in manifest["input_size"])
    if contents.family == HUGGING_FACE:
        rules = hugging_face_rules(names[0])
    elif contents.family == MMPOSE:
        rules, position = mmpose_rules(names[0]), "backbone.pos_embed"
        state[position] = without_class_token(state[position], height * width)
    elif contents.family == BACKBONE:
        adapt_backbone(state, (height, width), PATCH)
        rules, initialised = backbone_rules(), [r"params/backbone/last_norm/.*"]
        dropped += BEYOND_BACKBONE
    else:
        rules = posebh_rules(names)
        targets |= _prototype_targets(state, contents)
        dropped += OTHER_DATASETS if contents.folded else ()
        if BANK not in targets:
            dropped.append(r"proto_head\.\w+_prototype\.prototypes")
    converted = keys.to_flax(state, rules, targets, dropped=dropped, initialised=initialised)
    title = "; ".join([manifest["family"], *notes])
    return Conversion(title, {**COLLECTIONS, **unflatten(converted.tree)}, manifest, converted)


def to_torch(weights: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The original code's state dict of weights; the inverse of `convert`."""
    tree = {path: np.asarray(value) for path, value in flatten(weights).items() if path != CLUSTER_KEYPOINTS}
    state = keys.to_torch(tree, posebh_rules([name for name, _ in manifest["datasets"]]))
    return state | {name: np.zeros((), np.int64) for name in keys.counters_of(state)}


def _prototype_targets(state: Mapping[str, np.ndarray], contents: Contents) -> dict[str, Any]:
    """Targets for the prototypes, which are no parameters of the model.

    A single-dataset file may have none, or those of the whole mixture, which its one head cannot use.
    """
    single = len(contents.keypoints) == 1
    if not contents.embedding or (single and contents.prototypes != contents.keypoints[0]):
        return {}
    found = {path: state.get(name) for name, path in PROTOTYPES.items()}
    per_keypoint = {value.shape[1] for value in found.values() if value is not None and value.ndim == 3}
    rest = (max(per_keypoint, default=PROTOTYPES_PER_KEYPOINT), contents.embedding.dim)
    targets = {BANK: jax.ShapeDtypeStruct((sum(contents.keypoints), *rest), jnp.float32)}
    clusters = found[CLUSTERS]
    if clusters is not None:
        targets[CLUSTERS] = jax.ShapeDtypeStruct((clusters.shape[0], *rest), jnp.float32)
    return targets
