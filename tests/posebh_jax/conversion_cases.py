"""Recorded weights and shapes of published checkpoints, for the tests of weights in and out."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from posebh_jax.weights.detect import recognise
from posebh_jax.weights.manifest import PATCH, Options, describe
from tests.golden_files import golden, golden_config
from tests.posebh_jax.golden_weights import golden_state

# Features up to 5, heatmaps up to 1: see the tolerances of the modules.
TOLERANCE = 1e-5
WHOLE, KEYS = "posebh/full_train.npz", "posebh/checkpoint_keys.json"


@functools.cache
def tiny_posebh() -> dict[str, np.ndarray]:
    """The recorded whole model: an expert and a head a dataset, embedding head, prototypes."""
    return golden_state(WHOLE)


def recorded_options(name: str = WHOLE) -> Options:
    """What the weights of a recorded model do not say."""
    config = golden_config(name)
    height, width = config["img"]
    return Options(num_heads=config["heads"], input_size=(width, height), activation=config.get("activation"))


def tokens_in_a_column(state: Mapping[str, Any], name: str = "backbone.pos_embed") -> tuple[int, int]:
    """(width, height) of crops with as many patches as there are positions; shapes tell no more."""
    return PATCH, PATCH * (np.shape(state[name])[1] - 1)


@functools.cache
def published(name: str) -> tuple[dict[str, tuple[int, ...]], str, dict[str, Any], list[str]]:
    """(shapes, title, manifest, notes) of a recorded checkpoint."""
    shapes = {key: tuple(shape) for key, shape in golden(KEYS)[name]["state_dict"].items()}
    contents = recognise(shapes)
    known = contents.size_name is not None
    three_by_four = (contents.tokens / 12) ** 0.5 % 1 == 0
    options = Options(
        num_heads=None if known else 1,
        input_size=None if three_by_four else (PATCH, PATCH * contents.tokens),
    )
    return shapes, contents.title(), *describe(contents, options, None)
