"""Weights to evaluate, or to start from: of a run, or converted."""

from __future__ import annotations

import dataclasses
import functools
import logging
import pathlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from data_pipelines.paths import as_path
from pose_common.training import processes
from pose_common.training.checkpoints import Checkpoints, Found, find_checkpoints
from pose_common.training.checks import require_method
from pose_common.training.mesh import replicated
from pose_common.training.state import TrainState, to_evaluate
from pose_common.weights.keys import ConversionError, flatten, is_float, naming, not_finite, require_fit, unflatten

Weights = dict[str, Any]
"""Nested {"params": ..., "batch_stats": ..., "prototypes": ...}."""


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a model starts.

    Attributes:
      tree: all of its weights.
      title: what the given weights were recognised as.
      initialised: parts that keep their initial values, such as "embedding" or "heads/coco".
      left_out: parts of the given weights that the model has no place for.
    """

    tree: Weights
    title: str
    initialised: tuple[str, ...]
    left_out: tuple[str, ...]


def take_parts(
    loaded: Mapping[str, Any], initial: Mapping[str, Any], part_of: Callable[[str], str], title: str
) -> Start:
    """A `Start` from two flat trees. A part of the model is taken whole or not at all.

    Args:
      loaded: given weights.
      initial: the model's own.
      part_of: flat name -> its part.
      title: of the given weights.

    Raises:
      ConversionError: half of a part, or one of another width; names everything that does not fit.
    """
    wanted, there = {part_of(name) for name in initial}, {part_of(name) for name in loaded}
    taken = {name: value for name, value in loaded.items() if part_of(name) in wanted}
    require_fit(taken, {name: value for name, value in initial.items() if part_of(name) in there})
    return Start(unflatten({**initial, **taken}), title, tuple(sorted(wanted - there)), tuple(sorted(there - wanted)))


class Run(NamedTuple):
    """A training run that was found on disk: its configuration as saved, and the checkpoints meant."""

    config: dict[str, Any]
    found: Found


class Loaded(NamedTuple):
    """A model to evaluate.

    Attributes:
      model: the network, as its weights say.
      weights: what evaluation needs of it, on every device.
      step: of the run that they come from; 0 of none.
    """

    model: Any
    weights: Weights
    step: int


def find_run(path: str | pathlib.Path, methods: Sequence[str] = ()) -> Run | None:
    """The run whose working directory or checkpoint this is; None where it is none.

    Raises:
      ValueError: it is a run, but of none of the `methods` (where some are given).
    """
    found = find_checkpoints(path) if path else None
    if found is None:
        return None
    checkpoints = Checkpoints(found.directory, read_only=True)
    newest = checkpoints.newest(lambda step: checkpoints.read_info(step)["config"], found.steps)
    assert newest is not None, "steps were found"
    config = newest[1]
    if methods:
        require_method(f"{path} is a run", config, methods)
    return Run(config, found)


def run_of(workdir: str | pathlib.Path, methods: Sequence[str] = ()) -> Run | None:
    """The run whose working directory this is; None where there is none.

    Raises:
      ValueError: `find_run`'s, or a checkpoint, in which no run goes on.
    """
    run = find_run(workdir, methods)
    if run is not None and run.found.directory != as_path(workdir) / "checkpoints":
        raise ValueError(
            f"--workdir={workdir} is of the checkpoints of a run: give the run's working directory to go on with it, or"
            " start another from it by --config.init_from"
        )
    return run


def read_run(run: Run) -> tuple[Weights, int]:
    """(weights as numpy arrays, their step) of the newest checkpoint that can be read, without prototypes that are only
    newly initialised.

    Raises:
      ValueError: none can be, or the weights have NaN or infinity.
    """
    checkpoints = Checkpoints(run.found.directory, read_only=True)

    def read(step: int) -> Weights:
        return to_evaluate(checkpoints.read_weights(step), checkpoints.read_info(step).get("notes", {}))

    newest = checkpoints.newest(read, run.found.steps)
    assert newest is not None, "steps were found"
    step, weights = newest
    require_finite(run.found.directory / str(step), weights)
    return weights, step


def require_finite(source: str | pathlib.Path, weights: Mapping[str, Any]) -> None:
    """Raises ConversionError for weights with NaN or infinity; names them."""
    floats = {name: value for name, value in flatten(weights).items() if is_float(value.dtype)}
    if problems := [line for name, value in floats.items() for line in not_finite(name, np.asarray(value))]:
        raise ConversionError(f"{source} holds weights that are not finite", problems)


def filler(source: str, start_from: Callable[[Mapping[str, Any]], Start]) -> Callable[[TrainState], TrainState]:
    """Fills a newly initialised state, and logs with what.

    Args:
      source: name of the given weights.
      start_from: initial weights -> the `Start`.

    The function raises ConversionError for weights with NaN or infinity; names them.
    """

    def fill(state: TrainState) -> TrainState:
        old = state.weights
        with naming(source):
            start = start_from(old)
        require_finite(source, start.tree)
        require_same_everywhere(source, start.tree)
        logging.info("starting from %s: %s", source, start.title)
        for title, parts in (("newly initialised", start.initialised), ("left out of the weights", start.left_out)):
            if parts:
                logging.info("%s: %s", title, ", ".join(parts))
        return state.with_weights(jax.tree.map(_laid_out_like, dict(start.tree), old))

    return fill


def replicate(source: str, tree: Mapping[str, Any], mesh: Mesh) -> Weights:
    """Weights of the host on every device.

    Args:
      source: name of the weights.

    Raises:
      Disagreement: a process has read others.
    """
    require_same_everywhere(source, tree)
    return jax.tree.map(lambda value: jax.device_put(value, replicated(mesh)), dict(tree))


def require_same_everywhere(source: str, tree: Mapping[str, Any]) -> None:
    """Raises Disagreement where a process has read other weights than process 0, from a disk of its own, say, or of a
    run that goes on; all of them call this."""
    if jax.process_count() == 1:
        return
    sums = multihost_utils.process_allgather(np.array(_checksum(tree), np.uint32)).tolist()
    if others := [process for process, other in enumerate(sums) if other != sums[0]]:
        raise processes.Disagreement(
            f"{processes.title(others[0])} has read other weights from {source} than {processes.title(0)}"
        )


def _checksum(tree: Mapping[str, Any]) -> int:
    parts = (np.ascontiguousarray(value) for _, value in sorted(flatten(tree).items()))
    return functools.reduce(lambda crc, part: zlib.crc32(part.reshape(-1).view(np.uint8), crc), parts, 0)


def _laid_out_like(value: Any, like: jax.Array) -> jax.Array:
    value = np.asarray(value, like.dtype)
    return jax.make_array_from_callback(like.shape, like.sharding, lambda index: value[index])
