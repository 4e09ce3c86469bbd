"""ONNX by jax2onnx, whose pins want an environment of their own: see docs/export.md."""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Callable

import numpy as np

from pose_common.export.primitives import straight_line
from pose_common.export.program import INPUT, Outputs, Program

OPSET = 21
"""Of the operators; ONNX 1.16 and its runtimes have it."""
ERRORS = 3
"""Level of onnxruntime's messages that are shown."""
LARGEST = 2**31 - 2**20
"""Bytes of weights that one file can hold (a protocol buffer has at most 2 GiB)."""


def write_onnx(program: Program, path: pathlib.Path, batch: int | None) -> None:
    """Writes `path`, and beside it `<path>.data` where the weights are more than one file can hold.

    Args:
      batch: None leaves the number of pictures open.

    Raises:
      ValueError: jax2onnx is not installed.
    """
    try:
        import jax2onnx
        import onnx_ir
    except ImportError as error:
        raise ValueError("ONNX files are written by jax2onnx: pip install -e '.[onnx]' (docs/export.md)") from error
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # it warns of every shape that it does not note
    spec = program.pictures(batch)
    model = jax2onnx.to_onnx(
        straight_line(program.function, spec),
        [spec],
        opset=OPSET,
        return_mode="ir",
        input_names=[INPUT],
        output_names=list(program.outputs),
    )
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    onnx_ir.save(model, path, external_data=path.name + ".data" if weights > LARGEST else None)


def read_onnx(path: pathlib.Path) -> Callable[[np.ndarray], Outputs]:
    """The file as a function of pictures [B, H, W, 3], which onnxruntime runs on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # threads that wait leave the cores alone
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: tuple(session.run(None, {INPUT: images}))
