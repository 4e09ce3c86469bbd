"""Files of the safetensors format, through the `safetensors` package: no code in them, every size checked.

The package checks the header (its length, JSON, types, that the arrays fill the file without holes) before it
touches an array, and maps the file into memory. What is added here: errors that name the entry.
"""

from __future__ import annotations

import collections
import itertools
import json
import math
import pathlib
import reprlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

DTYPES = {
    "F64": np.dtype("f8"),
    "F32": np.dtype("f4"),
    "F16": np.dtype("f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("i8"),
    "I32": np.dtype("i4"),
    "I16": np.dtype("i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
"""Types that files of weights have. The format knows more, such as eight-bit floats, which are refused by name."""

NO_WEIGHTS = "which weights never have"
MAX_HEADER = 100_000_000
"""Bytes; the package reads no longer ones."""


def read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Name -> array.

    Raises:
      ValueError: the header is damaged, the arrays do not fill the file exactly, or one is of a type that weights
        never have.
    """
    try:
        with safe_open(path, framework="np") as file:
            _header(path)  # of two entries with one name the package would take the last
            types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
            odd = [f"{name!r} has type {code}, {NO_WEIGHTS}" for name, code in types.items() if code not in DTYPES]
            if odd:
                raise ValueError("; ".join(odd))
            arrays = {name: file.get_tensor(name) for name in types}
    except SafetensorError as error:
        raise ValueError("; ".join([f"cut or damaged: {error}", *_misfits(path)])) from error
    if not arrays:
        raise ValueError("it holds no arrays")
    return arrays


def write_safetensors(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes float, integer or bool arrays.

    Raises:
      ValueError: an array of another type.
      OSError: the file cannot be written.
    """
    for name, array in arrays.items():
        if array.dtype not in DTYPES.values():
            raise ValueError(f"{name!r} has type {array.dtype}, {NO_WEIGHTS}")
    # `asarray` with an order keeps the shape [] of numbers, which `ascontiguousarray` makes [1].
    whole = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    try:
        save_file(whole, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def _header(path: pathlib.Path) -> tuple[Any, int]:
    """(the header's JSON, bytes behind it).

    Raises:
      ValueError: it is longer than the file or than any header, no JSON, or names an array twice.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, MAX_HEADER):
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        return json.loads(file.read(length), object_pairs_hook=_without_repeats), size - 8 - length


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        [(name, _)] = collections.Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the header names {name!r} twice")
    return entries


def _misfits(path: pathlib.Path) -> list[str]:
    """What the package leaves out of its message: sizes, and the first entries that are damaged or of other bytes."""
    try:
        header, size = _header(path)
    except (ValueError, RecursionError) as error:
        return [str(error)]
    entries = header if isinstance(header, dict) else {}
    found = (_misfit(name, entry, size) for name, entry in entries.items() if name != "__metadata__")
    return list(itertools.islice(filter(None, found), 5))


def _misfit(name: str, entry: Any, size: int) -> str | None:
    """What is wrong with an entry of a header that has so many bytes behind it."""
    try:
        start, end = entry["data_offsets"]
        if end - start != math.prod(entry["shape"]) * DTYPES[entry["dtype"]].itemsize:
            return f"{name!r}: {end - start} bytes for shape {reprlib.repr(entry['shape'])} of {entry['dtype']}"
        if end > size:
            return f"{name!r} ends at byte {end} of {size}"
    except (ValueError, TypeError, LookupError):
        return f"{name!r}: the header's entry {reprlib.repr(entry)} is damaged"
    return None
