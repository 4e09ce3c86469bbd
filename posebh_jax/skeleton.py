"""A new skeleton without training: prototypes from the embeddings at the annotated points of a few pictures.

Each annotated person gives one embedding a keypoint, the mean under the keypoint's target; its mirror image gives
another. Embeddings are first made *discriminating*: the mean of the background (pixels far from every keypoint) is
subtracted, and the background's covariance is whitened, as linear discriminant analysis does, so that what is common in
pictures counts little. This is one affine map, hence part of the embedding head's last convolution. Prototypes are then
the method's own: Sinkhorn's assignment and the momentum update with a momentum of 0 (`posebh_jax/prototypes.py`).

What the pictures leave open is chosen by leaving one person out: the backbone's expert, whether the embedding head's
output or the backbone's features are taken, and the prototypes a keypoint.

Symbols: N people, S = 2N figures with their mirror images, K keypoints, M prototypes of a keypoint, D embedding.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.datasets import PoseDataset
from pose_common import heatmaps
from pose_common.images import normalise_pixels
from pose_common.training.configuration import read as read_configuration
from posebh_jax import prototypes
from posebh_jax.comparison import PRECISE, best_similarities, unit_length
from posebh_jax.figures import Figures
from posebh_jax.heads import BARE, enlarged
from posebh_jax.keypoint_index import KeypointIndex
from posebh_jax.model import PoseBH
from posebh_jax.predictor import Predictor
from posebh_jax.prototypes import Labels, Observed, PrototypeConfig
from posebh_jax.weights.manifest import manifest_of, model_of
from posebh_jax.weights.transfer import single_dataset

HEAD, FEATURES = "embedding head", "backbone features"
PER_KEYPOINT = (1, 3)
"""Numbers of prototypes a keypoint of which the better is chosen."""
JUDGES = 24
"""People by whom the choice is made, at most: those are left out one after the other."""
ROUNDS = 10
SHRINKAGE = 0.1
"""Share of the mean variance that is added to each variance before whitening."""
BACKGROUND = 0.1
"""A pixel is background where no target reaches this."""
FAR = 0.25
"""A left-out person's error counts up to this share of the crop's longer side."""


class Choice(NamedTuple):
    """What leaving one out decides: number of the expert, `HEAD` or `FEATURES`, prototypes a keypoint."""

    expert: int
    source: str
    per_keypoint: int


class Seen(NamedTuple):
    """What figures showed.

    Attributes:
      points: [S, K, D], the embedding of every labelled point.
      labelled: [S, K], 0 or 1.
      count, total, products: of the background's pixels: their number, sum [D] and sum of outer products [D, D].
    """

    points: jax.Array
    labelled: jax.Array
    count: jax.Array
    total: jax.Array
    products: jax.Array


class Context(NamedTuple):
    """The static part of every program: network, crop, the mirrored keypoint of each, the target's deviation in cells,
    DARK's kernel and blur, and the prototypes' settings."""

    model: PoseBH
    input_size: tuple[int, int]
    flip_index: tuple[int, ...]
    sigma: float
    dark: tuple[int, str]
    config: PrototypeConfig


@functools.partial(jax.jit, static_argnames="model")
def _features(model: PoseBH, variables: Mapping, image: jax.Array, expert: jax.Array) -> jax.Array:
    """[2B, h, w, C] of crops [B, H, W, 3], and then of their mirror images."""
    both = jnp.concatenate([image, image[:, :, ::-1]])
    return model.apply(variables, normalise_pixels(both), jnp.full(len(both), expert), method="features")


def _embedding(model: PoseBH, variables: Mapping, features: jax.Array, source: str) -> jax.Array:
    return model.apply(variables, features, method="embed") if source == HEAD else enlarged(features)


def targets(context: Context, keypoints: jax.Array, visible: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Target maps [2B, h, w, K] of `size` (width, height), of B people and then of their mirror images."""
    flip = np.array(context.flip_index)
    mirrored = keypoints[:, flip].at[..., 0].multiply(-1).at[..., 0].add(context.input_size[0] - 1)
    points, shown = jnp.concatenate([keypoints, mirrored]), jnp.concatenate([visible, visible[:, flip]])
    return heatmaps.encode(points, shown, True, input_size=context.input_size, heatmap_size=size, sigma=context.sigma)[
        0
    ]


@functools.partial(jax.jit, static_argnames=("context", "source"))
def _observe(context: Context, variables, features, keypoints, visible, present, source: str) -> Seen:
    """`Seen` of B people; `present` [B] is 0 for rows that only fill a batch."""
    maps = _embedding(context.model, variables, features, source)
    target = targets(context, keypoints, visible, (maps.shape[2], maps.shape[1]))
    mass = target.sum((1, 2))
    pooled = jnp.einsum("shwk,shwd->skd", target, maps, precision=PRECISE) / jnp.maximum(mass, 1e-9)[..., None]
    background = (target.max(-1) < BACKGROUND) * jnp.tile(present, 2)[:, None, None]
    return Seen(
        pooled,
        (mass > 0).astype(jnp.float32),
        background.sum(),
        jnp.einsum("shw,shwd->d", background, maps, precision=PRECISE),
        jnp.einsum("shw,shwc,shwd->cd", background, maps, maps, precision=PRECISE),
    )


def whitening(seen: Seen) -> tuple[jax.Array, jax.Array]:
    """(mean [D], symmetric matrix [D, D]): (x - mean) @ matrix has a background of zero mean and unit covariance.

    Without background, where keypoints cover the whole crop, or with one of a single colour, x is only moved.
    """
    count, dim = jnp.maximum(seen.count, 1), len(seen.total)
    mean = seen.total / count
    covariance = seen.products / count - jnp.outer(mean, mean)
    spread = jnp.trace(covariance)
    covariance = jnp.where(spread > 0, covariance + SHRINKAGE * spread / dim * jnp.eye(dim), jnp.eye(dim))
    values, vectors = jnp.linalg.eigh(covariance)
    return mean, jnp.matmul(vectors * jax.lax.rsqrt(values), vectors.T, precision=PRECISE)


def bank_of(points: jax.Array, labelled: jax.Array, per_keypoint: int, config: PrototypeConfig) -> jax.Array:
    """Prototypes [K, M, D] of points [S, K, D] with labels [S, K]; of a keypoint without labels, zeros.

    Rounds of Sinkhorn's assignment and updates without momentum or noise. They start near the keypoint's mean, which is
    also what a prototype without points becomes.
    """
    count, dim = points.shape[1:]
    mean = unit_length(jnp.einsum("sk,skd->kd", labelled, unit_length(points), precision=PRECISE))
    mean = jnp.broadcast_to(mean[:, None], (count, per_keypoint, dim))
    if per_keypoint == 1:
        return mean  # which is what the rounds come to
    keypoint = jnp.where(labelled > 0, jnp.arange(count), -1)[:, :, None, None]
    labels = Labels(keypoint, labelled[:, :, None, None], jnp.zeros((len(points), 1), jnp.int32))

    def one_round(_, bank: jax.Array) -> jax.Array:
        similarity = jnp.abs(jnp.einsum("skd,kmd->skm", unit_length(points), bank, precision=PRECISE))
        assignment = prototypes.assign(
            similarity[:, :, None, :, None], labels, keypoint_index=KeypointIndex((count,)), config=config
        )
        observed = Observed(points[:, :, None], labels, assignment[..., 0], labelled[:, :, None])
        moved, mass = prototypes.update_prototypes(bank, observed, jnp.zeros(assignment.shape[:-1]), momentum=0.0)
        return jnp.where(mass[..., None] > 0, moved, mean)

    noise = prototypes.init_prototypes(jax.random.key(0), count, per_keypoint, dim)
    return jax.lax.fori_loop(0, ROUNDS, one_round, unit_length(mean + 0.5 * noise))


@functools.partial(jax.jit, static_argnames=("context", "source", "per_keypoint"))
def _left_out_error(
    context: Context, variables, features, keypoints, visible, source: str, per_keypoint: int
) -> jax.Array:
    """Mean distance of each person's keypoints by the prototypes of the others, with the flip test.

    It is a share of the crop's longer side, and at most `FAR`. The affine map is everybody's.
    """
    people = len(keypoints)
    seen = _observe(context, variables, features, keypoints, visible, jnp.ones(people), source)
    mean, matrix = whitening(seen)
    points = jnp.matmul(seen.points - mean, matrix, precision=PRECISE)
    person = jnp.tile(jnp.arange(people), 2)
    others = seen.labelled * (person != jnp.arange(people)[:, None])[..., None]  # [N, S, K]
    banks = jax.vmap(lambda labelled: bank_of(points, labelled, per_keypoint, context.config))(others)
    maps = jnp.matmul(_embedding(context.model, variables, features, source) - mean, matrix, precision=PRECISE)
    maps = jnp.moveaxis(maps.reshape(2, people, *maps.shape[1:]), 0, 1)  # [N, 2, h, w, D]
    best = jax.vmap(best_similarities)(maps, banks)
    found = prototypes.prototype_heatmaps(best)
    merged = heatmaps.flip_merge(found[:, 0], found[:, 1], np.array(context.flip_index), shift=False)
    crops = jnp.broadcast_to(jnp.eye(2, 3), (people, 2, 3))
    kernel, blur = context.dark
    decoded = heatmaps.decode(merged, crops, udp=True, input_size=context.input_size, kernel=kernel, blur=blur)
    distance = jnp.linalg.norm(decoded[..., :2] - keypoints, axis=-1) / max(context.input_size)
    counted = visible * others.any(axis=1)
    return (jnp.minimum(distance, FAR) * counted).sum() / jnp.maximum(counted.sum(), 1)


class Learned(NamedTuple):
    """A skeleton as learned: what was chosen, the affine map of the embedding, and the prototypes [K, M, D]."""

    choice: Choice
    mean: jax.Array
    matrix: jax.Array
    bank: jax.Array


def learn(
    context: Context,
    variables: Mapping[str, Any],
    figures: Figures,
    candidates: Sequence[Choice],
    batch_size: int,
) -> Learned:
    """The skeleton of annotated people: the best of the candidates, learned from everybody.

    With one person, or one candidate, the first is taken.
    """
    candidates, people = list(candidates), len(figures.image)
    choice = candidates[0]
    if people > 1 and len(candidates) > 1:
        some = np.linspace(0, people - 1, min(people, JUDGES)).round().astype(int)
        judges = Figures(*(column[some] for column in figures))
        errors: dict[Choice, float] = {}
        for expert, of_expert in itertools.groupby(candidates, key=lambda candidate: candidate.expert):
            parts = [part for _, part in batches(context, variables, judges, expert, batch_size)]
            features = jnp.concatenate([jnp.concatenate(column) for column in zip(*parts, strict=True)])
            for candidate in of_expert:
                error = _left_out_error(context, variables, features, *judges[1:], *candidate[1:])
                errors[candidate] = float(error)
        choice = min(candidates, key=lambda candidate: errors[candidate])
    seen = observe(context, variables, figures, choice, batch_size)
    mean, matrix = whitening(seen)
    points = jnp.matmul(seen.points - mean, matrix, precision=PRECISE)
    return Learned(choice, mean, matrix, bank_of(points, seen.labelled, choice.per_keypoint, context.config))


def batches(
    context: Context, variables: Mapping, figures: Figures, expert: int, batch_size: int
) -> Iterator[tuple[Figures, tuple[jax.Array, jax.Array]]]:
    """Batches of people with their features, of the crops and of the mirrored ones; all of one size for the device."""
    for start in range(0, len(figures.image), batch_size):
        part = Figures(*(column[start : start + batch_size] for column in figures))
        size = len(part.image)
        filled = np.concatenate([part.image, np.repeat(part.image[-1:], batch_size - size, axis=0)])
        plain, mirrored = jnp.split(_features(context.model, variables, filled, jnp.int32(expert)), 2)
        yield part, (plain[:size], mirrored[:size])


def observe(context: Context, variables: Mapping, figures: Figures, choice: Choice, batch_size: int) -> Seen:
    """What all figures show by one expert and source."""
    parts = []
    for part, features in batches(context, variables, figures, choice.expert, batch_size):
        missing = batch_size - len(part.image)
        present = np.pad(np.ones(len(part.image), np.float32), (0, missing))
        both = jnp.concatenate([jnp.pad(half, ((0, missing), *((0, 0),) * 3)) for half in features])
        keypoints, visible = (np.pad(x, ((0, missing), *((0, 0),) * (x.ndim - 1))) for x in part[1:])
        parts.append(_observe(context, variables, both, keypoints, visible, present, choice.source))
    points, labelled = (jnp.concatenate(column) for column in list(zip(*parts, strict=True))[:2])
    return Seen(points, labelled, *(sum(column) for column in list(zip(*parts, strict=True))[2:]))


def fold(
    weights: Mapping[str, Any], model: PoseBH, input_size: tuple[int, int], protocol: PoseDataset, learned: Learned
) -> tuple[dict[str, Any], PoseBH]:
    """(weights, model) of the new skeleton alone.

    The chosen expert is folded into a plain backbone, the affine map into the embedding head's last convolution; there
    is no heatmap head.
    """
    choice, mean, matrix = learned.choice, np.asarray(learned.mean), np.asarray(learned.matrix)
    weights = jax.tree.map(np.asarray, weights)
    manifest = manifest_of(model, input_size, "")
    weights, manifest = single_dataset(weights, manifest, model.datasets[choice.expert][0])
    groups = {name: weights["params"][name] for name in ("backbone", "embedding")}
    statistics = {name: value for name, value in weights["batch_stats"].items() if name == "embedding"}
    if choice.source == HEAD:
        final = groups["embedding"]["final"]
        final = {"kernel": final["kernel"] @ matrix, "bias": (final["bias"] - mean) @ matrix}
        groups["embedding"] = {**groups["embedding"], "final": final}
    else:
        groups["embedding"] = {"final": {"kernel": matrix[None, None], "bias": -mean @ matrix}}
        statistics = {}
        manifest["embedding"] = {**manifest["embedding"], "dim": len(mean), "neck": BARE}
    manifest["datasets"] = [[protocol.name, protocol.num_keypoints]]
    bank = {"bank": np.asarray(learned.bank)}
    return {"params": groups, "batch_stats": statistics, "prototypes": bank}, model_of(manifest, dtype=model.dtype)


def context_of(predictor: Predictor, protocol: PoseDataset) -> Context:
    """With the released settings of targets and prototypes."""
    released = read_configuration("mdt:base")
    return Context(
        predictor.model,
        predictor.input_size,
        tuple(protocol.keypoints.flip_index.tolist()),
        released.heatmap_sigma,
        (predictor.dark_kernel, predictor.dark_blur),
        PrototypeConfig(**released.losses),
    )


def learn_skeleton(
    predictor: Predictor,
    weights: Mapping[str, Any],
    figures: Figures,
    protocol: PoseDataset,
    *,
    per_keypoint: int | None,
    batch_size: int,
) -> Learned:
    """The skeleton of annotated people by a model with prototypes; see `PoseModel.learn_skeleton`.

    Args:
      predictor: of the model.
      weights: `params`, `batch_stats` and `prototypes`.
      figures: the people, cropped as `protocol` says.
      protocol: of the new skeleton.
      per_keypoint: prototypes of a keypoint; None: what leaves one out best.
      batch_size: crops that go through the network together.

    Raises:
      ValueError: a number of prototypes under 1, or a keypoint that lies in no crop.
    """
    if per_keypoint is not None and per_keypoint < 1:
        raise ValueError(f"per_keypoint={per_keypoint}: expected 1 or more prototypes a keypoint")
    context = context_of(predictor, protocol)
    experts, counts = range(max(1, predictor.model.num_experts)), (per_keypoint,) if per_keypoint else PER_KEYPOINT
    candidates = [Choice(*found) for found in itertools.product(experts, (HEAD, FEATURES), counts)]
    variables = {name: weights[name] for name in ("params", "batch_stats")}
    learned = learn(context, variables, figures, candidates, batch_size)
    unseen = ~np.asarray(learned.bank).any(axis=(1, 2))
    if unseen.any():
        lost = ", ".join(np.array(protocol.keypoints.keypoints)[unseen])
        raise ValueError(f"boxes: {lost} of {protocol.name!r} lies in no crop; give boxes around whole people, or none")
    return learned
