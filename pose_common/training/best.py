"""The best weights of a run so far, kept apart from its newest checkpoints."""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from pose_common.evaluation.best import BestMetric, Judgement
from pose_common.training.checkpoints import Checkpoints, DamagedCheckpointError

FOLDER = "best"
"""In the folder of the checkpoints."""


class BestCheckpoint:
    """One checkpoint of weights, replaced when an evaluation is better; the old one goes when the new one is whole."""

    def __init__(self, checkpoints: pathlib.Path, metric: BestMetric):
        self._metric = metric
        self._checkpoints = Checkpoints(checkpoints / FOLDER, keep=1)
        self._best = self._saved()

    def _saved(self) -> Judgement | None:
        try:
            found = self._checkpoints.newest(lambda step: self._checkpoints.read_info(step)[FOLDER])
        except DamagedCheckpointError:  # it was warned of; the next evaluation makes another one
            self.forget()
            return None
        if not found or found[1]["metric"] != self._metric.name:
            return None
        return Judgement(found[1]["value"], found[1].get("figures", len(self._metric.figures)))

    def forget(self) -> None:
        """Sets aside what is there, of a start with which the run has nothing to do."""
        self._checkpoints.set_aside_after(-1)
        self._best = None

    def offer(
        self, step: int, scores: Mapping[str, Mapping[str, float]], weights: dict[str, Any], info: dict[str, Any]
    ) -> None:
        """Keeps `weights` if the evaluation `scores` is the best so far; those of process 0 count.

        Raises:
          OSError: an earlier one could not be written.
        """
        judged = self._metric.judge(scores)
        if jax.process_count() > 1:  # saving is for all processes or for none
            told = multihost_utils.broadcast_one_to_all(np.array(judged or (0, 0), np.float32))
            judged = Judgement(float(told[0]), int(told[1])) if told[1] else None
        if judged and self._best and judged.figures < self._best.figures:
            logging.warning(
                "step %d is not compared with the best one: figures of %s are missing", step, self._metric.name
            )
        if judged is None or not self._metric.better(judged, self._best):
            return
        before = "" if self._best is None else f", before {self._best.value:.2f}"
        logging.info("step %d is the best so far: %s is %.2f%s", step, self._metric.name, judged.value, before)
        self._best = judged
        # Of a run that has gone back to an earlier step; Orbax writes none before its newest.
        latest = self._checkpoints.latest_step
        if latest is not None and latest >= step:
            self._checkpoints.set_aside_after(step - 1)
        self._checkpoints.save_weights(
            step, weights, {**info, FOLDER: {"metric": self._metric.name, **judged._asdict()}}
        )

    def require_written(self) -> None:
        """Raises OSError if writing failed in the meantime; does not wait."""
        self._checkpoints.require_written()

    def close(self) -> None:
        """Waits until it is on disk; raises OSError where it could not be written."""
        self._checkpoints.close()
