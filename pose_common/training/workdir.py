"""The working directory: that it can be written, and has room for the checkpoints, before the first step."""

from __future__ import annotations

import logging
import math
import pathlib
import shutil
import tempfile
from typing import Any

import jax

from pose_common.training.configuration import ConfigError
from pose_common.training.state import TrainState


def make_workdir(workdir: pathlib.Path) -> None:
    """Makes the folder.

    Raises:
      ConfigError: it cannot be made or written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=workdir) as file:
            file.write(b" ")
    except OSError as error:
        raise ConfigError(f"--workdir={workdir} cannot be written: {error.strerror or error}") from error


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
    if not workdir.is_dir() or jax.process_index() != 0:  # a bucket has no such limit
        return
    one, free = checkpoint_bytes(state), shutil.disk_usage(workdir).free
    needed = max(1, keep + 1 - there) * one + (2 * _size(state.weights) if best else 0)
    advice = "make room, choose another --workdir, or set a smaller config.keep_checkpoints"
    if free < one:
        raise OSError(f"{workdir}: {_shown(free)} are free, a checkpoint takes up to {_shown(one)}; {advice}")
    if free < needed:
        logging.warning(
            "%s: %s are free, the run's checkpoints take up to %s more (%d and one being written, of up to %s); %s",
            workdir,
            _shown(free),
            _shown(needed),
            keep,
            _shown(one),
            advice,
        )


def _shown(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
