"""Keypoint prototypes: similarity, assignment of pixels, momentum update (PoseBH, CVPR 2025, section 3.2).

Every keypoint of every skeleton owns M unit vectors in the embedding space, P [T, M, D]. A pixel is compared
with all of them by the absolute cosine; the best of a keypoint's M is that keypoint's value in the *prototype
heatmap*.

Nothing here loops over datasets, keypoints or people. A *labelled pixel* has a global keypoint
id; which of them belong to a keypoint is a 0/1 matrix [pixels, T], and everything that is "per keypoint over
its labelled pixels" is a product with it. Products (not scatters) are deterministic on every platform and fast on
matrix units. A pixel may have several labels, one per *slot*: G = 1 where only its own dataset
labels it, G = n where every other dataset does (see `cross_type.py`). Axes: B images, h, w map, T keypoints,
M prototypes of a keypoint, D embedding, G slots.

Prototypes are not trained by gradients: everything here treats them as constants. All arithmetic is float32
with full precision products, because arg-maxes are taken of the results. Functions that reduce over the batch
take `axis_name` and return values that are global and equal on all devices.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pose_common.collectives import global_sum
from pose_common.heatmaps import first_maximum
from posebh_jax.comparison import CHOICE, PRECISE, Slots, pixel_matrix, unit_length
from posebh_jax.keypoint_index import KeypointIndex

# Prototype heatmaps are kept away from 0 and 1, as in the release; no gradient flows where this clips.
HEATMAP_RANGE = (1e-4, 1 - 1e-4)


@dataclasses.dataclass(frozen=True)
class PrototypeConfig:
    """Settings of the prototype losses: `config.losses` (the paper's numbers are in configs/mdt.py).

    Attributes:
      momentum: share of the old prototype that an update keeps.
      sinkhorn_epsilon: temperature of the assignment.
      sinkhorn_rounds: rounds of (columns, rows) normalisation.
      label_threshold: a pixel is labelled where its largest target exceeds this.
      weigh_by_correctness: labelled pixels enter an update with weight 1 when correct, else 0, instead of their
        confidence.
      contrast_weight: weight of cross entropy and distance together.
      cross_entropy_weight, distance_weight: their weights within that.
      heatmap_weight: of the prototype heatmaps' squared error, in the cluster and cross-type terms as well.
      cluster_weight: of the cluster terms.
      cross_type_weight: of the cross-type terms.
      cross_type_threshold: both peaks must exceed this.
      cross_type_distance: cells that the two peaks may lie apart.
      cross_type_kernel: side of the Gaussian that DARK blurs both maps with.
      cross_type_sigma: of the pseudo label's Gaussian, in cells.
    """

    momentum: float
    sinkhorn_epsilon: float
    sinkhorn_rounds: int
    label_threshold: float
    weigh_by_correctness: bool
    contrast_weight: float
    cross_entropy_weight: float
    distance_weight: float
    heatmap_weight: float
    cluster_weight: float
    cross_type_weight: float
    cross_type_threshold: float
    cross_type_distance: float
    cross_type_kernel: int
    cross_type_sigma: float


class Labels(NamedTuple):
    """Labels: which keypoint a pixel stands for.

    Attributes:
      keypoint: int32 [B, h, w, G], global id, -1 where the pixel is not labelled.
      confidence: float32 [B, h, w, G], target value at the pixel.
      dataset: int32 [B, G], the dataset whose keypoints compete in a slot. Slots of an image differ in it.
    """

    keypoint: jax.Array
    confidence: jax.Array
    dataset: jax.Array


class Observed(NamedTuple):
    """What a step saw of its labelled pixels, for the prototypes' update; all without gradient.

    Attributes:
      embedding: [B, h, w, D].
      labels: the labelled pixels of each image's own dataset (one slot).
      assignment: [B, h, w, M] from `assign`.
      weight: [B, h, w], confidence or correctness; labelled pixels with 0 move nothing.
    """

    embedding: jax.Array
    labels: Labels
    assignment: jax.Array
    weight: jax.Array


def init_prototypes(key: jax.Array, num_keypoints: int, per_keypoint: int, dim: int) -> jax.Array:
    """Random unit vectors [T, M, D].

    The reference draws N(0, 0.02) cut at +-2, a hundred deviations, and normalises: a plain normal draw is
    the same.
    """
    return unit_length(jax.random.normal(key, (num_keypoints, per_keypoint, dim)))


def prototype_heatmaps(best: jax.Array) -> jax.Array:
    """Heatmaps [B, h, w, T] from `Comparison.best`."""
    return jnp.clip(best, *HEATMAP_RANGE)


def label_pixels(targets: jax.Array, dataset: jax.Array, threshold: float) -> Labels:
    """Labelled pixels of each image's own dataset: the keypoint with the largest target, the first on ties.

    Args:
      targets: [B, h, w, T], zero for keypoints of other datasets.
      dataset: int32 [B].
      threshold: a pixel is labelled where its largest target exceeds this.

    Returns:
      Labels with one slot.
    """
    confidence, largest = first_maximum(targets, axis=-1)
    keypoint = jnp.where(confidence > threshold, largest, -1)
    return Labels(keypoint[..., None], confidence[..., None], dataset[:, None])


def slot_members(labels: Labels, keypoint_index: KeypointIndex) -> jax.Array:
    """float32 [B, T, G]: 1 where a keypoint competes in a slot."""
    return keypoint_index.own(labels.dataset).swapaxes(1, 2).astype(jnp.float32)


def own_slots(targets: jax.Array, dataset: jax.Array, threshold: float, keypoint_index: KeypointIndex) -> Slots:
    """Those of `label_pixels`, for `compare_each`."""
    labels = label_pixels(targets, dataset, threshold)
    return Slots(labels.keypoint, slot_members(labels, keypoint_index))


def is_correct(labels: Labels, best: jax.Array, keypoint_index: KeypointIndex) -> jax.Array:
    """bool [B, h, w]: the labelled pixel's own keypoint is the most similar one of its dataset (one slot).

    Keypoints of other datasets do not compete: another skeleton's left shoulder winning is no mistake.
    """
    own = keypoint_index.own(labels.dataset[:, 0])[:, None, None, :]
    return first_maximum(jnp.where(own, best, -1.0), axis=-1)[1] == labels.keypoint[..., 0]


def assign(
    similarity: jax.Array,
    labels: Labels,
    *,
    keypoint_index: KeypointIndex,
    config: PrototypeConfig,
    axis_name: str | None = None,
) -> jax.Array:
    """Sinkhorn's soft assignment of labelled pixels to their keypoint's prototypes, for all keypoints at once.

    A keypoint's n labelled pixels share its M prototypes equally: rounds of (each prototype's column to 1/M, each
    labelled pixel's row to 1/n), then times n. Only the ratio of such constants to the next normalisation matters, so
    columns are brought to 1 and rows to 1. exp(s / epsilon) would reach 5e8 at epsilon 0.05; exp((s - 1) /
    epsilon) differs by a constant factor and lies in (2e-9, 1]. A single labelled pixel ties exactly.

    Args:
      similarity: [B, h, w, M, G], similarity of a labelled pixel to its own keypoint's prototypes.
      labels: the labelled pixels.

    Returns:
      [B, h, w, M, G]: rows sum to 1 over M; zero where there is no label.
    """
    members = slot_members(labels, keypoint_index)
    pixels = pixel_matrix(labels.keypoint, members)
    valid = (labels.keypoint >= 0)[..., None, :]
    q = jnp.where(valid, jnp.exp((similarity - 1) / config.sinkhorn_epsilon), 0.0)

    def one_round(_, q):
        per_slot = jnp.einsum("bhwt,bhwmg->btmg", pixels, q, precision=(CHOICE, PRECISE))
        columns = global_sum(jnp.einsum("btmg,btg->tm", per_slot, members, precision=PRECISE), axis_name)
        at_slot = jnp.einsum("tm,btg->btmg", columns, members, precision=PRECISE)
        at_pixel = jnp.einsum("bhwt,btmg->bhwmg", pixels, at_slot, precision=(CHOICE, PRECISE))
        q = q / jnp.where(valid, at_pixel, 1.0)
        return q / jnp.where(valid, q.sum(axis=-2, keepdims=True), 1.0)

    return jax.lax.fori_loop(0, config.sinkhorn_rounds, one_round, q)


def gumbel_noise(keys: jax.Array, height: int, width: int, per_keypoint: int) -> jax.Array:
    """Gumbel(0, 1) noise [B, h, w, M], one key [B] an image."""
    return jax.vmap(lambda key: jax.random.gumbel(key, (height, width, per_keypoint)))(keys)


def update_prototypes(
    prototypes: jax.Array,
    observed: Observed,
    noise: jax.Array,
    *,
    momentum: float,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Momentum update: moves prototypes towards the labelled pixels that a hard Gumbel draw gives them.

    The noise is added to the probabilities, not to their logarithms, and the weight enters squared, both as
    released. The arg-max is all that a hard Gumbel-softmax keeps, so its temperature has no effect.

    Args:
      prototypes: [T, M, D] unit vectors.
      observed: the labelled pixels.
      noise: [B, h, w, M] Gumbel(0, 1).
      momentum: share of the old prototype that is kept.

    Returns:
      prototypes [T, M, D], those without labelled pixels untouched, and the mass [T, M] that each received.
    """
    embedding, labels, assignment, weight = observed
    per_keypoint = prototypes.shape[1]
    drawn = jax.nn.one_hot(jnp.argmax(assignment + noise, axis=-1), per_keypoint) * weight[..., None]
    features = unit_length(embedding.astype(jnp.float32)) * weight[..., None]
    pulls = drawn[..., None] * features[..., None, :]
    pixels = (labels.keypoint == jnp.arange(prototypes.shape[0])).astype(jnp.float32)  # one slot
    mass = global_sum(jnp.einsum("bhwt,bhwm->tm", pixels, drawn, precision=(CHOICE, PRECISE)), axis_name)
    pull = global_sum(jnp.einsum("bhwt,bhwmd->tmd", pixels, pulls, precision=(CHOICE, PRECISE)), axis_name)
    moved = unit_length(momentum * prototypes + (1 - momentum) * unit_length(pull))
    return jnp.where(mass[..., None] > 0, moved, prototypes), mass
