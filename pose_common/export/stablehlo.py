"""StableHLO by `jax.export`: one file for every platform, which JAX alone runs."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import jax
import jax.export
import numpy as np

from data_pipelines.paths import write_whole
from pose_common.export.program import LARGEST, Outputs, Program

PLATFORMS = ("cpu", "cuda", "tpu")


def write_stablehlo(program: Program, path: pathlib.Path, batch: int | None) -> None:
    """Writes `path`, to be read by `jax.export.deserialize`; `batch` None leaves the number of pictures open.

    Raises:
      ValueError: flatbuffers, with which JAX writes, is not installed, or the weights are more than a file can hold.
    """
    exported = jax.export.export(jax.jit(program.function), platforms=PLATFORMS)(program.pictures(batch))
    if len(exported.mlir_module_serialized) > LARGEST:
        size = len(exported.mlir_module_serialized) / 2**30
        raise ValueError(f"{size:.1f} GiB of weights are more than a StableHLO file can hold (2): use --format=onnx")
    try:
        data = exported.serialize()
    except ImportError as error:
        raise ValueError("JAX writes StableHLO files with flatbuffers: pip install flatbuffers") from error
    write_whole(path, data)


def read_stablehlo(path: pathlib.Path) -> Callable[[np.ndarray], Outputs]:
    """The file as a function of pictures [B, H, W, 3]."""
    return jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)
