"""Prediction: batches give what single pictures give, mirrored pictures mirrored people, whatever the size."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from boir_jax.predictor import TRAINING_HEADS, Predictor
from data_pipelines.skeletons import KeypointSet
from tests.boir_jax.step_program import tiny_method
from tests.settings import PROPOSALS

pytestmark = pytest.mark.slow  # compiles whole-image inference

SKELETON = KeypointSet("five", tuple("abcde"), flip_pairs=((0, 1), (3, 4)), limbs=())
SIZES = ((128, 64), (64, 64))  # height, width
MAXIMUM = 6


@pytest.fixture(scope="module")
def weights():
    return jax.jit(tiny_method().init)(jax.random.PRNGKey(0)).weights


@pytest.fixture(scope="module")
def predictor():
    return Predictor(tiny_method().model, SKELETON, dataclasses.replace(PROPOSALS, maximum=MAXIMUM, threshold=0.0))


def pictures(size, count=4):
    """Blobs of light, which the network's peaks follow."""
    rng = np.random.default_rng(size[0])
    coarse = rng.integers(0, 256, (count, size[0] // 8, size[1] // 8, 3))
    return np.repeat(np.repeat(coarse, 8, axis=1), 8, axis=2).astype(np.uint8)


def warps(count):
    return np.tile(np.array([[0.5, 0, 10], [0, 0.5, -3]], np.float32), (count, 1, 1))


@pytest.mark.parametrize("size", SIZES)
def test_a_batch_gives_what_single_pictures_give(predictor, weights, size):
    images = pictures(size)
    together = jax.device_get(predictor(weights, images, warps(len(images))))
    assert together["found"].sum() > len(images), "the comparison needs people"
    for row, image in enumerate(images):
        alone = jax.device_get(predictor(weights, image[None], warps(1)))
        np.testing.assert_array_equal(alone["found"][0], together["found"][row])
        # The same float32 arithmetic in another batch size; cells and quarter shifts are exact.
        np.testing.assert_allclose(alone["score"][0], together["score"][row], rtol=1e-4, atol=1e-6)
        found = together["found"][row]
        np.testing.assert_allclose(
            alone["keypoints"][0][found], together["keypoints"][row][found], rtol=1e-4, atol=1e-4
        )


def test_products_are_of_full_precision_whatever_is_the_default(predictor, weights):
    """As evaluation, so prediction: on devices that round float32 operands unless they are told not to."""
    with jax.default_matmul_precision("bfloat16"):
        program = jax.make_jaxpr(lambda images: predictor(weights, images, warps(1)))(pictures(SIZES[0], 1))
    assert "Precision.HIGHEST" in str(program) and "Precision.DEFAULT" not in str(program)


def test_inference_needs_no_training_heads(predictor, weights):
    images = pictures(SIZES[1])
    pruned = {
        name: {group: value for group, value in weights[name].items() if group not in TRAINING_HEADS}
        for name in ("params", "batch_stats")
    }
    assert len(pruned["params"]) == len(weights["params"]) - 3
    for ours, all_of_it in zip(
        jax.tree.leaves(predictor(pruned, images, warps(4))),
        jax.tree.leaves(predictor(weights, images, warps(4))),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, all_of_it)


def test_poses_are_in_image_pixels(predictor, weights):
    images = pictures(SIZES[1])
    identity = np.tile(np.array([[1, 0, 0], [0, 1, 0]], np.float32), (len(images), 1, 1))
    inputs = predictor(weights, images, identity)["keypoints"]
    placed = predictor(weights, images, warps(len(images)))["keypoints"]
    np.testing.assert_allclose(placed[..., :2], 0.5 * np.asarray(inputs)[..., :2] + (10, -3), rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(placed[..., 2], inputs[..., 2])
