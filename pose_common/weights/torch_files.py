"""Reads and writes files of torch weights: `.pth` (PyTorch's own, which needs PyTorch) and `.safetensors`.

No code from a file is ever run: pickles go through PyTorch's weights-only unpickler, and a file that needs more is
refused. Before anything is believed, the archive's checksums are verified, which PyTorch does not do.
"""

from __future__ import annotations

import logging
import pathlib
import pickle
import re
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from pose_common.weights.hub_folders import HUB, INDEX, find_weights, read_index, refuse_lone_shard
from pose_common.weights.safetensors_files import read_safetensors, write_safetensors
from pose_common.weights.zip_integrity import verify_zip

SUFFIXES = (".pth", ".pth.tar", ".safetensors")
"""Of the files that are written."""

# Where the training codes put the weights inside what they save; running means of them are taken if they are alone.
WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "ema_state_dict", "state_dict_ema", "model_ema", "ema")
# What is before every name where the model was inside another object: of parallel training, Lightning, torch.compile;
# and whatever field of such an object had a pose model, all of which have a backbone.
WRAPPED_NAMES = r"(module|model|_orig_mod)\.|(\w+\.)+?(?=backbone\.)"
# The same of a part of the model: of torch.compile, of checkpointed activations and of FSDP. No module is called so.
WRAPPED_PARTS = r"(?<![^.])(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\."
# What training codes keep beside weights: figures as NumPy's numbers, MMEngine's logs, arguments, paths. PyTorch reads
# nothing but tensors and plain values of itself; of these, too, nothing is imported, called or kept (`UnreadObject`).
BESIDE_WEIGHTS = (
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *("numpy.dtype", "numpy.ndarray"),
    *("mmengine.logging.history_buffer.HistoryBuffer", "builtins.getattr"),
    *("argparse.Namespace", "pathlib.PosixPath", "pathlib._local.PosixPath", "pathlib.WindowsPath"),
)
# Numbers that those objects keep beside the model.
WRAPPER_NUMBERS = r"(n_averaged|steps)"

ACCEPTED = (
    "accepted are PyTorch's files (.pth, .pth.tar, .pt, .bin), .safetensors files, and folders of either as the "
    "Hugging Face hub has them"
)
# How files begin that are taken for weights by mistake.
LOOKS = {
    b"version https://git-lfs": "the pointer that Git LFS leaves in place of a file; `git lfs pull` fetches the file",
    b"<": "a web page, so the download went wrong",
    b"\x89HDF": "an HDF5 file (Keras)",
    b"\x1f\x8b": "a gzip archive; unpack it",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
    b"\x93NUMPY": "a NumPy array",
    b"\x08": "an ONNX program, made of weights but not read as such",
    b"{": "JSON; of those only an index of shards, whose name ends in .index.json, means weights",
}

NEEDS_TORCH = (
    ".pth files need PyTorch, which is not installed: pip install 'posebh-boir-jax[torch]' "
    "(.safetensors files need nothing more)"
)


class StateFileError(ValueError):
    """A file that is not a whole and harmless file of weights; the message says what is wrong with it."""


class TorchMissing(StateFileError, ImportError):
    """PyTorch is not installed, and the file is one of PyTorch's own."""


def read_state(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """The state dict in a file, told by its content, or in a folder or index of the Hugging Face hub.

    Torch name -> array. The training codes' wrapping ({"state_dict": ...}, "module." before every name) is taken off.

    Raises:
      StateFileError: the file is missing, empty, cut, damaged, of another kind, or needs more than weights.
      TorchMissing: a `.pth` file without PyTorch.
    """
    path = pathlib.Path(path)
    try:
        file = find_weights(path)
        if file.name.endswith(INDEX) and file.is_file():
            state = _read_shards(file)
        else:
            refuse_lone_shard(file)
            state = _read_file(file)
        return _bare_names(state)
    except StateFileError:
        raise
    except (ValueError, OSError) as error:
        raise StateFileError(f"{path}: {error}") from error


def write_state(path: str | pathlib.Path, state: Mapping[str, np.ndarray]) -> None:
    """Writes a state dict in the format of the suffix: `.pth` or `.pth.tar` as {"state_dict": ...}, or `.safetensors`.

    Raises:
      StateFileError: another suffix.
      TorchMissing: `.pth` without PyTorch.
      OSError: the file cannot be written.
    """
    path = pathlib.Path(path)
    if not path.name.endswith(SUFFIXES):
        raise StateFileError(f"{path}: weights are written as {', '.join(SUFFIXES)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        if path.suffix != ".safetensors":
            torch = _import_torch(path)
            torch.save({"state_dict": {name: torch.from_numpy(array) for name, array in state.items()}}, partial)
        else:
            write_safetensors(partial, state)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _read_shards(index: pathlib.Path) -> dict[str, np.ndarray]:
    """The state dict whose parts are in several files."""
    state: dict[str, np.ndarray] = {}
    for shard, names in read_index(index).items():
        part = _read_file(shard)
        differing = sorted(set(names) ^ set(part))
        if differing:
            problem = f"{len(differing)} names differ, among them {differing[0]!r}"
            raise StateFileError(f"{shard}: not what {index.name} says of it: {problem}")
        state |= part
    return state


def _read_file(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The state dict of one file, under the names that it has there.

    Raises:
      StateFileError, TorchMissing: see `read_state`.
    """
    if not path.is_file():
        raise StateFileError(f"{path}: no such file or folder; names of the Hugging Face hub begin with {HUB}")
    try:
        with path.open("rb") as file:
            head = file.read(32)
        if not head:
            raise ValueError("the file is empty")
        if head.startswith(b"PK\x03\x04"):
            verify_zip(path)
            return _read_torch(path, mmap=True)
        # The length of a header, far under 4 GB, and its start. Under its own suffix it may also claim to be longer.
        if head[8:9] == b"{" and (head[4:8] == bytes(4) or path.suffix == ".safetensors"):
            return read_safetensors(path)
        if head.startswith(b"\x80"):  # a bare pickle, as PyTorch wrote before 1.6
            return _read_torch(path, mmap=False)
        look = next((look for start, look in LOOKS.items() if head.startswith(start)), f"it starts with {head[:9]!r}")
        raise ValueError(f"neither a PyTorch nor a safetensors file: {look}; {ACCEPTED}")
    except StateFileError:
        raise
    except (ValueError, OSError) as error:
        raise StateFileError(f"{path}: {error}") from error


def _import_torch(path: pathlib.Path):
    try:
        import torch
    except ImportError as error:
        raise TorchMissing(f"{path}: {NEEDS_TORCH}") from error
    return torch


def _read_torch(path: pathlib.Path, mmap: bool) -> dict[str, np.ndarray]:
    torch = _import_torch(path)
    try:
        with torch.serialization.safe_globals([(UnreadObject, name) for name in BESIDE_WEIGHTS]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"refused: it is damaged, or holds more than weights ({_refused(error)}), which could run code on this "
            "machine. If you trust its origin, save its weights alone with the code it comes from: "
            "torch.save(model.state_dict(), 'weights.pth')"
        ) from error
    except Exception as error:  # whatever a damaged stream makes the unpickler do
        raise ValueError(f"PyTorch cannot read it ({type(error).__name__}: {error})") from error
    return {name: _to_numpy(name, value, torch) for name, value in _unwrap(content, torch, path).items()}


class UnreadObject:
    """Stands for an object of `BESIDE_WEIGHTS` or its function, whatever that is called with; it holds nothing."""

    def __new__(cls, *args: Any) -> UnreadObject:
        del args
        return super().__new__(cls)

    def __init__(self, *args: Any):
        del args

    def __setstate__(self, state: Any) -> None:
        del state


def _refused(error: pickle.UnpicklingError) -> str:
    """What PyTorch did not read: the object's name, or else PyTorch's own words."""
    text = str(error).rpartition("WeightsUnpickler error:")[2].strip()
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    return named[1] if named else text.split("\n")[0]


def _unwrap(content: Any, torch: Any, path: pathlib.Path) -> Mapping[str, Any]:
    """The state dict inside what a training code saved: under a known name, or the only one that is there."""
    for number, wrapper in enumerate(WRAPPERS):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            if others := [name for name in WRAPPERS[number + 1 :] if isinstance(content.get(name), Mapping)]:
                logging.warning(
                    "%s: the weights under %r are taken, not those under %s; for these, save them alone",
                    *(path, wrapper, " or ".join(map(repr, others))),
                )
            content = content[wrapper]
    if isinstance(content, Mapping) and not any(isinstance(value, torch.Tensor) for value in content.values()):
        inside = [value for value in content.values() if isinstance(value, Mapping) and value]
        states = [value for value in inside if all(isinstance(entry, torch.Tensor) for entry in value.values())]
        content = states[0] if len(states) == 1 else content
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"holds no state dict but a {type(content).__name__}")
    if not all(isinstance(name, str) for name in content):
        raise ValueError("holds a dictionary whose keys are not names")
    nested = [name for name, value in content.items() if isinstance(value, Mapping)]
    if nested:
        raise ValueError(
            f"holds no state dict but a dictionary of {', '.join(map(repr, list(content)[:6]))}; weights are looked "
            f"for under {', '.join(WRAPPERS)}"
        )
    return content


def _bare_names(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The entries without what is before every name, or within names, where something was inside another object."""
    bare = {re.sub(WRAPPED_PARTS, "", name): value for name, value in state.items()}
    state = bare if len(bare) == len(state) else state
    while True:
        own = [name for name in state if not re.fullmatch(WRAPPER_NUMBERS, name)]
        prefix = next((found[0] for name in own if (found := re.match(WRAPPED_NAMES, name))), None)
        if prefix is None or not all(name.startswith(prefix) for name in own):
            return state
        state = {name.removeprefix(prefix): value for name, value in state.items()}


def _to_numpy(name: str, value: Any, torch: Any) -> np.ndarray:
    """The tensor as an array that shares its memory."""
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"entry {name!r} is no tensor but a {type(value).__name__}; this is no file of weights")
    if value.layout != torch.strided or value.is_quantized:
        raise ValueError(f"entry {name!r} is a sparse or quantised tensor")
    value = value.detach()
    stored = value.untyped_storage().nbytes()
    if value.numel() * value.element_size() > stored:
        # A few bytes repeated; copied out they could be larger than memory.
        raise ValueError(f"entry {name!r} of shape {list(value.shape)} has only {stored} bytes")
    if value.dtype == torch.bfloat16:
        return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    try:
        return value.numpy()
    except TypeError as error:
        raise ValueError(f"entry {name!r} has type {value.dtype}, which weights never have") from error
