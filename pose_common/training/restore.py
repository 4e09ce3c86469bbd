"""Weights to evaluate, or to start from: of a run, or converted."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from pose_common.training.checkpoints import Checkpoints, find_checkpoints
from pose_common.training.mesh import replicated
from pose_common.training.state import TrainState
from pose_common.weights.keys import ConversionError, flatten, is_float, not_finite, require_fit, unflatten

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
    """A training run that was found on disk: its configuration as saved, and the path by which it was found."""

    config: dict[str, Any]
    checkpoint: str


def find_run(path: str | pathlib.Path, methods: Sequence[str]) -> Run | None:
    """The run whose working directory or checkpoint this is.

    Returns:
      None where it is none, or of none of the `methods`.
    """
    found = find_checkpoints(path) if path else None
    if found is None:
        return None
    checkpoints = Checkpoints(found.directory, read_only=True)
    newest = checkpoints.newest(lambda step: checkpoints.read_info(step)["config"], found.steps)
    if newest is None or newest[1].get("method") not in methods:
        return None
    return Run(newest[1], str(path))


class Restored(NamedTuple):
    """Weights on every device, the step they come from (0: of no run), and the notes of their checkpoint ({})."""

    weights: Weights
    step: int
    notes: dict[str, Any]


def weights_at(
    path: str, mesh: Mesh, shapes: Callable[[Mapping[str, Any]], Weights], convert: Callable[[Weights], Weights]
) -> Restored:
    """Weights to evaluate; of a run, those of the newest checkpoint that can be read.

    Args:
      path: a run's working directory, one of its checkpoints, or a folder or file of weights.
      mesh: the devices.
      shapes: a checkpoint's notes ({} for none) -> the shapes of the model's weights.
      convert: shapes of the model's weights -> the weights at `path`, where that is no run.

    Raises:
      ValueError: there is nothing, it is damaged, or a run's arrays are not of the model's shapes.
    """
    found = find_checkpoints(path) if path else None
    if found is None:
        if not (path and epath.Path(path).exists()):
            raise ValueError(
                f"config.checkpoint={path!r} is neither a working directory with checkpoints, nor one of them, nor a "
                "folder or file of weights"
            )
        weights = convert(shapes({}))
        require_finite(path, weights)
        return Restored(jax.tree.map(lambda x: jax.device_put(x, replicated(mesh)), weights), 0, {})
    checkpoints = Checkpoints(found.directory, read_only=True)

    def read(step: int) -> Restored:
        notes = checkpoints.read_info(step)["notes"]
        saved = shapes(notes)
        weights = checkpoints.restore_weights(step, saved, jax.tree.map(lambda _: replicated(mesh), saved))
        return Restored(weights, step, notes)

    newest = checkpoints.newest(read, found.steps)
    assert newest is not None, "steps were found"
    return newest[1]


def require_finite(source: str | pathlib.Path, weights: Mapping[str, Any]) -> None:
    """Raises ConversionError for weights with NaN or infinity; names them."""
    floats = {name: value for name, value in flatten(weights).items() if is_float(value.dtype)}
    if problems := [line for name, value in floats.items() for line in not_finite(name, np.asarray(value))]:
        raise ConversionError(f"{source} holds weights that are not finite", problems)


def on_host(weights: Weights) -> Weights:
    """Copied arrays as numpy ones."""
    return jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), weights)


def filler(source: str, start_from: Callable[[Mapping[str, Any]], Start]) -> Callable[[TrainState], TrainState]:
    """Fills a newly initialised state, and logs with what.

    Args:
      source: name of the given weights.
      start_from: initial weights -> the `Start`.

    The function raises ConversionError for weights with NaN or infinity; names them.
    """

    def fill(state: TrainState) -> TrainState:
        old = state.weights
        start = start_from(old)
        require_finite(source, start.tree)
        logging.info("starting from %s: %s", source, start.title)
        for title, parts in (("newly initialised", start.initialised), ("left out of the weights", start.left_out)):
            if parts:
                logging.info("%s: %s", title, ", ".join(parts))
        return state.with_weights(jax.tree.map(_laid_out_like, dict(start.tree), old))

    return fill


def _laid_out_like(value: Any, like: jax.Array) -> jax.Array:
    value = np.asarray(value, like.dtype)
    return jax.make_array_from_callback(like.shape, like.sharding, lambda index: value[index])
