"""A method small enough to compile in no time, with everything the loop has to carry: groups that thaw, batch
statistics, prototypes, per-sample noise."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.top_down.loader import Row
from pose_common import collectives
from pose_common.layers import batch_moments
from pose_common.training.optimizers import GroupedAdamW, step_schedule
from pose_common.training.stages import Stage
from pose_common.training.state import TrainState
from pose_common.training.step import LossOutput
from tests.settings import ADAM, NO_WARMUP


@dataclasses.dataclass(frozen=True)
class ToyMethod:
    """y = head(normalise(body x)); the prototypes are a running mean of the features."""

    stages: tuple[Stage, ...] = (
        Stage("first", 2, ("head",), ("mse",), updates_state=True),
        Stage("second", 2, ("body", "head"), ("mse",)),
    )
    optimizer: GroupedAdamW = GroupedAdamW(
        step_schedule(1e-2, (6,), 0.1, **NO_WARMUP), **ADAM, weight_decay=0.1, clip_norm=1.0
    )

    def init(self, key):
        a, b = jax.random.split(key)
        params = {"body": {"w": jax.random.normal(a, (8, 16))}, "head": {"w": jax.random.normal(b, (16, 4))}}
        stats = {"body": {"mean": jnp.zeros(16)}}
        opt_state = self.optimizer.init(params, self.stages[0].train)
        return TrainState(jnp.zeros((), jnp.int32), params, stats, opt_state, {"bank": jnp.zeros(16)}, key)

    def loss(self, params, state, batch, key, stage, axis_name):
        x = batch["image"]
        keys = collectives.sample_keys(key, len(x), axis_name)
        noise = jax.vmap(lambda k: jax.random.normal(k, (8,)))(keys)
        features = (x + 0.1 * noise) @ params["body"]["w"]
        mean, var = batch_moments(features, axis_name)
        out = (features - mean) * jax.lax.rsqrt(var + 1e-5) @ params["head"]["w"]
        total = collectives.global_batch_size(len(x), axis_name)
        share = jnp.square(out - batch["target"]).mean(-1).sum() / total
        mean = jax.lax.stop_gradient(mean)
        stats = {"body": {"mean": 0.9 * state.batch_stats["body"]["mean"] + 0.1 * mean}}
        return share, LossOutput({"mse": share}, {}, stats, mean if stage.updates_state else None)

    def update(self, method_state, observed, axis_name):
        if observed is None:
            return method_state, {}
        return {**method_state, "bank": 0.9 * method_state["bank"] + 0.1 * observed}, {}

    def enter_stage(self, state, stage):
        def change(state):
            return state.replace(opt_state=self.optimizer.init(state.params, stage.train, old=state.opt_state))

        return change, {stage.name: True}

    def shapes(self, stage, notes):
        def make(key):
            state = self.init(key)
            return state.replace(opt_state=self.optimizer.init(state.params, stage.train))

        return jax.eval_shape(make, jax.random.PRNGKey(0))


class ToyData:
    """Rows that are a function of their position in the run."""

    def __init__(self, batch_size: int = 16, rank: int = 0, ranks: int = 1, poison_at: int | None = None):
        self.position, self.size, self.poison_at = 0, batch_size, poison_at
        self.rows = slice(rank * batch_size // ranks, (rank + 1) * batch_size // ranks)

    def __next__(self):
        rng = np.random.default_rng(self.position)
        x = rng.normal(size=(self.size, 8)).astype(np.float32)
        target = np.tanh(x[:, :4])
        if self.position == self.poison_at:
            target[[3, 5], 1] = np.nan
        self.position += 1
        return {"image": x[self.rows], "target": target[self.rows].astype(np.float32)}

    def rows_at(self, state):
        again = ToyData(self.size, poison_at=self.poison_at)
        again.position = state["position"]
        rows = next(again)
        for number in range(self.size):
            yield Row("toy", f"train/{number}.jpg (id {number})", {name: value[number] for name, value in rows.items()})

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]
