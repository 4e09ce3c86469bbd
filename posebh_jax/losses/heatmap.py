"""Squared error of heatmaps, and the accuracy that is logged beside it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from pose_common.collectives import global_batch_size, global_sum
from pose_common.heatmaps import decode_argmax
from posebh_jax.keypoint_index import KeypointIndex


def heatmap_mse(
    maps: jax.Array,
    targets: jax.Array,
    keypoint_weights: jax.Array,
    images: jax.Array | int,
    keypoint_index: KeypointIndex,
) -> jax.Array:
    """Squared error: mean over images and pixels of (weight x difference)^2, then over a dataset's keypoints.

    Args:
      maps, targets: [B, h, w, T].
      keypoint_weights: [B, T]; 0 for what does not count. It multiplies prediction and target, so it enters squared.
      images: how many images of the global batch the mean is over, one number or [n] per dataset: the whole
        batch for heads, a dataset's own images for prototype maps, those with a pseudo label for the
        cross-type term.

    Returns:
      [n] per-device losses; 0 for a dataset without images.
    """
    error = jnp.square(keypoint_weights[:, None, None, :] * (maps - targets))
    per_keypoint = keypoint_index.sum_by_dataset(error.sum(axis=(0, 1, 2))) / np.asarray(
        keypoint_index.counts, np.float32
    )
    return per_keypoint / (jnp.maximum(images, 1) * maps.shape[1] * maps.shape[2])


def head_terms(
    maps: jax.Array,
    targets: jax.Array,
    keypoint_weights: jax.Array,
    *,
    keypoint_index: KeypointIndex,
    axis_name: str | None = None,
) -> jax.Array:
    """Losses [n] of the heatmap heads, over the whole batch: images of other datasets count as zero error."""
    return heatmap_mse(maps, targets, keypoint_weights, global_batch_size(maps.shape[0], axis_name), keypoint_index)


def count_images(dataset: jax.Array, keypoint_index: KeypointIndex, axis_name: str | None = None) -> jax.Array:
    """float32 [n]: images of each dataset in the global batch."""
    one_hot = jax.nn.one_hot(dataset, keypoint_index.num_datasets)
    return global_sum(one_hot.sum(axis=0), axis_name)


def keypoint_accuracy(
    maps: jax.Array,
    targets: jax.Array,
    keypoint_weights: jax.Array,
    *,
    keypoint_index: KeypointIndex,
    threshold: float = 0.05,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Share of keypoints whose highest cell is near the target's, for logging only.

    Distances are relative to (h, w) for (x, y), swapped as in the release, so that logged curves can be
    compared.

    Args:
      maps, targets: [B, h, w, T].
      keypoint_weights: [B, T]; keypoints with 0 are left out.

    Returns:
      accuracy [n], mean over a dataset's keypoints of their share (0 where none is labelled), and how many of
      its keypoints that mean is over [n].
    """
    size = jnp.asarray(maps.shape[1:3], jnp.float32)
    distance = jnp.linalg.norm((decode_argmax(maps)[0] - decode_argmax(targets)[0]) / size, axis=-1)
    labelled = keypoint_weights > 0
    hits, seen = global_sum(((labelled & (distance < threshold)).sum(0), labelled.sum(0)), axis_name)
    counted = keypoint_index.sum_by_dataset((seen > 0).astype(jnp.float32))
    return keypoint_index.sum_by_dataset(hits / jnp.maximum(seen, 1)) / jnp.maximum(counted, 1), counted
