"""Weights of one method at a path: a folder of weights, the embedded file, or a file in another code's names."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from data_pipelines.paths import local
from pose_common.weights.embedded import is_embedded, read_embedded
from pose_common.weights.folder import is_weights, load_weights, read_manifest
from pose_common.weights.keys import Conversion, ConversionError, naming, own_weights, unrecognised
from pose_common.weights.torch_files import read_state

Recognised = TypeVar("Recognised")
Recognise = Callable[[dict[str, np.ndarray], pathlib.Path], Recognised | None]
"""(state dict, the file or folder that it is of) -> what it is; None where it is none of the method's weights."""


def read_weights(path: str | pathlib.Path, method: str, expected: str, convert: Recognise[Conversion]) -> Conversion:
    """The weights at a path, which may be in a bucket.

    Args:
      path: the folder or file.
      method: whose weights they must be, as manifests name it.
      expected: what files of the method are, in words.
      convert: of a file in another code's names.

    Raises:
      ValueError: a damaged or foreign file (`StateFileError`, `WeightsError`), or weights that do not fit
        (`ConversionError`).
    """
    if is_weights(path):
        weights, manifest = load_weights(path)
        return own_weights(weights, _own(manifest, method, path))
    with local(path) as source:
        if is_embedded(source):
            embedded = read_embedded(source)
            _own(embedded.manifest, method, source)
            return embedded
        return _recognised(source, expected, convert)


def describe_weights(
    path: str | pathlib.Path, method: str, expected: str, describe: Recognise[dict[str, Any]]
) -> dict[str, Any]:
    """The manifest alone of what `read_weights` would give.

    Args:
      path, method, expected: see there.
      describe: the manifest of a file in another code's names.

    Raises:
      ValueError: see there.
    """
    if is_weights(path):
        return _own(read_manifest(path), method, path)
    with local(path) as source:
        if is_embedded(source):
            return _own(read_embedded(source).manifest, method, source)
        return _recognised(source, expected, describe)


def _own(manifest: Mapping[str, Any], method: str, path: str | pathlib.Path) -> dict[str, Any]:
    """The manifest, if it is of this method."""
    if manifest.get("method") != method:
        problem = f"{path} holds weights of another method: {manifest.get('family')}"
        raise ConversionError("not recognised", [problem])
    return dict(manifest)


def _recognised(source: pathlib.Path, expected: str, recognise: Recognise[Recognised]) -> Recognised:
    state = read_state(source)
    with naming(source):
        found = recognise(state, source)
    if found is None:
        raise ConversionError("not recognised", [f"{source} holds no weights of {expected} but {unrecognised(state)}"])
    return found
