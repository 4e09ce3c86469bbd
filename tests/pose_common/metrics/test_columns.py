"""Reading COCO-format annotations and writing COCO-format results."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO

from data_pipelines.datasets import find_dataset
from data_pipelines.skeletons import KEYPOINT_SETS
from pose_common.metrics.columns import ground_truth_from_coco, write_results
from tests.golden_files import golden
from tests.pose_common.metrics.cases import random_document


def test_written_results_are_read_by_pycocotools(tmp_path):
    dataset = find_dataset("coco")
    document, poses = random_document(0, dataset)
    path = tmp_path / "deep" / "results.json"
    write_results(path, poses, dataset.keypoints)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(document)
        truth.createIndex()
        found = truth.loadRes(str(path))
    assert len(found.anns) == len(poses)
    rows = found.loadAnns(range(1, len(poses) + 1))
    np.testing.assert_array_equal([row["keypoints"] for row in rows], poses.keypoints.reshape(len(poses), -1))
    assert [path] == list(path.parent.iterdir())


def test_whole_body_parts_are_written_apart(tmp_path):
    dataset = find_dataset("coco_wholebody")
    document, poses = random_document(0, dataset, images=3)
    write_results(tmp_path / "results.json", poses, dataset.keypoints)
    row = json.loads((tmp_path / "results.json").read_text())[0]
    lengths = {key: len(value) // 3 for key, value in row.items() if isinstance(value, list)}
    assert lengths == {"keypoints": 17, "foot_kpts": 6, "face_kpts": 68, "lefthand_kpts": 21, "righthand_kpts": 21}


def test_whole_body_parts_are_read_together():
    dataset = find_dataset("coco_wholebody")
    together = golden("data/eval/coco_wholebody_synth_gt.json")
    truth = ground_truth_from_coco(together, dataset.keypoints)
    first = together["annotations"][0]
    np.testing.assert_array_equal(truth.keypoints[0, 17:23].ravel(), first["foot_kpts"])
    np.testing.assert_array_equal(truth.keypoints[0, 112:].ravel(), first["righthand_kpts"])


def test_results_without_category_are_refused():
    dataset = find_dataset("coco")
    _, poses = random_document(0, dataset, images=3)
    uncategorised = dataclasses.replace(poses, category=None)
    with pytest.raises(ValueError, match="categories"):
        write_results("unused.json", uncategorised, dataset.keypoints)


def test_broken_annotations_are_named():
    keypoints = KEYPOINT_SETS["coco"]
    annotation = {"id": 7, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "keypoints": [0] * 51}
    document = {"images": [{"id": 1}], "categories": [{"id": 1}], "annotations": [annotation]}
    assert len(ground_truth_from_coco(document, keypoints).id) == 1
    with pytest.raises(ValueError, match="annotation 7 .* image 3"):
        ground_truth_from_coco(document | {"annotations": [annotation | {"image_id": 3}]}, keypoints)
    with pytest.raises(ValueError, match="annotation 7 has 50"):
        ground_truth_from_coco(document | {"annotations": [annotation | {"keypoints": [0] * 50}]}, keypoints)
    empty = ground_truth_from_coco({"images": [], "categories": [{"id": 1}]}, keypoints)
    assert empty.keypoints.shape == (0, 17, 3)


def test_columns_must_have_one_length():
    _, poses = random_document(0, find_dataset("coco"), images=3)
    with pytest.raises(ValueError, match="score has 1 rows"):
        dataclasses.replace(poses, score=poses.score[:1])
