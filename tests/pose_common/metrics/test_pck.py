"""PCK, AUC, EPE, NME; PCKh's corner cases (its recorded numbers are in test_evaluate)."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipelines.skeletons import KEYPOINT_SETS
from pose_common.metrics import pck
from tests.golden_files import golden

# The recorded distances are float32.
TOLERANCE = 1e-5


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_recorded(name):
    arrays = golden("data/eval/keypoint_metrics.npz")
    data = {key[2:]: value for key, value in arrays.items() if key.startswith(f"{name}/")}
    points = data["pred"], data["gt"], data["mask"]
    for threshold in (0.05, 0.2, 0.5):
        ratio, mean, count = pck.pck(*points, threshold, data["normalize"])
        np.testing.assert_allclose(ratio, data[f"pck{threshold}_per_joint"], atol=TOLERANCE)
        assert mean == pytest.approx(float(data[f"pck{threshold}_mean"]), abs=TOLERANCE)
        assert count == data[f"pck{threshold}_count"]
    assert pck.auc(*points, 30) == pytest.approx(float(data["auc30"]), abs=TOLERANCE)
    assert pck.auc(*points, 50) == pytest.approx(float(data["auc50"]), abs=TOLERANCE)
    perfect = pck.auc(data["gt"], data["gt"], data["mask"], 30)
    assert perfect == pytest.approx(float(data["auc30_perfect"]), abs=TOLERANCE)
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
