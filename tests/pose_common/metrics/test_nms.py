"""Suppression and rescoring."""

from __future__ import annotations

import collections
import re

import numpy as np
import pytest

from pose_common.metrics import nms
from tests.golden_files import golden, golden_config

RECORDED = golden("data/eval/oks_nms.npz")
LAYOUTS = [key.removesuffix("/keypoints") for key in RECORDED if key.endswith("/keypoints")]


def _layout(name: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(f"{name}/"): array for key, array in RECORDED.items() if key.startswith(f"{name}/")}


@pytest.mark.parametrize("name", LAYOUTS)
def test_recorded(name):
    data = _layout(name)
    keypoints, area, score, sigmas = (data[key] for key in ("keypoints", "area", "score", "sigmas"))
    # Recorded as float32.
    np.testing.assert_allclose(nms.pose_similarity(keypoints, area, sigmas), data["oks_matrix"], atol=1e-6)
    checked = collections.Counter()
    for key, expected in data.items():
        if match := re.fullmatch(r"oks_matrix_visthr([\d.]+)_fixed", key):
            seen = nms.pose_similarity(keypoints, area, sigmas, min_confidence=float(match[1]))
            np.testing.assert_allclose(seen, expected, atol=1e-6)
            checked["similarity"] += 1
        elif match := re.fullmatch(r"keep_(nms|soft)_([\d.]+?)(?:_max(\d+)|(_score_per_joint))?", key):
            kind, threshold, most, by_joints = match.groups()
            ranking = keypoints[..., 2].mean(1) if by_joints else score
            limit = {"max_poses": int(most)} if most else {}
            suppress = {"nms": nms.oks_nms, "soft": nms.soft_oks_nms}[kind]
            kept = suppress(keypoints, area, ranking, sigmas, float(threshold), **limit)
            np.testing.assert_array_equal(kept, expected, err_msg=key)
            checked[kind] += 1
    assert all(checked[kind] for kind in ("similarity", "nms", "soft"))


def test_recorded_single_stage_poses():
    data, config = golden("boir/data_test_nms.npz"), golden_config("boir/data_test_nms.npz")
    sigmas = np.array(config["sigmas"]) / 10
    for case in range(config["n_nms"]):
        poses, score = data[f"nms{case}:poses"], data[f"nms{case}:scores"]
        area = nms.extent_area(poses)
        similarity = nms.pose_similarity(poses, area, sigmas)
        # The recording subtracts and squares in float32.
        np.testing.assert_allclose(similarity, data[f"nms{case}:oks_matrix"], atol=1e-5)
        kept = nms.oks_nms(poses, area, score, sigmas, float(data[f"nms{case}:thresh"]))
        np.testing.assert_array_equal(kept, data[f"nms{case}:keep"])


def test_all_images_at_once_equals_one_by_one():
    data = _layout(LAYOUTS[0])
    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(data["area"]), 300)
    image = np.sort(rng.integers(0, 40, 300))[rng.permutation(300)]
    keypoints = data["keypoints"][rows] + rng.normal(size=(300, 1, 1))
    area, score, sigmas = data["area"][rows], rng.random(300), data["sigmas"]
    expected = []
    for one in np.unique(image):
        members = np.flatnonzero(image == one)
        expected.extend(members[nms.oks_nms(keypoints[members], area[members], score[members], sigmas, 0.7)])
    np.testing.assert_array_equal(nms.oks_nms(keypoints, area, score, sigmas, 0.7, image), expected)


def test_kept_poses_are_apart_and_removed_ones_are_close_to_a_better_one():
    data = _layout(LAYOUTS[0])
    similarity = nms.pose_similarity(data["keypoints"], data["area"], data["sigmas"])
    kept = nms.oks_nms(data["keypoints"], data["area"], data["score"], data["sigmas"], 0.5)
    assert (similarity[np.ix_(kept, kept)] - np.eye(len(kept)) <= 0.5).all()
    for row in np.setdiff1d(np.arange(len(similarity)), kept):
        better = kept[data["score"][kept] >= data["score"][row]]
        assert similarity[row, better].max() > 0.5


def test_nothing_to_suppress():
    empty = np.zeros((0, 17, 3)), np.zeros(0), np.zeros(0), np.full(17, 0.05)
    assert len(nms.oks_nms(*empty, 0.9)) == 0
    assert len(nms.soft_oks_nms(*empty, 0.9)) == 0
    assert len(RECORDED["empty/keep"]) == 0


def test_rescoring_counts_confidences_strictly_above_the_threshold():
    keypoints = np.zeros((3, 3, 3))
    keypoints[:, :, 2] = [[0.9, 0.2, 0.5], [0.1, 0.0, 0.2], [1.0, 1.0, 1.0]]
    np.testing.assert_allclose(nms.rescore(keypoints, np.array([0.5, 1.0, 0.8])), [0.5 * 0.7, 0.0, 0.8])
