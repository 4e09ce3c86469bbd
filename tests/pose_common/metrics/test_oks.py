"""OKS average precision against pycocotools, number by number, on data full of corner cases."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data_pipelines.keypoint_sets import get_dataset
from pose_common.metrics import evaluate, oks
from pose_common.metrics.columns import Poses, coco_results, ground_truth_from_coco
from tests.golden_files import golden
from tests.pose_common.metrics.cases import (
    annotations_of,
    random_document,
    recorded_evaluations,
    recorded_poses,
    settings_of,
)


def _reference(document: dict, results: list[dict], sigmas: np.ndarray) -> list[float]:
    """pycocotools' ten numbers."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(document)
        truth.createIndex()
        found = truth.loadRes(copy.deepcopy(results)) if results else _no_results(document)
        evaluation = COCOeval(truth, found, "keypoints")
        evaluation.params.kpt_oks_sigmas = sigmas
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()


def _no_results(document: dict) -> COCO:
    """An empty result; `loadRes` looks at the first row to learn the format and so cannot read one."""
    found = COCO()
    found.dataset = {"images": document["images"], "categories": document["categories"], "annotations": []}
    found.createIndex()
    return found


def _assert_equal_to_pycocotools(name: str, document: dict, poses: Poses):
    dataset = get_dataset(name)
    ours = evaluate.metrics_of(dataset, document, poses)
    theirs = _reference(document, coco_results(poses, dataset.keypoints), np.array(dataset.keypoints.sigmas))
    # The same operations on the same float64 numbers; only the order of a sum may differ.
    np.testing.assert_allclose(list(ours.values()), theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_random_data(seed):
    _assert_equal_to_pycocotools("coco", *random_document(seed, get_dataset("coco")))


@pytest.mark.parametrize("seed", range(3))
def test_random_data_of_several_categories(seed):
    # Category 9 has neither people nor detections.
    document, poses = random_document(seed, get_dataset("ap10k"), categories=(3, 1, 7))
    document["categories"].append({"id": 9, "name": "unseen"})
    _assert_equal_to_pycocotools("ap10k", document, poses)


def test_no_detections():
    document, poses = random_document(0, get_dataset("coco"))
    _assert_equal_to_pycocotools("coco", document, poses.take(np.arange(0)))


def test_no_people():
    document, poses = random_document(0, get_dataset("coco"))
    _assert_equal_to_pycocotools("coco", document | {"annotations": []}, poses)
    numbers = evaluate.metrics_of(get_dataset("coco"), document | {"annotations": []}, poses)
    assert set(numbers.values()) == {-1.0}


def test_every_annotation_ignored():
    document, poses = random_document(0, get_dataset("coco"))
    crowds = [annotation | {"iscrowd": 1} for annotation in document["annotations"]]
    _assert_equal_to_pycocotools("coco", document | {"annotations": crowds}, poses)


def test_all_scores_equal():
    document, poses = random_document(5, get_dataset("coco"))
    poses = dataclasses.replace(poses, score=np.ones(len(poses)))
    _assert_equal_to_pycocotools("coco", document, poses)


def test_similarities_equal_the_recorded_ones():
    """Recorded per image, detections best first; 9 decimals of sums in another order, so 2e-5 is ample."""
    # Animals' similarities are recorded for each category apart.
    people = {
        name: expected
        for name, expected in recorded_evaluations().items()
        if "oks" in expected and "ap_per_category" not in expected
    }
    assert people
    for name, expected in people.items():
        dataset = get_dataset(expected["dataset"])
        document = json.loads(annotations_of(name).read_text())
        truth = ground_truth_from_coco(document, dataset.keypoints)
        found = recorded_poses(golden(f"data/eval/{name}_pred.json"), dataset)
        poses = evaluate.final_poses(dataset, document, found, **settings_of(expected))
        area = truth.area if dataset.area == "annotated" else 0.53 * truth.box[:, 2] * truth.box[:, 3]
        for case in expected["oks"]:
            rows = np.flatnonzero(poses.image_id == case["image_id"])
            rows = rows[np.argsort(-poses.score[rows], kind="stable")][: oks.MAX_DETECTIONS]
            columns = np.flatnonzero(truth.image_id[truth.image] == case["image_id"])
            pairs = np.repeat(rows, len(columns)), np.tile(columns, len(rows))
            similarity = oks.similarity(
                truth, poses.keypoints, area, np.array(dataset.keypoints.sigmas), slice(None), *pairs
            )
            np.testing.assert_allclose(similarity.reshape(len(rows), -1), case["oks"], rtol=0, atol=2e-5)


def test_similarity_of_a_pose_with_itself_is_one_and_does_not_depend_on_position_or_size():
    dataset = get_dataset("coco")
    document, _ = random_document(7, dataset)
    sigmas = np.array(dataset.keypoints.sigmas)
    document["annotations"] = [a for a in document["annotations"] if a["num_keypoints"] and a["area"]]
    truth = ground_truth_from_coco(document, dataset.keypoints)
    rows = np.arange(len(truth.id))
    same = oks.similarity(truth, truth.keypoints, truth.area, sigmas, slice(None), rows, rows)
    np.testing.assert_array_equal(same, 1.0)

    moved = truth.keypoints + [3.0, -2.0, 0.0]
    before = oks.similarity(truth, moved, truth.area, sigmas, slice(None), rows, rows)
    larger, away = [2, 2, 1], [50, 70, 0]
    scaled = dataclasses.replace(truth, keypoints=truth.keypoints * larger + away)
    after = oks.similarity(scaled, moved * larger + away, truth.area * 4, sigmas, slice(None), rows, rows)
    np.testing.assert_allclose(after, before, rtol=1e-9)
