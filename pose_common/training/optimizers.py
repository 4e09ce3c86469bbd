"""Learning-rate schedules and AdamW over parameter groups.

A group (backbone, heads, ...) has moments and a step count of its own, made when the group starts to learn: a frozen
group is neither moved nor decayed, takes no part in the gradient norm, and its bias correction counts from its thaw.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

Schedule = Callable[..., Any]
"""schedule(step, xp=jnp) -> learning rate; `xp=np` gives the same in float64 on the host."""


def step_schedule(
    base: float, boundaries: Sequence[int], factor: float, warmup_steps: int, warmup_ratio: float
) -> Schedule:
    """Linear warmup from `warmup_ratio` of the regular rate, then times `factor` at every boundary (in steps)."""

    def schedule(step, xp=jnp):
        passed = sum((xp.where(step >= boundary, 1, 0) for boundary in boundaries), start=xp.zeros((), int))
        regular = base * factor**passed
        if warmup_steps == 0:
            return regular
        ramp = warmup_ratio + (1 - warmup_ratio) * xp.minimum(step / warmup_steps, 1.0)
        return regular * ramp

    return schedule


def cosine_schedule(base: float, final: float, total_steps: int, warmup_steps: int, start: float) -> Schedule:
    """Linear warmup from `start` to `base` (both included) over `warmup_steps`, then half a cosine towards `final`.

    The base rate occurs twice and the final rate is never quite reached, as in BoIR's release.
    """

    def schedule(step, xp=jnp):
        ramp = start + (base - start) * step / max(warmup_steps - 1, 1)
        progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
        decayed = final + 0.5 * (base - final) * (1 + xp.cos(np.pi * progress))
        return xp.where(step < warmup_steps, ramp, decayed)

    return schedule


def squared_norms(tree: Any) -> Any:
    """The sum of squares of each array."""
    return jax.tree.map(lambda x: jnp.sum(jnp.square(x)), tree)


@dataclasses.dataclass(frozen=True)
class GroupedAdamW:
    """AdamW with decoupled weight decay, per-parameter rate factors and a clip by the global norm.

    Attributes:
      schedule: learning rate by global step.
      b1, b2, eps: of Adam's moments.
      weight_decay: times the learning rate and the parameter's factor, where `decayed` is true.
      clip_norm: gradients are scaled by min(1, clip_norm / (norm + 1e-6)); None for no clip.
      factors: {group: tree of arrays that broadcast against the parameters}, the layer-wise rate factors; {} for ones.
      decayed: {group: tree of bools}; {} where everything decays.
    """

    schedule: Schedule
    b1: float
    b2: float
    eps: float
    weight_decay: float = 0.0
    clip_norm: float | None = None
    factors: dict[str, Any] = dataclasses.field(default_factory=dict)
    decayed: dict[str, Any] = dataclasses.field(default_factory=dict)

    def init(self, params: dict[str, Any], groups: Iterable[str], old: dict[str, Any] | None = None) -> dict[str, Any]:
        """Moments for `groups`: those of `old` where it has them, else zero. Other groups' are let go."""
        old = old or {}
        return {group: old.get(group) or self._adam().init(params[group]) for group in sorted(groups)}

    def update(self, grads: dict[str, Any], opt_state: dict[str, Any], params: dict[str, Any], step: jax.Array):
        """One step of the groups in `grads`.

        Returns:
          (new parameters of those groups, new opt_state, {'grad_norm': norm before the clip, 'learning_rate': ...}).
        """
        norm = jnp.sqrt(sum(jax.tree.leaves(squared_norms(grads))))
        if self.clip_norm is not None:
            shrink = jnp.minimum(1.0, self.clip_norm / (norm + 1e-6))
            grads = jax.tree.map(lambda g: g * shrink, grads)
        rate = self.schedule(step)
        new_params, new_state = {}, {}
        for group, gradient in grads.items():
            direction, new_state[group] = self._adam().update(gradient, opt_state[group])
            new_params[group] = self._move(group, params[group], direction, rate)
        return new_params, new_state, {"grad_norm": norm, "learning_rate": jnp.asarray(rate, jnp.float32)}

    def _move(self, group: str, params: Any, direction: Any, rate: jax.Array) -> Any:
        ones = jax.tree.map(lambda _: 1.0, params)
        factors = self.factors.get(group, ones)
        decayed = self.decayed.get(group, ones)

        def move(p, u, factor, decay):
            rate_here = rate * factor
            # The decay multiplies the parameter first, as in torch: p(1 - lr wd) - lr u.
            return p * (1 - rate_here * self.weight_decay * decay) - rate_here * u

        return jax.tree.map(move, params, direction, factors, decayed)

    def _adam(self) -> optax.GradientTransformation:
        return optax.scale_by_adam(self.b1, self.b2, self.eps)
