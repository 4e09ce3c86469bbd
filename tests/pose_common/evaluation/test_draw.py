"""Skeletons, boxes, heatmaps and contact sheets: right colours in right places, arguments untouched."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from data_pipelines.sides import sides_of
from data_pipelines.skeletons import KEYPOINT_SETS
from pose_common.evaluation import draw

COCO = KEYPOINT_SETS["coco"]


def _canvas():
    return np.zeros((120, 100, 3), np.uint8)


def _arms():
    """COCO keypoints with the left arm on the right of the picture, the right arm on the left."""
    keypoints = np.zeros((17, 3))
    keypoints[[5, 7, 9]] = [[70, 20, 1], [70, 60, 1], [70, 100, 1]]
    keypoints[[6, 8, 10]] = [[30, 20, 1], [30, 60, 1], [30, 100, 0.3]]
    return keypoints


def test_left_and_right_limbs_have_their_colours():
    image = draw.draw_skeleton(_canvas(), _arms(), COCO, thickness=3)
    assert tuple(image[40, 70]) == draw.LEFT and tuple(image[40, 30]) == draw.RIGHT
    assert tuple(image[20, 50]) == draw.CENTRE  # the line between the shoulders
    assert tuple(image[60, 70]) == draw.LEFT and tuple(image[60, 30]) == draw.RIGHT  # points


def test_a_mirrored_figure_exchanges_the_colours():
    keypoints = _arms()
    keypoints[keypoints[:, 2] > 0, 0] = 99 - keypoints[keypoints[:, 2] > 0, 0]
    mirrored = draw.draw_skeleton(_canvas(), keypoints[COCO.flip_index], COCO, thickness=3)
    assert tuple(mirrored[40, 69]) == draw.LEFT and tuple(mirrored[40, 29]) == draw.RIGHT


def test_points_below_the_threshold_are_left_out_with_their_limbs():
    image = draw.draw_skeleton(_canvas(), _arms(), COCO, threshold=0.5)
    assert image[80, 70].any() and not image[75:, :50].any()
    assert not draw.draw_skeleton(_canvas(), np.zeros((17, 3)), COCO).any()


def test_broken_and_far_points_do_not_stop_the_drawing():
    keypoints = _arms()
    keypoints[9] = [np.nan, np.nan, 1]
    keypoints[10] = [1e9, -1e9, 1]
    image = draw.draw_skeleton(_canvas(), keypoints, COCO)
    assert image[40, 70].any() and not image[85:, 70].any()


def test_far_right_in_a_wide_panorama():
    """Of the 65,500 pixels that a JPEG may have; points are cut only where OpenCV's integers would end."""
    image = np.zeros((8, 12_000, 3), np.uint8)
    drawn = draw.draw_box(image, (11_000, 1, 500, 5))
    columns = np.flatnonzero(drawn.any(axis=(0, 2)))
    assert 10_990 < columns.min() < 11_010 and 11_490 < columns.max() < 11_510


def test_one_colour_tells_people_apart():
    colours = [draw.instance_colour(index) for index in range(8)]
    assert len(set(colours)) == 8
    image = draw.draw_skeleton(_canvas(), _arms(), COCO, colour=colours[3], thickness=3)
    assert tuple(image[40, 70]) == tuple(image[40, 30]) == colours[3]


def test_sides_of_every_skeleton_are_its_mirror_pairs():
    """Paired points lie on opposite sides by name, or on none (face contours); unpaired ones on none."""
    for skeleton in KEYPOINT_SETS.values():
        sides = sides_of(skeleton.keypoints)
        for a, b in skeleton.flip_pairs:
            assert {sides[a], sides[b]} in ({"left", "right"}, {"centre"}), skeleton.name
        for index in set(range(skeleton.num_keypoints)) - {i for pair in skeleton.flip_pairs for i in pair}:
            assert sides[index] == "centre", (skeleton.name, skeleton.keypoints[index])


@pytest.mark.parametrize("name", KEYPOINT_SETS)
def test_every_skeleton_can_be_drawn(name):
    skeleton = KEYPOINT_SETS[name]
    keypoints = np.random.default_rng(0).uniform(5, 95, (skeleton.num_keypoints, 3))
    image = _canvas()
    assert draw.draw_skeleton(image, keypoints, skeleton).any()
    assert not image.any()  # the argument is left alone


def test_a_wrong_number_of_points_is_refused():
    with pytest.raises(ValueError, match=r"\(17, 3\)"):
        draw.draw_skeleton(_canvas(), np.zeros((14, 3)), COCO)


def test_a_box_is_drawn_on_its_sides():
    image = draw.draw_box(_canvas(), (10, 20, 50, 60), colour=(9, 99, 200))
    for y, x in ((20, 30), (80, 30), (50, 10), (50, 60)):
        np.testing.assert_allclose(image[y, x], (9, 99, 200), rtol=0.15)  # an antialiased line of one pixel
    assert not image[50, 30].any() and not _canvas().any()
    assert (draw.draw_box(_canvas(), (10, 20, 50, 60), label="0.97") != image).any()


def test_a_heatmap_colours_its_peak_only():
    image = np.full((64, 48, 3), 100, np.uint8)
    np.testing.assert_array_equal(draw.heatmap_overlay(image, np.zeros((16, 12, 2))), image)
    heatmap = np.zeros((16, 12, 2), np.float32)
    heatmap[4, 6, 1] = 1
    overlay = draw.heatmap_overlay(image, heatmap)
    red, green, blue = overlay[17, 25].astype(int)  # the middle of cell (4, 6), four pixels a cell
    assert red > 100 and red > green and red > blue
    np.testing.assert_array_equal(overlay[40:], image[40:])


def test_a_contact_sheet_places_pictures_row_by_row():
    images = [np.full((10 + i, 20, 3), 40 * (i + 1), np.uint8) for i in range(5)]
    sheet = draw.contact_sheet(images, 2, gap=4)
    assert sheet.shape == (3 * 18 + 4, 2 * 24 + 4, 3)
    for index, image in enumerate(images):
        top, left = index // 2 * 18 + 4, index % 2 * 24 + 4
        np.testing.assert_array_equal(sheet[top : top + len(image), left : left + 20], image)
    captioned = draw.contact_sheet(images, 2, [str(i) for i in range(5)], gap=4)
    assert captioned.shape[0] == sheet.shape[0] + 3 * 16
    assert draw.contact_sheet(images[:1], 8).shape[1] == 28
    with pytest.raises(ValueError):
        draw.contact_sheet([], 2)
    with pytest.raises(ValueError):
        draw.contact_sheet(images, 2, ["one"])


def test_pictures_are_saved_as_rgb(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    draw.save_image(tmp_path / "picture.png", image)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "picture.png"))[..., ::-1], image)
    with pytest.raises(OSError):
        draw.save_image(tmp_path / "missing" / "picture.png", image)
