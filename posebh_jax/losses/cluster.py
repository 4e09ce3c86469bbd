"""The prototype and heatmap losses of the cluster bank (PoseBH, CVPR 2025, section 3.3)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from pose_common.collectives import global_batch_size
from posebh_jax.clusters import ClusterBank
from posebh_jax.comparison import CHOICE, PRECISE, Comparison, Slots, compare
from posebh_jax.losses.heatmap import heatmap_mse
from posebh_jax.losses.prototype import contrast
from posebh_jax.prototypes import PrototypeConfig, label_pixels, own_slots, prototype_heatmaps


def cluster_terms(
    embedding: jax.Array,
    targets: jax.Array,
    keypoint_weights: jax.Array,
    bank: ClusterBank,
    *,
    config: PrototypeConfig,
    axis_name: str | None = None,
    compared: Comparison | None = None,
    similarity: jax.Array | None = None,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Prototype and heatmap loss of the cluster bank on targets moved to clusters.

    A cluster whose keypoint belongs to another dataset has an empty target and no weight. Clusters that share
    a keypoint have equal targets, and the first of them owns the pixels. The heatmap loss is over the whole
    batch.

    Args:
      embedding: [B, h, w, D].
      targets, keypoint_weights: [B, h, w, T], [B, T].
      bank: from `choose_clusters`.
      compared: `compare(embedding, bank.prototypes, bank.keypoint_index)`; None: it is made here.
      similarity: see `contrast`; of `cluster_slots`.

    Returns:
      The weighted per-device loss {"cluster"}, and global: unweighted `cross_entropy`, `distance`, and `pixels`.
    """
    keypoint_index = bank.keypoint_index
    targets, keypoint_weights = _moved(targets, bank), _moved(keypoint_weights, bank)
    labels = label_pixels(targets, _one_dataset(targets), config.label_threshold)
    compared = compare(embedding, bank.prototypes, keypoint_index) if compared is None else compared
    shared: dict[str, Any] = {"keypoint_index": keypoint_index, "config": config, "axis_name": axis_name}
    terms = contrast(embedding, compared.partition, bank.prototypes, labels, similarity=similarity, **shared)
    maps = prototype_heatmaps(compared.best)
    images = global_batch_size(maps.shape[0], axis_name)
    error = heatmap_mse(maps, targets, keypoint_weights, images, keypoint_index).sum()
    loss = config.cluster_weight * (terms.loss + config.heatmap_weight * error)
    aux = {"cross_entropy": terms.cross_entropy, "distance": terms.distance, "pixels": terms.pixels.sum()}
    return {"cluster": loss}, aux


def cluster_slots(targets: jax.Array, bank: ClusterBank, config: PrototypeConfig) -> Slots:
    """The labelled pixels of `cluster_terms`, for `compare_each`; targets as there."""
    moved = _moved(targets, bank)
    return own_slots(moved, _one_dataset(moved), config.label_threshold, bank.keypoint_index)


def _moved(values: jax.Array, bank: ClusterBank) -> jax.Array:
    """[..., T] of the keypoints -> [..., C] of the clusters.

    A product with a 0/1 matrix copies exactly; gathers along the last axis are slow on matrix hardware.
    """
    moves = jax.nn.one_hot(bank.keypoint, values.shape[-1], axis=0)
    return jnp.matmul(values, moves, precision=(PRECISE, CHOICE))


def _one_dataset(targets: jax.Array) -> jax.Array:
    """Clusters are of one dataset, and so is every image."""
    return jnp.zeros(targets.shape[0], jnp.int32)
