"""Copies of prepared splits on a disk of this machine, for data that lies in a bucket or on a slow mount.

A copy is made by one process of the machine while the others wait, into a folder of another name, read back and
compared with what was read from the source; only then it gets its name. So a copy that is there is whole. It is used
again as long as the source has the same `summary.json`, and replaced when it has not.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import logging
import os
import pathlib
import shutil
import time
import zlib
from collections.abc import Iterator

from data_pipelines import records
from data_pipelines.datasets import definition_path
from data_pipelines.paths import absolute, shown_size, size_of

BLOCK = 2**22
THREADS = 8
"""Files that are copied at a time: one stream does not fill a machine's connection to a bucket."""


def cached(dataset: str, split: str, data_dir: str | pathlib.Path, cache: str) -> str | pathlib.Path:
    """The data directory to read a split from: `data_dir` itself, or where `cache` is given one in it with a copy.

    Args:
      cache: a folder of this machine; '' for none.

    Raises:
      DatasetNotPrepared: with the command that prepares it.
      OSError: there is no room, or the copy is not what was read.
    """
    if not cache:
        return data_dir
    source = records.finished_dir(dataset, split, data_dir)
    # One folder for each data directory: they may have datasets of the same name.
    root = pathlib.Path(cache).expanduser() / f"{zlib.crc32(os.fspath(absolute(data_dir)).encode()):08x}"
    target = records.split_dir(dataset, split, root)
    target.parent.mkdir(parents=True, exist_ok=True)
    definition = definition_path(dataset, root)
    with _alone(definition.with_name(f"{definition.name}.lock")):  # all splits have the same
        _copy_definition(definition_path(dataset, data_dir), definition)
    with _alone(target.parent / "lock"):
        if not _same(source, target):
            _copy(source, target)
    return root


@contextlib.contextmanager
def _alone(path: pathlib.Path) -> Iterator[None]:
    """Waits for other processes; the lock of one that was killed is free."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _same(source: pathlib.Path, target: pathlib.Path) -> bool:
    name = records.SUMMARY_FILE
    return target.is_dir() and (target / name).read_bytes() == (source / name).read_bytes()


def _copy_definition(source: pathlib.Path, target: pathlib.Path) -> None:
    if source.is_file():  # of a custom dataset
        partial = target.with_name(f"{target.name}.partial")
        partial.write_bytes(source.read_bytes())
        partial.replace(target)


def _copy(source: pathlib.Path, target: pathlib.Path) -> None:
    partial = target.with_name(f"{target.name}.partial")
    for old in (partial, target):  # what a process left that was killed; what was prepared again
        shutil.rmtree(old, ignore_errors=True)
    partial.mkdir()
    files = [file for file in sorted(source.iterdir()) if file.is_file()]
    size, free = sum(map(size_of, files)), shutil.disk_usage(partial).free
    if size > free:
        raise OSError(
            f"config.data_cache: {source} has {shown_size(size)}, {partial.parent} has room for {shown_size(free)}"
        )
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda file: _copy_file(file, partial / file.name), files))
    partial.rename(target)
    logging.info("%s copied to %s: %s in %.0f s", source, target, shown_size(size), time.monotonic() - began)


def _copy_file(source: pathlib.Path, target: pathlib.Path) -> None:
    checksum = 0
    with source.open("rb") as read, target.open("wb") as written:
        while block := read.read(BLOCK):
            checksum = zlib.crc32(block, checksum)
            written.write(block)
        written.flush()
        os.fsync(written.fileno())
    copied = 0
    with target.open("rb") as read:
        while block := read.read(BLOCK):
            copied = zlib.crc32(block, copied)
    if copied != checksum:
        raise OSError(f"config.data_cache: {target} is not what was read from {source}: is the disk damaged?")
