"""What a model is built from: the manifest of its weights, told by a state dict, and the model of a manifest."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from data_pipelines.datasets import DATASETS
from pose_common.weights.hub_folders import find_weights, read_json
from pose_common.weights.keys import ConversionError, flatten
from posebh_jax.heads import ACTIVATIONS
from posebh_jax.model import PoseBH
from posebh_jax.vit import SIZES, ViTSize
from posebh_jax.weights.detect import BACKBONE, HUGGING_FACE, MMPOSE, Contents, Embedding, grid

METHOD = "posebh"
PATCH = 16
EMBEDDING = ("dim", "channels", "neck", "kernel", "activation")
"""Settings of the embedding head in a manifest; `PoseBH` has each with `embedding_` before its name."""

_WHOLE = ("coco", "aic", "mpii", "ap10k", "apt36k", "coco_wholebody")
MIXTURES = (_WHOLE, ("coco", "aic", "mpii", "coco_wholebody"), (*_WHOLE, "interhand2d", "pw3d"))
"""Orders of heads in published multi-dataset checkpoints."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What a file does not say itself; None leaves it to what is published.

    Attributes:
      datasets: names of the heads, in order.
      expected: (name, keypoints) of the caller's datasets, which name the heads of a file where the counts are these;
        not those of a published mixture, whose order is known.
      num_heads: attention heads.
      input_size: (width, height) of the crops.
      expected_size: of the caller's crops, which are those of a file with as many positions, or of no size of its own.
      activation: of the embedding head; None for the published SiLU.
    """

    datasets: tuple[str, ...] | None = None
    expected: tuple[tuple[str, int], ...] = ()
    num_heads: int | None = None
    input_size: tuple[int, int] | None = None
    expected_size: tuple[int, int] | None = None
    activation: str | None = None


def describe(contents: Contents, options: Options, source: pathlib.Path | None) -> tuple[dict[str, Any], list[str]]:
    """(manifest, what was guessed): everything that the model is built from."""
    stem = source.stem if source is not None else ""
    num_heads = options.num_heads
    if num_heads is None and contents.family == HUGGING_FACE and source is not None:
        num_heads = _heads_beside(source)
    size = backbone_size(contents, num_heads)
    notes = []
    names = options.datasets or _names(contents.keypoints, options.expected, stem)
    if not contents.keypoints:
        names = ()
    elif names is None:
        names = unnamed(len(contents.keypoints))
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
        **({"dark_blur": "transformers"} if contents.family == HUGGING_FACE else {}),
    }, notes


def unnamed(count: int) -> tuple[str, ...]:
    """What heads are called whose datasets nobody said."""
    return tuple(f"dataset_{number}" for number in range(count))


def model_of(manifest: Mapping[str, Any], **settings: Any) -> PoseBH:
    """The model that a manifest describes; `settings` are further fields of `PoseBH` (dtype, remat ...).

    Older manifests have one number for both `filters`, and (dim, channels) for `embedding`.
    """
    filters, embedding = manifest["filters"], manifest["embedding"] or {"dim": 0}
    if not isinstance(embedding, Mapping):
        embedding = dict(zip(EMBEDDING[:2], embedding, strict=True))
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


def dataset_names(keypoints: Sequence[int], stem: str) -> tuple[str, ...] | None:
    """Names of heads with these numbers of keypoints, or None where they cannot be told.

    Args:
      keypoints: number of maps of each head.
      stem: the file's name, which names the dataset of a single-dataset split.
    """

    def known(name: str) -> int:
        return DATASETS[name].num_keypoints

    for names in MIXTURES:
        if tuple(map(known, names)) == tuple(keypoints):
            return names
    if len(keypoints) != 1:
        return None
    fitting = [name for name in DATASETS if known(name) == keypoints[0]]
    named = [name for name in fitting if name in (stem, f"coco_{stem}") or stem.endswith(f"_{name}")]
    return tuple((named or fitting)[:1]) or None


def backbone_size(contents: Contents, num_heads: int | None) -> ViTSize:
    """The size; what weights do not show of it is that of the published one, where it is one.

    Raises:
      ConversionError: the number of attention heads, which weights do not show, is not known.
    """
    published = SIZES.get(contents.size_name or "")
    if num_heads is None and published is None:
        raise ConversionError(
            "more must be known",
            [
                f"width {contents.dim}, depth {contents.depth} is no published size: say the attention heads, "
                f"{_by('num_heads')}"
            ],
        )
    size = published or ViTSize(contents.dim, contents.depth, 0, 0)
    heads = size.num_heads if num_heads is None else num_heads
    if heads < 1 or contents.dim % heads:
        raise ConversionError(
            "the backbone does not fit", [f"{heads} attention heads do not divide width {contents.dim}"]
        )
    part_features = contents.part_features or size.part_features
    return dataclasses.replace(size, num_heads=heads, part_features=part_features, mlp_ratio=contents.mlp_ratio)


def _names(keypoints: Sequence[int], expected: Sequence[tuple[str, int]], stem: str) -> tuple[str, ...] | None:
    """Names of heads that nobody has named; None where they cannot be told."""
    published = dataset_names(keypoints, stem)
    asked = tuple(name for name, _ in expected)
    if tuple(count for _, count in expected) != tuple(keypoints) or sorted(asked) == sorted(published or ()):
        return published  # two of its heads may have as many keypoints: the caller's order says nothing of the file's
    return asked


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
    """(width, height) of the crops: as given, or expected, or 3 : 4 or square with as many patches as positions."""
    if options.input_size is not None:
        return options.input_size
    expected = options.expected_size or (192, 256)
    tokens = {contents.tokens, contents.tokens + (contents.family == MMPOSE)}  # whose files may lack the extra one
    if contents.family == BACKBONE or math.prod(side // PATCH for side in expected) in tokens:
        return expected
    patches = grid(contents.tokens)
    if patches is None:
        problem = f"{contents.tokens} positions make no grid of 3:4 or square: say the crops' size, {_by('input_size')}"
        raise ConversionError("more must be known", [problem])
    return patches[0] * PATCH, patches[1] * PATCH


def _by(flag: str) -> str:
    return f"by `python -m scripts.convert_weights FILE --to=FOLDER --{flag}=...`, and use that folder"


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
