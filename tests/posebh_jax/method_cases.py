"""Recorded batches in this project's axes, a small random batch, and one device against eight."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from posebh_jax.keypoint_index import KeypointIndex
from posebh_jax.prototypes import PrototypeConfig, init_prototypes
from tests.golden_files import golden, golden_config
from tests.settings import PROTOTYPES

# Of the random batches.
KEYPOINT_INDEX = KeypointIndex((5, 4, 6))
# What an archive does not say is the paper's.
PAPER = PROTOTYPES
FIELDS = {
    "gamma": "momentum",
    "epsilon": "sinkhorn_epsilon",
    "iterations": "sinkhorn_rounds",
    "cluster_conf_thr": "label_threshold",
    "hard_cluster": "weigh_by_correctness",
    "loss_weight": "contrast_weight",
    "ppc_weight": "cross_entropy_weight",
    "ppd_weight": "distance_weight",
    "phm_loss_weight": "heatmap_weight",
    "cps_weight": "cluster_weight",
    "css_weight": "cross_type_weight",
    "css_conf_thr": "cross_type_threshold",
    "css_match_dist": "cross_type_distance",
}
"""The recordings' names of settings -> ours."""


def recorded_settings(name: str, **others: Any) -> PrototypeConfig:
    """The settings that an archive was recorded with; `others` replace or add to them."""
    config = golden_config(name)
    found = {field: config[key] for key, field in FIELDS.items() if key in config}
    return dataclasses.replace(PAPER, **{**found, **others})


class Batch(NamedTuple):
    embedding: jax.Array  # [B, h, w, D]
    targets: jax.Array  # [B, h, w, T]
    weights: jax.Array  # [B, T]
    dataset: jax.Array  # [B]


def nhwc(maps: np.ndarray) -> jax.Array:
    return jnp.asarray(np.moveaxis(maps, 1, -1))


def golden_batch(name: str) -> tuple[Batch, KeypointIndex]:
    """The inputs of a whole-batch archive, targets and weights moved to global keypoints."""
    arrays, keypoint_index = golden(name), KeypointIndex(tuple(golden_config(name)["K"]))
    dataset = jnp.asarray(arrays["dataset_idx"], jnp.int32)
    targets = keypoint_index.to_global(nhwc(arrays["target"]), dataset)
    weights = keypoint_index.to_global(jnp.asarray(arrays["target_weight"][..., 0]), dataset)
    return Batch(nhwc(arrays["embedding"]), targets, weights, dataset), keypoint_index


def random_batch(seed: int = 0, size: int = 8, height: int = 8, width: int = 6, dim: int = 16) -> Batch:
    """Random embeddings and blobs; the last image has no labelled keypoint."""
    rng = np.random.default_rng(seed)
    dataset = jnp.asarray(rng.integers(0, KEYPOINT_INDEX.num_datasets, size), jnp.int32)
    at = rng.uniform(0, 1, (size, KEYPOINT_INDEX.longest, 2)) * (width, height)
    ys, xs = np.mgrid[:height, :width][..., None]
    away = (xs - at[:, None, None, :, 0]) ** 2 + (ys - at[:, None, None, :, 1]) ** 2
    blobs = np.where(away < 4, np.exp(-away / 2), 0).astype(np.float32)
    weights = rng.choice([0.0, 1.0, 2.0], (size, KEYPOINT_INDEX.longest)).astype(np.float32)
    blobs[-1], weights[-1] = 0, 0
    embedding = jnp.asarray(rng.normal(size=(size, height, width, dim)), jnp.float32)
    targets, weights = (KEYPOINT_INDEX.to_global(jnp.asarray(x), dataset) for x in (blobs, weights))
    return Batch(embedding, targets, weights, dataset)


def random_prototypes(seed: int = 0, dim: int = 16) -> jax.Array:
    return init_prototypes(jax.random.key(seed), KEYPOINT_INDEX.total, 3, dim)


def close(actual, expected, *, atol: float = 0.0, rel: float = 0.0, name: str = "") -> None:
    """Absolute, or relative to the largest entry of the expected array."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"{name}: {actual.shape} against {expected.shape}"
    allowed = atol + rel * np.abs(expected).max(initial=0)
    np.testing.assert_allclose(actual.astype(np.float64), expected, rtol=0, atol=allowed, err_msg=name)


def on_every_wrapper(loss_and_aux, batch: tuple, *replicated) -> dict[str, Any]:
    """(gradients of the summed losses, losses, aux) of one step on one device, under sharded `jit`, and under
    `pmap`.

    Args:
      loss_and_aux: (batch, *replicated, axis_name=) -> losses, aux; losses are shares, aux is global.
      batch: pytree of arrays with a leading batch axis that eight divides; its first entry is differentiated.
    """

    def step(batch, *rest, axis_name=None):
        def total(first):
            losses, aux = loss_and_aux((first, *batch[1:]), *rest, axis_name=axis_name)
            return sum(losses.values()), (losses, aux)

        gradient, (losses, aux) = jax.grad(total, has_aux=True)(batch[0])
        if axis_name is not None:
            losses = jax.lax.psum(losses, axis_name)
        return gradient, losses, aux

    devices = jax.devices()[:8]
    assert len(devices) == 8, "needs eight (virtual) devices"
    sharding = NamedSharding(Mesh(np.array(devices), ("data",)), PartitionSpec("data"))
    spread = jax.device_put(batch, sharding)
    split = jax.tree.map(lambda x: x.reshape(8, -1, *x.shape[1:]), batch)
    mapped = jax.pmap(
        lambda rows, *rest: step(rows, *rest, axis_name="batch"),
        axis_name="batch",
        devices=devices,
        in_axes=(0,) + (None,) * len(replicated),
    )(split, *replicated)
    gradient, losses, aux = jax.device_get(mapped)
    for value in jax.tree.leaves((losses, aux)):
        np.testing.assert_array_equal(value, np.broadcast_to(value[:1], value.shape))
    first = jax.tree.map(lambda x: x[0], (losses, aux))
    sharded = jax.jit(step).lower(spread, *replicated).compile()
    assert "all-gather" not in sharded.as_text(), "a device collects other devices' rows"
    return {
        "one": jax.jit(step)(batch, *replicated),
        "sharded": sharded(spread, *replicated),
        "pmap": (jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), gradient), *first),
    }
