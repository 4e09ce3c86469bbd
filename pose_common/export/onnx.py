"""ONNX by jax2onnx, whose pins want an environment of their own: see docs/export.md."""

from __future__ import annotations

import pathlib

import numpy as np

from pose_common.export.primitives import straight_line
from pose_common.export.program import INPUT, Outputs, Program

OPSET = 21
"""Of the operators; ONNX 1.16 and its runtimes have it."""


def write_onnx(program: Program, path: pathlib.Path, batch: int | None) -> None:
    """Writes `path`, and beside it `<path>.data` where the weights need more than the format holds.

    Args:
      batch: None leaves the number of pictures open.

    Raises:
      ValueError: jax2onnx is not installed.
    """
    try:
        import jax2onnx
    except ImportError as error:
        raise ValueError("ONNX files are written by jax2onnx: pip install '.[onnx]' (docs/export.md)") from error
    spec = program.pictures(batch)
    jax2onnx.to_onnx(
        straight_line(program.function, spec),
        [spec],
        opset=OPSET,
        return_mode="file",
        output_path=path,
        input_names=[INPUT],
        output_names=list(program.outputs),
    )


def run_onnx(path: pathlib.Path, images: np.ndarray) -> Outputs:
    """The outputs for pictures [B, H, W, 3], by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return tuple(session.run(None, {INPUT: images}))
