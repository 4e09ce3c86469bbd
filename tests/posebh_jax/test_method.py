"""A whole training step of a tiny recorded model: losses, gradients, statistics and prototypes of both stages."""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.datasets import PoseDataset
from data_pipelines.skeletons import KEYPOINT_SETS, KeypointSet
from pose_common.training.optimizers import GroupedAdamW, step_schedule
from pose_common.training.stages import Stage
from pose_common.training.state import TrainState
from pose_common.weights import keys
from posebh_jax.method import Inputs, PoseBHMethod
from posebh_jax.model import PoseBH
from posebh_jax.vit import ViTSize
from posebh_jax.weights.keys import posebh_rules
from tests.golden_files import golden, golden_config
from tests.posebh_jax.golden_weights import golden_state, maps
from tests.settings import ADAM, CLUSTERS, NO_WARMUP, PROTOTYPES, SIGMA

pytestmark = pytest.mark.slow  # compiles training steps of the whole network

FILE = "posebh/full_train.npz"
HEAD_TERMS = ("main_stream_loss", *(f"{i}_loss" for i in range(1, 20)))
"""The recordings' names of the heads' losses."""
GROUPS = ("backbone", "heads", "embedding")
PROTOTYPE = ("heatmap", "prototype", "prototype_heatmap")
STAGES = {
    "stage1": Stage("stage1", 1, GROUPS, PROTOTYPE, updates_state=True),
    "stage2": Stage("stage2", 1, GROUPS, (*PROTOTYPE, "cluster", "cross_type")),
}
# A convolution bias in front of a batch norm has no effect: its gradient is rounding noise on both sides.
NO_EFFECT = re.compile(r"proto_head\.(neck\.conv[12]|head\.0)\.bias")


@pytest.fixture(scope="module")
def method():
    c = golden_config(FILE)
    sets = [KeypointSet(f"golden{i}", tuple(f"k{k}" for k in range(count))) for i, count in enumerate(c["K"])]
    size = ViTSize(c["embed"], c["depth"], c["heads"], c["part"])
    names = tuple((s.name, s.num_keypoints) for s in sets)
    model = PoseBH(size, names, len(sets), c["D"], c["ch"], tuple(c["deconv"]))
    outer, cross_entropy, distance = c["lw"]
    weights = dataclasses.replace(
        PROTOTYPES,
        momentum=c["gamma"],
        contrast_weight=outer,
        cross_entropy_weight=cross_entropy,
        distance_weight=distance,
        heatmap_weight=c["phm"],
        cluster_weight=c["cps"],
        cross_type_weight=c["css"],
        cross_type_threshold=c["thr"],
        cross_type_distance=c["css_match_dist"],
    )
    with pytest.MonkeyPatch.context() as patch:
        for s in sets:
            patch.setitem(KEYPOINT_SETS, s.name, s)
        yield PoseBHMethod(
            model,
            tuple(PoseDataset(s.name, s.name) for s in sets),
            (c["img"][1], c["img"][0]),
            tuple(STAGES.values()),
            GroupedAdamW(step_schedule(1e-3, (), 0.1, **NO_WARMUP), **ADAM),
            weights,
            CLUSTERS,
            SIGMA,
        )


@pytest.fixture(scope="module")
def state(method):
    shapes = method.shapes(STAGES["stage1"], {})
    targets = keys.flatten(
        {"params": shapes.params, "batch_stats": shapes.batch_stats, "prototypes": shapes.method_state}
    )
    tree = keys.to_flax(golden_state(FILE), rules(method), targets, dropped=(r".*num_batches_tracked",)).tree
    tree = jax.tree.map(jnp.asarray, keys.unflatten(tree))
    bank = tree["prototypes"]["bank"]
    tree["prototypes"]["bank"] = bank / jnp.linalg.norm(bank, axis=-1, keepdims=True)
    return TrainState(
        jnp.zeros((), jnp.int32), tree["params"], tree["batch_stats"], {}, tree["prototypes"], jnp.zeros(2)
    )


def rules(method):
    return posebh_rules([d.name for d in method.datasets])


def torch_names(method, tree):
    return keys.to_torch({k: np.asarray(v) for k, v in keys.flatten(tree).items()}, rules(method))


@functools.cache
def recorded_step(name: str, method: PoseBHMethod):
    stage = STAGES[name]

    @jax.jit
    def step(params, state, inputs):
        return jax.value_and_grad(lambda p: method.terms(p, state, inputs, stage, None), has_aux=True)(params)

    return step


def run(name, method, state):
    arrays = golden(FILE)
    dataset = jnp.asarray(arrays["dataset_idx"], jnp.int32)
    longest = method.keypoint_index.longest
    inputs = Inputs(
        image=maps(arrays["image"]),
        dataset=dataset,
        targets=method.keypoint_index.to_global(maps(arrays["target"])[..., :longest], dataset),
        keypoint_weights=method.keypoint_index.to_global(jnp.asarray(arrays["target_weight"][:, :longest, 0]), dataset),
        drop_path=None,
        noise=jnp.asarray(arrays[f"{name}/prt/gumbel_noise"]) if name == "stage1" else None,
    )
    if name == "stage2":
        of_dataset, local = arrays["stage2/cluster_to_dataset_keypoint"].T
        keypoint = jnp.asarray(method.keypoint_index.starts[of_dataset] + local, jnp.int32)
        clusters = {"prototypes": jnp.asarray(arrays["stage2/cluster_prototypes"]), "keypoint": keypoint}
        state = state.replace(method_state={**state.method_state, "clusters": clusters})
    return recorded_step(name, method)(state.params, state, inputs)


@pytest.mark.parametrize("name", STAGES)
def test_losses(name, method, state):
    arrays = golden(FILE)
    (total, output), _ = run(name, method, state)
    recorded = {
        "heatmap": sum(arrays[f"{name}/loss:{term}"] for term in HEAD_TERMS[: len(method.datasets)]),
        "prototype": arrays[f"{name}/loss:proto_loss"],
        "prototype_heatmap": arrays[f"{name}/loss:phm_loss"],
    }
    if name == "stage2":
        recorded |= {"cluster": arrays["stage2/loss:cps_loss"], "cross_type": arrays["stage2/loss:css_loss"]}
    assert set(recorded) == set(output.terms)
    for term, value in recorded.items():
        # float32 on both sides; the recorded values lie within 2e-7 (relative) of a float64 run.
        np.testing.assert_allclose(output.terms[term], value, rtol=1e-5, err_msg=term)
    np.testing.assert_allclose(total, arrays[f"{name}/total_loss"], rtol=1e-5)


@pytest.mark.parametrize("name", STAGES)
def test_gradients(name, method, state):
    arrays = golden(FILE)
    _, grads = run(name, method, state)
    grads = torch_names(method, {"params": grads})
    compared = 0
    for parameter, value in grads.items():
        if NO_EFFECT.fullmatch(parameter):
            assert np.abs(value).max() < 1e-5
            continue
        recorded = arrays[f"{name}/gradnorm:{parameter}"]
        # 4e-5 was seen between float32 and float64, relative to the largest entry; the floor is for empty gradients.
        np.testing.assert_allclose(np.linalg.norm(value), recorded, rtol=2e-4, atol=3e-8, err_msg=parameter)
        if f"{name}/grad:{parameter}" in arrays:
            full = arrays[f"{name}/grad:{parameter}"]
            tolerance = 2e-4 * np.abs(full).max() + 3e-8
            np.testing.assert_allclose(value, full, rtol=0, atol=tolerance, err_msg=parameter)
            compared += 1
    assert compared > 5


@pytest.mark.parametrize("name", STAGES)
def test_statistics_and_prototypes(name, method, state):
    arrays = golden(FILE)
    (_, output), _ = run(name, method, state)
    stats = torch_names(method, {"batch_stats": output.batch_stats})
    for buffer, value in stats.items():
        np.testing.assert_allclose(value, arrays[f"{name}/after:{buffer}"], atol=6e-6, err_msg=buffer)
    moved, _ = method.update(state.method_state, output.observed, None)
    if name == "stage1":
        np.testing.assert_allclose(moved["bank"], arrays["stage1/prototypes_after"], atol=2e-6)
    else:
        np.testing.assert_array_equal(moved["bank"], state.method_state["bank"])
