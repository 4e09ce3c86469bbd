"""One training step of a tiny BoIR under a given layout; also a program for several processes."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from boir_jax.method import BoIRMethod
from boir_jax.model import BoIR
from pose_common.layers import BatchNorm
from pose_common.training.optimizers import GroupedAdamW, cosine_schedule
from scripts.benchmarks.batches import random_scenes
from tests import settings
from tests.distribution import Arrays, one_step, program

SIZE = 64
BATCH, PEOPLE, KEYPOINTS = 16, 4, 5
TINY = {
    "width": 4,
    "modules": (1,),
    "blocks": 1,
    "stem": 8,
    "neck_middle": 4,
    "neck_features": 8,
    "head_features": 8,
    "embedding_features": 8,
    "instance_features": 8,
}
# Weights that make every term about as large, so that an error in any of them shows.
LOSSES = dataclasses.replace(
    settings.LOSSES, heatmap=1.0, instance=1.0, embedding=10.0, box=1.0, pull=True, images_per_device=1
)


class TinyMethod(BoIRMethod):
    """With initial values from numpy: compiling the usual ones takes longer than the step, and they are alike."""

    def init_variables(self, key):
        rng = np.random.default_rng(0)
        shapes = jax.eval_shape(super().init_variables, key)

        def draw(path, shape):
            name = path[-1].key
            low, high = {"kernel": (-0.5, 0.5), "fuse_kernel": (-0.5, 0.5), "scale": (0.5, 1.5), "var": (0.5, 1.5)}.get(
                name, (-0.1, 0.1)
            )
            return jnp.asarray(rng.uniform(low, high, shape.shape), jnp.float32)

        return jax.tree_util.tree_map_with_path(draw, shapes)


def tiny_method(norm_group: int | None = None, learning_rate: float = 1e-3) -> BoIRMethod:
    """A few thousand parameters; of every two images at most five people reach the instance head."""
    model = BoIR(num_keypoints=KEYPOINTS, norm=functools.partial(BatchNorm, group=norm_group), **TINY)
    optimizer = GroupedAdamW(
        cosine_schedule(learning_rate, 1e-6, 100, 1, 1e-12), **settings.ADAM, weight_decay=0.025, clip_norm=10.0
    )
    return TinyMethod(model, 1, optimizer, LOSSES, group=2, cap=5)


def global_batch(index: int = 0) -> Arrays:
    """Crowded images; the last has nobody."""
    return random_scenes(BATCH, SIZE, PEOPLE, KEYPOINTS, seed=index)


def run(layout: str) -> Arrays:
    """What one step makes under `layout`."""
    method, key = tiny_method(), jax.random.PRNGKey(0)
    return one_step(layout, method, method.stages[0], global_batch(), key, lambda state: state)


if __name__ == "__main__":
    program(run)
