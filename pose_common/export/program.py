"""What is exported: a function of pictures, with its weights inside."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from data_pipelines.paths import write_whole

INPUT = "image"
Outputs = tuple[jax.Array, ...]
LARGEST = 2**31 - 2**20
"""Bytes of weights that one file can hold: both formats' containers have at most 2 GiB."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A prediction with its weights.

    Attributes:
      function: uint8 [B, H, W, 3] RGB -> its outputs, each with the leading axis B.
      size: (width, height) of the pictures.
      outputs: their names.
      about: what somebody who has the file alone must know; JSON values.
    """

    function: Callable[[jax.Array], Outputs]
    size: tuple[int, int]
    outputs: tuple[str, ...]
    about: Mapping[str, Any]

    def pictures(self, batch: int | None) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the input; `batch` None leaves the number of pictures open."""
        width, height = self.size
        rows = jax.export.symbolic_shape("batch")[0] if batch is None else batch
        return jax.ShapeDtypeStruct((rows, height, width, 3), jnp.uint8)


def image_pixels(batch: Any) -> jax.Array:
    """The inverse warps [B, 2, 3] of pictures that are not warped: results stay in pixels of the input."""
    return jnp.broadcast_to(jnp.eye(2, 3), (batch, 2, 3))


def describe(program: Program, path: pathlib.Path, batch: int | None) -> pathlib.Path:
    """Writes `<path>.json`: input, outputs and `about`."""
    spec = program.pictures(batch)
    input_shape = ["batch", *spec.shape[1:]] if batch is None else list(spec.shape)
    document = {
        "input": {"name": INPUT, "dtype": "uint8", "shape": input_shape, "layout": "BHWC, RGB, 0 to 255"},
        "outputs": list(program.outputs),
        **program.about,
    }
    target = path.with_name(path.name + ".json")
    write_whole(target, json.dumps(document, indent=1) + "\n")
    return target


def largest_differences(found: Outputs, expected: Outputs) -> list[float]:
    """Of each output."""
    pairs = zip(found, expected, strict=True)
    return [float(np.max(np.abs(np.float32(a) - np.float32(b)), initial=0.0)) for a, b in pairs]
