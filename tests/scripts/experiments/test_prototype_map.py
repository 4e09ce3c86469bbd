"""The plane keeps distances that fit into it; the picture is drawn."""

import numpy as np

from scripts.experiments import prototype_map


def test_the_plane_keeps_flat_distances():
    rng = np.random.default_rng(0)
    points = rng.random((9, 2)) / 2  # no two are farther apart than 1
    apart = np.linalg.norm(points[:, None] - points, axis=-1)
    found = prototype_map.plane(1 - apart)
    np.testing.assert_allclose(
        np.linalg.norm(found[:, None] - found, axis=-1), apart, atol=1e-9
    )  # float64 eigenvectors


def test_a_picture_of_two_banks(tmp_path):
    rng = np.random.default_rng(0)
    skeletons = {"one": ("nose", "L_Eye"), "two": ("tail", "nose", "left_eye")}
    banks = {title: rng.standard_normal((5, 2, 4)) for title in ("before", "after")}
    prototype_map.draw(tmp_path / "new" / "map.png", banks, skeletons)
    assert (tmp_path / "new" / "map.png").read_bytes()[:4] == b"\x89PNG"
