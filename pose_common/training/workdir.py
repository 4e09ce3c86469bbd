"""The working directory: that it can be written, and has room for the checkpoints, before the first step."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
import pathlib
import shutil
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

import jax

from data_pipelines.paths import is_remote, shown_size, write_whole
from pose_common.training import processes
from pose_common.training.checks import ConfigError
from pose_common.training.state import TrainState

LOCK = ".lock"
"""Of a run that is going on; the file stays, its lock does not."""


def make_workdir(workdir: pathlib.Path) -> None:
    """Makes the folder.

    Raises:
      ConfigError: it cannot be made or written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".writable_{uuid.uuid4().hex}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"--workdir={workdir} cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def alone(workdir: pathlib.Path, patience: float = 10.0) -> Iterator[None]:
    """Holds the folder's lock, so that a second start of a run cannot write between the first one's files.

    Process 0 holds it, and the system lets go of it, also where the process is killed. A bucket has no locks.

    Args:
      patience: seconds to wait for another process, which may be at its end.

    Raises:
      ConfigError: a run is going on there; names its process.
    """
    if is_remote(workdir) or jax.process_index() != 0:
        yield
        return
    with (workdir / LOCK).open("a+", encoding="utf8") as file:
        until = time.monotonic() + patience
        while not _locked(file):
            if time.monotonic() > until:
                file.seek(0)
                raise ConfigError(
                    f"--workdir={workdir}: a run is going on here ({file.read()}); wait for its end or end it, or give "
                    "another --workdir"
                )
            time.sleep(0.1)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _locked(file: TextIO) -> bool:
    """False where another process has the lock; a file system without locks is warned of."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        logging.warning("%s cannot be locked (%s): start no second run there", file.name, error.strerror)
    return True


def record_configuration(config: Mapping[str, Any], workdir: pathlib.Path) -> None:
    """Writes `config.json`, of what is or was done in the working directory; process 0 does."""
    if jax.process_index() == 0:
        write_whole(workdir / "config.json", json.dumps(config, indent=1, sort_keys=True) + "\n")


def require_shared(workdir: pathlib.Path) -> None:
    """Makes sure that all processes see one folder: a checkpoint that each writes a part of elsewhere is none.

    Raises:
      ConfigError: a process does not see what process 0 writes; the same in all processes.
    """
    if not processes.several():
        return
    nonce = processes.gather("nonce", uuid.uuid4().hex)[0]
    path = workdir / f".shared_{nonce}"
    if jax.process_index() == 0:
        path.write_text(nonce)
    processes.gather("nonce is written", "")
    seen = processes.gather("nonce is seen", "yes" if _reads(path, nonce) else "")
    if jax.process_index() == 0:
        path.unlink()
    if blind := [process for process, answer in enumerate(seen) if not answer]:
        raise ConfigError(
            f"--workdir={workdir} is not shared by all processes: {', '.join(map(processes.title, blind))} cannot read"
            f" what {processes.title(0)} writes there: use gs:// or a mount"
        )


def _reads(path: pathlib.Path, text: str) -> bool:
    """Whether a file has this text, within some seconds, for which a network's file system may lag behind."""
    for _ in range(20):
        with contextlib.suppress(OSError):
            if path.read_text() == text:
                return True
        time.sleep(0.25)
    return False


def checkpoint_bytes(state: TrainState) -> int:
    """Size of a checkpoint of a run, uncompressed, at most: weights, and both moments of every parameter."""
    return _size(state.weights) + 2 * _size(state.params)


def _size(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def require_space(workdir: pathlib.Path, state: TrainState, keep: int, there: int, best: bool = False) -> None:
    """Compares the room left with what the run's checkpoints will take, estimated from the size of its arrays.

    Args:
      keep: how many will be kept; one more is written before the oldest is deleted.
      there: how many are there already.
      best: whether the best weights are kept as well.

    Raises:
      OSError: not even one checkpoint fits. Where not all do, that is a warning: they may be smaller, compressed.
    """
    if is_remote(workdir) or jax.process_index() != 0:  # a bucket has no such limit
        return
    one, free = checkpoint_bytes(state), shutil.disk_usage(workdir).free
    needed = max(1, keep + 1 - there) * one + (2 * _size(state.weights) if best else 0)
    advice = "make room, choose another --workdir, or set a smaller config.keep_checkpoints"
    if free < one:
        raise OSError(f"{workdir}: {shown_size(free)} are free, a checkpoint takes up to {shown_size(one)}; {advice}")
    if free < needed:
        logging.warning(
            "%s: %s are free, the run's checkpoints take up to %s more (%d and one being written, of up to %s); %s",
            workdir,
            shown_size(free),
            shown_size(needed),
            keep,
            shown_size(one),
            advice,
        )
