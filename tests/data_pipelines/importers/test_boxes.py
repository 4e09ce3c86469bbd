"""Boxes from keypoints."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipelines.importers import boxes


def entry(*points, **more):
    return {"keypoints": [value for point in points for value in (*point, 2)] + [0] * 3 * (3 - len(points))} | more


def fill(*entries, size=(1000, 1000)):
    return boxes.fill(list(entries), 3, lambda _: size)


def test_the_extent_with_a_margin_clipped_to_the_picture():
    (found,), count = fill(entry((100, 100), (200, 150)))
    assert count == 1 and found["bbox"] == [80, 80, 140, 90]  # 20 % of 100 pixels on each side
    (found,), _ = fill(entry((100, 100), (200, 150)), size=(210, 1000))
    assert found["bbox"] == [80, 80, 129.5, 90]
    (found,), _ = fill(entry((100, 100), (200, 150)), size=None)
    assert found["bbox"] == [80, 80, 140, 90]


def test_boxes_move_and_grow_with_their_people():
    rng = np.random.default_rng(0)
    for _ in range(20):
        points, shift, factor = rng.uniform(100, 200, (3, 2)), rng.uniform(0, 100, 2), rng.uniform(0.5, 2)
        (one,), _ = fill(entry(*points.tolist()), size=None)
        (other,), _ = fill(entry(*(factor * points + shift).tolist()), size=None)
        np.testing.assert_allclose(other["bbox"][:2], factor * np.array(one["bbox"][:2]) + shift)
        np.testing.assert_allclose(other["bbox"][2:], factor * np.array(one["bbox"][2:]))


def test_a_single_point_gets_a_square_of_the_usual_size():
    found, count = fill(entry((100, 100), (200, 150)), entry((500, 500)))
    assert count == 2 and found[1]["bbox"] == [430, 430, 140, 140]
    (alone,), _ = fill(entry((500, 500)))
    assert alone["bbox"] == [500, 500, 0, 0], "whose loss is then told as a box without extent"


def test_the_usual_size_is_that_of_drawn_boxes_as_well():
    """Where a tool writes a box for everybody, of no extent for whom a single point is labelled."""
    drawn = [entry((1, 2), bbox=box) for box in ([0, 0, 60, 20], [0, 0, "30", 100], [5, 5, 200, 1], ["x"], [1, 2, 3])]
    single, *others = fill(entry((500, 500), bbox=[500, 500, 0, 0]), *drawn)[0]
    assert single["bbox"] == [450, 450, 100, 100] and others == drawn
    # The box of two points would be 140 long: the median of 60, 100, 140 and 200 is 120.
    assert fill(entry((500, 500)), *drawn, entry((100, 100), (200, 150)))[0][0]["bbox"] == [440, 440, 120, 120]


@pytest.mark.parametrize("box", [None, [], [0, 0, 0, 0], [0.0] * 4, ["0"] * 4, [5, 5, 0, 0], [100, 100, 0.0, "0"]])
def test_what_label_tools_write_where_nobody_drew_a_box(box):
    (found,), count = fill(entry((100, 100), (200, 150), bbox=box))
    assert count == 1 and found["bbox"] == [80, 80, 140, 90]


@pytest.mark.parametrize("area, kept", [(0, False), (0.0, False), ("0", False), (None, True), (12, True), ("x", True)])
def test_an_area_of_0_is_that_of_no_box(area, kept):
    """By which nobody could be judged or learned from; what else stands there is left to the checks."""
    (found,), _ = fill(entry((100, 100), (200, 150), bbox=[0, 0, 0, 0], area=area))
    assert ("area" in found) == kept
    given = entry((1, 2), bbox=[0, 0, 5, 5], area=0)
    assert fill(given) == ([given], 0), "of a drawn box"


def test_others_stay_as_they_are():
    broken = [entry((1, 2), bbox=box) for box in ([5, 5, 0, 3], [0, 0, 0, 8], ["x"], [[0, 0, 5, 5]], "", 0, [None] * 4)]
    given = [*broken, entry((1, 2), bbox=[0, 0, 5, 5]), entry(), "x", {"keypoints": "y"}, entry((1, "z"))]
    found, count = fill(*given)
    assert found == given and count == 0
