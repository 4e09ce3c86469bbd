"""Prediction: mirrored crops give mirrored keypoints, prototypes included; codecs; what a head cannot draw."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.datasets import find_dataset
from posebh_jax.predictor import HEAD_MAPS, PROTOTYPE_MAPS, Predictor
from tests.posebh_jax.step_program import global_batch, tiny_method
from tests.programs import products
from tests.settings import DARK_KERNEL

pytestmark = pytest.mark.slow  # compiles whole models


@pytest.fixture(scope="module")
def predictor_and_weights():
    method = tiny_method()
    state = jax.jit(method.init)(jax.random.PRNGKey(0))
    # Newly initialised heads draw nearly flat maps.
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: 50 * x if "final" in jax.tree_util.keystr(path) else x, state.params
    )
    return Predictor(method.model, method.datasets, method.input_size, True, DARK_KERNEL), {
        **state.weights,
        "params": params,
    }


def test_mirrored_crops_give_mirrored_maps(predictor_and_weights):
    """With the flip test this holds whatever the network draws, for UDP, whose maps have the crop's mirror axis."""
    predictor, weights = predictor_and_weights
    protocol, image = find_dataset("coco"), global_batch()["image"]
    plain = predictor.maps(weights, image, head=0, protocol=protocol)
    mirrored = predictor.maps(weights, image[:, :, ::-1], head=0, protocol=protocol)
    assert plain.keys() == {HEAD_MAPS, PROTOTYPE_MAPS}
    for kind, maps in plain.items():
        back = np.asarray(mirrored[kind])[:, :, ::-1][..., protocol.keypoints.flip_index]
        # The same two maps, averaged in the other order.
        np.testing.assert_allclose(back, maps, rtol=1e-5, atol=1e-6, err_msg=kind)


def test_flip_test_of_the_msra_codec_moves_the_mirrored_maps_by_one_cell(predictor_and_weights):
    predictor, weights = predictor_and_weights
    image, protocol = global_batch()["image"], find_dataset("ap10k")
    plain = Predictor(predictor.model, predictor.datasets, predictor.input_size, False, DARK_KERNEL)
    for kind, merged in predictor.maps(weights, image, head=2, protocol=protocol).items():
        one = np.asarray(plain.maps(weights, image, head=2, protocol=protocol)[kind])
        other = np.asarray(plain.maps(weights, image[:, :, ::-1], head=2, protocol=protocol)[kind])
        other = other[:, :, ::-1][..., protocol.keypoints.flip_index]
        expected = 0.5 * (one[:, :, 1:] + other[:, :, :-1])
        # The same float32 arithmetic in another batch size.
        np.testing.assert_allclose(merged[:, :, 1:], expected, rtol=1e-4, atol=1e-5, err_msg=kind)


def test_products_are_of_full_precision_whatever_is_the_default(predictor_and_weights):
    """As evaluation, so prediction: on devices that round float32 operands unless they are told not to."""
    predictor, weights = predictor_and_weights
    warp = np.zeros((2, 2, 3), np.float32)
    with jax.default_matmul_precision("bfloat16"):
        program = jax.make_jaxpr(lambda x: predictor(weights, x, warp, head=0, protocol=find_dataset("coco")))(
            global_batch()["image"][:2]
        )
    assert len(found := list(products(program))) > 20
    for operands, precisions in found:
        exact = all(operand.dtype == jnp.bfloat16 for operand in operands)  # parts of cosines, as a TPU multiplies them
        assert exact or precisions == (jax.lax.Precision.HIGHEST,) * 2, (operands, precisions)


def test_the_warp_places_keypoints_in_the_image(predictor_and_weights):
    predictor, weights = predictor_and_weights
    image, protocol = global_batch()["image"][:4], find_dataset("coco")
    identity = np.tile(np.array([[1, 0, 0], [0, 1, 0]], np.float32), (4, 1, 1))
    moved = np.tile(np.array([[2, 0, 30], [0, 3, -7]], np.float32), (4, 1, 1))
    crop = predictor(weights, image, identity, head=0, protocol=protocol)[HEAD_MAPS]
    placed = predictor(weights, image, moved, head=0, protocol=protocol)[HEAD_MAPS]
    np.testing.assert_allclose(placed[..., :2], np.asarray(crop)[..., :2] * (2, 3) + (30, -7), rtol=1e-5, atol=1e-3)


def test_a_head_of_another_skeleton_is_refused(predictor_and_weights):
    predictor, weights = predictor_and_weights
    with pytest.raises(ValueError, match="'aic'.*needs 'coco'"):
        predictor(
            weights,
            np.zeros((1, 64, 48, 3), np.uint8),
            np.zeros((1, 2, 3), np.float32),
            head=1,
            protocol=find_dataset("coco"),
        )
