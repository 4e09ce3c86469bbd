"""Cross-type self-supervision: heads and prototypes agree on skeletons that an image is not annotated with.

For each dataset and the images of *other* datasets, the dataset's head and its prototype heatmaps are
compared; where both are confident and agree, a pseudo label between their positions supervises head,
prototypes and embedding (PoseBH, CVPR 2025, section 3.4). No gradient flows through the pseudo label. All of
it runs on the device, for all keypoints of all skeletons at once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pose_common.collectives import global_sum
from pose_common.heatmaps import decode_dark_udp, encode, first_maximum
from posebh_jax.comparison import Comparison
from posebh_jax.keypoint_index import KeypointIndex
from posebh_jax.losses.heatmap import heatmap_mse
from posebh_jax.losses.prototype import contrast
from posebh_jax.prototypes import Labels, PrototypeConfig, prototype_heatmaps


class PseudoLabels(NamedTuple):
    """Positions [B, T, 2] in heatmap cells and weights [B, T], both 0 where a keypoint was not selected."""

    position: jax.Array
    weight: jax.Array


def pseudo_labels(
    head_maps: jax.Array,
    proto_maps: jax.Array,
    dataset: jax.Array,
    keypoint_index: KeypointIndex,
    config: PrototypeConfig,
) -> PseudoLabels:
    """Keypoints of other skeletons on which head and prototypes agree.

    A keypoint is selected when both peaks exceed the threshold and lie close together (arg-max of the column
    maxima and of the row maxima, Euclidean distance). Its position is the mean of both DARK positions
    weighted by confidence, its weight the smaller confidence. A position so far outside that its Gaussian
    misses the map is dropped; the release keeps its weight and thereby asks for an empty map.

    Args:
      head_maps, proto_maps: [B, h, w, T] heatmaps of all skeletons.
      dataset: int32 [B].
    """
    head_maps, proto_maps = jax.lax.stop_gradient((head_maps, proto_maps))
    head_at, head_score = decode_dark_udp(head_maps, config.cross_type_kernel)
    proto_at, proto_score = decode_dark_udp(proto_maps, config.cross_type_kernel)
    apart = jnp.linalg.norm(_peak(head_maps) - _peak(proto_maps), axis=-1)
    total = jnp.maximum(head_score + proto_score, 1e-4)[..., None]
    position = (head_score[..., None] * head_at + proto_score[..., None] * proto_at) / total

    cell, reach = jnp.trunc(position + 0.5), 3 * config.cross_type_sigma
    size = jnp.asarray(head_maps.shape[2:0:-1], jnp.float32)
    score = jnp.minimum(head_score, proto_score)
    selected = (
        (score > config.cross_type_threshold)
        & (apart <= config.cross_type_distance)
        & ~keypoint_index.own(dataset)
        & ((cell >= -reach) & (cell <= size - 1 + reach)).all(axis=-1)
    )
    return PseudoLabels(jnp.where(selected[..., None], position, 0.0), jnp.where(selected, score, 0.0))


def _peak(maps: jax.Array) -> jax.Array:
    """[B, T, 2]: column and row of the highest column and row maximum."""
    columns, rows = maps.max(axis=1), maps.max(axis=2)
    return jnp.stack([columns.argmax(axis=1), rows.argmax(axis=1)], axis=-1).astype(jnp.float32)


def _draw(labels: PseudoLabels, heatmap_size: tuple[int, int], sigma: float) -> jax.Array:
    """UDP Gaussians [B, h, w, K] at positions [B, K, 2], zero where the weight is 0."""
    drawn = (labels.weight > 0).astype(jnp.float32)
    in_cells = {"input_size": heatmap_size, "heatmap_size": heatmap_size}
    return encode(labels.position, drawn, True, sigma=sigma, **in_cells)[0]


def label_pseudo_pixels(
    pseudo: PseudoLabels, heatmap_size: tuple[int, int], keypoint_index: KeypointIndex, config: PrototypeConfig
) -> Labels:
    """Labelled pixels of each skeleton: the keypoint with the largest weight x Gaussian. One slot a dataset.

    Dataset after dataset: in one array, padded to the longest, six skeletons with 214 keypoints would be 798 maps.
    """
    of_each = (jnp.split(x, keypoint_index.starts[1:], axis=1) for x in pseudo)
    found = []
    for start, position, weight in zip(keypoint_index.starts, *of_each, strict=True):
        maps = _draw(PseudoLabels(position, weight), heatmap_size, config.cross_type_sigma)
        confidence, largest = first_maximum(maps * weight[:, None, None, :], axis=-1)
        found.append((jnp.where(confidence > config.label_threshold, start + largest, -1), confidence))
    keypoint, confidence = (jnp.stack(maps, axis=-1) for maps in zip(*found, strict=True))
    datasets = jnp.arange(keypoint_index.num_datasets)
    return Labels(keypoint, confidence, jnp.broadcast_to(datasets, (keypoint.shape[0], datasets.size)))


def cross_type_terms(
    embedding: jax.Array,
    head_maps: jax.Array,
    compared: Comparison,
    dataset: jax.Array,
    prototypes: jax.Array,
    *,
    keypoint_index: KeypointIndex,
    config: PrototypeConfig,
    axis_name: str | None = None,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Loss of all skeletons on the images that are annotated with another.

    Args:
      embedding: [B, h, w, D].
      head_maps: [B, h, w, T], heatmap heads of all skeletons.
      compared: `compare(embedding, prototypes)`.
      dataset: int32 [B].
      prototypes: [T, M, D] unit vectors; they do not move here.

    Returns:
      The weighted per-device loss {"cross_type"}, and global values: per dataset [n] the unweighted terms `head`,
      `prototype_heatmap`, and `selected` pseudo keypoints; summed over datasets `cross_entropy` and
      `distance`.
    """
    head_maps, proto_maps = head_maps.astype(jnp.float32), prototype_heatmaps(compared.best)
    heatmap_size = head_maps.shape[2], head_maps.shape[1]
    pseudo = pseudo_labels(head_maps, proto_maps, dataset, keypoint_index, config)
    targets = _draw(pseudo, heatmap_size, config.cross_type_sigma)
    chosen = keypoint_index.sum_by_dataset((pseudo.weight > 0).astype(jnp.float32))
    images = global_sum((chosen > 0).sum(axis=0), axis_name)
    head = heatmap_mse(head_maps, targets, pseudo.weight, images, keypoint_index)
    proto = heatmap_mse(proto_maps, targets, pseudo.weight, images, keypoint_index)

    labels = label_pseudo_pixels(pseudo, heatmap_size, keypoint_index, config)
    shared: dict[str, Any] = {"keypoint_index": keypoint_index, "config": config, "axis_name": axis_name}
    terms = contrast(embedding, compared.partition, prototypes, labels, **shared)
    total = head.sum() + config.heatmap_weight * proto.sum() + terms.loss
    head, proto, selected = global_sum(jax.lax.stop_gradient((head, proto, chosen.sum(axis=0))), axis_name)
    aux = {
        "head": head,
        "prototype_heatmap": proto,
        "selected": selected,
        "cross_entropy": terms.cross_entropy,
        "distance": terms.distance,
    }
    return {"cross_type": config.cross_type_weight * total}, aux
