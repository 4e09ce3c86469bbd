"""State dicts as files, compared and damaged."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import numpy as np
import pytest

from pose_common.weights.torch_files import write_state

FORMATS = [".safetensors", pytest.param(".pth", marks=pytest.mark.torch)]
DAMAGES = ("renamed", "missing", "reshaped", "retyped", "not a number")


def as_file(folder: pathlib.Path, state: Mapping[str, np.ndarray], suffix: str = ".safetensors") -> pathlib.Path:
    """Writes a state dict; skips the test where that needs PyTorch and it is not there."""
    if suffix == ".pth":
        pytest.importorskip("torch", reason="PyTorch is not installed (the `torch` extra)")
    path = folder / f"weights{suffix}"
    write_state(path, state)
    return path


def assert_same(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> None:
    """Names, types, shapes and values."""
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype, name
        np.testing.assert_array_equal(ours[name], value, strict=True, err_msg=name)


def damage(state: dict[str, np.ndarray], kind: str, rng: np.random.Generator, name: str | None = None) -> str:
    """Damages an entry in place, any where none is named; returns its name."""
    name = name or sorted(state)[rng.integers(len(state))]
    value = state.pop(name)
    if kind == "renamed":
        state[name.replace(".", "_", 1) if rng.random() < 0.5 else name + "x"] = value
    elif kind == "reshaped":
        state[name] = value.reshape(*value.shape, 1) if rng.random() < 0.5 else np.repeat(value[None], 2, axis=0)
    elif kind == "retyped":
        state[name] = value.astype(np.int32 if value.dtype == np.float32 else np.float32)
    elif kind == "not a number":
        state[name] = np.full(value.shape, np.nan, np.float32)
    return name
