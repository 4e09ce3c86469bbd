"""The small models that the package carries: weights in half precision, with their manifest in the file's header.

They are trained by this project on its rendered figures (docs/prediction.md says how) and know nothing else.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

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
    path = pathlib.Path(path)
    return path.suffix == ".safetensors" and path.is_file() and _manifest(path) is not None


def read_embedded(path: pathlib.Path) -> Conversion:
    """What `write_embedded` wrote, in float32.

    Raises:
      ValueError: the package was installed without it, or it is another file.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not there: this installation has no embedded weights; give a checkpoint")
    manifest = _manifest(path)
    if manifest is None:
        raise ValueError(f"{path} has no manifest of this project in its header")
    with safe_open(path, framework="np") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    weights = {name: value.astype(np.float32) if value.dtype == np.float16 else value for name, value in arrays.items()}
    return own_weights(unflatten(weights), manifest)


def _manifest(path: pathlib.Path) -> dict[str, Any] | None:
    """What the file's header says of its weights; None where it has no such header, or that of another program."""
    try:
        with safe_open(path, framework="np") as file:
            manifest = json.loads((file.metadata() or {})["manifest"])
    except (SafetensorError, KeyError, ValueError):
        return None  # the reader of such files says what is wrong
    return manifest if isinstance(manifest, dict) and {"method", "family"} <= manifest.keys() else None
