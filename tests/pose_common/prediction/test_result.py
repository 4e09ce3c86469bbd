"""Boxes around the poses that were found; results as tables."""

from __future__ import annotations

import sys
import types

import cv2
import numpy as np
import pytest

from data_pipelines.skeletons import KEYPOINT_SETS
from pose_common.prediction.pictures import Picture
from pose_common.prediction.result import FIELDS, Result, extent_boxes


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


def result(people, time=None):
    keypoints = np.full((people, 17, 3), 0.5, np.float32)
    boxes, scores = np.ones((people, 4), np.float32), np.ones(people, np.float32)
    picture = Picture("a.jpg", np.zeros((20, 30, 3), np.uint8), time)
    return Result(picture, "coco", KEYPOINT_SETS["coco"], keypoints, boxes, scores)


def test_a_table_has_the_same_columns_whoever_is_found(monkeypatch):
    def table(rows, columns):
        assert all(set(row) <= set(columns) for row in rows)
        return columns

    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=table))
    for found in (result(0), result(2), result(1, time=0.5)):
        assert found.to_table() == FIELDS


def test_in_words_it_is_a_line_and_in_a_notebook_its_drawing():
    found = result(2)
    assert repr(found) == "<Result: a.jpg, 2 of coco>" and repr(found.picture) == "<Picture: a.jpg, 30x20>"
    shown = cv2.imdecode(np.frombuffer(found._repr_png_(), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(shown[..., ::-1], found.draw())
