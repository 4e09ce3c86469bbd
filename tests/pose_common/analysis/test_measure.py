"""Tables, curves and costs of an analysis, against loops over people and keypoints."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics

import numpy as np
import pytest

from data_pipelines.datasets import find_dataset
from pose_common.analysis import errors as kinds
from pose_common.analysis.errors import KINDS
from pose_common.analysis.measure import analyse
from pose_common.metrics import evaluate
from tests.pose_common.analysis.cases import COCO, crowded
from tests.pose_common.metrics.cases import random_document, truth_of

# The document is rounded to four decimals.
ROUNDED = 5.1e-5


def keypoint_row(truth, poses, k: int) -> dict[str, float | None]:
    """The plain figures of one keypoint, person by person."""
    labelled, pixels, shares, similarities = 0, [], [], []
    for person in range(len(truth.id)):
        x, y, visible = truth.keypoints[person, k]
        if truth.crowd[person] or visible <= 0:
            continue
        labelled += 1
        for row in range(len(poses)):
            if poses.instance_id[row] == truth.id[person]:
                distance = math.dist((x, y), poses.keypoints[row, k, :2])
                pixels.append(distance)
                shares.append(distance / max(truth.box[person, 2:]))
                width = truth.area[person] * (2 * COCO.keypoints.sigmas[k]) ** 2
                similarities.append(math.exp(-(distance**2) / (2 * width)) if width else float(distance == 0))
    return {
        "labelled": labelled,
        "found": len(pixels),
        "median_error": statistics.median(pixels),
        "median_error_percent": 100 * statistics.median(shares),
        "pck@0.05": sum(share < 0.05 for share in shares) / labelled,
        "pck@0.1": sum(share < 0.1 for share in shares) / labelled,
        "oks": sum(similarities) / labelled,
    }


@pytest.mark.parametrize("seed", range(3))
def test_the_table_is_that_of_a_plain_loop(seed):
    truth, poses = crowded(seed)
    document, pairs, errors = analyse(COCO, truth, poses, by_instance=True)
    assert [row["name"] for row in document["keypoints"]] == list(COCO.keypoints.keypoints)
    for k, row in enumerate(document["keypoints"]):
        for name, value in keypoint_row(truth, poses, k).items():
            assert row[name] == pytest.approx(value, abs=ROUNDED), (k, name)
        assert sum(row[kind] for kind in KINDS) == row["found"] <= row["labelled"]
    total = document["total"]
    assert total["found"] < total["labelled"], "two people have no pose"
    for name in ("labelled", "found", "left_right_swaps", *KINDS):
        assert total[name] == sum(row[name] for row in document["keypoints"])
    weighted = [row["pck@0.1"] * row["labelled"] for row in document["keypoints"]]
    assert total["pck@0.1"] == pytest.approx(sum(weighted) / total["labelled"], abs=2 * ROUNDED)
    json.dumps(document, allow_nan=False)


def test_everybodys_oks_is_that_of_the_metric():
    """The share of people at or above an OKS is COCO's recall at that threshold."""
    truth, poses = crowded(0)
    # One person a picture, so that nobody else's pose is a better match.
    people = np.flatnonzero(kinds.judged(truth))
    alone = people[np.unique(truth.image[people], return_index=True)[1]]
    rows = {f.name: getattr(truth, f.name)[alone] for f in dataclasses.fields(truth) if f.name not in NOT_ROWS}
    truth = dataclasses.replace(truth, **rows)
    poses = poses.take(np.flatnonzero(np.isin(poses.instance_id, truth.id)))
    document, _, _ = analyse(COCO, truth, poses, by_instance=True)
    recall = evaluate.oks_metrics(COCO, truth, poses)["AR .5"]
    curve = dict(zip(document["curves"]["oks"]["at"], document["curves"]["oks"]["share"], strict=True))
    assert len(alone) > 10 and 0 < recall < 1 and curve[0.5] == pytest.approx(recall, abs=ROUNDED)
    assert curve[0.0] == pytest.approx(document["people"]["found"] / document["people"]["labelled"], abs=ROUNDED)


NOT_ROWS = ("image_id", "crowd_index", "category_id")


def test_curves_fall_and_rise_and_meet_the_table():
    truth, poses = crowded(1)
    curves = (document := analyse(COCO, truth, poses, by_instance=True)[0])["curves"]
    assert (np.diff(curves["oks"]["share"]) <= 0).all() and (np.diff(curves["pck"]["share"]) >= 0).all()
    pck = dict(zip(curves["pck"]["at"], curves["pck"]["share"], strict=True))
    assert pck[0.05] == document["total"]["pck@0.05"] and pck[0.1] == document["total"]["pck@0.1"]


def test_costs_are_differences_of_the_metric():
    truth, poses = crowded(2)
    poses = poses.take(np.flatnonzero(np.isin(poses.instance_id, truth.id[truth.area > 0])))
    document, pairs, errors = analyse(COCO, truth, poses, by_instance=True)
    before = evaluate.metrics_of(COCO, truth, poses)["AP"]
    assert document["metric"] == "AP" and document["score"] == pytest.approx(100 * before, abs=ROUNDED)
    scale = kinds.scale_of(COCO, truth)
    for name, cost in document["costs"].items():
        changed = kinds.corrected(truth, poses, pairs, scale, errors, KINDS.index(name))
        after = evaluate.metrics_of(COCO, truth, changed)["AP"]
        assert cost == pytest.approx(100 * (after - before), abs=2 * ROUNDED)
    assert max(document["costs"].values()) > 1, "corrections help"


@pytest.mark.parametrize("name, metric", [("mpii", "PCKh"), ("interhand2d", "PCK")])
def test_other_metrics_than_ap(name, metric):
    dataset = find_dataset(name)
    document, _ = random_document(0, COCO if name == "coco" else dataset, images=6)
    for annotation in document["annotations"]:
        annotation["head_size"] = 20.0
    truth = truth_of(dataset, document)
    people = np.flatnonzero(kinds.judged(truth))
    one = np.ones(len(people), np.int64)
    keypoints = truth.keypoints[people] + np.array([15.0, 0, 0])
    poses = kinds.Poses(truth.image_id[truth.image[people]], truth.id[people], keypoints, 1.0 * one, 1.0 * one, one)
    result, _, _ = analyse(dataset, truth, poses, by_instance=True)
    expected = evaluate.metrics_of(dataset, truth, poses)[metric] * (1 if metric == "PCKh" else 100)
    assert result["metric"] == metric and result["score"] == pytest.approx(expected, abs=ROUNDED)
    assert result["total"]["median_error"] == 15


def test_perfect_poses_have_no_errors():
    truth, _ = crowded(0)
    people = np.flatnonzero(kinds.judged(truth) & (truth.area > 0))
    one = np.ones(len(people), np.int64)
    image = truth.image_id[truth.image[people]]
    poses = kinds.Poses(image, truth.id[people], truth.keypoints[people], 1.0 * one, 1.0 * one, one)
    document, _, errors = analyse(COCO, truth, poses, by_instance=True)
    assert set(np.unique(errors.kind)) <= {kinds.UNLABELLED, kinds.GOOD}
    assert document["total"]["median_error"] == 0 and set(document["costs"].values()) == {0.0}
    assert document["people"]["without_truth"] == 0


def test_the_worst_are_the_least_similar():
    truth, poses = crowded(3)
    document, pairs, errors = analyse(COCO, truth, poses, by_instance=True)
    worst = document["worst"]
    assert [case["oks"] for case in worst] == sorted(case["oks"] for case in worst)
    first = worst[0]
    row = pairs.annotation.tolist().index(truth.id.tolist().index(first["id"]))
    assert first["miss"] == (errors.kind[row] == kinds.MISS).sum()
    assert first["image_id"] == truth.image_id[truth.image[pairs.annotation[row]]]


def test_nobody_found_and_nobody_labelled():
    truth, poses = crowded(0)
    nobody = poses.take(np.zeros(0, np.int64))
    document, _, _ = analyse(COCO, truth, nobody, by_instance=True)
    assert document["people"]["found"] == 0 and document["total"]["median_error"] is None
    assert document["total"]["pck@0.1"] == 0 and document["worst"] == []
    unlabelled = dataclasses.replace(truth, keypoints=np.zeros_like(truth.keypoints))
    document, _, _ = analyse(COCO, unlabelled, poses, by_instance=True)
    assert document["score"] is None and document["costs"]["miss"] is None
    assert document["total"]["pck@0.1"] is None and document["curves"]["oks"]["share"][0] is None
    json.dumps(document, allow_nan=False)
