"""PyTorch's two file formats, written without PyTorch: what the campaign damages, and pickles that would run code."""

from __future__ import annotations

import collections
import io
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the form that PyTorch wrote before 1.6
STORAGES = {"float32": "FloatStorage", "int64": "LongStorage"}


class Global(NamedTuple):
    """A name that the unpickler looks up, or a call of it where arguments are given."""

    module: str
    name: str
    arguments: tuple | None = None


class _Storage(NamedTuple):
    key: str
    kind: str
    count: int
    legacy: bool


class _Pickler(pickle._Pickler):  # type: ignore[name-defined]  # the one in Python can write any opcode
    def __init__(self, file: io.BytesIO, legacy: bool):
        super().__init__(file, 2)
        self.legacy, self.storages = legacy, {}

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Global):
            self.write(b"c" + f"{obj.module}\n{obj.name}\n".encode())
            if obj.arguments is not None:
                self.save(obj.arguments)
                self.write(pickle.REDUCE)
        elif isinstance(obj, _Storage):
            more = (None,) if obj.legacy else ()
            super().save(("storage", Global("torch", obj.kind), obj.key, "cpu", obj.count, *more))
            self.write(pickle.BINPERSID)
        elif isinstance(obj, np.ndarray):
            key = str(len(self.storages))
            self.storages[key] = np.asarray(obj, order="C")
            storage = _Storage(key, STORAGES[str(obj.dtype)], obj.size, self.legacy)
            strides = tuple(stride // obj.itemsize for stride in self.storages[key].strides)
            arguments = (storage, 0, tuple(obj.shape), strides, False, collections.OrderedDict())
            self.save(Global("torch._utils", "_rebuild_tensor_v2", arguments))
        else:
            super().save(obj, save_persistent_id)


def _pickled(content: Any, legacy: bool = False) -> tuple[bytes, dict[str, np.ndarray]]:
    """(pickle, the arrays that it names)."""
    file = io.BytesIO()
    pickler = _Pickler(file, legacy)
    pickler.dump(content)
    return file.getvalue(), pickler.storages


def write_archive(path: pathlib.Path, content: Any) -> None:
    """PyTorch's form since 1.6: a zip archive."""
    data, storages = _pickled(content)
    write_entries(path, {"data.pkl": data, **{f"data/{key}": value.tobytes() for key, value in storages.items()}})


def write_entries(path: pathlib.Path, entries: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """An archive as PyTorch has them, of given entries."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in {**entries, "version": b"3\n", "byteorder": b"little"}.items():
            archive.writestr(f"w/{name}", data)


def write_legacy(path: pathlib.Path, content: Any) -> None:
    """PyTorch's form before 1.6: pickles one after the other, then the numbers."""
    data, storages = _pickled(content, legacy=True)
    system = {
        "protocol_version": PROTOCOL,
        "little_endian": True,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
    with path.open("wb") as file:
        for head in (MAGIC, PROTOCOL, system):
            file.write(pickle.dumps(head, 2))
        file.write(data + pickle.dumps(list(storages), 2))
        for value in storages.values():
            file.write(struct.pack("<q", value.size) + value.tobytes())


def bare_pickle(content: Any) -> bytes:
    """A pickle of `content` in which every `Global` is looked up or called."""
    return _pickled(content)[0]
