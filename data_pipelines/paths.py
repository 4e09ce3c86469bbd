"""Paths of files and folders, which may be in a bucket of Google Cloud Storage: gs://bucket/folder.

A bucket has neither folders nor renaming of many objects at once, and no object can be appended to: what must be there
whole or not at all gets an object that is written last.
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import logging
import os
import pathlib
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from typing import cast

from etils import epath

BUCKET = "gs://"


class NoPathError(argparse.ArgumentTypeError, ValueError):
    """An address that cannot be a path here; the first kind makes argparse say why, where it is that of an argument."""


def is_remote(path: str | os.PathLike) -> bool:
    """Whether it is in a bucket."""
    return os.fspath(path).startswith(BUCKET)


def as_path(path: str | os.PathLike) -> pathlib.Path:
    """A path of this machine (~ is one's home), or one in a bucket with the same methods (an `epath.Path`; it has no
    `resolve`).

    Raises:
      NoPathError: a bucket, and gcsfs is not installed; a bucket's address that was taken for a folder's; or one of
        another kind, which would be a folder `s3:` of this machine.
    """
    text = os.fspath(path)
    if text.startswith("gs:/") and not is_remote(text):
        raise NoPathError(f"{text} is no path: write {BUCKET}bucket/folder")
    if text.startswith("file:/"):
        raise NoPathError(f"{text} is no path: leave out file://")
    if re.match(r"[A-Za-z][\w+.-]+://", text) and not is_remote(text):
        raise NoPathError(
            f"{text} is no path: of addresses, those of buckets are known, {BUCKET}bucket/folder; download others"
        )
    if not is_remote(text):
        return pathlib.Path(path).expanduser()
    try:
        import gcsfs  # noqa: F401  (fsspec asks for it by name)
    except ImportError as error:
        raise NoPathError(f"{text}: buckets need gcsfs: pip install 'posebh-boir-jax[gcs]'") from error
    logging.getLogger("gcsfs").addFilter(_is_news)  # once, however often it is asked to
    return cast(pathlib.Path, epath.Path(text))


def _is_news(record: logging.LogRecord) -> bool:
    """Not what gcsfs raises as well, whose traceback it logs, nor that it could not ask for a bucket's type."""
    return record.module != "retry" and "bucket type" not in str(record.msg)


def as_file(path: str | os.PathLike) -> pathlib.Path:
    """As `as_path`, of a file to be written.

    Raises:
      NoPathError: see there; or a folder, or what cannot be reached.
    """
    file = as_path(path)
    with _reached(file):
        if file.is_dir():
            raise NoPathError(f"{file} is a folder; name a file, which may be in it")
    return file


def as_folder(path: str | os.PathLike) -> pathlib.Path:
    """As `as_path`, of a folder that is there or is to be made.

    Raises:
      NoPathError: see there; or a file, or what cannot be reached.
    """
    folder = as_path(path)
    with _reached(folder):
        if folder.is_file():
            raise NoPathError(f"{folder} is a file; name a folder")
    return folder


@contextlib.contextmanager
def _reached(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # no network, no permission
        raise NoPathError(f"{path} cannot be reached: {error.strerror or error}") from error


def absolute(path: str | os.PathLike) -> epath.Path:
    """As Orbax wants it; a bucket's path is absolute."""
    return epath.Path(path) if is_remote(path) else epath.Path(as_path(path)).absolute()


def writable(path: str | os.PathLike) -> epath.Path:
    """As Orbax wants a folder that it writes into.

    Raises:
      ValueError: it has a letter of a pattern, as which Orbax reads its own paths: arrays would be left in parts that
        nothing can read.
    """
    root = absolute(path)
    if glob.has_magic(os.fspath(root)):
        raise ValueError(f"{root}: checkpoints and weights cannot be written below a folder with [, * or ? in its name")
    return root


def size_of(path: pathlib.Path) -> int:
    """Of a file, in bytes."""
    return cast(epath.Path, path).stat().length if is_remote(path) else path.stat().st_size


def not_as_written(folder: pathlib.Path, sizes: Mapping[str, int]) -> list[str]:
    """What is wrong with files of which the sizes, in bytes, are known."""
    found: dict[str, int | None] = dict.fromkeys(sizes)
    for name in sizes:
        with contextlib.suppress(FileNotFoundError):
            found[name] = size_of(folder / name)
    return [
        f"{name} has {size} bytes instead of {sizes[name]}" if size is not None else f"{name} is not there"
        for name, size in found.items()
        if size != sizes[name]
    ]


def shown_size(size: int) -> str:
    """Bytes as people read them."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def write_whole(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a file that is there either whole or not at all, as an object of a bucket always is; text as UTF-8. One
    that was there before stays until then. Raises OSError, with its name, where it cannot be written."""
    data = content.encode() if isinstance(content, str) else content
    if is_remote(path):
        path.write_bytes(data)
        return
    partial = path.with_name(f".{uuid.uuid4().hex}.partial")  # a name of its own: others may be writing the file, too
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def copy_files(source: pathlib.Path, target: pathlib.Path, last: str) -> None:
    """Copies the files of a folder into a new one, the one named `last` in the end."""
    files = [file for file in sorted(source.iterdir()) if file.is_file()]
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(files, key=lambda file: file.name == last):
        with file.open("rb") as read, (target / file.name).open("wb") as written:
            shutil.copyfileobj(read, written, 2**22)


@contextlib.contextmanager
def local(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """The file or folder on this machine; what is in a bucket is copied, and the copy goes at the end."""
    if not is_remote(path):
        yield as_path(path)
        return
    remote = as_path(path)
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder) / remote.name
        if remote.is_dir():
            copy_files(remote, copy, "")
        else:
            with remote.open("rb") as read, copy.open("wb") as written:
                shutil.copyfileobj(read, written, 2**22)
        yield copy
