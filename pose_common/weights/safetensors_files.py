"""The safetensors format: an 8-byte header length, a JSON header, then the arrays' bytes, little-endian.

Small enough to read here, strictly and memory-mapped; so such files need neither PyTorch nor a package.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
METADATA = "__metadata__"
MAX_HEADER = 100_000_000


def read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Name -> read-only array, mapped from the file.

    Raises:
      ValueError: the header is damaged, or the arrays do not fill the file exactly.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, MAX_HEADER):
            raise ValueError(f"cut or damaged: a header of {length} bytes in a file of {size}")
        try:
            header = json.loads(file.read(length), object_pairs_hook=_without_duplicates)
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"the header is no JSON ({error})") from error
    if not isinstance(header, dict):
        raise ValueError("the header is no JSON object")
    _check_metadata(header.pop(METADATA, {}))
    if not header:
        raise ValueError("it holds no arrays")

    data = np.memmap(path, np.uint8, mode="r", offset=8 + length) if size > 8 + length else np.zeros(0, np.uint8)
    arrays, spans = {}, []
    for name, entry in header.items():
        dtype, shape, (start, end) = _parse(name, entry)
        if end - start != dtype.itemsize * math.prod(shape):
            raise ValueError(f"{name!r}: {end - start} bytes for shape {list(shape)} of {dtype}")
        spans.append((start, end, name))
        if end <= len(data):
            arrays[name] = data[start:end].view(dtype).reshape(shape)
    position = 0
    for start, end, name in sorted(spans):
        if start != position:
            raise ValueError(f"{name!r} starts at byte {start} of the data, expected {position}")
        position = end
    if position != len(data):
        raise ValueError(f"cut or damaged: {len(data)} bytes of data, the header speaks of {position}")
    return arrays


def write_safetensors(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes float, integer or bool arrays."""
    codes = {dtype: code for code, dtype in DTYPES.items()}
    header: dict[str, Any] = {METADATA: {"format": "pt"}}
    position = 0
    for name, array in arrays.items():
        end = position + array.nbytes
        header[name] = {
            "dtype": codes[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).tobytes())


def _parse(name: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], tuple[int, int]]:
    """(dtype, shape, (start, end)) of a header's entry."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name!r}: the header's entry is damaged: {entry}")
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
        raise ValueError(f"{name!r}: unknown type {entry['dtype']!r}")
    numbers = (entry["shape"], entry["data_offsets"])
    whole = all(isinstance(n, list) and all(type(i) is int and i >= 0 for i in n) for n in numbers)
    if not whole or len(entry["data_offsets"]) != 2 or entry["data_offsets"][0] > entry["data_offsets"][1]:
        raise ValueError(f"{name!r}: the header's entry is damaged: {entry}")
    start, end = entry["data_offsets"]
    return DTYPES[entry["dtype"]], tuple(entry["shape"]), (start, end)


def _check_metadata(metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f"the header's metadata is damaged: {metadata}")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"the header names {next(n for n in names if names.count(n) > 1)!r} twice")
    return dict(pairs)
