"""PCK, AUC, EPE, NME; PCKh's corner cases (its recorded numbers are in test_evaluate)."""

from __future__ import annotations

import re

import numpy as np
import pytest

from data_pipelines.keypoint_sets import KEYPOINT_SETS
from pose_common.metrics import pck
from tests.golden_files import golden

# The recorded distances are float32.
TOLERANCE = 1e-5


RECORDED = golden("data/eval/keypoint_metrics.npz")


def numbers(data, pattern):
    """What the names of arrays say at the pattern's group."""
    return [match[1] for name in data if (match := re.fullmatch(pattern, name))]


@pytest.mark.parametrize("name", numbers(RECORDED, r"(\w+)/pred"))
def test_recorded(name):
    data = {key.removeprefix(f"{name}/"): value for key, value in RECORDED.items() if key.startswith(f"{name}/")}
    points = data["pred"], data["gt"], data["mask"]
    for threshold in numbers(data, r"pck([\d.]+)_per_joint"):
        ratio, mean, count = pck.pck(*points, float(threshold), data["normalize"])
        np.testing.assert_allclose(ratio, data[f"pck{threshold}_per_joint"], atol=TOLERANCE)
        assert mean == pytest.approx(float(data[f"pck{threshold}_mean"]), abs=TOLERANCE)
        assert count == data[f"pck{threshold}_count"]
    for pixels in numbers(data, r"auc(\d+)"):
        assert pck.auc(*points, int(pixels)) == pytest.approx(float(data[f"auc{pixels}"]), abs=TOLERANCE)
    for pixels in numbers(data, r"auc(\d+)_perfect"):
        perfect = pck.auc(data["gt"], data["gt"], data["mask"], int(pixels))
        assert perfect == pytest.approx(float(data[f"auc{pixels}_perfect"]), abs=TOLERANCE)
    assert pck.epe(*points) == pytest.approx(float(data["epe"]), rel=TOLERANCE)
    assert pck.nme(*points, data["normalize"]) == pytest.approx(float(data["nme"]), rel=TOLERANCE)


def test_distance_at_the_threshold_counts_for_pckh_only():
    truth = np.zeros((1, 16, 2))
    predicted = truth + [0.5, 0.0]
    mask, names = np.ones((1, 16), bool), KEYPOINT_SETS["mpii"].keypoints
    assert pck.pckh(predicted, truth, mask, np.ones(1), names)["PCKh"] == 100.0
    assert pck.pck(predicted, truth, mask, 0.5, np.ones((1, 2)))[1] == 0.0


def test_pckh_leaves_out_pelvis_and_thorax_and_weights_by_count():
    names = KEYPOINT_SETS["mpii"].keypoints
    truth = np.zeros((2, 16, 2))
    predicted = truth.copy()
    predicted[:, [6, 7]] = 100.0  # pelvis, thorax
    predicted[0, names.index("head_top")] = 100.0
    mask = np.ones((2, 16), bool)
    mask[1, [i for i in range(16) if names[i] != "head_top"]] = False
    result = pck.pckh(predicted, truth, mask, np.ones(2), names)
    assert result["Head"] == 50.0 and result["Hip"] == 100.0
    assert result["PCKh"] == pytest.approx(100 * (13 + 1) / (13 + 2))


def test_nothing_annotated():
    points, mask = np.zeros((2, 16, 2)), np.zeros((2, 16), bool)
    assert pck.pck(points, points, mask, 0.5, np.ones((2, 2)))[1:] == (0.0, 0)
    assert pck.epe(points, points, mask) == 0.0
    assert set(pck.pckh(points, points, mask, np.ones(2), KEYPOINT_SETS["mpii"].keypoints).values()) == {-1.0}
