"""Pixels against prototypes: every cosine is made, used and dropped inside a band of rows, forward and backward.

All similarities of 32 images to 642 prototypes take 250 MB, and plain differentiation writes and reads arrays of that
size a dozen times a term. Here they exist for one band of rows at a time, one prototype of each keypoint after the
other, and the gradient makes them again instead of keeping them (as attention does that never stores its scores).
What leaves a band is small: a value a keypoint, a dataset, or a label.

Products are of full precision where arg-maxes are taken of the results. A TPU makes them in six passes of bfloat16;
with an operand that bfloat16 has exactly, zeros and ones that choose, three are as exact. Those of a gradient are of
the platform's default precision (one pass), as those of the embedding head are, where it goes next; what decides which
prototype a gradient goes to is of full precision there as well. Rows are cut, not images, because images may be spread
over devices. Axes: B images, h, w map, T keypoints, M prototypes of a keypoint,
D embedding, n datasets, G slots (see `prototypes.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from posebh_jax.keypoint_index import KeypointIndex

PRECISE = jax.lax.Precision.HIGHEST
CHOICE = jax.lax.Precision.DEFAULT
"""Of an operand that bfloat16 has exactly: zeros and ones, integers up to 256."""
MATRIX_UNIT = 128
"""Rows of a TPU's matrix unit, v6e's 256 apart."""
BANDS = 8
"""At most; as many as divide the rows of a map."""

_product = functools.partial(jnp.einsum, precision=PRECISE)
_chosen = functools.partial(jnp.einsum, precision=(PRECISE, CHOICE))


class Comparison(NamedTuple):
    """What is known of each pixel without any label.

    Attributes:
      best: [B, h, w, T], |cos| to each keypoint's nearest prototype, in [0, 1].
      partition: [B, h, w, n], log sum exp of |cos| over all prototypes of a dataset. No shift is needed.
    """

    best: jax.Array
    partition: jax.Array


class Slots(NamedTuple):
    """Labelled pixels, as far as they are compared.

    Attributes:
      keypoint: int32 [B, h, w, G], the id in its bank of each slot's keypoint, -1 where there is no label.
      members: float32 [B, T, G], 1 where a keypoint may label a slot.
    """

    keypoint: jax.Array
    members: jax.Array


def unit_length(x: jax.Array) -> jax.Array:
    """Unit length along the last axis; a zero vector stays zero."""
    return x / jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))


def best_similarities(embedding: jax.Array, prototypes: jax.Array) -> jax.Array:
    """`Comparison.best` of prediction, where one skeleton's keypoints are asked for: [B, h, w, D], [T, M, D]."""
    cosines = _cosines(_unit(embedding), _bank(prototypes))
    return functools.reduce(jnp.maximum, map(jnp.abs, cosines))


def compare_each(
    embedding: jax.Array, banks: Sequence[tuple[jax.Array, KeypointIndex]], labels: Sequence[Slots | None]
) -> tuple[list[Comparison], list[jax.Array]]:
    """`compare` and `label_similarities` with each bank, in one pass over the pixels.

    Args:
      embedding: [B, h, w, D], of any length.
      banks: the prototypes of each [T, M, D], and which keypoints are whose; M is the same for all.
      labels: of each bank, the pixels whose similarities to their own keypoint's prototypes are asked for; None for
        none of them.

    Returns:
      What each bank says of all pixels, and of those [B, h, w, M, G].
    """
    prototypes, indices = zip(*banks, strict=True)
    batch, height, width, _ = embedding.shape

    def none(index):
        return Slots(jnp.zeros((batch, height, width, 0), jnp.int32), jnp.zeros((batch, index.total, 0)))

    given = [none(index) if slots is None else slots for slots, index in zip(labels, indices, strict=True)]
    return _compare(_unit(embedding), prototypes, given, indices)


def compare(embedding: jax.Array, prototypes: jax.Array, keypoint_index: KeypointIndex) -> Comparison:
    """Compares every pixel with all prototypes, which are constants for the gradient.

    Args:
      embedding: [B, h, w, D], of any length.
      prototypes: [T, M, D], of any length.
      keypoint_index: which keypoints are whose.
    """
    return compare_each(embedding, [(prototypes, keypoint_index)], [None])[0][0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _compare(unit, prototypes, labels, indices):
    return _compare_forward(unit, prototypes, labels, indices)[0]


def _compare_forward(unit, prototypes, labels, indices):
    bank, whose, slots = _bank(jnp.concatenate(prototypes)), _joint(indices).one_hot, _joint_slots(labels)
    keypoints = np.cumsum([index.total for index in indices])[:-1]
    datasets = np.cumsum([index.num_datasets for index in indices])[:-1]
    places = np.cumsum([one.keypoint.shape[-1] for one in labels])[:-1]

    def band(unit, keypoint):
        labelled = _stands_for(keypoint, slots.members, _own_ids(indices))
        best, mass, own = 0.0, 0.0, []
        for similarity in map(jnp.abs, _cosines(unit, bank)):
            best, mass = jnp.maximum(best, similarity), mass + jnp.exp(similarity)
            own.append(_chosen("bhwt,btg->bhwg", labelled * similarity, slots.members))
        partition = jnp.log(_chosen("bhwt,tn->bhwn", mass, whose))
        # Apart from here on, because a term lays its bank's maps out as it needs them.
        compared = map(Comparison, jnp.split(best, keypoints, axis=-1), jnp.split(partition, datasets, axis=-1))
        return list(compared), jnp.split(jnp.stack(own, axis=-2), places, axis=-1)

    found = _in_bands(band, unit, slots.keypoint)
    return found, (unit, prototypes, labels, [one.partition for one in found[0]])


def _compare_gradient(indices, kept, cotangents):
    unit, prototypes, labels, partitions = kept
    bank, whose, slots = _bank(jnp.concatenate(prototypes)), _joint(indices).one_hot, _joint_slots(labels)

    def band(unit, keypoint, to_best, to_mass, to_own):
        cosines = _cosines(unit, bank)
        labelled = _stands_for(keypoint, slots.members, _own_ids(indices))
        best = functools.reduce(jnp.maximum, map(jnp.abs, cosines))
        to_mass = jnp.einsum("bhwn,tn->bhwt", jnp.concatenate(to_mass, axis=-1), whose)
        # Prototypes that tie share a gradient, as everywhere in JAX.
        ties = sum((jnp.abs(cosine) == best).astype(jnp.float32) for cosine in cosines)
        to_best = jnp.concatenate(to_best, axis=-1) / ties
        to_own = jnp.concatenate(to_own, axis=-1)
        to_unit = 0.0
        for index, (cosine, own) in enumerate(zip(cosines, bank, strict=True)):
            similarity = jnp.abs(cosine)
            back = jnp.where(similarity == best, to_best, 0.0) + to_mass * jnp.exp(similarity)
            back += labelled * jnp.einsum("bhwg,btg->bhwt", to_own[..., index, :], slots.members)
            to_unit += jnp.einsum("bhwt,td->bhwd", jnp.sign(cosine) * back, own)
        return to_unit

    to_compared, to_own = cotangents
    to_best = [one.best for one in to_compared]
    to_mass = [one.partition * jnp.exp(-log) for one, log in zip(to_compared, partitions, strict=True)]
    to_unit = _in_bands(band, unit, slots.keypoint, to_best, to_mass, to_own)
    to_labels = [Slots(None, jnp.zeros_like(one.members)) for one in labels]
    return to_unit, jax.tree.map(jnp.zeros_like, prototypes), to_labels


_compare.defvjp(_compare_forward, _compare_gradient)


def _own_ids(indices: Sequence[KeypointIndex]) -> np.ndarray:
    """int32 [T]: each keypoint's id in its own bank."""
    return np.concatenate([np.arange(index.total) for index in indices])


def _joint_slots(labels: Sequence[Slots]) -> Slots:
    """The slots of all banks, each with keypoints of its own bank alone."""
    keypoint = jnp.concatenate([slots.keypoint for slots in labels], axis=-1)
    before = np.cumsum([0, *(slots.members.shape[-1] for slots in labels)])
    members = [
        jnp.pad(slots.members, ((0, 0), (0, 0), (start, keypoint.shape[-1] - end)))
        for slots, start, end in zip(labels, before[:-1], before[1:], strict=True)
    ]
    return Slots(keypoint, jnp.concatenate(members, axis=1))


def _joint(indices: Sequence[KeypointIndex]) -> KeypointIndex:
    return KeypointIndex(tuple(count for index in indices for count in index.counts))


def label_similarities(embedding: jax.Array, prototypes: jax.Array, keypoint: jax.Array, members: jax.Array):
    """|cos| of labelled pixels to the prototypes of their own keypoint; prototypes are constants for the gradient.

    Args:
      embedding: [B, h, w, D].
      prototypes: [T, M, D].
      keypoint: int32 [B, h, w, G], global id, -1 where there is no label.
      members: float32 [B, T, G], 1 where a keypoint may label a slot.

    Returns:
      [B, h, w, M, G], 0 where there is no label.
    """
    return _label_similarities(_unit(embedding), prototypes, keypoint, members)


@jax.custom_vjp
def _label_similarities(unit, prototypes, keypoint, members):
    return _label_forward(unit, prototypes, keypoint, members)[0]


def _label_forward(unit, prototypes, keypoint, members):
    bank = _bank(prototypes)

    def band(unit, keypoint):
        labelled = pixel_matrix(keypoint, members)
        found = [_chosen("bhwt,btg->bhwg", labelled * cosine, members) for cosine in _cosines(unit, bank)]
        return jnp.stack(found, axis=-2)

    cosine = _in_bands(band, unit, keypoint)
    return jnp.abs(cosine), (prototypes, keypoint, members, jnp.sign(cosine))


def _label_gradient(kept, cotangent):
    prototypes, keypoint, members, sign = kept
    bank = _bank(prototypes)

    def band(keypoint, back):
        labelled = pixel_matrix(keypoint, members)
        to_unit = 0.0
        for index, own in enumerate(bank):
            at_keypoint = labelled * jnp.einsum("bhwg,btg->bhwt", back[..., index, :], members)
            to_unit += jnp.einsum("bhwt,td->bhwd", at_keypoint, own)
        return to_unit

    gradient = _in_bands(band, keypoint, sign * cotangent)
    return gradient, jnp.zeros_like(prototypes), None, jnp.zeros_like(members)


_label_similarities.defvjp(_label_forward, _label_gradient)


def pixel_matrix(keypoint: jax.Array, members: jax.Array) -> jax.Array:
    """`Labels.keypoint` [B, h, w, G], [B, T, G] -> float32 [B, h, w, T]: 1 where a pixel stands for a keypoint."""
    return _stands_for(keypoint, members, np.arange(members.shape[1]))


def _stands_for(keypoint: jax.Array, members: jax.Array, ids: np.ndarray) -> jax.Array:
    """`pixel_matrix`, with ids [T] of the keypoints.

    A keypoint competes in one slot, so a product brings each slot's label to the keypoints of that slot: one
    comparison a keypoint instead of G.
    """
    precision = (CHOICE if ids.max() < 256 else PRECISE, CHOICE)
    label = jnp.einsum("bhwg,btg->bhwt", (keypoint + 1).astype(jnp.float32), members, precision=precision)
    return (label == ids + 1).astype(jnp.float32)


def _unit(embedding: jax.Array) -> jax.Array:
    """Outside of the bands, and differentiated by JAX: all terms of a step share one array of unit vectors."""
    return unit_length(embedding.astype(jnp.float32))


def _bank(prototypes: jax.Array) -> list[jax.Array]:
    """M unit vectors [T, D] of each keypoint."""
    return list(unit_length(prototypes).swapaxes(0, 1))


def _cosines(unit: jax.Array, bank: list[jax.Array]) -> list[jax.Array]:
    """[B, h, w, T] of each of M."""
    if 2 * unit.shape[-1] > MATRIX_UNIT:
        return _plain_cosines(unit, bank)
    return jax.lax.platform_dependent(unit, bank, tpu=_side_by_side, default=_plain_cosines)


def _plain_cosines(unit: jax.Array, bank: list[jax.Array]) -> list[jax.Array]:
    return [_product("bhwd,td->bhwt", unit, own) for own in bank]


def _side_by_side(unit: jax.Array, bank: list[jax.Array]) -> list[jax.Array]:
    """The six products that full precision is made of, two at a time: D = 64 fills half of a matrix unit's rows.

    With x and y as sums of three bfloat16 each, from large to small, x1 y1 + x2 y1 + x1 y2 + x2 y2 + x1 y3 + x3 y1 is
    one product of [x1 x2 x1 x2 x1 x3] and [y1 y1 y2 y2 y3 y1].
    """
    pixels, columns = _of_pixels(unit), map(_of_prototypes, bank)
    product = functools.partial(jnp.einsum, precision=CHOICE, preferred_element_type=jnp.float32)
    return [product("bhwd,td->bhwt", pixels, column) for column in columns]


def _of_pixels(unit: jax.Array) -> jax.Array:
    large, middle, small = _three_parts(jnp.concatenate([unit, unit], axis=-1))
    first = jnp.arange(2 * unit.shape[-1]) < unit.shape[-1]
    pair = jnp.where(first, large, middle)
    return jnp.concatenate([pair, pair, jnp.where(first, large, small)], axis=-1).astype(jnp.bfloat16)


def _of_prototypes(own: jax.Array) -> jax.Array:
    large, middle, small = _three_parts(own)
    return jnp.concatenate([large, large, middle, middle, small, large], axis=-1).astype(jnp.bfloat16)


def _three_parts(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """float32 as the sum of three numbers that bfloat16 has exactly, the largest first."""

    def rounded(x):  # two conversions would be left out by XLA
        return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)

    large = rounded(x)
    middle = rounded(x - large)
    return large, middle, x - large - middle


def _in_bands(function: Callable, *maps: Any):
    """Applies `function` to bands of rows of maps [B, h, w, ...], one after the other, into whole maps."""
    height = jax.tree.leaves(maps)[0].shape[1]
    rows = height // max(count for count in range(1, BANDS + 1) if height % count == 0)

    def cut(start):
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, rows, axis=1), maps)

    def one(index, whole):
        start = index * rows
        found = function(*cut(start))
        return jax.tree.map(lambda x, part: jax.lax.dynamic_update_slice_in_dim(x, part, start, axis=1), whole, found)

    shapes = jax.eval_shape(lambda: function(*cut(0)))
    whole = jax.tree.map(lambda x: jnp.zeros((x.shape[0], height, *x.shape[2:]), x.dtype), shapes)
    return jax.lax.fori_loop(0, height // rows, one, whole)
