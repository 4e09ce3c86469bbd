"""Which crops a dataset gives, against the release's own lists, and what is refused."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from data_pipelines.datasets import DATASETS
from data_pipelines.top_down import instances
from tests.data_pipelines import fakes
from tests.golden_files import shared_path

INPUT_SIZE = (192, 256)
SAMPLES = {
    "coco": "coco/test_coco.json",
    "coco_wholebody": "coco/test_coco_wholebody.json",
    "aic": "aic/test_aic.json",
    "ap10k": "ap10k/test_ap10k.json",
    "crowdpose": "crowdpose/test_crowdpose.json",
    "ochuman": "ochuman/test_ochuman.json",
    "halpe": "halpe/test_halpe.json",
}
# The release stores centres and scales in float32.
CENTRE_TOLERANCE, SCALE_TOLERANCE = 1e-3, 1e-5


def released(dataset: str, mode: str) -> dict[str, np.ndarray]:
    with np.load(shared_path("golden/data/db.npz")) as archive:
        prefix = f"{dataset}/{mode}/"
        return {key[len(prefix) :]: archive[key] for key in archive.files if key.startswith(prefix)}


def sample_table(dataset: str):
    return fakes.sample_annotations(DATASETS[dataset], shared_path("samples") / SAMPLES[dataset])


@pytest.mark.parametrize("dataset", SAMPLES)
def test_annotated_people_match_the_release(dataset):
    table, expected = sample_table(dataset), released(dataset, "test")
    chosen = instances.ground_truth(table, DATASETS[dataset], INPUT_SIZE)
    assert list(table.file_name[chosen.image_index]) == list(expected["image"])
    np.testing.assert_allclose(chosen.centre, expected["center"], atol=CENTRE_TOLERANCE)
    np.testing.assert_allclose(chosen.scale, expected["scale"], atol=SCALE_TOLERANCE)
    if "bbox" in expected:
        np.testing.assert_allclose(chosen.box, expected["bbox"], atol=CENTRE_TOLERANCE)
    assert len(set(chosen.instance_id.tolist())) == len(chosen)
    assert (chosen.box_score == 1).all() and chosen.origin == "ground_truth"


@pytest.mark.parametrize(
    "dataset, path",
    [
        ("coco", "coco/test_coco_det_AP_H_56.json"),
        ("coco_wholebody", "coco/test_coco_det_AP_H_56.json"),
        ("crowdpose", "crowdpose/test_crowdpose_det_AP_40.json"),
    ],
)
def test_detections_match_the_release(dataset, path):
    table, expected = sample_table(dataset), released(dataset, "det")
    path = shared_path(f"samples/{path}")
    chosen = instances.detections(path, table, DATASETS[dataset], INPUT_SIZE)
    assert chosen.origin == str(path) and (chosen.annotation == -1).all()
    assert (np.diff(chosen.image_index) >= 0).all()
    by_id = np.argsort(chosen.instance_id)
    np.testing.assert_array_equal(chosen.instance_id[by_id], expected["bbox_id"])
    assert list(table.file_name[chosen.image_index[by_id]]) == list(expected["image"])
    np.testing.assert_allclose(chosen.centre[by_id], expected["center"], atol=CENTRE_TOLERANCE)
    np.testing.assert_allclose(chosen.scale[by_id], expected["scale"], atol=SCALE_TOLERANCE)
    np.testing.assert_allclose(chosen.box_score[by_id], expected["bbox_score"], atol=1e-6)


def mpii_table(count: int = 3, **columns):
    points = np.tile([[5.0, 6.0, 0.0]], (16, 1))
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 50, "width": 60} for i in range(count)]
    people = [
        {"id": i, "image_id": i, "centre": [20 + i, 30], "scale": 1.5, "keypoints": points} | columns
        for i in range(count)
    ]
    return fakes.annotation_table(DATASETS["mpii"], images, people)


def test_mpii_squares_are_stretched_as_released_or_widened():
    chosen = instances.ground_truth(mpii_table(), DATASETS["mpii"], INPUT_SIZE)
    assert len(chosen) == 3  # nobody is left out, labelled or not
    np.testing.assert_allclose(chosen.scale, 1.5)
    np.testing.assert_allclose(chosen.centre[:, 0], [20, 21, 22])
    widened = dataclasses.replace(DATASETS["mpii"], aspect_box=True)
    chosen = instances.ground_truth(mpii_table(), widened, INPUT_SIZE)
    np.testing.assert_allclose(chosen.scale, [[1.5, 2.0]] * 3)


@pytest.mark.parametrize(
    "change, kept",
    [
        ({}, 1),
        ({"iscrowd": 1}, 0),
        ({"num_keypoints": 0}, 0),
        ({"keypoints": np.zeros((17, 3))}, 0),
        ({"area": 0}, 0),
        ({"area": -1}, 1),
        ({"bbox": [61, 5, 9, 9]}, 0),
        ({"bbox": [10, 5, 1, 9]}, 0),
        ({"bbox": [-9, -9, 30, 30]}, 1),
    ],
)
def test_who_is_left_out(change, kept):
    person = {
        "id": 7,
        "image_id": 1,
        "bbox": [10, 10, 20, 20],
        "area": 50,
        "num_keypoints": 17,
        "keypoints": np.full((17, 3), 2.0),
    } | change
    images = [{"id": 1, "file_name": "1.jpg", "height": 50, "width": 60}]
    table = fakes.annotation_table(DATASETS["coco"], images, [person])
    chosen = instances.ground_truth(table, DATASETS["coco"], INPUT_SIZE)
    assert len(chosen) == kept
    if kept:
        assert chosen.instance_id[0] == 7


@pytest.mark.parametrize(("part", "kept"), [("body", 1), ("lefthand", 0)])
def test_wholebody_is_kept_by_the_numbers_of_its_body_whatever_their_count(part, kept):
    dataset = DATASETS["coco_wholebody"]
    (where,) = [slice(*rows) for name, *rows in dataset.keypoints.parts if name == part]
    keypoints = np.zeros((133, 3))
    keypoints[where] = 1
    person = {"id": 7, "image_id": 1, "bbox": [10, 10, 20, 20], "num_keypoints": 0, "keypoints": keypoints}
    images = [{"id": 1, "file_name": "1.jpg", "height": 50, "width": 60}]
    table = fakes.annotation_table(dataset, images, [person])
    assert len(instances.ground_truth(table, dataset, INPUT_SIZE)) == kept


def test_annotations_of_another_skeleton_are_refused():
    with pytest.raises(ValueError, match="'aic'.*14"):
        instances.ground_truth(mpii_table(), DATASETS["aic"], INPUT_SIZE)


GOOD = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 10, 20], "score": 0.5}


def detect(tmp_path, content, **options):
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 50, "width": 60} for i in (1, 2)]
    table = fakes.annotation_table(DATASETS["coco"], images, [])
    path = tmp_path / "boxes.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return instances.detections(path, table, DATASETS["coco"], INPUT_SIZE, **options)


def test_detections_are_counted_over_kept_people(tmp_path):
    changes = [{"image_id": 2}, {"category_id": 3}, {"score": 0.1}, {"score": 0.9}]
    entries = [GOOD | change for change in changes]
    chosen = detect(tmp_path, entries, score_threshold=0.2)
    np.testing.assert_array_equal(chosen.image_index, [0, 1])
    np.testing.assert_array_equal(chosen.instance_id, [1, 0])
    np.testing.assert_allclose(chosen.box_score, [0.9, 0.5])
    np.testing.assert_allclose(chosen.centre, [[6, 12], [6, 12]])  # boxes as they are
    assert len(detect(tmp_path, entries)) == 3


@pytest.mark.parametrize(
    "content, message",
    [
        ("[{", "boxes.json: not valid JSON"),
        ({"annotations": []}, "boxes.json: a detection file is a list"),
        ([], "boxes.json: no person detection"),
        ([GOOD, {"image_id": 1}], "boxes.json: entry 1 .*missing field: score"),
        ([GOOD | {"bbox": [1, 2, 3]}], r"boxes.json: entry 0 \(image 1\): bbox \[1, 2, 3\]"),
        ([GOOD | {"bbox": [1, 2, 0, 3]}], "positive sides"),
        ([GOOD | {"image_id": 9}], "boxes.json: entry 0 names image 9.*'coco'"),
    ],
)
def test_bad_detection_files_are_named(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        detect(tmp_path, content)
