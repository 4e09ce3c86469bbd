"""One training step of a tiny PoseBH under a given layout, as a function and as a program for several processes.

    python -m tests.posebh_jax.step_program <layout> <out.npz> <coordinator> <processes> <process>
"""

from __future__ import annotations

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.keypoint_sets import get_dataset
from pose_common.port import flatten
from pose_common.training import distributed, parallel
from pose_common.training.optimizers import GroupedAdamW, step_schedule
from pose_common.training.stages import Stage
from pose_common.training.step import train_step
from posebh_jax.model import PoseBH
from posebh_jax.prototypes import PrototypeConfig
from posebh_jax.train import PoseBHMethod
from posebh_jax.vit import ViTSize

DATASETS = ("coco", "aic", "ap10k")
BATCH = 16
LAYOUTS = {
    "one": lambda: parallel.ShardedPlan(
        jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "fsdp"))
    ),
    "sharded": lambda: parallel.make_plan("sharded"),
    "fsdp": lambda: parallel.make_plan("sharded", fsdp=4, fsdp_min_size=512),
    "pmap": lambda: parallel.make_plan("pmap"),
}
# Weights that make every term as large as the heatmap loss, so that an error in any of them shows.
WEIGHTS = PrototypeConfig(
    momentum=0.9, contrast_weight=1.0, heatmap_weight=1.0, cluster_weight=1.0, cross_type_weight=1.0,
    cross_type_threshold=0.0, cross_type_distance=8.0,
)  # fmt: skip
STAGE = Stage(
    "everything", 1, ("backbone", "heads", "embedding"),
    ("heatmap", "prototype", "prototype_heatmap", "cluster", "cross_type"), prototypes=True,
)  # fmt: skip


def tiny_method(stages: tuple[Stage, ...] = (STAGE,)) -> PoseBHMethod:
    """A few thousand parameters, three skeletons, drop path on."""
    datasets = tuple(get_dataset(name) for name in DATASETS)
    size = ViTSize(24, 2, 2, 8, drop_path=0.3)
    model = PoseBH(size, tuple((d.name, d.num_keypoints) for d in datasets), len(datasets), 8, 8, 8)
    optimizer = GroupedAdamW(step_schedule(1e-3, ()), weight_decay=0.1)
    return PoseBHMethod(model, datasets, (48, 64), stages, optimizer, WEIGHTS, num_clusters=12)


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
    """Gives a fresh state embeddings of unlike directions.

    They start out nearly equal, so that which prototype is nearest, an arg-max, is up to rounding.
    """
    embedding = dict(state.params["embedding"])
    embedding["norm"] = {**embedding["norm"], "scale": jnp.full_like(embedding["norm"]["scale"], 3.0)}
    embedding["final"] = {**embedding["final"], "kernel": 200 * embedding["final"]["kernel"]}
    return state.replace(params={**state.params, "embedding": embedding})


def run(layout: str) -> dict[str, np.ndarray]:
    """{"metrics/..." , "gradients/...", "batch_stats/...", "prototypes/..."} after one step."""
    plan, method = LAYOUTS[layout](), tiny_method()
    # With some keys an input of a ReLU lies within rounding of zero, and its gradient comes and goes with the layout.
    state = plan.create(method.init, jax.random.PRNGKey(1))
    change, _ = method.enter_stage(plan.to_global(state), STAGE)
    state = plan.transform(lambda state: change(spread_embeddings(state)), state)
    step = functools.partial(train_step, loss=method.loss, optimizer=method.optimizer, stage=STAGE)
    rows, processes = BATCH // jax.process_count(), jax.process_index()
    batch = {name: value[processes * rows : (processes + 1) * rows] for name, value in global_batch().items()}
    state, metrics = plan.compile(step, state)(state, plan.put(batch))
    state = plan.to_global(state)
    # After one step Adam's first moment is a tenth of the gradient.
    gradients = {group: moments.mu for group, moments in state.opt_state.items()}
    found = {"metrics": metrics, "gradients": gradients, "batch_stats": state.batch_stats, "prototypes": state.prototypes}
    return {name: np.asarray(jax.device_get(value)) for name, value in flatten(found).items()}


if __name__ == "__main__":
    layout, out, coordinator, processes, process = sys.argv[1:]
    distributed.start(coordinator, int(processes), int(process))
    jax.config.update("jax_default_matmul_precision", "highest")
    arrays = run(layout)
    if jax.process_index() == 0:
        np.savez(out, **arrays)
