"""The best weights of a run so far, kept apart from its newest checkpoints."""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from pose_common.evaluation.best import BestMetric
from pose_common.training.checkpoints import Checkpoints, DamagedCheckpointError

FOLDER = "best"
"""In the folder of the checkpoints."""


class BestCheckpoint:
    """One checkpoint of weights, replaced when an evaluation is better; the old one goes when the new one is whole."""

    def __init__(self, checkpoints: pathlib.Path, metric: BestMetric):
        self._metric = metric
        self._checkpoints = Checkpoints(checkpoints / FOLDER, keep=1)
        self._value = self._saved_value()

    def _saved_value(self) -> float | None:
        try:
            found = self._checkpoints.newest(lambda step: self._checkpoints.read_info(step)[FOLDER])
        except DamagedCheckpointError:  # it was warned of; the next evaluation makes another one
            self._checkpoints.set_aside_after(-1)
            return None
        return found[1]["value"] if found and found[1]["metric"] == self._metric.name else None

    def offer(
        self, step: int, scores: Mapping[str, Mapping[str, float]], weights: dict[str, Any], info: dict[str, Any]
    ) -> None:
        """Keeps `weights` if the evaluation `scores` is the best so far.

        Raises:
          OSError: an earlier one could not be written.
        """
        value = self._metric.value(scores)
        better = value is not None and self._metric.better(value, self._value)
        if jax.process_count() > 1:  # saving is for all processes or for none
            better = bool(multihost_utils.broadcast_one_to_all(np.array(better)))
        if not better:
            return
        before = "" if self._value is None else f", before {self._value:.2f}"
        logging.info("step %d is the best so far: %s is %.2f%s", step, self._metric.name, value, before)
        self._value = value
        # Of a run that has gone back to an earlier step; Orbax writes none before its newest.
        latest = self._checkpoints.latest_step
        if latest is not None and latest >= step:
            self._checkpoints.set_aside_after(step - 1)
        self._checkpoints.save_weights(step, weights, {**info, FOLDER: {"metric": self._metric.name, "value": value}})

    def require_written(self) -> None:
        """Raises OSError if writing failed in the meantime; does not wait."""
        self._checkpoints.require_written()

    def close(self) -> None:
        """Waits until it is on disk; raises OSError where it could not be written."""
        self._checkpoints.close()
