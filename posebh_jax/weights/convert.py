"""Published weights in, weights for the original code out."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, MutableMapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.paths import is_remote, local
from pose_common.weights import keys
from pose_common.weights.embedded import is_embedded, read_embedded
from pose_common.weights.folder import is_weights, load_weights, read_manifest
from pose_common.weights.keys import (
    COUNTER,
    EXTRAS,
    VARIANCE,
    Conversion,
    ConversionError,
    flatten,
    naming,
    own_weights,
    unflatten,
    unrecognised,
)
from pose_common.weights.torch_files import read_state
from posebh_jax.weights.detect import BACKBONE, HUGGING_FACE, MMPOSE, Contents, Shapes, recognise
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

COLLECTIONS: dict[str, Any] = {"params": {}, "batch_stats": {}, "prototypes": {}}
# What a pretrained classifier or autoencoder has beyond the backbone; its final norm is not taken over
# either.
BEYOND_BACKBONE = (r"(cls_token|mask_token)", r"(norm|fc_norm|head|decoder\w*)\..*", r"decoder_pos_embed")
PROTOTYPES_PER_KEYPOINT = 3
"""The paper's (section 3.2), to say what is missing where the prototypes are."""
OTHER_DATASETS = (r"backbone\.blocks\.\d+\.mlp\.experts\..*", r"associate_keypoint_heads\..*")


def read_weights(path: str | pathlib.Path, options: Options = Options()) -> Conversion:
    """The weights of a folder of weights, or of a file in any format that is recognised.

    Raises:
      ValueError: a damaged or foreign file (`StateFileError`, `WeightsError`) or weights that do not fit
        (`ConversionError`).
    """
    if is_remote(path) and not is_weights(path):
        with local(path) as copy:
            return read_weights(copy, options)
    if is_embedded(path):
        embedded = read_embedded(pathlib.Path(path))
        _own(embedded.manifest, path)
        return embedded
    if is_weights(path):
        loaded, manifest = load_weights(path)
        return own_weights(COLLECTIONS | loaded, _own(manifest, path))
    state = read_state(path)
    with naming(path):
        conversion = convert(state, options, pathlib.Path(path))
    if conversion is None:
        raise _foreign(state, path)
    return conversion


def describe_weights(path: str | pathlib.Path, options: Options = Options()) -> dict[str, Any]:
    """The manifest alone of what `read_weights` would give.

    Raises:
      ValueError: see there.
    """
    if is_remote(path) and not is_weights(path):
        with local(path) as copy:
            return describe_weights(copy, options)
    if is_embedded(path):
        return _own(read_embedded(pathlib.Path(path)).manifest, path)
    if is_weights(path):
        return _own(read_manifest(path), path)
    state = read_state(path)
    with naming(path):
        contents = recognise(_shapes(state))
        if contents is None:
            raise _foreign(state, path)
        return describe(contents, options, pathlib.Path(path))[0]


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
    contents = recognise(_shapes(state))
    if contents is None:
        return None
    manifest, notes = describe(contents, options, source)
    names = [name for name, _ in manifest["datasets"]]
    targets = model_targets(model_of(manifest), tuple(manifest["input_size"]))
    dropped, initialised = list(EXTRAS), []
    width, height = (side // PATCH for side in manifest["input_size"])
    if contents.family == HUGGING_FACE:
        rules = hugging_face_rules(names[0])
    elif contents.family == MMPOSE:
        rules, position = mmpose_rules(names[0]), "backbone.pos_embed"
        state[position] = without_class_token(state[position], height * width)
        dropped.append(r"backbone\.cls_token")
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
    return Conversion(title, COLLECTIONS | unflatten(converted.tree), manifest, converted)


def to_torch(weights: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The original code's state dict of weights; the inverse of `convert`."""
    tree = {path: np.asarray(value) for path, value in flatten(weights).items() if path != CLUSTER_KEYPOINTS}
    state = keys.to_torch(tree, posebh_rules([name for name, _ in manifest["datasets"]]))
    counters = [name.replace(VARIANCE, COUNTER) for name in state if name.endswith(VARIANCE)]
    return state | {name: np.zeros((), np.int64) for name in counters}


def _shapes(state: Mapping[str, np.ndarray]) -> Shapes:
    return {name: tuple(value.shape) for name, value in state.items()}


def _own(manifest: Mapping[str, Any], path: str | pathlib.Path) -> dict[str, Any]:
    """The manifest, if it is of this method."""
    if manifest.get("method") != METHOD:
        problem = f"{path} holds weights of another method: {manifest.get('family')}"
        raise ConversionError("not recognised", [problem])
    return dict(manifest)


def _foreign(state: Mapping[str, np.ndarray], path: str | pathlib.Path) -> ConversionError:
    problem = f"{path} holds no weights of PoseBH, ViTPose or a vision transformer but {unrecognised(state)}"
    return ConversionError("not recognised", [problem])


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
