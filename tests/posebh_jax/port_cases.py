"""A tiny recorded model as a file, for the tests of weights in and out."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from pose_common.state_files import write_state
from posebh_jax.port import Options
from tests.posebh_jax.golden_weights import golden_state

# Features up to 5, heatmaps up to 1: see the tolerances of the modules.
TOLERANCE = 1e-5
TINY = Options(num_heads=2, input_size=(48, 64))


def assert_same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype, name
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


@functools.cache
def tiny_posebh() -> dict[str, np.ndarray]:
    """The recorded whole model: three experts and heads, embedding head, prototypes."""
    return golden_state("posebh/full_train.npz")


def as_file(tmp_path, state, suffix=".safetensors"):
    if suffix == ".pth":
        pytest.importorskip("torch", reason="PyTorch is not installed (the `torch` extra)")
    path = tmp_path / f"weights{suffix}"
    write_state(path, state)
    return path
