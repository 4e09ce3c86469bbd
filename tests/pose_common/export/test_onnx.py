"""ONNX files: what is written, and what stays where it cannot be."""

from __future__ import annotations

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from pose_common.export import onnx
from pose_common.export.program import Program

pytestmark = pytest.mark.onnx
WEIGHTS = np.random.default_rng(0).normal(size=(3, 2000)).astype(np.float32)


def means(sign):
    return Program(lambda x: (sign * x.astype(jnp.float32).mean((1, 2)) @ WEIGHTS,), (8, 8), ("out",), {})


@pytest.mark.parametrize("largest", [onnx.LARGEST, 1000])
def test_an_older_file_stays_where_a_new_one_cannot_be_written(tmp_path, monkeypatch, largest):
    """Also of weights that go into a file of their own, beside the model's."""
    pytest.importorskip("jax2onnx", reason="jax2onnx is not installed (the `onnx` extra)")
    monkeypatch.setattr(onnx, "LARGEST", largest)
    path = tmp_path / "model.onnx"
    onnx.write_onnx(means(1), path, 1)
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert files.keys() == {"model.onnx"} | ({"model.onnx.data"} if largest == 1000 else set())
    image = np.random.default_rng(1).integers(0, 255, (1, 8, 8, 3), np.uint8)
    # Float32 sums of three products of up to 255 x 4, in another order.
    np.testing.assert_allclose(onnx.read_onnx(path)(image)[0], image.mean((1, 2)) @ WEIGHTS, atol=1e-3)

    def full(target, data):
        with target.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    with pytest.raises(OSError, match="model.onnx cannot be written: No space left on device"):
        onnx.write_onnx(means(1), path, 1)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == files
