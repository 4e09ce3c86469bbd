"""Reads and writes files of torch weights: `.pth` (PyTorch's own, which needs PyTorch) and `.safetensors`.

No code from a file is ever run: pickles go through PyTorch's weights-only unpickler, and a file that needs more is
refused. Before anything is believed, the archive's checksums and headers are verified, which PyTorch does not do.
"""

from __future__ import annotations

import pathlib
import pickle
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from pose_common.weights.safetensors_files import read_safetensors, write_safetensors
from pose_common.weights.zip_integrity import verify_zip

SUFFIXES = (".pth", ".pth.tar", ".safetensors")
"""Of the files that are written."""

# Where the training codes put the weights inside what they save.
WRAPPERS = ("state_dict", "model", "module")
WRAPPED_NAME = "module."

NEEDS_TORCH = (
    ".pth files need PyTorch, which is not installed: pip install 'posebh-boir-jax[torch]' "
    "(.safetensors files need nothing more)"
)


class StateFileError(ValueError):
    """A file that is not a whole and harmless file of weights; the message says what is wrong with it."""


class TorchMissing(ImportError):
    """PyTorch is not installed, and the file is one of PyTorch's own."""


def read_state(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """The state dict in a file, told by its content: torch name -> array (memory-mapped where it can be).

    The training codes' wrapping ({"state_dict": ...}, names that start with "module.") is taken off.

    Raises:
      StateFileError: the file is missing, empty, cut, damaged, of another kind, or needs more than weights.
      TorchMissing: a `.pth` file without PyTorch.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise StateFileError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            head = file.read(9)
        if not head:
            raise ValueError("the file is empty")
        if head.startswith(b"PK\x03\x04"):
            verify_zip(path)
            state = _read_torch(path, mmap=True)
        elif head[4:] == bytes(4) + b"{":  # a header's length, far under 4 GB, and its start
            state = read_safetensors(path)
        elif head.startswith(b"\x80"):  # a bare pickle, as PyTorch wrote before 1.6
            state = _read_torch(path, mmap=False)
        else:
            raise ValueError(f"neither a PyTorch nor a safetensors file: it starts with {head!r}")
    except (ValueError, OSError) as error:
        raise StateFileError(f"{path}: {error}") from error
    return state


def write_state(path: str | pathlib.Path, state: Mapping[str, np.ndarray]) -> None:
    """Writes a state dict in the format of the suffix: `.pth` or `.pth.tar` as {"state_dict": ...}, or `.safetensors`.

    Raises:
      StateFileError: another suffix.
      TorchMissing: `.pth` without PyTorch.
    """
    path = pathlib.Path(path)
    if not path.name.endswith(SUFFIXES):
        raise StateFileError(f"{path}: weights are written as {', '.join(SUFFIXES)}")
    partial = path.with_name(path.name + ".partial")
    try:
        if path.suffix != ".safetensors":
            torch = _import_torch()
            torch.save({"state_dict": {name: torch.from_numpy(array) for name, array in state.items()}}, partial)
        else:
            write_safetensors(partial, state)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _import_torch():
    try:
        import torch
    except ImportError as error:
        raise TorchMissing(NEEDS_TORCH) from error
    return torch


def _read_torch(path: pathlib.Path, mmap: bool) -> dict[str, np.ndarray]:
    torch = _import_torch()
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise ValueError(
            "refused: it is damaged, or holds more than weights, which could run code on this machine. If you "
            "trust its origin, save its state dict alone with the code it comes from. PyTorch says: "
            + str(error).strip().splitlines()[0]
        ) from error
    except Exception as error:  # whatever a damaged stream makes the unpickler do
        raise ValueError(f"PyTorch cannot read it ({type(error).__name__}: {error})") from error
    return {name: _to_numpy(name, value, torch) for name, value in _unwrap(content).items()}


def _unwrap(content: Any) -> Mapping[str, Any]:
    """The state dict inside what a training code saved."""
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"holds no state dict but a {type(content).__name__}")
    if not all(isinstance(name, str) for name in content):
        raise ValueError("holds a dictionary whose keys are not names")
    if all(name.startswith(WRAPPED_NAME) for name in content):
        content = {name.removeprefix(WRAPPED_NAME): value for name, value in content.items()}
    return content


def _to_numpy(name: str, value: Any, torch: Any) -> np.ndarray:
    """The tensor as an array that shares its memory."""
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"entry {name!r} is no tensor but a {type(value).__name__}; this is no file of weights")
    if value.layout != torch.strided or value.is_quantized:
        raise ValueError(f"entry {name!r} is a sparse or quantised tensor")
    value = value.detach()
    if value.dtype == torch.bfloat16:
        return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    try:
        return value.numpy()
    except TypeError as error:
        raise ValueError(f"entry {name!r} has type {value.dtype}, which weights never have") from error
