"""StableHLO by `jax.export`: one file for every platform, which JAX alone runs."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Iterator

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
    with _without_folders():
        exported = jax.export.export(jax.jit(program.function), platforms=PLATFORMS)(program.pictures(batch))
    if len(exported.mlir_module_serialized) > LARGEST:
        size = len(exported.mlir_module_serialized) / 2**30
        raise ValueError(f"{size:.1f} GiB of weights are more than a StableHLO file can hold (2): use --format=onnx")
    try:
        data = exported.serialize()
    except ImportError as error:
        raise ValueError("JAX writes StableHLO files with flatbuffers: pip install flatbuffers") from error
    write_whole(path, data)


@contextlib.contextmanager
def _without_folders() -> Iterator[None]:
    """JAX notes which line of which file made an operation: the file's name is enough, where it lay is nobody's."""
    field = "jax_hlo_source_file_canonicalization_regex"
    before = getattr(jax.config, field)
    jax.config.update(field, r".*[/\\]")  # what fits is cut out
    try:
        yield
    finally:
        jax.config.update(field, before)


def read_stablehlo(path: pathlib.Path) -> Callable[[np.ndarray], Outputs]:
    """The file as a function of pictures [B, H, W, 3]."""
    return jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)
