"""What a training run carries from step to step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax

METHOD_STATE = "prototypes"
"""Name of the method state in files of weights: that of the first method that had one, which files keep."""
STATE_TRAINED = "method_state_trained"
"""Of a checkpoint's notes: whether the method state is more than newly initialised. Older checkpoints do not say."""


class TrainState(flax.struct.PyTreeNode):
    """Everything that changes during training.

    Attributes:
      step: int32 scalar, steps taken.
      params: {group: parameters}; a group is the unit of freezing and has its own optimizer state.
      batch_stats: {group: running statistics}.
      opt_state: {group: moments} of the groups that train in the present stage, no others.
      method_state: what a method carries beside parameters, untouched by gradients; {} for methods without.
      rng: uint32 [2] base key; a step folds its number into it.
    """

    step: jax.Array
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    opt_state: dict[str, Any]
    method_state: Any
    rng: jax.Array

    @property
    def weights(self) -> dict[str, Any]:
        """What inference needs and what a weights-only checkpoint holds."""
        return {"params": self.params, "batch_stats": self.batch_stats, METHOD_STATE: self.method_state}

    def with_weights(self, weights: dict[str, Any]) -> TrainState:
        """The state with other `weights`."""
        return self.replace(
            params=weights["params"], batch_stats=weights["batch_stats"], method_state=weights[METHOD_STATE]
        )


def to_evaluate(weights: Mapping[str, Any], notes: Mapping[str, Any]) -> dict[str, Any]:
    """Weights without a method state that is only newly initialised: there is nothing to evaluate in it."""
    return dict(weights) if notes.get(STATE_TRAINED, True) else {**weights, METHOD_STATE: {}}
