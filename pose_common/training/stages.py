"""A training run as a list of stages: which parameters learn, and which loss terms are asked for, when."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

UPDATES_STATE = "prototypes"
"""What a configuration calls `Stage.updates_state`, by the first method that has such a state."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """A span of epochs with one compiled step.

    Attributes:
      name: shown in logs.
      epochs: length of the stage.
      train: parameter groups that learn; the others are frozen and run in inference mode.
      losses: loss terms to compute.
      updates_state: whether the method's own state moves; for PoseBH, whether prototypes follow the embeddings.
    """

    name: str
    epochs: int
    train: tuple[str, ...]
    losses: tuple[str, ...]
    updates_state: bool = False


def make_stages(rows: Sequence) -> tuple[Stage, ...]:
    """Stages from config rows (mappings with `Stage`'s fields).

    Raises:
      ValueError: no stage, an unknown field, or a stage that trains nothing.
    """
    names = {field.name for field in dataclasses.fields(Stage)} - {"updates_state"} | {UPDATES_STATE}
    stages = []
    for row in rows:
        unknown = set(row) - names
        if unknown:
            raise ValueError(f"stage {dict(row)} has unknown fields {sorted(unknown)}; known: {sorted(names)}")
        fields = {**row, "train": tuple(row["train"]), "losses": tuple(row["losses"])}
        updates_state = bool(fields.pop(UPDATES_STATE, False))
        stage = Stage(**fields, updates_state=updates_state)
        if stage.epochs < 0 or not stage.train or not stage.losses:
            raise ValueError(f"stage {stage.name!r} must have epochs >= 0, something to train and a loss")
        stages.append(stage)
    if not stages:
        raise ValueError("config.stages is empty")
    return tuple(stages)


def stage_index(stages: Sequence[Stage], epoch: int) -> int:
    """Which stage epoch `epoch` (from 0) belongs to; the last one for any epoch after the end."""
    end = 0
    for index, stage in enumerate(stages):
        end += stage.epochs
        if epoch < end:
            return index
    return len(stages) - 1
