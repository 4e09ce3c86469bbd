"""ONNX by jax2onnx, whose pins want an environment of their own: see docs/export.md."""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Callable

import numpy as np

from data_pipelines.paths import write_whole
from pose_common.export.primitives import straight_line
from pose_common.export.program import INPUT, LARGEST, Outputs, Program

OPSET = 21
"""Of the operators; ONNX 1.16 and its runtimes have it."""
SMALL = 256
"""Bytes of an array up to which it is not worth a place in another file."""
ERRORS = 3
"""Level of onnxruntime's messages that are shown."""


def write_onnx(program: Program, path: pathlib.Path, batch: int | None) -> None:
    """Writes `path`, and beside it `<path>.data` where the weights are more than one file can hold.

    Args:
      batch: None leaves the number of pictures open.

    Raises:
      ValueError: jax2onnx is not installed.
      OSError: it cannot be written; a file that was there before stays.
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
    if weights > LARGEST:
        # Small ones stay: runtimes infer shapes from them.
        model = onnx_ir.external_data.unload_from_model(
            model, path.parent, path.name + ".data", size_threshold_bytes=SMALL
        )
    write_whole(path, onnx_ir.to_proto(model).SerializeToString())


def read_onnx(path: pathlib.Path) -> Callable[[np.ndarray], Outputs]:
    """The file as a function of pictures [B, H, W, 3], which onnxruntime runs on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # threads that wait leave the cores alone
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: tuple(session.run(None, {INPUT: images}))
