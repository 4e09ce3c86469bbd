"""The whole protocol of every dataset against recorded numbers."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
import scipy.io

from data_pipelines.datasets import find_dataset
from pose_common.metrics import evaluate
from pose_common.metrics.columns import ground_truth_from_coco
from scripts.benchmarks import metrics as benchmark
from tests.golden_files import GOLDEN, golden, golden_path, shared_path
from tests.pose_common.metrics.cases import (
    annotations_of,
    random_document,
    recorded_evaluations,
    recorded_poses,
    settings_of,
    truth_of,
)
from tests.settings import POSES

# Recorded to 1e-9 with float32 or float64 arithmetic; scores pass through float32 sums.
METRIC_TOLERANCE, SCORE_TOLERANCE = 1e-9, 1e-6

EVALUATIONS = recorded_evaluations()
REAL = {
    "aic": "aic/test_aic.json",
    "ap10k": "ap10k/test_ap10k.json",
    "coco": "coco/test_coco.json",
    "coco_wholebody": "coco/test_coco_wholebody.json",
    "crowdpose": "crowdpose/test_crowdpose.json",
    "ochuman": "ochuman/test_ochuman.json",
}


def _options(variant: str) -> dict[str, object]:
    """What a variant's name says."""
    kind, _, value = variant.rpartition("_")
    return {
        "no": lambda: {"suppression": "none"},
        "soft": lambda: {"suppression": "soft"},
        "oks_thr": lambda: {"oks_threshold": float(value)},
        "vis_thr": lambda: {"confidence_threshold": float(value)},
    }[kind]()


def _assert_metrics(actual, expected, tolerance=METRIC_TOLERANCE):
    assert {name: actual[name] for name in expected} == pytest.approx(expected, rel=0, abs=tolerance)


def _with_samples(name: str):
    """A recording of sample annotations, kept with the other recordings or with the samples."""
    path = GOLDEN / name
    return json.loads((path if path.exists() else shared_path(f"golden/{name}")).read_text())


def _check_oks_case(dataset, document, rows, expected):
    poses = evaluate.final_poses(
        dataset, truth_of(dataset, document), recorded_poses(rows, dataset), **settings_of(expected)
    )
    _assert_metrics(evaluate.metrics_of(dataset, truth_of(dataset, document), poses), expected["metrics"])

    # The recording lists images as they first appear, ours by id; both list an image's poses best first.
    first = {}
    for row, entry in enumerate(rows):
        first.setdefault((entry["image_id"], entry["bbox_id"]), row)
    kept = [first[key] for key in zip(poses.image_id.tolist(), poses.instance_id.tolist(), strict=True)]
    recorded = sorted(expected["kept"], key=lambda entry: rows[entry[0]]["image_id"])
    assert kept == [row for row, _ in recorded]
    np.testing.assert_allclose(poses.score, [score for _, score in recorded], atol=SCORE_TOLERANCE)

    truth = ground_truth_from_coco(document, dataset.keypoints)
    if dataset.metric == "wholebody":
        parts = [(first, end) for _, first, end in dataset.keypoints.parts] + [None]
        for part, stats in zip(parts, expected["stats"], strict=True):
            numbers = list(evaluate.oks_metrics(dataset, truth, poses, part).values())
            np.testing.assert_allclose(numbers, stats["values"], rtol=0, atol=METRIC_TOLERANCE)


@pytest.mark.parametrize("name", EVALUATIONS)
def test_recorded_synthetic(name):
    expected, document = EVALUATIONS[name], json.loads(annotations_of(name).read_text())
    rows = golden(f"data/eval/{name}_pred.json")
    _check_oks_case(find_dataset(expected["dataset"]), document, rows, expected)


@pytest.mark.parametrize("name", REAL)
def test_recorded_on_sample_annotations(name):
    document = json.loads(shared_path(f"samples/{REAL[name]}").read_text())
    rows, expected = (_with_samples(f"data/eval/{name}_real_{kind}.json") for kind in ("pred", "expected"))
    _check_oks_case(find_dataset(name), document, rows, expected)


@pytest.mark.parametrize(
    "name, variant",
    [(name, variant) for name, expected in EVALUATIONS.items() for variant in expected.get("variants", ())],
)
def test_recorded_variants_of_suppression_and_scoring(name, variant):
    expected, document = EVALUATIONS[name], json.loads(annotations_of(name).read_text())
    dataset = find_dataset(expected["dataset"])
    poses = recorded_poses(golden(f"data/eval/{name}_pred.json"), dataset)
    metrics = evaluate.evaluate(
        dataset, truth_of(dataset, document), poses, **settings_of(expected) | _options(variant)
    )
    _assert_metrics(metrics, expected["variants"][variant]["metrics"])


@pytest.mark.parametrize("name", [name for name, expected in EVALUATIONS.items() if "ap_per_category" in expected])
def test_animals_are_averaged_over_categories_and_take_their_annotations_category(name):
    expected, document = EVALUATIONS[name], json.loads(annotations_of(name).read_text())
    dataset = find_dataset(expected["dataset"])
    rows = golden(f"data/eval/{name}_pred.json")
    poses = recorded_poses(rows, dataset)
    # A recorded prediction names its annotation by position within the image.
    ids: dict[int, list[int]] = {}
    for annotation in document["annotations"]:
        ids.setdefault(annotation["image_id"], []).append(annotation["id"])
    annotation_id = np.array([ids[row["image_id"]][row["bbox_id"]] for row in rows])
    poses = dataclasses.replace(poses, instance_id=annotation_id, category=None)
    metrics = evaluate.evaluate(dataset, truth_of(dataset, document), poses, **settings_of(expected))
    _assert_metrics(metrics, expected["metrics"])

    per_category = [value for value in expected["ap_per_category"].values() if value > -1]
    assert expected["metrics"]["AP"] == pytest.approx(np.mean(per_category))


def test_crowdpose_equals_four_public_evaluators():
    expected = golden("boir/crowdpose_eval.json")
    dataset, document = find_dataset("crowdpose"), golden("boir/crowdpose_gt.json")
    rows = golden("boir/crowdpose_pred.json")
    rows = [row | {"bbox_id": i, "box_score": row["score"]} for i, row in enumerate(rows)]
    poses = recorded_poses(rows, dataset)
    metrics = evaluate.metrics_of(dataset, truth_of(dataset, document), poses)
    names = ["AP", "AP .5", "AP .75", "AR", "AR .5", "AR .75", "AP(E)", "AP(M)", "AP(H)"]
    tools = {key: values for key, values in expected.items() if isinstance(values, dict) and "AP_hard" in values}
    assert len(tools) == 4
    for values in tools.values():
        # The archive keeps float32 confidences and scores as text; ranks, and so the metrics, are the same.
        recorded = [values[name] for name in expected["names"]]
        _assert_metrics(metrics, dict(zip(names, recorded, strict=True)))


def test_mpii():
    expected = golden("data/eval/mpii_synth_expected.json")
    mat = scipy.io.loadmat(golden_path("data/eval/mpii_synth_gt_val.mat"))
    dataset = find_dataset("mpii")
    points = mat["pos_gt_src"].transpose(2, 0, 1) - 1  # Matlab counts pixels from 1
    labelled = 1 - mat["jnt_missing"].T
    head = 0.6 * np.linalg.norm(mat["headboxes_src"][1] - mat["headboxes_src"][0], axis=0)
    document = {
        "images": [{"id": 0}],
        "categories": [{"id": 1}],
        "annotations": [
            {
                "id": i,
                "image_id": 0,
                "category_id": 1,
                "bbox": [0, 0, 1, 1],
                "head_size": head[i],
                "keypoints": np.column_stack([points[i], labelled[i]]).ravel().tolist(),
            }
            for i in range(len(head))
        ],
    }
    rows = golden("data/eval/mpii_synth_pred.json")
    metrics = evaluate.evaluate(dataset, truth_of(dataset, document), recorded_poses(rows, dataset), **POSES)
    # Predictions pass through float32 on both sides, PCKh@0.1 through a float32 table in the reference.
    _assert_metrics(metrics, expected["metrics"], tolerance=1e-5)


def _hand_document(instances, category=1):
    return {
        "images": [{"id": image} for image in sorted({i["image_id"] for i in instances})],
        "categories": [{"id": category}],
        "annotations": [
            {
                "id": row,
                "image_id": i["image_id"],
                "category_id": category,
                "bbox": i["bbox"],
                "keypoints": np.column_stack([np.array(i["joints"])[:, :2], i["visible"]]).ravel().tolist(),
            }
            for row, i in enumerate(instances)
        ],
    }


def _check_hand_case(rows, expected):
    dataset = find_dataset("interhand2d")
    metrics = evaluate.evaluate(
        dataset, truth_of(dataset, _hand_document(expected["instances"])), recorded_poses(rows, dataset), **POSES
    )
    *shares, distance = expected["metrics"].items()
    _assert_metrics(metrics, dict(shares), tolerance=1e-5)
    _assert_metrics(metrics, dict([distance]), tolerance=1e-3)  # the recorded joints are rounded to 4 digits


def test_hands():
    name = "data/eval/interhand2d_synth"
    _check_hand_case(golden(f"{name}_pred.json"), golden(f"{name}_expected.json"))


def test_hands_on_sample_annotations():
    rows, expected = (_with_samples(f"data/eval/interhand2d_real_{kind}.json") for kind in ("pred", "expected"))
    _check_hand_case(rows, expected)


def test_repeated_predictions_and_row_order_do_not_matter():
    dataset = find_dataset("coco")
    document, poses = random_document(0, dataset)
    rng = np.random.default_rng(0)
    poses = dataclasses.replace(poses, score=rng.random(len(poses)))  # distinct, so that order is defined
    expected = evaluate.evaluate(dataset, truth_of(dataset, document), poses, **POSES)
    doubled = poses.take(rng.permutation(np.r_[np.arange(len(poses)), np.arange(9)]))
    assert evaluate.evaluate(dataset, truth_of(dataset, document), doubled, **POSES) == expected
    shuffled = document | {"images": document["images"][::-1]}
    assert evaluate.evaluate(dataset, truth_of(dataset, shuffled), doubled, **POSES) == expected


def test_perfect_predictions_score_one():
    dataset = find_dataset("coco")
    document, _ = random_document(1, dataset)
    labelled = [a for a in document["annotations"] if a["num_keypoints"] and not a["iscrowd"]]
    rows = [
        {
            "image_id": a["image_id"],
            "bbox_id": a["id"],
            "area": 0.0,
            "keypoints": np.where(np.arange(len(a["keypoints"])) % 3 == 2, 1, a["keypoints"]).tolist(),
        }
        for a in labelled
    ]
    poses = dataclasses.replace(recorded_poses(rows, dataset), category=np.ones(len(rows), int))
    metrics = evaluate.metrics_of(dataset, truth_of(dataset, document), poses)
    assert metrics["AP"] == pytest.approx(1) and metrics["AR"] == 1


def test_what_cannot_be_evaluated_is_said():
    dataset = find_dataset("coco")
    document, poses = random_document(2, dataset)
    with pytest.raises(ValueError, match="image 999"):
        evaluate.evaluate(
            dataset, truth_of(dataset, document), dataclasses.replace(poses, image_id=poses.image_id + 998), **POSES
        )
    broken = poses.keypoints.copy()
    broken[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        evaluate.evaluate(dataset, truth_of(dataset, document), dataclasses.replace(poses, keypoints=broken), **POSES)
    with pytest.raises(ValueError, match="no prediction"):
        hand = find_dataset("interhand2d")
        document, poses = random_document(3, hand)
        evaluate.evaluate(hand, truth_of(hand, document), poses.take(np.arange(3)), **POSES)


@pytest.mark.parametrize("name", ["mpii", "interhand2d"])
def test_where_everybody_is_judged_crowds_are_not(name):
    """Nothing is predicted for one; that would be an error for a person or a hand."""
    dataset = find_dataset(name)
    document, _ = random_document(4, dataset, images=3)
    rows = [{"bbox_id": a["id"], "keypoints": a["keypoints"]} for a in document["annotations"]]
    poses = recorded_poses(rows, dataset)
    for annotation in document["annotations"]:
        annotation["head_size"] = 20.0
    expected = evaluate.evaluate(dataset, truth_of(dataset, document), poses, **POSES)
    labelled = next(a for a in document["annotations"] if a["num_keypoints"])
    document["annotations"].append(labelled | {"id": len(rows) + 1, "iscrowd": 1})
    assert evaluate.evaluate(dataset, truth_of(dataset, document), poses, **POSES) == expected


def test_people_without_head_size_are_left_out_and_counted():
    mpii = find_dataset("mpii")
    document, _ = random_document(4, mpii, images=3)
    rows = [{"bbox_id": a["id"], "keypoints": a["keypoints"]} for a in document["annotations"]]
    poses = recorded_poses(rows, mpii)
    for annotation in document["annotations"]:
        annotation["head_size"] = 20.0
    whole = evaluate.evaluate(mpii, truth_of(mpii, document), poses, **POSES)
    assert whole["PCKh"] == 100 and "unmeasured" not in whole
    del document["annotations"][0]["head_size"]
    assert evaluate.evaluate(mpii, truth_of(mpii, document), poses, **POSES) == whole | {"unmeasured": 1}
    for annotation in document["annotations"]:
        annotation.pop("head_size", None)
    nobody = evaluate.evaluate(mpii, truth_of(mpii, document), poses, **POSES)
    assert nobody["PCKh"] == -1 and nobody["unmeasured"] == len(rows)
    assert set(nobody) <= evaluate.NOT_FRACTIONS, "none of them is multiplied by 100"


def test_the_benchmark_agrees_with_pycocotools(monkeypatch, capsys):
    """Whose sums are in another order; a printed 0.0e+00 to 9.9e-10."""
    sizes = ["--images=20", "--people=40", "--detections=100", "--repeats=1"]
    monkeypatch.setattr("sys.argv", ["metrics", *sizes])
    benchmark.main()
    printed = capsys.readouterr().out
    difference = float(re.search(r"largest difference (\S+)", printed)[1])
    assert difference < METRIC_TOLERANCE and "20 images, 40 people, 100 detections" in printed
