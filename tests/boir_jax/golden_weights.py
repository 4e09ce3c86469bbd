"""Recorded torch parameters as flax trees, through the porting table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from boir_jax.model import BoIR
from boir_jax.weights.keys import COUNTERS, boir_rules
from pose_common.weights.keys import Slot, expected_sources, flatten, to_flax, unflatten
from tests.golden_files import golden


def tiny(**changes: Any) -> BoIR:
    """The full topology in the widths of the recorded weights."""
    sizes = {"width": 4, "neck_middle": 8, "neck_features": 16, "head_features": 8, "embedding_features": 8}
    return BoIR(num_keypoints=17, **{**sizes, "instance_features": 8, **changes})


def shapes(model: nn.Module, *arguments: Any) -> dict[str, Any]:
    """Flat tree of shapes of a model's variables; by default those of a whole `BoIR`."""
    arguments = arguments or (jnp.zeros((1, 64, 64, 3)),)
    return flatten(dict(jax.eval_shape(lambda: model.init(jax.random.key(0), *arguments))))


def entries(name: str, kind: str = "param", prefix: str = "") -> dict[str, np.ndarray]:
    """Torch name -> array of the entries of one kind ("param", "after", "grad", ...) of an archive."""
    start = f"{kind}:"
    return {prefix + key[len(start) :]: value for key, value in golden(name).items() if key.startswith(start)}


def load(state: Mapping[str, np.ndarray], targets: Mapping[str, Any], *dropped: str) -> dict[str, Any]:
    """{'params': ..., 'batch_stats': ...} with `targets` filled."""
    return unflatten(to_flax(dict(state), boir_rules(), targets, dropped=(COUNTERS, *dropped)).tree)


def weights(model: BoIR) -> dict[str, Any]:
    """The recorded weights of the whole model; those of heads that it has not are dropped."""
    dropped = () if model.training_heads else (r"multihead\.(buk|emb|bbox)_head\..*",)
    return load(entries("boir/weights.npz"), shapes(model), *dropped)


def group_shapes(model: nn.Module, group: str, *arguments: Any) -> dict[str, Any]:
    """`shapes` of a part on its own, under the names that it has within `BoIR`."""
    tree = shapes(model, *arguments)
    return {path.replace("/", f"/{group}/", 1): value for path, value in tree.items()}


def slots(tree: Mapping[str, Any]) -> dict[str, Slot]:
    """Torch name -> its place in a flat tree."""
    return expected_sources(boir_rules(), tree)
