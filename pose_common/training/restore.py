"""Weights to evaluate, or to start from: of a run, or converted."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from pose_common.training.checkpoints import Checkpoints, find_checkpoint
from pose_common.training.state import TrainState
from pose_common.weights.keys import require_fit, unflatten

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
    """A training run that was found on disk: its configuration as saved, and the path of the checkpoint meant."""

    config: dict[str, Any]
    checkpoint: str


def find_run(path: str | pathlib.Path, methods: Sequence[str] = ()) -> Run | None:
    """The run whose working directory or checkpoint this is; None where it is none.

    Raises:
      ValueError: it is a run, but of none of the `methods` (where some are given).
    """
    found = find_checkpoint(path) if path else None
    if found is None:
        return None
    directory, step = found
    config = Checkpoints(directory).read_info(step)["config"]
    if methods and config.get("method") not in methods:
        raise ValueError(f"{path} is a run of {config.get('method')}, which is not {' or '.join(methods)}")
    return Run(config, str(directory / str(step)))


def read_run(run: Run) -> tuple[Weights, int]:
    """(weights of the checkpoint as numpy arrays, its step).

    Raises:
      ValueError: it is damaged.
    """
    path = pathlib.Path(run.checkpoint)
    return Checkpoints(path.parent).read_weights(int(path.name)), int(path.name)


def filler(source: str, start_from: Callable[[Mapping[str, Any]], Start]) -> Callable[[TrainState], TrainState]:
    """Fills a newly initialised state, and logs with what.

    Args:
      source: name of the given weights.
      start_from: initial weights -> the `Start`.
    """

    def fill(state: TrainState) -> TrainState:
        old = state.weights
        start = start_from(old)
        logging.info("starting from %s: %s", source, start.title)
        for title, parts in (("newly initialised", start.initialised), ("left out of the weights", start.left_out)):
            if parts:
                logging.info("%s: %s", title, ", ".join(parts))
        return state.with_weights(jax.tree.map(_laid_out_like, dict(start.tree), old))

    return fill


def _laid_out_like(value: Any, like: jax.Array) -> jax.Array:
    value = np.asarray(value, like.dtype)
    return jax.make_array_from_callback(like.shape, like.sharding, lambda index: value[index])
