"""People of a picture from what the network found; sizes of pictures."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import boir_jax
from boir_jax import export
from boir_jax.predict import PoseModel
from data_pipelines.skeletons import KeypointSet
from pose_common.prediction.pictures import Picture

PICTURE = Picture("street.jpg", np.zeros((64, 64, 3), np.uint8))


def test_a_skeleton_without_sigmas_is_suppressed_by_the_default_one():
    """Two of one person, the worse goes; another stays."""
    skeleton = KeypointSet("three", ("a", "b", "c"))
    person = np.array([[0, 0, 0.9], [10, 0, 0.9], [0, 10, 0.9]], np.float32)
    row = {
        "keypoints": np.stack([person, person + (0.1, 0, 0), person + (40, 40, 0)]),
        "score": np.array([0.5, 0.9, 0.7], np.float32),
        "found": np.ones(3, bool),
    }
    found = PoseModel("", None, {}, skeleton, "three", 64, 0.8)._result(PICTURE, row, 0.0)
    np.testing.assert_allclose(found.scores, [0.9, 0.7])


@pytest.mark.parametrize("size", [0, -5, -64])
def test_pictures_of_no_size_are_refused(size):
    with pytest.raises(ValueError, match=f"^input_size={size}: expected the short side"):
        boir_jax.load(input_size=size)


def test_a_model_between_two_sizes_is_exported_for_the_larger():
    """As its pictures are resized; configurations may have any multiple of 32."""
    model = dataclasses.replace(boir_jax.load(), input_size=96)
    assert export.program(model).size == (128, 128)
    with pytest.raises(ValueError, match="size 96,96: sides must be multiples of 64"):
        export.program(model, (96, 96))
