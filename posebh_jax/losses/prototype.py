"""Embeddings against keypoint prototypes: cross entropy (PPC), distance (PPD) and prototype heatmaps (section 3.2)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pose_common.collectives import global_sum
from posebh_jax import prototypes as protos
from posebh_jax.comparison import CHOICE, PRECISE, Comparison, label_similarities
from posebh_jax.keypoint_index import KeypointIndex
from posebh_jax.losses.heatmap import count_images, heatmap_mse
from posebh_jax.prototypes import Labels, Observed, PrototypeConfig


class Contrast(NamedTuple):
    """What the labelled pixels' embeddings say.

    Attributes:
      loss: weighted per-device loss.
      cross_entropy, distance: unweighted, global, summed over datasets; for logging.
      assignment: [B, h, w, M, G], see `prototypes.assign`.
      pixels: float32 [n], labelled pixels of each dataset in the global batch.
    """

    loss: jax.Array
    cross_entropy: jax.Array
    distance: jax.Array
    assignment: jax.Array
    pixels: jax.Array


def contrastive_means(
    partition: jax.Array,
    similarity: jax.Array,
    target: jax.Array,
    labels: Labels,
    *,
    keypoint_index: KeypointIndex,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cross entropy to the target prototype and squared distance (1 - S)^2 from it.

    Args:
      partition: [B, h, w, G], log sum exp of the similarities to all prototypes that compete in a slot.
      similarity: [B, h, w, M, G] of a labelled pixel to its own keypoint's prototypes.
      target: int32 [B, h, w, G], the target among those M.
      labels: the labelled pixels; the mean is over those of each dataset.

    Returns:
      Shares [n] of both means, and the labelled pixels [n] in the global batch.
    """
    valid = labels.keypoint >= 0
    chosen = jax.nn.one_hot(target, similarity.shape[-2], axis=-2)
    hit = (similarity * chosen).sum(axis=-2)
    entropy = jnp.where(valid, partition - hit, 0.0)
    distance = jnp.where(valid, jnp.square(1 - hit), 0.0)
    per_slot = jnp.stack([entropy, distance, valid.astype(jnp.float32)]).sum(axis=(2, 3))
    slots = jax.nn.one_hot(labels.dataset, keypoint_index.num_datasets)
    entropy, distance, count = jnp.einsum("xbg,bgn->xn", per_slot, slots, precision=PRECISE)
    count = global_sum(jax.lax.stop_gradient(count), axis_name)
    return entropy / jnp.maximum(count, 1), distance / jnp.maximum(count, 1), count


def contrast(
    embedding: jax.Array,
    partition: jax.Array,
    bank: jax.Array,
    labels: Labels,
    *,
    keypoint_index: KeypointIndex,
    config: PrototypeConfig,
    axis_name: str | None = None,
    similarity: jax.Array | None = None,
) -> Contrast:
    """Prototype loss of the labelled pixels (PoseBH, equations of PPC and PPD), summed over datasets.

    Args:
      embedding: [B, h, w, D].
      partition: [B, h, w, n], `Comparison.partition` of embedding and bank.
      bank: prototypes [T, M, D].
      labels: the labelled pixels.
      similarity: [B, h, w, M, G] of the labelled pixels, as `compare_each` has them; None: they are made here.
    """
    slots = jax.nn.one_hot(labels.dataset, keypoint_index.num_datasets)
    partition = jnp.einsum("bhwn,bgn->bhwg", partition, slots, precision=(PRECISE, CHOICE))
    if similarity is None:
        members = protos.slot_members(labels, keypoint_index)
        similarity = label_similarities(embedding, bank, labels.keypoint, members)
    assignment = protos.assign(
        jax.lax.stop_gradient(similarity), labels, keypoint_index=keypoint_index, config=config, axis_name=axis_name
    )
    entropy, distance, count = contrastive_means(
        partition,
        similarity,
        jnp.argmax(assignment, axis=-2),
        labels,
        keypoint_index=keypoint_index,
        axis_name=axis_name,
    )
    entropy, distance = entropy.sum(), distance.sum()
    weighted = config.cross_entropy_weight * entropy + config.distance_weight * distance
    entropy, distance = global_sum(jax.lax.stop_gradient((entropy, distance)), axis_name)
    return Contrast(config.contrast_weight * weighted, entropy, distance, assignment, count)


def prototype_terms(
    embedding: jax.Array,
    compared: Comparison,
    targets: jax.Array,
    keypoint_weights: jax.Array,
    dataset: jax.Array,
    prototypes: jax.Array,
    *,
    keypoint_index: KeypointIndex,
    config: PrototypeConfig,
    axis_name: str | None = None,
    similarity: jax.Array | None = None,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array], Observed]:
    """Losses of the annotated images against their own dataset's prototypes.

    Args:
      embedding: [B, h, w, D], any length.
      compared: `compare(embedding, prototypes)`.
      targets, keypoint_weights: [B, h, w, T], [B, T].
      dataset: int32 [B].
      prototypes: [T, M, D] unit vectors.
      similarity: see `contrast`; of `prototypes.own_slots`.

    Returns:
      Weighted per-device losses {"prototype", "prototype_heatmap"}; global values: the unweighted `cross_entropy` and
      `distance`, `pixels` [n], and the share of labelled pixels that are `correct`; and what
      `prototypes.update_prototypes` needs.
    """
    labels = protos.label_pixels(targets, dataset, config.label_threshold)
    shared: dict[str, Any] = {"keypoint_index": keypoint_index, "config": config, "axis_name": axis_name}
    terms = contrast(embedding, compared.partition, prototypes, labels, similarity=similarity, **shared)
    images = count_images(dataset, keypoint_index, axis_name)
    maps = protos.prototype_heatmaps(compared.best)
    maps_loss = heatmap_mse(maps, targets, keypoint_weights, images, keypoint_index)
    # As in the release a dataset without a labelled pixel has no loss, though a keypoint beside the map has a weight.
    maps_loss = jnp.where(terms.pixels > 0, maps_loss, 0.0).sum()
    losses = {"prototype": terms.loss, "prototype_heatmap": config.heatmap_weight * maps_loss}

    correct = protos.is_correct(labels, compared.best, keypoint_index).astype(jnp.float32)
    aux = {
        "cross_entropy": terms.cross_entropy,
        "distance": terms.distance,
        "pixels": terms.pixels,
        "correct": global_sum(correct.sum(), axis_name) / jnp.maximum(terms.pixels.sum(), 1),
    }
    weight = correct if config.weigh_by_correctness else correct * labels.confidence[..., 0]
    observed = Observed(embedding, labels, terms.assignment[..., 0], weight)
    return losses, aux, jax.lax.stop_gradient(observed)
