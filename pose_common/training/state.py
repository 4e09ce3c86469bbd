"""What a training run carries from step to step."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax


class TrainState(flax.struct.PyTreeNode):
    """Everything that changes during training.

    Attributes:
      step: int32 scalar, steps taken.
      params: {group: parameters}; a group is the unit of freezing and has its own optimizer state.
      batch_stats: {group: running statistics}.
      opt_state: {group: moments} of the groups that train in the present stage, no others.
      prototypes: method state that gradients do not touch; {} for methods without.
      rng: uint32 [2] base key; a step folds its number into it.
    """

    step: jax.Array
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    opt_state: dict[str, Any]
    prototypes: Any
    rng: jax.Array

    @property
    def weights(self) -> dict[str, Any]:
        """What inference needs and what a weights-only checkpoint holds."""
        return {"params": self.params, "batch_stats": self.batch_stats, "prototypes": self.prototypes}
