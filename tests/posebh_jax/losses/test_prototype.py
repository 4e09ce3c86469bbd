"""Heatmap, prototype and prototype-heatmap losses: recorded numbers, gradients, one device against eight."""

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
from posebh_jax.losses import heatmap
from posebh_jax.losses import prototype as losses
from posebh_jax.prototypes import Labels
from tests.golden_files import golden, golden_config
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

MSE, MIXED = "posebh/joints_mse.npz", "posebh/prt_loss.npz"
CONFIG = dataclasses.replace(PAPER, momentum=0.9, contrast_weight=1.0, heatmap_weight=1.0)


def terms_of(batch, prototypes, noise, keypoint_index, config=CONFIG):
    compared = compare(batch.embedding, prototypes, keypoint_index)
    embedding, *own = batch
    terms, aux, observed = losses.prototype_terms(
        embedding, compared, *own, prototypes, keypoint_index=keypoint_index, config=config
    )
    return terms, aux | moved(prototypes, observed, noise, config)


def moved(prototypes, observed, noise, config=CONFIG, axis_name=None):
    """{"prototypes", "mass"} after the momentum update."""
    after, mass = protos.update_prototypes(prototypes, observed, noise, momentum=config.momentum, axis_name=axis_name)
    return {"prototypes": after, "mass": mass}


values_of = jax.jit(terms_of, static_argnames=("keypoint_index", "config"))


@functools.partial(jax.jit, static_argnames=("keypoint_index", "config"))
def with_gradients(batch, prototypes, noise, keypoint_index, config=CONFIG):
    """Losses, auxiliary values, and each loss's gradient with respect to the embedding."""

    def terms_at(embedding):
        return terms_of(batch._replace(embedding=embedding), prototypes, noise, keypoint_index, config)

    terms, pull, aux = jax.vjp(terms_at, batch.embedding, has_aux=True)
    one_hot = {name: {other: jnp.float32(name == other) for other in terms} for name in terms}
    return terms, aux, {name: pull(cotangent)[0] for name, cotangent in one_hot.items()}


@pytest.mark.parametrize("variant", sorted(name.split("/")[0] for name in golden(MSE) if name.endswith("/loss")))
def test_joints_mse(variant):
    """A variant's name ends with the weight of its loss."""
    case = golden(MSE)
    weights = jnp.asarray(case["target_weight"][..., 0])
    weights = jnp.ones_like(weights) if "unweighted" in variant else weights
    keypoint_index, scale = KeypointIndex(weights.shape[1:]), float(variant.partition("_lw")[2] or 1)

    @jax.jit
    def loss(output):
        return scale * heatmap.head_terms(output, nhwc(case["target"]), weights, keypoint_index=keypoint_index)[0]

    value, gradient = jax.value_and_grad(loss)(nhwc(case["output"]))
    close(value, case[f"{variant}/loss"], rel=1e-6)
    close(jnp.moveaxis(gradient, -1, 1), case[f"{variant}/grad_output"], rel=1e-5)


def test_the_three_averages_of_heatmap_errors():
    """The same error over the whole batch, over own images, and over chosen images; absent datasets are 0."""
    keypoint_index = KeypointIndex((1, 1, 1))
    dataset = jnp.array([0, 0, 1, 1])
    targets, weights = jnp.zeros((4, 2, 2, 3)), keypoint_index.own(dataset).astype(jnp.float32)
    maps = jnp.ones((4, 2, 2, 3))
    close(heatmap.head_terms(maps, targets, weights, keypoint_index=keypoint_index), np.array([0.5, 0.5, 0]), atol=1e-7)
    own = heatmap.count_images(dataset, keypoint_index)
    close(heatmap.heatmap_mse(maps, targets, weights, own, keypoint_index), np.array([1.0, 1, 0]), atol=1e-7)
    chosen = jnp.array([1, 0, 0])
    only = weights.at[1:].set(0)
    close(heatmap.heatmap_mse(maps, targets, only, chosen, keypoint_index), np.array([1.0, 0, 0]), atol=1e-7)


@pytest.mark.parametrize(
    "variant, target", [("w1", "target"), ("paper", "target"), ("w1_ignored", "target_with_ignored")]
)
def test_contrastive_loss_of_given_logits(variant, target):
    """Logits [N, K x M] are the similarities of N samples to K keypoints with M prototypes each."""
    name = "posebh/ppc_ppd.npz"
    case, config, sizes = golden(name), recorded_settings(name), golden_config(name)
    count, keypoints, per_keypoint = len(case["logits"]), sizes["K"], sizes["M"]
    keypoint_index, wanted = KeypointIndex((keypoints,)), jnp.asarray(case[target])
    keypoint = jnp.where(wanted >= 0, wanted // per_keypoint, -1)
    labels = Labels(keypoint[None, None, :, None], jnp.ones((1, 1, count, 1)), jnp.zeros((1, 1), jnp.int32))
    weight = PAPER.contrast_weight if variant == "paper" else 1.0

    @jax.jit
    def parts(logits):
        similarity = logits.reshape(1, 1, count, keypoints, per_keypoint).swapaxes(-1, -2)
        own = jnp.where(jnp.arange(keypoints) == keypoint[:, None, None], similarity, 0).sum(-1)[..., None]
        partition = jax.nn.logsumexp(similarity, axis=(-2, -1))[..., None]
        chosen = (wanted % per_keypoint)[None, None, :, None]
        entropy, distance, _ = losses.contrastive_means(partition, own, chosen, labels, keypoint_index=keypoint_index)
        return config.cross_entropy_weight * entropy[0], config.distance_weight * distance[0]

    entropy, distance = parts(jnp.asarray(case["logits"]))
    close(entropy, case[f"{variant}/ppc_weighted"], rel=1e-6)
    close(distance, case[f"{variant}/ppd_weighted"], rel=1e-6)
    value, gradient = jax.value_and_grad(lambda x: weight * sum(parts(x)))(jnp.asarray(case["logits"]))
    close(value, case[f"{variant}/loss"], rel=1e-6)
    close(gradient, case[f"{variant}/grad_logits"], rel=1e-5)


def test_prototype_terms_of_a_mixed_batch():
    case, config = golden(MIXED), recorded_settings(MIXED, heatmap_weight=1.0)
    batch, keypoint_index = golden_batch(MIXED)
    prototypes, noise = jnp.asarray(case["prototypes"]), jnp.asarray(case["gumbel_noise"])
    terms, aux, gradients = with_gradients(batch, prototypes, noise, keypoint_index, config)
    close(terms["prototype"], case["fixed/proto_loss"], rel=1e-6)
    close(terms["prototype_heatmap"], case["fixed/phm_loss_unweighted"], rel=1e-6)
    close(aux["prototypes"], case["fixed/prototypes_after"], atol=5e-7)
    for name, recorded in [("prototype", "fixed/grad_proto_loss"), ("prototype_heatmap", "grad_phm_loss")]:
        close(jnp.moveaxis(gradients[name], -1, 1), case[recorded], rel=1e-5, name=name)

    best, partition = jax.jit(compare, static_argnums=2)(batch.embedding, prototypes, keypoint_index)
    close(jnp.moveaxis(protos.prototype_heatmaps(best), -1, 1), case["kpt_class_map"], atol=1e-6)
    labels = protos.label_pixels(batch.targets, batch.dataset, config.label_threshold)
    np.testing.assert_array_equal(labels.keypoint[..., 0] >= 0, case["sample_mask"])
    starts = keypoint_index.starts[case["dataset_idx"]][:, None, None]
    local = np.where(case["sample_mask"], labels.keypoint[..., 0] - starts, -1)
    np.testing.assert_array_equal(local, case["sample_class"])
    close(labels.confidence[..., 0], case["confidence"], atol=1e-7)
    correct = np.where(case["sample_mask"], protos.is_correct(labels, best, keypoint_index), -1)
    np.testing.assert_array_equal(correct, case["fixed/correct"])
    contrast = jax.jit(functools.partial(losses.contrast, keypoint_index=keypoint_index, config=config))
    q = contrast(batch.embedding, partition, prototypes, labels).assignment[..., 0]
    target = np.where(case["sample_mask"], q.argmax(-1) + prototypes.shape[1] * local, -1)
    np.testing.assert_array_equal(target, case["fixed/proto_target"])
    drawn = np.where(case["sample_mask"], (q + noise).argmax(-1), -1)
    np.testing.assert_array_equal(drawn, case["fixed/assignment"])
    close(aux["correct"], (correct == 1).sum() / case["sample_mask"].sum(), atol=1e-6)


def test_release_reads_other_datasets_prototypes():
    """Departure: in the release logits and targets of later datasets come from earlier prototypes; the loss
    differs."""
    case, config = golden(MIXED), recorded_settings(MIXED, heatmap_weight=1.0)
    batch, keypoint_index = golden_batch(MIXED)
    noise = jnp.asarray(case["gumbel_noise"])
    value = with_gradients(batch, jnp.asarray(case["prototypes"]), noise, keypoint_index, config)[0]["prototype"]
    assert abs(float(value) - case["released/proto_loss"]) > 1e-3 * abs(case["released/proto_loss"])


def test_losses_leave_the_prototypes_alone():
    """The update is a call of its own: the losses depend on the prototypes before it."""
    batch, prototypes = random_batch(), random_prototypes()
    terms, aux = values_of(batch, prototypes, jnp.zeros((8, 8, 6, 3)), KEYPOINT_INDEX)
    assert jnp.any(aux["prototypes"] != prototypes)
    again, _ = values_of(batch, prototypes, jnp.ones((8, 8, 6, 3)), KEYPOINT_INDEX)
    for name in terms:
        close(terms[name], again[name], rel=1e-6)


def test_samples_can_weigh_by_correctness():
    """Transfer: any confidence above the threshold weighs the same; below it a pixel is no sample."""
    batch, prototypes, noise = random_batch(), random_prototypes(), jnp.zeros((8, 8, 6, 3))
    config = dataclasses.replace(CONFIG, weigh_by_correctness=True, label_threshold=0.2)
    scaled = batch._replace(targets=jnp.where(batch.targets > 0.2, 0.5 * batch.targets + 0.2, 0))
    updates = [values_of(b, prototypes, noise, KEYPOINT_INDEX, config)[1]["prototypes"] for b in (batch, scaled)]
    close(updates[0], updates[1], atol=1e-7)
    confident = with_gradients(batch, prototypes, noise, KEYPOINT_INDEX)[1]["prototypes"]
    assert jnp.abs(confident - updates[0]).max() > 1e-4


@pytest.mark.parametrize("weight", [0, 1], ids=["unlabelled", "beside the map"])
def test_a_batch_without_a_labelled_pixel_gives_zero_losses(weight):
    batch = random_batch()
    empty = batch._replace(targets=0 * batch.targets, weights=weight * batch.weights)
    prototypes = random_prototypes()
    terms, aux, gradients = with_gradients(empty, prototypes, jnp.zeros((8, 8, 6, 3)), KEYPOINT_INDEX)
    assert all(float(value) == 0 for value in terms.values())
    np.testing.assert_array_equal(aux["prototypes"], prototypes)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(aux))
    assert not any(gradient.any() for gradient in gradients.values())


def test_permuting_images_permutes_gradients_only():
    batch, prototypes = random_batch(), random_prototypes()
    noise = jax.random.gumbel(jax.random.key(3), (8, 8, 6, 3))
    order = np.random.default_rng(0).permutation(8)
    shuffled = jax.tree.map(lambda x: x[order], batch)
    terms, aux, gradients = with_gradients(batch, prototypes, noise, KEYPOINT_INDEX)
    other, moved, permuted = with_gradients(shuffled, prototypes, noise[order], KEYPOINT_INDEX)
    for name in terms:
        close(other[name], terms[name], rel=1e-6)
        close(permuted[name], gradients[name][order], rel=1e-5)
    close(moved["prototypes"], aux["prototypes"], atol=5e-7)


def test_gradient_against_finite_differences():
    """Float64, one random direction: the quotient's own error is about 1e-9."""
    with jax.enable_x64(True):
        keypoint_index, rng = KeypointIndex((2, 3)), np.random.default_rng(0)
        members = jnp.ones((1, 5, 1)) * keypoint_index.own(jnp.array([1]))[..., None]
        keypoint = jnp.asarray(rng.integers(-1, 3, (1, 2, 3, 1)))
        labels = Labels(jnp.where(keypoint >= 0, keypoint + 2, -1), jnp.ones((1, 2, 3, 1)), jnp.array([[1]]))
        target, own = jnp.asarray(rng.integers(0, 3, (1, 2, 3, 1))), keypoint[..., None, :] + 2

        @jax.jit
        def loss(similarity):
            chosen = jnp.where(jnp.arange(5) == own, similarity, 0).sum(-1, keepdims=True)
            partition = jax.nn.logsumexp(similarity, axis=(-2, -1), b=members[..., 0])[..., None]
            entropy, distance, _ = losses.contrastive_means(
                partition, chosen, target, labels, keypoint_index=keypoint_index
            )
            maps, targets = similarity.max(-2), jnp.ones((1, 2, 3, 5)) / 2
            error = heatmap.heatmap_mse(maps, targets, members[..., 0], 1, keypoint_index)
            return entropy.sum() + distance.sum() + error.sum()

        at, direction = rng.uniform(0, 1, (1, 2, 3, 3, 5)), rng.normal(size=(1, 2, 3, 3, 5))
        slope = (jax.jit(jax.grad(loss))(jnp.asarray(at)) * direction).sum()
        step = 1e-5
        quotient = (loss(at + step * direction) - loss(at - step * direction)) / (2 * step)
    np.testing.assert_allclose(slope, quotient, rtol=1e-7)


@pytest.mark.slow  # compiles for eight devices
def test_one_device_equals_eight():
    batch, prototypes = random_batch(size=16), random_prototypes()
    noise = jax.random.gumbel(jax.random.key(3), (16, 8, 6, 3))
    heads = jax.random.normal(jax.random.key(4), batch.targets.shape)

    def terms(rows, prototypes, axis_name=None):
        (embedding, heads), targets, weights, dataset, noise = rows
        compared = compare(embedding, prototypes, KEYPOINT_INDEX)
        values, aux, observed = losses.prototype_terms(
            embedding,
            compared,
            targets,
            weights,
            dataset,
            prototypes,
            keypoint_index=KEYPOINT_INDEX,
            config=CONFIG,
            axis_name=axis_name,
        )
        aux |= moved(prototypes, observed, noise, axis_name=axis_name)
        common = {"keypoint_index": KEYPOINT_INDEX, "axis_name": axis_name}
        per_head = heatmap.head_terms(heads, targets, weights, **common)
        aux["accuracy"] = heatmap.keypoint_accuracy(heads, targets, weights, **common)
        return values | {f"head{d}": value for d, value in enumerate(per_head)}, aux

    rows = ((batch.embedding, heads), *batch[1:], noise)
    results = on_every_wrapper(terms, rows, prototypes)
    gradient, values, aux = results.pop("one")
    for wrapper, (other_gradient, other_values, other_aux) in results.items():
        for name in values:
            close(other_values[name], values[name], rel=1e-6, name=f"{wrapper} {name}")
        jax.tree.map(lambda a, b: close(a, b, rel=1e-5, name=wrapper), other_gradient, gradient)
        jax.tree.map(lambda a, b: close(a, b, atol=5e-7, rel=1e-6, name=wrapper), other_aux, aux)
        close(other_aux["prototypes"], aux["prototypes"], atol=5e-7, name=wrapper)


def test_accuracy_for_logging():
    case = golden("posebh/decode.npz")
    keypoint_index = KeypointIndex((golden_config("posebh/decode.npz")["K"],))
    weights = jnp.asarray(case["pck_mask"], jnp.float32)
    maps, targets = nhwc(case["pck_output"]), nhwc(case["pck_target"])
    accuracy, counted = heatmap.keypoint_accuracy(maps, targets, weights, keypoint_index=keypoint_index)
    close(accuracy[0], case["pck_avg"], atol=1e-6)
    assert counted[0] == case["pck_count"]
