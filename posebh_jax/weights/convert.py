"""Published weights in, weights for the original code out."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re
from collections.abc import Mapping, MutableMapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.datasets import DATASETS
from pose_common.weights import keys
from pose_common.weights.folder import is_weights, load_weights
from pose_common.weights.hub_folders import find_weights, read_json
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
from posebh_jax.heads import ACTIVATIONS
from posebh_jax.model import PoseBH
from posebh_jax.vit import ViTSize
from posebh_jax.weights.detect import (
    BACKBONE,
    HUGGING_FACE,
    MMPOSE,
    Contents,
    Embedding,
    backbone_size,
    dataset_names,
    grid_3_by_4,
    recognise,
)
from posebh_jax.weights.keys import BLOCKS, backbone_rules, hugging_face_rules, mmpose_rules, posebh_rules
from posebh_jax.weights.mae import adapt_backbone, without_class_token

BANK, CLUSTERS, CLUSTER_KEYPOINTS = (
    f"prototypes/{name}" for name in ("bank", "clusters/prototypes", "clusters/keypoint")
)
PROTOTYPES = {
    "proto_head.kpt_prototype.prototypes": BANK,
    "proto_head.cluster_prototype.prototypes": CLUSTERS,
}
METHOD = "posebh"
COLLECTIONS: dict[str, Any] = {"params": {}, "batch_stats": {}, "prototypes": {}}
PATCH = 16
# What a pretrained classifier or autoencoder has beyond the backbone; its final norm is not taken over
# either.
BEYOND_BACKBONE = (r"(cls_token|mask_token)", r"(norm|fc_norm|head|decoder\w*)\..*", r"decoder_pos_embed")
PROTOTYPES_PER_KEYPOINT = 3
"""The paper's (section 3.2), to say what is missing where the prototypes are."""
EMBEDDING = ("dim", "channels", "neck", "kernel", "activation")
"""Settings of the embedding head in a manifest; `PoseBH` has each with `embedding_` before its name."""
OTHER_DATASETS = (r"backbone\.blocks\.\d+\.mlp\.experts\..*", r"associate_keypoint_heads\..*")


@dataclasses.dataclass(frozen=True)
class Options:
    """What a file does not say itself; None leaves it to what is published.

    Attributes:
      datasets: names of the heads, in order.
      expected: (name, keypoints) of the caller's datasets, which name the heads of a file where the counts are these.
      num_heads: attention heads.
      input_size: (width, height) of the crops.
      num_experts: experts to make where the weights have none.
      part_features: features of each.
      activation: of the embedding head; None for the published SiLU.
    """

    datasets: tuple[str, ...] | None = None
    expected: tuple[tuple[str, int], ...] = ()
    num_heads: int | None = None
    input_size: tuple[int, int] | None = None
    num_experts: int | None = None
    part_features: int | None = None
    activation: str | None = None


def read_weights(path: str | pathlib.Path, options: Options = Options()) -> Conversion:
    """The weights of a folder of weights, or of a file in any format that is recognised.

    Raises:
      ValueError: a damaged or foreign file (`StateFileError`, `WeightsError`) or weights that do not fit
        (`ConversionError`).
    """
    if is_weights(path):
        loaded, manifest = load_weights(path)
        if manifest.get("method") != METHOD:
            problem = f"{path} holds weights of another method: {manifest.get('family')}"
            raise ConversionError("not recognised", [problem])
        weights = COLLECTIONS | loaded
        return own_weights(weights, manifest)
    path = pathlib.Path(path)
    state = read_state(path)
    with naming(path):
        conversion = convert(state, options, path)
    if conversion is None:
        problem = f"{path} holds no weights of PoseBH, ViTPose or a vision transformer but {unrecognised(state)}"
        raise ConversionError("not recognised", [problem])
    return conversion


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
    contents = recognise({name: tuple(value.shape) for name, value in state.items()})
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
    title, weights = "; ".join([manifest["family"], *notes]), COLLECTIONS | unflatten(converted.tree)
    if options.num_experts and not manifest["num_experts"]:
        weights, manifest = expand_experts(weights, manifest, options.num_experts, options.part_features)
    return Conversion(title, weights, manifest, converted)


def describe(contents: Contents, options: Options, source: pathlib.Path | None) -> tuple[dict[str, Any], list[str]]:
    """(manifest, what was guessed): everything that the model is built from."""
    stem = source.stem if source is not None else ""
    num_heads = options.num_heads
    if num_heads is None and contents.family == HUGGING_FACE and source is not None:
        num_heads = _heads_beside(source)
    size = backbone_size(contents, num_heads, contents.part_features)
    notes = []
    names = options.datasets or dataset_names(contents.keypoints, stem)
    if options.datasets is None and contents.keypoints == tuple(count for _, count in options.expected):
        names = tuple(name for name, _ in options.expected)
    if not contents.keypoints:
        names = ()
    elif names is None:
        names = tuple(f"dataset_{i}" for i in range(len(contents.keypoints)))
        notes.append(f"heads of {contents.keypoints} keypoints: which datasets was not said, named {names}")
    elif options.datasets is None and len(names) == 1:
        notes.append(f"{contents.keypoints[0]} keypoints, taken for {names[0]}")
    _check_names(names, contents.keypoints)
    return {
        "method": METHOD,
        "family": contents.title(),
        "backbone": dataclasses.asdict(size),
        "num_experts": contents.num_experts,
        "input_size": list(_input_size(contents, options)),
        "datasets": [list(pair) for pair in zip(names, contents.keypoints, strict=True)],
        "filters": list(contents.filters),
        "embedding": _described(contents.embedding, options.activation or "silu") if contents.embedding else None,
    }, notes


def model_of(manifest: Mapping[str, Any], **settings: Any) -> PoseBH:
    """The model that a manifest describes; `settings` are further fields of `PoseBH` (dtype, remat ...).

    Older manifests have one number for both `filters`, and (dim, channels) for `embedding`.
    """
    filters, embedding = manifest["filters"], manifest["embedding"] or {"dim": 0}
    if not isinstance(embedding, Mapping):
        embedding = dict(zip(EMBEDDING, embedding, strict=True))
    return PoseBH(
        size=ViTSize(**manifest["backbone"]),
        datasets=tuple((name, count) for name, count in manifest["datasets"]),
        num_experts=manifest["num_experts"],
        filters=(filters, filters) if isinstance(filters, int) else tuple(filters),
        **{f"embedding_{name}": value for name, value in embedding.items()},
        **settings,
    )


def manifest_of(model: PoseBH, input_size: tuple[int, int], family: str) -> dict[str, Any]:
    """The description of a model's own weights; the inverse of `model_of`."""
    embedding = {name: getattr(model, f"embedding_{name}") for name in EMBEDDING} if model.embedding_dim else None
    return {
        "method": METHOD,
        "family": family,
        "backbone": dataclasses.asdict(model.size),
        "num_experts": model.num_experts,
        "input_size": list(input_size),
        "datasets": [list(pair) for pair in model.datasets],
        "filters": list(model.filters),
        "embedding": embedding,
    }


@functools.cache
def model_targets(model: PoseBH, input_size: tuple[int, int]) -> dict[str, jax.ShapeDtypeStruct]:
    """Flat tree of the shapes of a model's variables; of the backbone alone where there are no heads."""
    width, height = input_size
    image, dataset = (
        jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
    )
    init = functools.partial(model.init, method="__call__" if model.datasets else "features")
    return flatten(jax.eval_shape(init, jax.random.key(0), image, dataset))


def to_torch(weights: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The original code's state dict of weights; the inverse of `convert`."""
    tree = {path: np.asarray(value) for path, value in flatten(weights).items() if path != CLUSTER_KEYPOINTS}
    state = keys.to_torch(tree, posebh_rules([name for name, _ in manifest["datasets"]]))
    counters = [name.replace(VARIANCE, COUNTER) for name in state if name.endswith(VARIANCE)]
    return state | {name: np.zeros((), np.int64) for name in counters}


def expand_experts(
    weights: Mapping[str, Any], manifest: Mapping[str, Any], num_experts: int, part: int | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(weights, manifest) with experts made from a plain backbone: each starts as the last features of fc2.

    Args:
      part: features of an expert; None for the published size's.

    Raises:
      ConversionError: the backbone is of no published size and `part` is not given.
    """
    size = ViTSize(**manifest["backbone"])
    part = part or size.part_features
    if not 0 < part < size.dim:
        raise ConversionError("more must be known", [f"how many of the {size.dim} features an expert yields"])
    tree = dict(flatten(weights))
    for leaf in ("kernel", "bias"):
        whole = tree[f"{BLOCKS}/mlp/fc2/{leaf}"]
        tree[f"{BLOCKS}/mlp/fc2/{leaf}"] = whole[..., :-part]
        tree[f"{BLOCKS}/mlp/experts/{leaf}"] = np.repeat(whole[:, None, ..., -part:], num_experts, axis=1)
    backbone = dataclasses.asdict(dataclasses.replace(size, part_features=part))
    return unflatten(tree), {**manifest, "backbone": backbone, "num_experts": num_experts}


def single_dataset(
    weights: Mapping[str, Any], manifest: Mapping[str, Any], dataset: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(weights, manifest) of a plain transformer for one dataset: its expert folded into fc2, its head, its part of
    the prototypes.

    Raises:
      ValueError: no such dataset in these weights.
    """
    names = [name for name, _ in manifest["datasets"]]
    if dataset not in names:
        raise ValueError(f"no head for {dataset!r}; these weights have {names}")
    index = names.index(dataset)
    counts = [count for _, count in manifest["datasets"]]
    whole = flatten(weights)
    tree = {
        path: value
        for path, value in whole.items()
        if not re.match(rf"{BLOCKS}/mlp/experts/|prototypes/clusters/|\w+/heads/(?!{re.escape(dataset)}/)", path)
    }
    if manifest["num_experts"]:
        for leaf in ("kernel", "bias"):
            parts = [whole[f"{BLOCKS}/mlp/fc2/{leaf}"], whole[f"{BLOCKS}/mlp/experts/{leaf}"][:, index]]
            tree[f"{BLOCKS}/mlp/fc2/{leaf}"] = np.concatenate(parts, axis=-1)
    if BANK in tree:
        start = sum(counts[:index])
        tree[BANK] = tree[BANK][start : start + counts[index]]
    family = f"{manifest['family']}, its {dataset} expert folded in"
    folded = {**manifest, "family": family, "num_experts": 0, "datasets": [[dataset, counts[index]]]}
    return unflatten(tree), folded


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


def _described(embedding: Embedding, activation: str) -> dict[str, Any]:
    if activation not in ACTIVATIONS:
        raise ConversionError(
            "the embedding head", [f"activation {activation!r}: expected one of {tuple(ACTIVATIONS)}"]
        )
    return {**embedding._asdict(), "activation": activation}


def _check_names(names: tuple[str, ...], keypoints: tuple[int, ...]) -> None:
    if len(names) != len(keypoints):
        raise ConversionError("the datasets do not fit", [f"{len(keypoints)} heads, but {len(names)} names: {names}"])
    problems = [
        f"{name} has {DATASETS[name].num_keypoints} keypoints, the head {count}"
        for name, count in zip(names, keypoints, strict=True)
        if name in DATASETS and DATASETS[name].num_keypoints != count
    ]
    if problems:
        raise ConversionError("the datasets do not fit", problems)


def _input_size(contents: Contents, options: Options) -> tuple[int, int]:
    """(width, height) of the crops: as given, or 3 : 4 with as many patches as there are positions."""
    if options.input_size is not None:
        return options.input_size
    if contents.family == BACKBONE:
        return (192, 256)
    grid = grid_3_by_4(contents.tokens)
    if grid is None:
        raise ConversionError(
            "more must be known", [f"{contents.tokens} positions make no 3:4 grid: say the input size"]
        )
    return grid[0] * PATCH, grid[1] * PATCH


def _heads_beside(source: pathlib.Path) -> int | None:
    """Attention heads from the config.json that Hugging Face puts beside its weights; None without one."""
    config = find_weights(source).with_name("config.json")
    if not config.is_file():
        return None
    try:
        heads = read_json(config).get("backbone_config", {}).get("num_attention_heads")
        if heads is not None and (type(heads) is not int or heads < 1):
            raise ValueError(f"{heads!r} attention heads")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{config}: {error}") from error
    return heads
