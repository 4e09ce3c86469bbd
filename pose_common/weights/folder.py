"""Folders of weights: what inference needs, without a run around it.

`arrays` is an Orbax checkpoint, `manifest.json` says what it holds: the caller's description and the name,
shape, type and checksum (CRC-32) of every array, and its own checksum. The manifest is written last, so a folder with
one is whole; and a folder restores whole or not at all, on any number of devices. Manifests of older folders have no
checksums, which Orbax does not replace: a bit that flips in an array's file gives another number.
"""

from __future__ import annotations

import json
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from data_pipelines.paths import absolute, as_path, writable, write_whole
from pose_common.weights.keys import flatten, not_finite, unflatten

ARRAYS, MANIFEST = "arrays", "manifest.json"
CHECKSUM = "crc32"
FORMAT = "posebh-boir-jax weights 1"


class WeightsError(ValueError):
    """A folder that does not hold whole weights."""


def is_weights(path: str | pathlib.Path) -> bool:
    """Whether a folder of weights is there."""
    return (epath.Path(path) / MANIFEST).exists()


def require_new(path: str | pathlib.Path) -> epath.Path:
    """The folder as Orbax wants it.

    Raises:
      WeightsError: it holds weights already.
      ValueError: see `paths.writable`.
    """
    root = writable(path)
    if is_weights(root):
        raise WeightsError(f"{root} holds weights already; give another folder or remove it")
    return root


def save_weights(path: str | pathlib.Path, weights: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
    """Writes a tree of arrays and its description.

    Args:
      path: folder; made, must not hold weights yet.
      weights: nested {"params": ..., "batch_stats": ..., "prototypes": ...}.
      manifest: JSON-able description, enough to build the model again.

    Raises:
      ValueError: see `require_new`.
    """
    root = require_new(path)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False)) as checkpointer:
        # Weights do not compress. `force` replaces what an interrupted writer left.
        checkpointer.save(root / ARRAYS, args=ocp.args.PyTreeSave(unflatten(flatten(weights))), force=True)
    content = {"model": dict(manifest), "arrays": {n: _description(value) for n, value in flatten(weights).items()}}
    text = json.dumps({"format": FORMAT, CHECKSUM: _checksum_of_json(content), **content}, indent=1)
    if jax.process_index() == 0:
        write_whole(as_path(root / MANIFEST), text)


def load_weights(path: str | pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(nested tree of numpy arrays, manifest) of a folder; the caller lays the arrays out on its devices.

    Raises:
      WeightsError: no weights there, or arrays that are missing, not those of the manifest, or not finite.
    """
    root = absolute(path)
    if not is_weights(root):
        raise WeightsError(f"{root} holds no finished weights: it has no {MANIFEST}")
    model, described = _read_manifest(root / MANIFEST)
    target = unflatten({name: jax.ShapeDtypeStruct(e["shape"], e["dtype"]) for name, e in described.items()})
    weights = read_arrays(root / ARRAYS, target)
    _compare(root, described, flatten(weights))
    return weights, model


def read_arrays(path: epath.Path, shapes: Any) -> Any:
    """The tree of numpy arrays that Orbax wrote to a folder; `shapes` is a tree of what has shape and dtype.

    Raises:
      WeightsError: files are missing or damaged.
    """
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            return checkpointer.restore(path, args=ocp.args.PyTreeRestore(item=shapes, restore_args=as_numpy))
    except Exception as error:  # Orbax and its storage raise many kinds
        # Its messages hold whole specifications of the storage.
        raise WeightsError(f"{path} cannot be restored ({type(error).__name__}: {error!s:.300})") from error


def read_manifest(path: str | pathlib.Path) -> dict[str, Any]:
    """The caller's description of a folder's weights.

    Raises:
      WeightsError: the folder's manifest is damaged.
    """
    return _read_manifest(absolute(path) / MANIFEST)[0]


def _read_manifest(path: epath.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the caller's description, {name: {"shape", "dtype", "crc32"}}), of the form that `save_weights` writes."""
    try:
        content = json.loads(path.read_text())
        known, model, described = content["format"] == FORMAT, dict(content["model"]), dict(content["arrays"])
        for entry in described.values() if known else ():
            if not all(type(length) is int and length >= 0 for length in entry["shape"]):
                raise ValueError(f"a shape of {entry['shape']}")
            np.dtype(entry["dtype"])
        checksum = content.get(CHECKSUM)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path} is damaged: {error!r}") from error
    if not known:
        raise WeightsError(f"{path}: unknown format {content['format']!r}, this program reads {FORMAT!r}")
    if checksum is not None and checksum != _checksum_of_json({"model": model, "arrays": described}):
        raise WeightsError(
            f"{path} is damaged: it has not its checksum (remove {CHECKSUM!r} if you changed it yourself)"
        )
    return model, described


def _description(value: Any) -> dict[str, Any]:
    """Shape, type and, where all of it is on this host, checksum of an array."""
    described = {"shape": list(value.shape), "dtype": str(value.dtype)}
    whole = getattr(value, "is_fully_addressable", True)
    return described | {CHECKSUM: _checksum(np.asarray(value))} if whole else described


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _checksum_of_json(content: Mapping[str, Any]) -> int:
    as_read = json.loads(json.dumps(content))
    return zlib.crc32(json.dumps(as_read, sort_keys=True).encode())


def _compare(root: epath.Path, described: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    problems = [
        f"{name} is {value.dtype} {list(value.shape)}, the manifest says {described[name]}"
        for name, value in arrays.items()
        if [list(value.shape), str(value.dtype)] != [described[name]["shape"], described[name]["dtype"]]
    ]
    for name, value in arrays.items():
        if described[name].get(CHECKSUM, checksum := _checksum(value)) != checksum:
            problems.append(f"{name} has not its checksum")
        problems += not_finite(name, value)
    if problems:
        raise WeightsError(f"{root} is damaged:\n  " + "\n  ".join(problems))
