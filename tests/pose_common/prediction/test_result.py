"""Boxes around the poses that were found."""

from __future__ import annotations

import numpy as np
import pytest

from pose_common.prediction.result import extent_boxes


def pose(*confidences: float) -> np.ndarray:
    """[1, K, 3]: keypoints ten pixels apart on a diagonal."""
    xy = 10.0 * np.arange(len(confidences))
    return np.stack([xy, 2 * xy, np.array(confidences)], axis=-1)[None]


def test_keypoints_that_were_not_seen_do_not_count():
    np.testing.assert_allclose(extent_boxes(pose(1.0, 0.3, 0.29), margin=0.1), [[-1, -2, 12, 24]], rtol=1e-6)
    assert extent_boxes(np.zeros((0, 3, 3))).shape == (0, 4)


@pytest.mark.parametrize("confidences", [(np.nan, np.nan, np.nan), (0.9, np.nan, 0.1), (-0.1, -0.2, -0.3)])
def test_nobody_is_left_without_a_box(confidences):
    """Where confidences tell nothing, every keypoint counts."""
    np.testing.assert_allclose(extent_boxes(pose(*confidences), margin=0.0), [[0, 0, 20, 40]])


def test_the_box_of_one_point_has_sides():
    """They are a pixel long, before the margin; without, `boxes` would refuse the box."""
    np.testing.assert_allclose(extent_boxes(pose(1.0), margin=0.1), [[-0.1, -0.1, 1.2, 1.2]], rtol=1e-6)
