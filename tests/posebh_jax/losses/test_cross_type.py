"""Cross-type self-supervision: recorded pseudo labels, losses and gradients; edges; one device against
eight."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posebh_jax import prototypes as protos
from posebh_jax.comparison import compare
from posebh_jax.keypoint_index import KeypointIndex
from posebh_jax.losses import cross_type
from posebh_jax.losses.prototype import contrast
from tests.golden_files import golden
from tests.posebh_jax.method_cases import (
    KEYPOINT_INDEX,
    PAPER,
    close,
    golden_batch,
    nhwc,
    on_every_wrapper,
    random_batch,
    random_prototypes,
    recorded_settings,
)
from tests.settings import SIGMA

pytestmark = pytest.mark.slow  # compiles for eight devices

FILE = "posebh/css.npz"
RECORDED = recorded_settings(FILE, cross_type_weight=1.0)
CONFIG = dataclasses.replace(
    PAPER, contrast_weight=1.0, heatmap_weight=1.0, cross_type_weight=1.0, cross_type_threshold=0.66
)


def recorded():
    case = golden(FILE)
    batch, keypoint_index = golden_batch(FILE)
    heads = jnp.concatenate([nhwc(case[f"head_heatmaps_d{d}"]) for d in range(keypoint_index.num_datasets)], axis=-1)
    return case, batch, keypoint_index, heads, jnp.asarray(case["prototypes"])


def each_dataset(case, name, keypoint_index, absent):
    """The arrays `name_dN`; `absent` for a dataset without a selected keypoint, which has most of them not."""
    return [case.get(f"{name}_d{d}", absent) for d in range(keypoint_index.num_datasets)]


def by_dataset(case, name, keypoint_index):
    """The arrays `name_dN` side by side: [B, T, ...]; zero for a dataset without a selected keypoint."""
    found = each_dataset(case, name, keypoint_index, None)
    batch, _, *rest = next(array.shape for array in found if array is not None)
    zeros = [np.zeros((batch, count, *rest), np.float32) for count in keypoint_index.counts]
    return np.concatenate([z if a is None else a for a, z in zip(found, zeros, strict=True)], axis=1)


@functools.partial(jax.jit, static_argnames=("keypoint_index", "config"))
def loss_and_gradients(maps, dataset, prototypes, keypoint_index, config=CONFIG):
    """((loss, aux), gradients) with respect to embedding, heads and best similarities."""

    def loss(embedding, heads, best):
        compared = compare(embedding, prototypes, keypoint_index)._replace(best=best)
        losses, aux = cross_type.cross_type_terms(
            embedding, heads, compared, dataset, prototypes, keypoint_index=keypoint_index, config=config
        )
        return losses["cross_type"], aux

    return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(*maps)


best_of = jax.jit(lambda embedding, prototypes: compare(embedding, prototypes, KeypointIndex((len(prototypes),))).best)


@functools.partial(jax.jit, static_argnames=("keypoint_index", "config"))
def pseudo_of(heads, best, dataset, keypoint_index, config=CONFIG):
    return cross_type.pseudo_labels(heads, protos.prototype_heatmaps(best), dataset, keypoint_index, config)


@functools.partial(jax.jit, static_argnames="heatmap_size")
def draw(position, heatmap_size):
    return cross_type._draw(cross_type.PseudoLabels(position, jnp.ones(position.shape[:2])), heatmap_size, SIGMA)


@functools.partial(jax.jit, static_argnames=("heatmap_size", "keypoint_index"))
def labels_and_assignment(embedding, pseudo, prototypes, heatmap_size, keypoint_index):
    labels = cross_type.label_pseudo_pixels(pseudo, heatmap_size, keypoint_index, RECORDED)
    partition = compare(embedding, prototypes, keypoint_index).partition
    terms = contrast(embedding, partition, prototypes, labels, keypoint_index=keypoint_index, config=RECORDED)
    return labels, terms.assignment


def test_pseudo_labels():
    case, batch, keypoint_index, heads, prototypes = recorded()
    pseudo = pseudo_of(heads, best_of(batch.embedding, prototypes), batch.dataset, keypoint_index, RECORDED)
    heatmap_size = heads.shape[2], heads.shape[1]
    selected = by_dataset(case, "fixed/selected", keypoint_index)
    np.testing.assert_array_equal(pseudo.weight > 0, selected)
    close(pseudo.weight, by_dataset(case, "fixed/pseudo_weight", keypoint_index)[..., 0], atol=1e-6)
    close(pseudo.position, by_dataset(case, "fixed/pseudo_kpts", keypoint_index), atol=1e-3)
    drawn = draw(pseudo.position, heatmap_size) * selected[:, None, None]
    close(jnp.moveaxis(drawn, -1, 1), by_dataset(case, "fixed/pseudo_heatmap", keypoint_index), atol=1e-4)

    labels, q = labels_and_assignment(batch.embedding, pseudo, prototypes, heatmap_size, keypoint_index)
    local = np.where(labels.keypoint >= 0, labels.keypoint - keypoint_index.starts, -1)
    nowhere = np.full(heads.shape[:3], -1)
    classes = np.stack(each_dataset(case, "fixed/sample_class", keypoint_index, nowhere), axis=-1)
    np.testing.assert_array_equal(local, classes)
    targets = np.where(classes >= 0, q.argmax(-2) + prototypes.shape[1] * classes, -1)
    expected = np.stack(each_dataset(case, "fixed/proto_target", keypoint_index, nowhere), axis=-1)
    np.testing.assert_array_equal(targets, expected)


def test_losses_and_gradients():
    case, batch, keypoint_index, heads, prototypes = recorded()
    best, through_best = jax.vjp(lambda e: best_of(e, prototypes), batch.embedding)
    maps = batch.embedding, heads, best
    (loss, aux), gradients = loss_and_gradients(maps, batch.dataset, prototypes, keypoint_index, RECORDED)
    close(loss, case["fixed/css_loss"], rel=1e-5)
    for name, key, weight in [("head", "hm_loss", 1), ("prototype_heatmap", "phm_loss", RECORDED.heatmap_weight)]:
        close(
            weight * aux[name], np.stack(each_dataset(case, f"fixed/{key}", keypoint_index, 0.0)), rel=1e-5, name=name
        )
    contrastive = RECORDED.cross_entropy_weight * aux["cross_entropy"] + RECORDED.distance_weight * aux["distance"]
    recorded_loss = np.sum(each_dataset(case, "fixed/proto_loss", keypoint_index, 0.0))
    close(RECORDED.contrast_weight * contrastive, recorded_loss, rel=1e-5)
    selected = [found.sum() for found in each_dataset(case, "fixed/selected", keypoint_index, np.zeros(1))]
    np.testing.assert_array_equal(aux["selected"], selected)
    embedding = gradients[0] + through_best(gradients[2])[0]
    close(jnp.moveaxis(embedding, -1, 1), case["fixed/grad_embedding"], rel=1e-4)
    close(jnp.moveaxis(gradients[1], -1, 1), by_dataset(case, "fixed/grad_head_heatmaps", keypoint_index), rel=1e-4)


def test_both_coordinates_count_in_distance_and_position():
    """Departures: the release mixes axes in the distance, and averages a position with a confidence."""
    case, batch, keypoint_index, heads, prototypes = recorded()
    ours = pseudo_of(heads, best_of(batch.embedding, prototypes), batch.dataset, keypoint_index, RECORDED).weight > 0
    assert (np.asarray(ours) != by_dataset(case, "released/selected", keypoint_index)).any()

    keypoint_index, size, image = KeypointIndex((1, 1)), (32, 40), jnp.array([0])
    at = np.full((1, 2, 2), (13.0, 25.0), np.float32)  # far from borders, where DARK is biased
    near, far = (draw(at + np.float32(shift), size) for shift in [(0, 1), (2, 1)])
    pseudo = pseudo_of(draw(at, size), near, image, keypoint_index)
    np.testing.assert_array_equal(pseudo.weight[0] > 0, [False, True])  # the other skeleton only
    close(pseudo.position[0, 1], np.array([13.0, 25.5]), atol=1e-3)
    assert not pseudo_of(draw(at, size), far, image, keypoint_index).weight.any()  # sqrt(5) > 2.1


def test_a_position_outside_the_map_is_dropped(monkeypatch):
    """Departure: the release keeps the weight of a label whose Gaussian misses the map, asking for an empty
    map."""
    maps, keypoint_index = jnp.full((1, 16, 16, 2), 0.9), KeypointIndex((1, 1))
    for x in (-0.6, -6.4, 15.0, 21.4, -7.6, 22.6, 40.0, np.inf, np.nan):
        kept = -7 < x < 22
        at, score = jnp.full((1, 2, 2), 5.0).at[..., 0].set(x), jnp.full((1, 2), 0.9)
        monkeypatch.setattr(cross_type, "decode_dark_udp", lambda *_, found=(at, score): found)
        pseudo = cross_type.pseudo_labels(maps, maps, jnp.array([0]), keypoint_index, CONFIG)
        assert bool(pseudo.weight[0, 1] > 0) == kept, x
        assert np.isfinite(pseudo.position).all()


def test_nothing_selected_gives_zero():
    (embedding, heads, best), dataset, prototypes = agreeing_maps()
    (loss, aux), gradients = loss_and_gradients((embedding, 0 * heads, best), dataset, prototypes, KEYPOINT_INDEX)
    assert float(loss) == 0 and not aux["selected"].any()
    assert not any(gradient.any() for gradient in gradients)


def agreeing_maps(seed=0, size=8):
    """Smooth heads and prototype maps of all skeletons whose peaks lie within a cell of each other: (rows,
    prototypes).

    Rows are (embedding, heads, best), all differentiable, and the dataset. Peaks of smooth maps are well
    conditioned, those of random maps are not.
    """
    rng = np.random.default_rng(seed)
    batch = random_batch(size=size)
    at = rng.uniform(1, (4, 6), (size, KEYPOINT_INDEX.total, 2)).astype(np.float32)
    moved = at + rng.uniform(-0.5, 0.5, (2, *at.shape)).astype(np.float32)
    heads, best = 0.9 * draw(moved[0], (6, 8)), 0.8 * draw(moved[1], (6, 8))
    return (batch.embedding, heads, best), batch.dataset, random_prototypes()


def test_permuting_images_permutes_gradients_only():
    maps, dataset, prototypes = agreeing_maps()
    order = np.random.default_rng(0).permutation(8)
    (loss, aux), gradients = loss_and_gradients(maps, dataset, prototypes, KEYPOINT_INDEX)
    assert aux["selected"].sum() > 20
    shuffled = [x[order] for x in maps]
    (other, _), permuted = loss_and_gradients(shuffled, dataset[order], prototypes, KEYPOINT_INDEX)
    close(other, loss, rel=1e-6)
    for gradient, expected in zip(permuted, gradients, strict=True):
        close(gradient, expected[order], rel=1e-5)


def test_no_gradient_through_the_pseudo_label():
    """The head's gradient is that of the squared error with the target held fixed."""
    (_, heads, best), dataset, prototypes = maps = agreeing_maps()
    pseudo = pseudo_of(heads, best, dataset, KEYPOINT_INDEX)
    chosen = np.asarray(pseudo.weight > 0)
    images = np.array([chosen[:, KEYPOINT_INDEX.dataset_of == d].any(1).sum() for d in range(3)])
    per_pixel = np.asarray(KEYPOINT_INDEX.counts) * images * heads.shape[1] * heads.shape[2]
    difference = heads - draw(pseudo.position, (6, 8))
    share = 1 / np.maximum(per_pixel, 1)[KEYPOINT_INDEX.dataset_of]
    expected = 2 * pseudo.weight[:, None, None] ** 2 * difference * share
    _, gradients = loss_and_gradients(*maps, KEYPOINT_INDEX)
    close(gradients[1], expected, rel=1e-5)


def test_one_device_equals_eight():
    maps, dataset, prototypes = agreeing_maps(size=16)

    def terms(rows, prototypes, axis_name=None):
        (embedding, heads, best), dataset = rows
        compared = compare(embedding, prototypes, KEYPOINT_INDEX)._replace(best=best)
        return cross_type.cross_type_terms(
            embedding,
            heads,
            compared,
            dataset,
            prototypes,
            keypoint_index=KEYPOINT_INDEX,
            config=CONFIG,
            axis_name=axis_name,
        )

    results = on_every_wrapper(terms, (maps, dataset), prototypes)
    gradients, losses, aux = results.pop("one")
    assert aux["selected"].sum() > 20
    for wrapper, (other_gradients, other_losses, other_aux) in results.items():
        close(other_losses["cross_type"], losses["cross_type"], rel=1e-6, name=wrapper)
        jax.tree.map(lambda a, b: close(a, b, rel=1e-5, name=wrapper), other_gradients, gradients)
        jax.tree.map(lambda a, b: close(a, b, rel=1e-6, name=wrapper), other_aux, aux)
