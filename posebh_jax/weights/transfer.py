"""Starts a model from weights of another: one without prototypes or experts, or for other skeletons."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pose_common.training.restore import Start, take_parts
from pose_common.weights.keys import Conversion, ConversionError, flatten, unflatten
from posebh_jax.model import PoseBH
from posebh_jax.vit import ViTSize
from posebh_jax.weights.keys import BANK, BLOCKS
from posebh_jax.weights.mae import resize_position
from posebh_jax.weights.manifest import MIXTURES, PATCH

POSITION = "params/backbone/pos_embed"


def start_from(conversion: Conversion, initial: Mapping[str, Any], model: PoseBH, *, fold: str = "") -> Start:
    """The model's initial arrays with every part that the weights have for it.

    A part is taken whole or not at all; half of one, or one of another width, is an error. A backbone without
    experts fills each with the last features of its fc2. Heads, experts and prototypes go by the names of their
    datasets (`expert_names`); a dataset that the weights do not know starts with the expert of their first.

    Args:
      conversion: the weights, from `read_weights`.
      initial: nested {"params": ..., "batch_stats": ..., "prototypes": ...}.
      model: the model they are of.
      fold: for transfer: the dataset whose expert is folded into a plain backbone, and from whose head the
        model's only head starts, but for the last convolution.

    Raises:
      ValueError: weights that do not fit, or without the dataset to fold.
    """
    weights, manifest = conversion.weights, conversion.manifest
    if fold:
        weights, manifest = single_dataset(weights, manifest, fold)
    experts = expert_names(manifest)
    if model.num_experts and not manifest["num_experts"]:
        weights, manifest = expand_experts(weights, manifest, model.num_experts, model.size.part_features)
        experts = tuple(name for name, _ in model.datasets)
    loaded, start = flatten(weights), flatten(initial)
    if fold:
        loaded = _as_head_of(model.datasets[0][0], fold, loaded)
    loaded, new = _for_datasets(model, manifest, experts, loaded, start)
    taken = take_parts(loaded, start, _part, conversion.title)
    # A collection without arrays, such as the baseline's prototypes, is there all the same.
    tree = {**dict.fromkeys(initial, {}), **taken.tree}
    return dataclasses.replace(taken, tree=tree, initialised=tuple(sorted([*taken.initialised, *new])))


def at_input_size(conversion: Conversion, input_size: tuple[int, int]) -> Conversion:
    """The weights for crops of another (width, height): their position embedding is interpolated, as the log says."""
    own = tuple(conversion.manifest["input_size"])
    if own == input_size:
        return conversion
    logging.info("position embedding interpolated from crops of %dx%d to those of %dx%d", *own, *input_size)
    old, grid = ((height // PATCH, width // PATCH) for width, height in (own, input_size))
    tree = dict(flatten(conversion.weights))
    tree[POSITION] = resize_position(tree[POSITION], old, grid)
    weights = {**dict.fromkeys(conversion.weights, {}), **unflatten(tree)}
    manifest = {**conversion.manifest, "input_size": list(input_size)}
    return dataclasses.replace(conversion, weights=weights, manifest=manifest)


def expand_experts(
    weights: Mapping[str, Any], manifest: Mapping[str, Any], num_experts: int, part: int | None
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


def expert_names(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the datasets that the experts belong to.

    They are the heads', but published weights may have more experts than heads: Hugging Face's VitPose-plus and a
    backbone alone. Those are of the published mixture with as many datasets.
    """
    heads = tuple(name for name, _ in manifest["datasets"])
    mixture = next((names for names in MIXTURES if len(names) == manifest["num_experts"]), ())
    return mixture if mixture[: len(heads)] == heads else heads


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
    return {**dict.fromkeys(weights, {}), **unflatten(tree)}, folded


def _as_head_of(new: str, old: str, tree: Mapping[str, Any]) -> dict[str, Any]:
    """Gives the head of one dataset to another, without the last convolution, which is the skeleton's own."""
    own = f"params/heads/{old}/final/"
    return {
        name.replace(f"/heads/{old}/", f"/heads/{new}/"): value
        for name, value in tree.items()
        if not name.startswith(own)
    }


def _for_datasets(
    model: PoseBH,
    manifest: Mapping[str, Any],
    experts: Sequence[str],
    loaded: Mapping[str, Any],
    initial: Mapping[str, Any],
) -> tuple[dict[str, Any], list[str]]:
    """(weights as those of the model's datasets, what of experts and prototypes they do not hold).

    Experts without names stay where they are. Cluster prototypes are of a whole mixture and stay behind unless it is
    the same.
    """
    pairs, known = [tuple(pair) for pair in model.datasets], [tuple(pair) for pair in manifest["datasets"]]
    if pairs == known and model.num_experts == manifest["num_experts"]:
        return dict(loaded), []
    tree = {name: value for name, value in loaded.items() if not name.startswith("prototypes/")}
    new = []
    for name in [name for name in tree if experts and "/experts/" in name and name in initial]:
        tree[name] = tree[name][:, [experts.index(d) if d in experts else 0 for d, _ in pairs]]
        new = [f"experts of {d} (as that of {experts[0]})" for d, _ in pairs if d not in experts]
    if BANK in loaded and BANK in initial and any(pair in known for pair in pairs):
        ends = np.cumsum([count for _, count in known])
        rows = {pair: loaded[BANK][end - pair[1] : end] for pair, end in zip(known, ends, strict=True)}
        ends = np.cumsum([count for _, count in pairs])
        tree[BANK] = np.concatenate(
            [
                rows[pair] if pair in rows else np.asarray(initial[BANK])[end - pair[1] : end]
                for pair, end in zip(pairs, ends, strict=True)
            ]
        )
        new += [f"prototypes of {pair[0]}" for pair in pairs if pair not in known]
    return tree, new


def _part(name: str) -> str:
    """The part of a model to which a flat name belongs."""
    collection, group, *rest = name.split("/")
    if collection == "prototypes":
        return f"prototypes/{group}"
    if group == "heads":
        return f"heads/{rest[0]}/final" if rest[1] == "final" else f"heads/{rest[0]}"
    return "backbone/last_norm" if (group, rest[0]) == ("backbone", "last_norm") else group
