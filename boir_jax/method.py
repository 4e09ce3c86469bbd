"""BoIR as a method for the training loop: initial state and loss of a batch of whole images."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from boir_jax.losses import LossConfig, Targets, loss_terms
from boir_jax.model import BoIR
from boir_jax.targets import choose_instances, make_targets
from pose_common.collectives import global_sum, sample_keys
from pose_common.images import normalise_pixels
from pose_common.training.optimizers import GroupedAdamW
from pose_common.training.stages import Stage
from pose_common.training.state import METHOD_STATE, TrainState
from pose_common.training.step import LossOutput

TERMS = ("heatmap", "instance", "embedding", "box")


@dataclasses.dataclass(frozen=True, eq=False)
class BoIRMethod:
    """BoIR (`pose_common.training.loop.Method`). One stage trains everything.

    Attributes:
      model: the network with its training heads; the mapped axis of its norms is set here.
      epochs: length of the run.
      optimizer: see the loop.
      losses: weights and choices of the loss terms.
      group, cap: of every `group` images of a batch, at most `cap` people, drawn at random, go through the
        instance head; the other losses see everybody. Groups must not straddle devices, and so the choice
        does not depend on them.
    """

    model: BoIR
    epochs: int
    optimizer: GroupedAdamW
    losses: LossConfig
    group: int
    cap: int

    @functools.cached_property
    def groups(self) -> tuple[str, ...]:
        """The network's parts."""
        return tuple(sorted(weight_shapes(self.model)["params"]))

    @functools.cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The only stage."""
        return (Stage("training", self.epochs, self.groups, TERMS),)

    def init(self, key: jax.Array) -> TrainState:
        """A newly initialised state."""
        params_key, run_key = jax.random.split(key)
        variables = self.init_variables(params_key)
        opt_state = self.optimizer.init(variables["params"], variables["params"])
        stats = variables["batch_stats"]
        return TrainState(jnp.zeros((), jnp.int32), variables["params"], stats, opt_state, {}, run_key)

    def init_variables(self, key: jax.Array) -> dict[str, Any]:
        """Newly initialised parameters and statistics."""
        return init_variables(key, self.model)

    def enter_stage(self, state: TrainState, stage: Stage) -> tuple[Callable[[TrainState], TrainState], dict]:
        """Nothing changes."""
        del state, stage
        return lambda state: state, {}

    def update(self, method_state, observed, axis_name: str | None):
        """There is no method state."""
        del observed, axis_name
        return method_state, {}

    def shapes(self, stage: Stage, notes: dict[str, Any]) -> TrainState:
        """Shapes of a state."""
        del stage, notes
        return jax.eval_shape(self.init, jax.random.PRNGKey(0))

    def loss(self, params, state: TrainState, batch, key, stage: Stage, axis_name: str | None):
        """The per-device loss and its `LossOutput`; see `pose_common.training.step`.

        Args:
          params: of all parts.
          state: for its running statistics; its own parameters are not used.
          batch: of the whole-image batch contract, B images (this device's, if an axis is mapped) and N rows for the
            people of each: `image` uint8 [B, S, S, 3], `ignore` bool [B, h, w], and in map cells `keypoints` float32
            [B, N, K, 3] (the third value is positive where labelled), `boxes` float32 [B, N, 4], `radius` int32 [B, N]
            and `sample_cell` int32 [B, N, 2]; `has_centre` and `instance_valid` bool [B, N].
          key: uint32 [2], the step's; each image has its own by its place in the global batch.
          stage: the only one.
          axis_name: the mapped axis of devices, or None.

        Returns:
          (scalar float32, `LossOutput`): the sum of the four weighted terms, and what `terms` says.

        Raises:
          ValueError: B is no multiple of `group`.
        """
        rows, people = batch["instance_valid"].shape
        keys = sample_keys(key, rows, axis_name)
        priority = jax.vmap(lambda key: jax.random.uniform(key, (people,)))(keys)
        return self.terms(params, state, batch, priority, stage, axis_name)

    def terms(self, params, state: TrainState, batch, priority, stage: Stage, axis_name: str | None):
        """`loss` for given draws.

        Args:
          params, state, batch, stage, axis_name: see `loss`.
          priority: float32 [B, N] in [0, 1); ranks the people for the instance head.

        Returns:
          (scalar float32, `LossOutput`). Its terms are scalars, and so are its metrics: the counts of the people and of
          those that go through the instance head.

        Raises:
          ValueError: B is no multiple of `group`.
        """
        del stage
        image, row, chosen = choose_instances(priority, batch["instance_valid"], self.group, self.cap)
        targets, cells = make_targets(batch, image, row, chosen)

        def forward(model: BoIR, images: jax.Array):
            features = model.features(images, True)
            grouped = features.reshape(-1, self.group, *features.shape[1:])
            return model.dense(features, True), model.instance_maps(grouped, image, cells)

        model = self.model.clone(norm=functools.partial(self.model.norm, axis_name=axis_name))
        variables = {"params": params, "batch_stats": state.batch_stats}
        (dense, maps), updated = model.apply(
            variables, normalise_pixels(batch["image"]), method=forward, mutable=["batch_stats"]
        )
        values = self.weigh(dense, maps, targets, batch, axis_name)
        counts = {"people": batch["instance_valid"].sum(), "people/in_instance_head": chosen.sum()}
        metrics = global_sum(jax.tree.map(jnp.float32, counts), axis_name)
        return sum(values.values()), LossOutput(values, metrics, updated["batch_stats"])

    def weigh(self, dense, maps, targets: Targets, batch, axis_name: str | None) -> dict[str, jax.Array]:
        """The weighted terms of a batch's maps; a method that compares settings chooses them here, by `batch`.

        Args:
          dense: the dense head's maps, see `loss_terms`.
          maps: keypoint logits [G, M, h, w, K] of the people that go through the instance head.
          targets: what both should be.
          batch: see `loss`.
          axis_name: the mapped axis of devices, or None.

        Returns:
          {term: scalar float32, per device}, with the names in `TERMS`.
        """
        del batch
        return loss_terms(dense, maps, targets, self.losses, axis_name)


@functools.partial(jax.jit, static_argnames="model")  # a run asks for values and shapes: traced once for both
def init_variables(key: jax.Array, model: BoIR) -> dict[str, Any]:
    """Newly initialised parameters and statistics; none of them depends on the images' size."""
    return model.init(key, jnp.zeros((1, 64, 64, 3)))


@functools.cache
def weight_shapes(model: BoIR) -> dict[str, Any]:
    """Shapes of `TrainState.weights`."""
    variables = jax.eval_shape(lambda key: init_variables(key, model), jax.random.PRNGKey(0))
    return {"params": variables["params"], "batch_stats": variables["batch_stats"], METHOD_STATE: {}}
