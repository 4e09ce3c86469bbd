"""Cluster prototypes: recorded clustering, loss and gradients; the choice of their number; one device against
eight."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posebh_jax import clusters
from posebh_jax.clusters import ClusterBank
from posebh_jax.comparison import compare
from posebh_jax.keypoint_index import KeypointIndex
from posebh_jax.losses import prototype as losses
from posebh_jax.losses.cluster import cluster_terms
from posebh_jax.prototypes import label_pixels
from tests.golden_files import golden, golden_config
from tests.posebh_jax.method_cases import (
    close,
    golden_batch,
    on_every_wrapper,
    random_batch,
    random_prototypes,
    recorded_settings,
)

FILE = "posebh/cps.npz"
RECORDED, CONFIG = golden_config(FILE), recorded_settings(FILE)
KEYPOINTS, PER_KEYPOINT, DIM = golden(FILE)["prototypes"].shape
OPTIONS = [count for count in RECORDED["opts"] if count < KEYPOINTS]
KMEANS = {"rounds": max(RECORDED["iters"]), "beta": RECORDED["beta"]}
"""Those of the recorded loss."""
BRIEFLY = {**KMEANS, "rounds": 5}


@pytest.mark.parametrize("rounds", RECORDED["iters"])
@pytest.mark.parametrize("count", OPTIONS)
def test_clustering(rounds, count):
    """Float64 here, float32 there: the tolerances are those of their difference."""
    case, beta = golden(FILE), KMEANS["beta"]
    points = case["prototypes"].reshape(-1, DIM).astype(np.float64)
    start = points[: PER_KEYPOINT * count : PER_KEYPOINT]
    centres, distances = clusters.soft_kmeans(points, start, rounds=rounds, beta=beta)
    common, fixed = f"common/iter{rounds}/n{count}", f"fixed/iter{rounds}/n{count}"
    close(clusters.assignments(distances, beta), case[f"{common}/assign"], atol=6e-6)
    close(centres, case[f"{common}/centers"], atol=1e-6)
    error = clusters.reconstruction_error(points, centres)
    close(error, case[f"{common}/error"], rel=1e-5)
    close(error * (count / KEYPOINTS) ** 2, case[f"{common}/weighted_error"], rel=1e-5)
    nearest = clusters.nearest_prototypes(distances, PER_KEYPOINT)
    np.testing.assert_array_equal(nearest, case[f"{fixed}/prototype_index"])
    np.testing.assert_array_equal(nearest[:, 0] // PER_KEYPOINT, case[f"{fixed}/closest_keypoint"])
    close(points[nearest], case[f"{fixed}/cluster_prototypes"], atol=1e-6)


def chosen_bank() -> ClusterBank:
    return clusters.choose_clusters(golden(FILE)["prototypes"], RECORDED["opts"], **KMEANS).bank


def test_choice_of_the_number_of_clusters():
    case, keypoint_index = golden(FILE), KeypointIndex(tuple(RECORDED["K"]))
    choice = clusters.choose_clusters(case["prototypes"], RECORDED["opts"], **KMEANS)
    assert len(choice.bank.keypoint) == case["loss/fixed/n_cluster"]
    close(choice.bank.prototypes, case["loss/fixed/cluster_prototypes"], atol=1e-6)
    keypoint = np.asarray(choice.bank.keypoint)
    dataset = keypoint_index.dataset_of[keypoint]
    pairs = np.stack([dataset, keypoint - keypoint_index.starts[dataset]], axis=-1)
    np.testing.assert_array_equal(pairs, case["loss/fixed/cluster_to_dataset_keypoint"])
    for count in OPTIONS:
        close(choice.weighted[count], case[f"common/iter{KMEANS['rounds']}/n{count}/weighted_error"], rel=1e-5)
    assert choice.summary().startswith(f"chose {len(keypoint)} clusters ({OPTIONS[0]}: error")


def test_the_number_of_clusters_can_be_fixed():
    choice = clusters.choose_clusters(golden(FILE)["prototypes"], OPTIONS, fixed=OPTIONS[0], **BRIEFLY)
    assert len(choice.bank.keypoint) == OPTIONS[0]


def test_options_at_or_above_the_number_of_keypoints_are_skipped():
    prototypes, first = golden(FILE)["prototypes"], OPTIONS[0]
    assert list(clusters.choose_clusters(prototypes, (first, KEYPOINTS, KEYPOINTS + 9), **BRIEFLY).errors) == [first]
    with pytest.raises(ValueError, match=f"below the {KEYPOINTS} keypoints"):
        clusters.choose_clusters(prototypes, OPTIONS, fixed=KEYPOINTS, **BRIEFLY)


def test_a_small_mixture_tries_the_papers_shares():
    """None of 64, 96 and 128 is below 40 keypoints; of 214 they are 30, 45 and 60 %."""
    prototypes = np.random.default_rng(0).normal(size=(40, 3, 8))
    assert list(clusters.choose_clusters(prototypes, (64, 96, 128), **BRIEFLY).errors) == [12, 18, 24]


def test_errors_that_are_rounding_do_not_decide():
    """With more clusters than dimensions every reconstruction is exact: the first option is taken, not a
    random one."""
    prototypes = np.random.default_rng(0).normal(size=(30, 3, 4)).astype(np.float32)
    choice = clusters.choose_clusters(prototypes, (12, 8, 20), rounds=3, beta=20.0)
    assert set(choice.weighted.values()) == {0.0} and len(choice.bank.keypoint) == 12


def test_the_release_ties_clusters_to_the_first_keypoints():
    """Departure: sorting along the wrong axis yields cluster numbers where prototype indices are meant."""
    keypoint = np.asarray(chosen_bank().keypoint)
    count = len(keypoint)
    assert golden(FILE)[f"released/iter{KMEANS['rounds']}/n{count}/prototype_index"].max() < count
    assert keypoint.max() > (count - 1) // PER_KEYPOINT


@functools.partial(jax.jit, static_argnames="config")
def with_gradient(embedding, targets, weights, bank, config=CONFIG):
    """((loss, aux), gradient with respect to the embedding)."""

    def loss(embedding):
        losses, aux = cluster_terms(embedding, targets, weights, bank, config=config)
        return losses["cluster"], aux

    return jax.value_and_grad(loss, has_aux=True)(embedding)


def test_cluster_loss_and_gradient():
    case = golden(FILE)
    batch, _ = golden_batch(FILE)
    bank = chosen_bank()
    rows = batch.targets, batch.weights, bank

    (loss, aux), gradient = with_gradient(batch.embedding, *rows)
    close(loss, case["loss/fixed/cps_loss"], rel=1e-6)
    contrastive = CONFIG.cross_entropy_weight * aux["cross_entropy"] + CONFIG.distance_weight * aux["distance"]
    close(CONFIG.contrast_weight * contrastive, case["loss/fixed/proto_loss"], rel=1e-6)
    assert aux["pixels"] == (case["loss/fixed/sample_class"] >= 0).sum()
    close(jnp.moveaxis(gradient, -1, 1), case["loss/fixed/grad_embedding"], rel=1e-5)
    only = recorded_settings(FILE, heatmap_weight=0.0, cluster_weight=1.0)
    _, gradient = with_gradient(batch.embedding, *rows, only)
    close(jnp.moveaxis(gradient, -1, 1), case["loss/fixed/grad_proto_loss"], rel=1e-5)


def test_cluster_labels():
    case = golden(FILE)
    batch, _ = golden_batch(FILE)
    bank = chosen_bank()
    keypoint_index = KeypointIndex((len(bank.keypoint),))
    targets = batch.targets[..., bank.keypoint]
    close(jnp.moveaxis(targets, -1, 1), case["loss/fixed/cluster_targets"], atol=1e-7)
    close(batch.weights[:, bank.keypoint], case["loss/fixed/cluster_target_weights"][..., 0], atol=1e-7)
    labels = label_pixels(targets, jnp.zeros(len(targets), jnp.int32), CONFIG.label_threshold)
    np.testing.assert_array_equal(labels.keypoint[..., 0], case["loss/fixed/sample_class"])
    contrast = jax.jit(functools.partial(losses.contrast, keypoint_index=keypoint_index, config=CONFIG))
    partition = compare(batch.embedding, bank.prototypes, keypoint_index).partition
    q = contrast(batch.embedding, partition, bank.prototypes, labels).assignment[..., 0]
    sampled = case["loss/fixed/sample_class"] >= 0
    target = np.where(sampled, q.argmax(-1) + PER_KEYPOINT * labels.keypoint[..., 0], -1)
    np.testing.assert_array_equal(target, case["loss/fixed/proto_target"])


def test_a_batch_without_cluster_keypoints_gives_zero():
    """Departure: the release raises an error for such a batch."""
    batch = random_batch()
    bank = ClusterBank(random_prototypes()[:4], jnp.arange(4))
    empty = 0 * batch.targets, 0 * batch.weights
    (loss, aux), gradient = with_gradient(batch.embedding, *empty, bank)
    assert float(loss) == 0 and aux["pixels"] == 0 and not gradient.any()


@pytest.mark.slow  # compiles for eight devices
def test_one_device_equals_eight():
    batch = random_batch(size=16)
    bank = clusters.choose_clusters(np.asarray(random_prototypes()), (4, 6), rounds=20, beta=20.0).bank

    def terms(rows, bank, axis_name=None):
        return cluster_terms(*rows, bank, config=CONFIG, axis_name=axis_name)

    results = on_every_wrapper(terms, batch[:3], bank)
    gradient, loss, aux = results.pop("one")
    for wrapper, (other_gradient, other_loss, other_aux) in results.items():
        close(other_loss["cluster"], loss["cluster"], rel=5e-6, name=wrapper)
        close(other_gradient, gradient, rel=1e-5, name=wrapper)
        jax.tree.map(lambda a, b: close(a, b, rel=1e-6, name=wrapper), other_aux, aux)
