"""Recorded torch parameters as flax trees, through the conversion table."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from boir_jax.aspp import DILATIONS
from boir_jax.hrnet import branch_widths
from boir_jax.model import BoIR
from boir_jax.proposals import ProposalConfig
from boir_jax.weights.keys import boir_rules
from pose_common.weights.keys import EXTRAS, Slot, expected_sources, flatten, to_flax, unflatten
from tests.golden_files import golden, golden_config
from tests.settings import PROPOSALS

WEIGHTS = "boir/weights.npz"
KEYS = golden("boir/checkpoint_keys.json")
# (size, number of keypoints) of the recorded names and shapes of published checkpoints.
PUBLISHED = [
    (size, int(match[1]))
    for size, recorded in KEYS.items()
    for name in recorded
    if (match := re.fullmatch(r"K(\d+)_(train|differs)", name))
]


def published(size: str, num_keypoints: int, training: bool = True) -> dict[str, tuple[int, ...]]:
    """Torch name -> shape of a published checkpoint; those of other keypoints are recorded as differences."""
    recorded = KEYS[size]
    (whole,) = (names for key, names in recorded.items() if re.fullmatch(r"K\d+_train", key))
    names = whole | recorded.get(f"K{num_keypoints}_differs", {})
    absent = () if training else recorded["aux_keys_absent_at_test"]
    return {name: tuple(shape) for name, shape in names.items() if name not in absent}


def tiny(**changes: Any) -> BoIR:
    """The network of the recorded weights."""
    config = golden_config(WEIGHTS)
    stages, neck, heads = config["STAGES"], config["NECK"], config["HEADS"]
    channels, blocks = stages["NUM_CHANNELS"], [set(of_branches) for of_branches in stages["NUM_BLOCKS"]]
    assert all(of_stage == channels[-1][: len(of_stage)] for of_stage in channels), "branches keep their width"
    assert all(len(counts) == 1 for counts in blocks), "all branches of a stage are equally deep"
    blocks, width = tuple(min(counts) for counts in blocks), channels[-1][0]
    sizes = {
        # As a conversion states them: one number where it says all.
        "width": width if branch_widths(width) == tuple(channels[-1]) else tuple(channels[-1]),
        "modules": tuple(stages["NUM_MODULES"]),
        "blocks": blocks[0] if len(set(blocks)) == 1 else blocks,
        "stem": len(golden(WEIGHTS)["param:backbone.conv1.weight"]),
        "neck_middle": neck["MIDDLE_CHANNELS"],
        "neck_features": neck["CHANNELS"],
        "dilations": tuple(neck["ATROUS_RATES"]),
        "head_features": heads["CHANNELS"],
        "embedding_features": heads["EMB_OUT"],
        "instance_features": config["InstKptHead"]["CHANNELS"],
    }
    return BoIR(num_keypoints=config["NUM_KEYPOINTS"], **{**sizes, **changes})


def shapes(model: nn.Module, *arguments: Any) -> dict[str, Any]:
    """Flat tree of shapes of a model's variables; by default those of a whole `BoIR`."""
    arguments = arguments or (jnp.zeros((1, 64, 64, 3)),)
    return flatten(dict(jax.eval_shape(lambda: model.init(jax.random.key(0), *arguments))))


def entries(name: str, kind: str = "param", prefix: str = "") -> dict[str, np.ndarray]:
    """Torch name -> array of the entries of one kind ("param", "after", "grad", ...) of an archive."""
    start = f"{kind}:"
    return {prefix + key[len(start) :]: value for key, value in golden(name).items() if key.startswith(start)}


def load(
    state: Mapping[str, np.ndarray], targets: Mapping[str, Any], *dropped: str, dilations: Sequence[int] = DILATIONS
) -> dict[str, Any]:
    """{'params': ..., 'batch_stats': ...} with `targets` filled."""
    return unflatten(to_flax(dict(state), boir_rules(dilations), targets, dropped=(*EXTRAS, *dropped)).tree)


def weights(model: BoIR) -> dict[str, Any]:
    """The recorded weights of the whole model; those of heads that it has not are dropped."""
    dropped = () if model.training_heads else (r"multihead\.(buk|emb|bbox)_head\..*",)
    return load(entries(WEIGHTS), shapes(model), *dropped, dilations=model.dilations)


def group_shapes(model: nn.Module, group: str, *arguments: Any) -> dict[str, Any]:
    """`shapes` of a part on its own, under the names that it has within `BoIR`."""
    tree = shapes(model, *arguments)
    return {path.replace("/", f"/{group}/", 1): value for path, value in tree.items()}


def slots(tree: Mapping[str, Any], dilations: Sequence[int] = DILATIONS) -> dict[str, Slot]:
    """Torch name -> its place in a flat tree."""
    return expected_sources(boir_rules(dilations), tree)


def recorded_settings(config: Mapping[str, Any], **changes: Any) -> ProposalConfig:
    """How a recording finds people: its thresholds, and `changes` of a case."""
    windows = (config["POOL_THRESHOLD2"], 3), (config["POOL_THRESHOLD1"], 5)
    return dataclasses.replace(PROPOSALS, threshold=config["KEYPOINT_THRESHOLD"], windows=windows, **changes)
