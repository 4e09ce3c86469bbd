"""The small models that the package carries: weights in half precision, with their manifest in the file's header.

They are trained by this project on its rendered figures (docs/prediction.md says how) and know nothing else.
"""

from __future__ import annotations

import json
import pathlib

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pose_common.weights.keys import Conversion, flatten, own_weights, unflatten

NOTICE = (
    "embedded demonstration weights: they know this project's rendered figures only. For photographs give published "
    "weights, --checkpoint=..., which docs/weights.md lists with where to get them"
)


def write_embedded(conversion: Conversion, path: pathlib.Path) -> None:
    """Writes weights and manifest as one file; floats in half precision."""
    arrays = {
        name: np.asarray(value, np.float16) if np.issubdtype(value.dtype, np.floating) else np.asarray(value)
        for name, value in flatten(conversion.weights).items()
    }
    save_file(arrays, path, metadata={"manifest": json.dumps(conversion.manifest)})


def is_embedded(path: str | pathlib.Path) -> bool:
    """Whether `write_embedded` wrote this file."""
    if pathlib.Path(path).suffix != ".safetensors" or not pathlib.Path(path).is_file():
        return False
    try:
        with safe_open(path, framework="np") as file:
            return "manifest" in (file.metadata() or {})
    except SafetensorError:
        return False  # whose reader says what is wrong


def read_embedded(path: pathlib.Path) -> Conversion:
    """What `write_embedded` wrote, in float32.

    Raises:
      ValueError: the package was installed without it.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not there: this installation has no embedded weights; give a checkpoint")
    with safe_open(path, framework="np") as file:
        manifest = json.loads(file.metadata()["manifest"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    weights = {name: value.astype(np.float32) if value.dtype == np.float16 else value for name, value in arrays.items()}
    return own_weights(unflatten(weights), manifest)
