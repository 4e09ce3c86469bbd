"""A tiny recorded model, for the tests of weights in and out."""

from __future__ import annotations

import functools

import numpy as np

from posebh_jax.weights.convert import Options
from tests.posebh_jax.golden_weights import golden_state

# Features up to 5, heatmaps up to 1: see the tolerances of the modules.
TOLERANCE = 1e-5
TINY = Options(num_heads=2, input_size=(48, 64))


@functools.cache
def tiny_posebh() -> dict[str, np.ndarray]:
    """The recorded whole model: three experts and heads, embedding head, prototypes."""
    return golden_state("posebh/full_train.npz")
