"""A training run as a list of stages: which parameters learn, and which loss terms are asked for, when."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from pose_common.training.checks import ConfigError, nearest, require_fields

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

    @property
    def program(self) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
        """What decides the compiled step: stages that agree in it run the same program."""
        return self.train, self.losses, self.updates_state


def unlike(stages: Sequence[Stage]) -> list[Stage]:
    """The first stage of each program."""
    return list({stage.program: stage for stage in reversed(stages)}.values())[::-1]


def make_stages(rows: Sequence) -> tuple[Stage, ...]:
    """Stages from config rows (mappings with `Stage`'s fields).

    Raises:
      ConfigError: no stage, an unknown field, a missing one, or a stage that trains nothing.
    """
    needed = {field.name for field in dataclasses.fields(Stage)} - {"updates_state"}
    stages = []
    for number, row in enumerate(rows):
        require_fields(f"stages[{number}].", row, needed | {UPDATES_STATE}, needed)
        fields = {**row, "train": tuple(row["train"]), "losses": tuple(row["losses"])}
        updates_state = bool(fields.pop(UPDATES_STATE, False))
        stage = Stage(**fields, updates_state=updates_state)
        if stage.epochs < 0 or not stage.train or not stage.losses:
            raise ConfigError(
                f"config.stages[{number}] ({stage.name!r}) must have epochs >= 0, something to train and a loss"
            )
        stages.append(stage)
    if not any(stage.epochs for stage in stages):
        raise ConfigError("config.stages has no stage with an epoch or more")
    return tuple(stages)


def check_stages(stages: Sequence[Stage], groups: Sequence[str], losses: Sequence[str]) -> None:
    """Raises ConfigError for parameter groups or loss terms that a method does not have.

    Args:
      groups, losses: those that it has.
    """
    for number, stage in enumerate(stages):
        for field, given, known in (("train", stage.train, groups), ("losses", stage.losses, losses)):
            for name in given:
                if name not in known:
                    raise ConfigError(
                        f"config.stages[{number}].{field} ({stage.name!r}): there is no {name!r}; expected some of "
                        f"{', '.join(known)}{nearest(name, known)}"
                    )


def stage_index(stages: Sequence[Stage], epoch: int) -> int:
    """Which stage epoch `epoch` (from 0) belongs to; the last one for any epoch after the end."""
    end = 0
    for index, stage in enumerate(stages):
        end += stage.epochs
        if epoch < end:
            return index
    return len(stages) - 1


def evaluation_steps(stage_ends: Sequence[int], every: int, at_stages: bool) -> frozenset[int]:
    """After which steps a run is evaluated: always the last.

    Args:
      stage_ends: step at the end of each stage.
      every: steps between evaluations; 0: about ten a run, the first one early, which keep away from others.
      at_stages: also before the first step and at the end of each stage.
    """
    total = stage_ends[-1]
    fixed = {total} | ({0, *stage_ends} if at_stages else set())
    if every:
        return frozenset(fixed | set(range(every, total, every)))
    wanted = {max(1, total // 50), *(round(total * part / 10) for part in range(1, 10))}
    near = {step for step in wanted if min(abs(step - other) for other in fixed) <= total / 25}
    return frozenset(fixed | wanted - near - {0})


def require_same_place(
    stages: Sequence[Stage], steps_per_epoch: int, step: int, info: Mapping[str, Any], by_data: bool
) -> None:
    """Raises ConfigError where the stages as they are now would take a checkpoint back, or move unasked.

    Args:
      steps_per_epoch: now.
      step: of the checkpoint.
      info: saved with it: its `stage`, and the `steps_per_epoch` of then.
      by_data: whether `steps_per_epoch` is one pass over the data, and no setting.
    """
    before, now = info.get("steps_per_epoch", steps_per_epoch), steps_per_epoch
    if before != now and by_data:
        raise ConfigError(
            f"the run had {before} steps an epoch, its data now make {now} (batches are of another size, the data were "
            "prepared again, or the run is of a version that did not count an epoch's last batch), and stages and "
            "rates would move: read the data of before, or go on by "
            f"--config.steps_per_epoch={before} --accept_changes, then with it or without --config"
        )
    if step > (total := now * sum(stage.epochs for stage in stages)):
        raise ConfigError(
            f"the checkpoint is of step {step}, and the stages as they are now end at step {total}: give the epochs of "
            "before, or more"
        )
    if info["stage"] > (stage := stage_index(stages, step // now)):  # a later one can be entered, no earlier one
        raise ConfigError(
            f"the checkpoint of step {step} is from stage {info['stage'] + 1}, and with {now} steps an epoch that step "
            f"is in stage {stage + 1} of {len(stages)}, to which no run goes back: give the epochs of before"
        )
