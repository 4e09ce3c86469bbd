"""Boxes around the poses that were found; results as tables and drawings."""

from __future__ import annotations

import dataclasses
import sys
import types

import cv2
import numpy as np
import pytest

from data_pipelines.skeletons import KEYPOINT_SETS
from pose_common.evaluation import draw
from pose_common.prediction.pictures import Picture
from pose_common.prediction.result import FIELDS, Result, extent_boxes, with_ids


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


def test_a_drawing_of_nobody_is_not_the_picture_itself():
    """Somebody who writes onto it would change the picture."""
    found = result(0)
    found.draw()[:] = 255
    assert not found.picture.image.any()


def test_results_are_saved_where_their_path_says(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("poses.png", "p" * 250 + ".json"):  # 255 bytes are the longest name
        assert result(1).save(f"~/results/{name}") == tmp_path / "results" / name
        with pytest.raises(ValueError, match="no path"):
            result(1).save(f"s3://bucket/{name}")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["poses.png", "p" * 250 + ".json", "results"]


def test_a_track_keeps_its_colour_and_shows_its_box():
    rng = np.random.default_rng(0)
    xy = rng.uniform(20, 80, (17, 2)) + np.array([[[0, 0]], [[100, 0]]])
    keypoints = np.concatenate([xy, np.ones((2, 17, 1))], axis=-1).astype(np.float32)
    boxes = np.array([[10, 10, 80, 80], [110, 10, 80, 80]], np.float32)
    picture = Picture("a.jpg", np.zeros((100, 200, 3), np.uint8))
    found = Result(picture, "coco", KEYPOINT_SETS["coco"], keypoints, boxes, np.ones(2, np.float32))
    tracked, others = (with_ids(found, np.array(ids)).draw() for ids in ([3, 5], [5, 3]))
    reverse = dataclasses.replace(found, keypoints=keypoints[::-1], boxes=boxes[::-1])
    np.testing.assert_array_equal(with_ids(reverse, np.array([5, 3])).draw(), tracked)
    assert (tracked != others).any()
    middle = 50, 10  # of the left side of the first box
    assert tracked[middle].any() and found.draw(boxes=True)[middle].any() and not found.draw()[middle].any()


def test_somebody_alone_has_the_colours_of_the_sides():
    """Of several everybody has one colour."""
    keypoints = np.random.default_rng(0).uniform(20, 80, (1, 17, 3)).astype(np.float32)
    picture = Picture("a.jpg", np.zeros((100, 100, 3), np.uint8))
    alone = Result(picture, "coco", KEYPOINT_SETS["coco"], keypoints, np.ones((1, 4)), np.ones(1))
    twice = dataclasses.replace(alone, keypoints=keypoints.repeat(2, 0), boxes=np.ones((2, 4)), scores=np.ones(2))
    sides = draw.draw_skeleton(picture.image, keypoints[0], alone.skeleton, threshold=alone.draw_threshold)
    np.testing.assert_array_equal(alone.draw(), sides)
    assert (twice.draw() != sides).any()


def test_in_words_it_is_a_line_and_in_a_notebook_its_drawing():
    found = result(2)
    assert repr(found) == "<Result: a.jpg, 2 of coco>" and repr(found.picture) == "<Picture: a.jpg, 30x20>"
    shown = cv2.imdecode(np.frombuffer(found._repr_png_(), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(shown[..., ::-1], found.draw())
