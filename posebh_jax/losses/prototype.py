"""Embeddings against keypoint prototypes: cross entropy (PPC), distance (PPD) and prototype heatmaps (section 3.2)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pose_common.collectives import global_sum
from posebh_jax import prototypes as protos
from posebh_jax.keypoint_index import KeypointIndex
from posebh_jax.losses.heatmap import count_images, heatmap_mse
from posebh_jax.prototypes import PRECISE, Labels, Observed, PrototypeConfig


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


def log_partition(similarity: jax.Array, members: jax.Array) -> jax.Array:
    """log sum exp over the prototypes that compete in a slot.

    Similarities lie in [0, 1], so the sum needs no shift.

    Args:
      similarity: [B, h, w, M, T].
      members: [B, T, G].

    Returns:
      [B, h, w, G].
    """
    mass = jnp.exp(similarity).sum(axis=-2)
    return jnp.log(jnp.einsum("bhwt,btg->bhwg", mass, members, precision=PRECISE))


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
      partition: [B, h, w, G] from `log_partition`.
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


def _compare(embedding: jax.Array, bank: jax.Array, labels: Labels, keypoint_index: KeypointIndex):
    """`log_partition` [B, h, w, G], and [B, h, w, M, G]: labelled pixels against their own keypoint's prototypes."""
    members = protos.slot_members(labels, keypoint_index)

    def band(embedding, keypoint):
        similarity = protos.similarities(embedding, bank)
        pixels = protos.pixel_matrix(keypoint, keypoint_index.total)[..., None, :]
        own = jnp.einsum("bhwmt,btg->bhwmg", similarity * pixels, members, precision=PRECISE)
        return log_partition(similarity, members), own

    return protos.chunked_map(band, embedding, labels.keypoint)


def contrast(
    embedding: jax.Array,
    bank: jax.Array,
    labels: Labels,
    *,
    keypoint_index: KeypointIndex,
    config: PrototypeConfig,
    axis_name: str | None = None,
) -> Contrast:
    """Prototype loss of the labelled pixels (PoseBH, equations of PPC and PPD), summed over datasets.

    Args:
      embedding: [B, h, w, D].
      bank: prototypes [T, M, D].
      labels: the labelled pixels.
    """
    partition, similarity = _compare(embedding, bank, labels, keypoint_index)
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
    best: jax.Array,
    targets: jax.Array,
    keypoint_weights: jax.Array,
    dataset: jax.Array,
    prototypes: jax.Array,
    *,
    keypoint_index: KeypointIndex,
    config: PrototypeConfig,
    axis_name: str | None = None,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array], Observed]:
    """Losses of the annotated images against their own dataset's prototypes.

    Args:
      embedding: [B, h, w, D], any length.
      best: [B, h, w, T], `best_similarities(embedding, prototypes)`.
      targets, keypoint_weights: [B, h, w, T], [B, T].
      dataset: int32 [B].
      prototypes: [T, M, D] unit vectors.

    Returns:
      Weighted per-device losses {"prototype", "prototype_heatmap"}; global values: the unweighted `cross_entropy` and
      `distance`, `pixels` [n], and the share of labelled pixels that are `correct`; and what
      `prototypes.update_prototypes` needs.
    """
    labels = protos.label_pixels(targets, dataset, config.label_threshold)
    terms = contrast(embedding, prototypes, labels, keypoint_index=keypoint_index, config=config, axis_name=axis_name)
    images = count_images(dataset, keypoint_index, axis_name)
    maps_loss = heatmap_mse(protos.prototype_heatmaps(best), targets, keypoint_weights, images, keypoint_index).sum()
    losses = {"prototype": terms.loss, "prototype_heatmap": config.heatmap_weight * maps_loss}

    correct = protos.is_correct(labels, best, keypoint_index).astype(jnp.float32)
    aux = {
        "cross_entropy": terms.cross_entropy,
        "distance": terms.distance,
        "pixels": terms.pixels,
        "correct": global_sum(correct.sum(), axis_name) / jnp.maximum(terms.pixels.sum(), 1),
    }
    weight = correct if config.weigh_by_correctness else correct * labels.confidence[..., 0]
    observed = Observed(embedding, labels, terms.assignment[..., 0], weight)
    return losses, aux, jax.lax.stop_gradient(observed)
