"""StableHLO by `jax.export`: one file for every platform, which JAX alone runs."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import jax
import jax.export
import numpy as np

from pose_common.export.program import Outputs, Program

PLATFORMS = ("cpu", "cuda", "tpu")


def write_stablehlo(program: Program, path: pathlib.Path, batch: int | None) -> None:
    """Writes `path`, to be read by `jax.export.deserialize`; `batch` None leaves the number of pictures open.

    Raises:
      ValueError: flatbuffers, with which JAX writes, is not installed.
    """
    exported = jax.export.export(jax.jit(program.function), platforms=PLATFORMS)(program.pictures(batch))
    try:
        data = exported.serialize()
    except ImportError as error:
        raise ValueError("JAX writes StableHLO files with flatbuffers: pip install flatbuffers") from error
    path.write_bytes(data)


def read_stablehlo(path: pathlib.Path) -> Callable[[np.ndarray], Outputs]:
    """The file as a function of pictures [B, H, W, 3]."""
    return jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)
