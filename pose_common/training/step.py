"""One training step, for any method: gradients, optimizer, statistics, the method's own update."""

from __future__ import annotations

from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp

from pose_common.collectives import global_sum
from pose_common.training.optimizers import GroupedAdamW, squared_norms
from pose_common.training.stages import Stage
from pose_common.training.state import TrainState

FINITE = "finite"
"""Name, among a step's metrics, of {"parameters": bool [n], "gradients": bool [n]}: whether each array was finite."""
ABSENT = -1.0
"""Value of a figure that does not exist, as COCO's evaluation writes it: it is not counted, written or drawn."""


class LossOutput(flax.struct.PyTreeNode):
    """What a method's loss returns beside the value to differentiate.

    Attributes:
      terms: every per-device loss term (they add up to the global value).
      metrics: other logged values; already global.
      batch_stats: new running statistics of the groups that train; already global.
      observed: what the method's update of its own state needs, or None.
    """

    terms: dict[str, jax.Array]
    metrics: dict[str, jax.Array]
    batch_stats: dict[str, Any]
    observed: Any = None


class Differentiable(Protocol):
    """What a step needs of a method."""

    @property
    def optimizer(self) -> GroupedAdamW: ...

    def loss(self, params, state, batch, key, stage, axis_name) -> tuple[jax.Array, LossOutput]:
        """(the stage's per-device loss, `LossOutput`)."""

    def update(self, method_state, observed, axis_name) -> tuple[Any, dict[str, jax.Array]]:
        """(new method state, metrics), all global, from the old one and what the loss observed."""


def train_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    *,
    method: Differentiable,
    stage: Stage,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """(state, batch) -> (new state, metrics). Pure; the caller applies jit, sharding or pmap.

    Only the groups in `stage.train` are differentiated. Metrics hold every term, their sum `loss`, the method's
    figures, `grad_norm` before the clip and `learning_rate`; they are global values, equal on every device. Beside
    these scalars stands `FINITE`: of the parameters before the step and of the norms of their gradients, in the order
    of their tree.
    """
    key = jax.random.fold_in(state.rng, state.step)
    frozen = {group: value for group, value in state.params.items() if group not in stage.train}

    def per_device_loss(trained):
        return method.loss({**frozen, **trained}, state, batch, key, stage, axis_name)

    trained = {group: state.params[group] for group in stage.train}
    (total, output), grads = jax.value_and_grad(per_device_loss, has_aux=True)(trained)
    grads, total, terms = global_sum((grads, total, output.terms), axis_name)
    method_state, seen = method.update(state.method_state, output.observed, axis_name)
    updated, opt_state, moved = method.optimizer.update(grads, state.opt_state, trained, state.step)
    new_state = state.replace(
        step=state.step + 1,
        params={**state.params, **updated},
        batch_stats={**state.batch_stats, **output.batch_stats},
        opt_state=opt_state,
        method_state=method_state,
    )
    # Of gradients by the sums that their norm is made of: no further pass over them.
    finite = {"parameters": _finite(trained), "gradients": _finite(squared_norms(grads))}
    return new_state, {"loss": total, **terms, **output.metrics, **seen, **moved, FINITE: finite}


def _finite(tree: Any) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)])
