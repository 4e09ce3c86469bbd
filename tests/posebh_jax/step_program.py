"""One training step of a tiny PoseBH under a given layout; also a program for several processes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.datasets import find_dataset
from pose_common.training.optimizers import GroupedAdamW, step_schedule
from pose_common.training.stages import Stage
from pose_common.training.state import TrainState
from posebh_jax.method import PoseBHMethod
from posebh_jax.model import PoseBH
from posebh_jax.vit import ViTSize
from tests.distribution import Arrays, one_step, program
from tests.settings import ADAM, CLUSTERS, NO_WARMUP, PROTOTYPES, SIGMA

DATASETS = ("coco", "aic", "ap10k")
BATCH = 16
# Weights that make every term as large as the heatmap loss, so that an error in any of them shows.
WEIGHTS = dataclasses.replace(
    PROTOTYPES,
    momentum=0.9,
    contrast_weight=1.0,
    heatmap_weight=1.0,
    cluster_weight=1.0,
    cross_type_weight=1.0,
    cross_type_threshold=0.0,
    cross_type_distance=8.0,
)
STAGE = Stage(
    "everything",
    1,
    ("backbone", "heads", "embedding"),
    ("heatmap", "prototype", "prototype_heatmap", "cluster", "cross_type"),
    updates_state=True,
)


class TinyMethod(PoseBHMethod):
    """With initial values from numpy: compiling the usual ones takes a third of a step's time, and they are alike."""

    def init(self, key):
        rng, shapes = np.random.default_rng(0), jax.eval_shape(super().init, key)

        def draw(path, shape):
            names = [entry.key for entry in path]
            if names[-1] in ("kernel", "pos_embed"):
                value = (0.02 if "backbone" in names else 0.001) * rng.normal(size=shape.shape)
            elif names[-1] == "bank":
                value = rng.normal(size=shape.shape)
                value /= np.linalg.norm(value, axis=-1, keepdims=True)
            else:
                value = np.full(shape.shape, float(names[-1] in ("scale", "var")))
            return jnp.asarray(value, jnp.float32)

        weights = jax.tree_util.tree_map_with_path(draw, shapes.weights)
        moments = self.optimizer.init(weights["params"], self.stages[0].train)
        return TrainState(jnp.zeros((), jnp.int32), {}, {}, moments, {}, key).with_weights(weights)


def tiny_method(stages: tuple[Stage, ...] = (STAGE,)) -> PoseBHMethod:
    """A few thousand parameters, three skeletons, drop path on."""
    datasets = tuple(find_dataset(name) for name in DATASETS)
    size = ViTSize(24, 2, 2, 8, drop_path=0.3)
    model = PoseBH(size, tuple((d.name, d.num_keypoints) for d in datasets), len(datasets), 8, 8, (8, 8))
    optimizer = GroupedAdamW(step_schedule(1e-3, (), 0.1, **NO_WARMUP), **ADAM, weight_decay=0.1)
    return TinyMethod(model, datasets, (48, 64), stages, optimizer, WEIGHTS, CLUSTERS, SIGMA, num_clusters=12)


def global_batch(index: int = 0) -> dict[str, np.ndarray]:
    """People of all three datasets in no order."""
    rng = np.random.default_rng(index)
    dataset = rng.integers(0, len(DATASETS), BATCH).astype(np.int32)
    return {
        "image": rng.integers(0, 256, (BATCH, 64, 48, 3), dtype=np.uint8),
        "keypoints": (rng.random((BATCH, 17, 2)) * (48, 64)).astype(np.float32),
        "visible": (rng.random((BATCH, 17)) < 0.7).astype(np.float32),
        "dataset": dataset,
        "valid": np.ones(BATCH, bool),
    }


def spread_embeddings(state):
    """Gives a newly initialised state embeddings of unlike directions.

    They start out nearly equal, so that which prototype is nearest, an arg-max, is up to rounding.
    """
    embedding = dict(state.params["embedding"])
    embedding["norm"] = {**embedding["norm"], "scale": jnp.full_like(embedding["norm"]["scale"], 3.0)}
    embedding["final"] = {**embedding["final"], "kernel": 200 * embedding["final"]["kernel"]}
    return state.replace(params={**state.params, "embedding": embedding})


def run(layout: str) -> Arrays:
    """What one step makes under `layout`."""
    # Of some draws an input of a ReLU lies within rounding of zero, and its gradient comes and goes with the layout.
    return one_step(layout, tiny_method(), STAGE, global_batch(), jax.random.PRNGKey(1), spread_embeddings)


if __name__ == "__main__":
    program(run)
