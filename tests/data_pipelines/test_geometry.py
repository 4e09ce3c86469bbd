"""Affine maps and boxes against recorded numbers of the release, and as properties."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipelines import geometry
from tests.golden_files import golden

# The release computes in float32 (UDP) or through three float32 points (plain); coordinates reach 1000
# pixels.
POINT_TOLERANCE = 1e-2  # the release maps points in float32; an ulp of its inputs moves them by 3e-3
LINEAR_TOLERANCE = 3e-5


@pytest.fixture(scope="module")
def recorded():
    return golden("data/pipeline_functions.npz")


def crops(recorded):
    for row in range(len(recorded["warp/center"])):
        yield (
            row,
            recorded["warp/center"][row],
            recorded["warp/scale"][row],
            float(recorded["warp/rotation_deg"][row]),
            tuple(recorded["warp/size_wh"][row].tolist()),
        )


@pytest.mark.parametrize(
    "udp, matrices, mapped",
    [(True, "warp/udp_matrix", "warp/points_udp"), (False, "warp/affine_matrix", "warp/points_affine")],
)
def test_warp_matches_the_release(recorded, udp, matrices, mapped):
    for row, centre, scale, rotation, size in crops(recorded):
        matrix = geometry.warp_matrix(centre, scale, rotation, size, udp)
        np.testing.assert_allclose(matrix[:, :2], recorded[matrices][row][:, :2], atol=LINEAR_TOLERANCE)
        points = geometry.transform(matrix, recorded["warp/points"][row])
        np.testing.assert_allclose(points, recorded[mapped][row], atol=POINT_TOLERANCE)


def test_plain_inverse_matches_the_release(recorded):
    for row, *crop in crops(recorded):
        inverse = geometry.invert(geometry.warp_matrix(*crop, udp=False))
        np.testing.assert_allclose(inverse, recorded["warp/affine_matrix_inverse"][row], atol=POINT_TOLERANCE)


@pytest.mark.parametrize("udp, mapped", [(True, "back/udp"), (False, "back/plain")])
def test_way_back_to_the_image_matches_the_release(recorded, udp, mapped):
    """The release's way back uses the box's own height, its plain warp only the width: they agree where the
    box has the crop's aspect ratio, as every box of a plain dataset does, and always in x."""
    width, height = recorded["edge/heatmap_size_wh"].tolist()
    for row, centre, scale, _, _ in crops(recorded):
        back = geometry.invert(geometry.warp_matrix(centre, scale, 0.0, (width, height), udp))
        error = np.abs(geometry.transform(back, recorded["back/heatmap_points"][row]) - recorded[mapped][row])
        same_aspect = abs(scale[1] / scale[0] - height / width) < 1e-4
        assert error[:, 0].max() < 1e-3
        assert error[:, 1].max() < 1e-3 or not (udp or same_aspect)


@pytest.mark.parametrize("udp", [True, False])
def test_image_to_crop_and_back(udp):
    rng = np.random.default_rng(0)
    for _ in range(20):
        matrix = geometry.warp_matrix(
            rng.uniform(0, 500, 2), rng.uniform(0.2, 3, 2), rng.uniform(-180, 180), (192, 256), udp
        )
        points = rng.uniform(-100, 700, (30, 2))
        round_trip = geometry.transform(geometry.invert(matrix), geometry.transform(matrix, points))
        np.testing.assert_allclose(round_trip, points, atol=1e-9)


def test_the_two_pixel_conventions():
    centre, scale, size = (70.0, 90.0), (0.3, 0.4), (192, 256)
    corners = np.array([[70 - 30, 90 - 40], [70 + 30, 90 + 40]], float)
    udp = geometry.warp_matrix(centre, scale, 0.0, size, udp=True)
    np.testing.assert_allclose(geometry.transform(udp, corners), [[0, 0], [191, 255]], atol=1e-9)
    plain = geometry.warp_matrix(centre, scale, 0.0, size, udp=False)
    np.testing.assert_allclose(geometry.transform(plain, corners), [[0, 0], [192, 256]], atol=1e-9)


def test_the_two_conventions_rotate_in_opposite_directions():
    crop = ((50, 50), (0.3, 0.4), 30.0, (192, 256))
    assert geometry.warp_matrix(*crop, udp=True)[1, 0] > 0 > geometry.warp_matrix(*crop, udp=False)[1, 0]


@pytest.mark.parametrize("udp", [True, False])
def test_mirrored_warp_equals_mirroring_first(udp):
    width = 101
    matrix = geometry.warp_matrix((40, 60), (0.4, 0.5), 25.0, (48, 64), udp)
    points = np.random.default_rng(1).uniform(0, 100, (10, 2))
    mirror = np.stack([width - 1 - points[:, 0], points[:, 1]], axis=1)
    np.testing.assert_allclose(
        geometry.transform(geometry.mirrored(matrix, width), points), geometry.transform(matrix, mirror), atol=1e-9
    )
    np.testing.assert_allclose(geometry.mirrored(geometry.mirrored(matrix, width), width), matrix, atol=1e-9)


def test_clean_box():
    boxes = np.array([[10, 20, 30, 40], [-5, -5, 20, 20], [90, 90, 50, 50], [200, 10, 5, 5]], float)
    cleaned = geometry.clean_box(boxes, 100, 100)
    np.testing.assert_array_equal(cleaned[:3], [[10, 20, 29, 39], [0, 0, 19, 19], [90, 90, 9, 9]])
    assert cleaned[3, 2] <= 0  # outside


def test_boxes_grow_to_the_aspect_and_keep_their_middle():
    boxes = np.array([[10, 20, 30, 30], [0, 0, 90, 30], [5, 5, 1, 100]], float)
    centre, scale = geometry.box_to_crop(boxes, 0.75, 1.25)
    np.testing.assert_allclose(centre, boxes[:, :2] + boxes[:, 2:] / 2)
    np.testing.assert_allclose(scale[:, 0] / scale[:, 1], 0.75)
    assert (scale * 200 >= 1.25 * boxes[:, 2:] - 1e-9).all()
    _, kept = geometry.box_to_crop(boxes, None, 1.25)
    np.testing.assert_allclose(kept * 200, 1.25 * boxes[:, 2:])
