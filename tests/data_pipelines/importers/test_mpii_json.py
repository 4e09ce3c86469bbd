"""MPII-like JSON: boxes from centre and scale, names, and what may be wrong with a person."""

from __future__ import annotations

import json

import pytest

from data_pipelines.builders.report import RawDataError
from data_pipelines.importers import mpii_json
from data_pipelines.skeletons import KEYPOINT_SETS

NAMES = ("nose", "tail")
PERSON = {"image": "a.png", "joints": [[2.5, 3], [-1, -1]], "joints_vis": [1, 0], "center": [11, 21], "scale": 0.1}


def read(folder, *people, names=NAMES):
    (folder / "train.json").write_text(json.dumps(people))
    return mpii_json.read(folder, None, names)


def test_coordinates_count_from_one_and_scale_gives_the_box(tmp_path):
    labels = read(tmp_path, PERSON, PERSON | {"center": None}, {**PERSON, "joints_vis": None})
    first, second, third = labels.document["annotations"]
    assert first["keypoints"] == [1.5, 2, 2, 0, 0, 0] and first["bbox"] == [0, 10, 20, 20]
    assert "bbox" not in second and third["keypoints"] == first["keypoints"]
    assert len(labels.document["images"]) == 1


def test_sixteen_joints_are_mpiis(tmp_path):
    person = {"image": "a.png", "joints": [[5, 6]] * 16, "joints_vis": [True] * 16}
    (category,) = read(tmp_path, person, names=None).document["categories"]
    assert category["keypoints"] == list(KEYPOINT_SETS["mpii"].keypoints) and category["skeleton"]
    with pytest.raises(RawDataError, match=r"people of \[2\] joints, which need names: --keypoints"):
        read(tmp_path, PERSON, names=None)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"image": None}, "missing field: image"),
        ({"joints": [[1, 2]]}, "wrong length"),
        ({"joints": [[1, None], [2, 3]]}, "not finite"),
        ({"joints_vis": [1, "x"]}, "not a number"),
        ({"scale": "x"}, "not a number: scale"),
    ],
)
def test_a_broken_person_is_named(tmp_path, change, said):
    labels = read(tmp_path, PERSON, PERSON | change)
    (broken,) = labels.broken
    assert str(broken.fault).startswith(said) and broken.entry == "person 2" and broken.file.name == "train.json"
    assert len(labels.document["annotations"]) == 1


def test_what_is_no_list(tmp_path):
    (tmp_path / "train.json").write_text("{}")
    with pytest.raises(RawDataError, match="does not hold a list of people"):
        mpii_json.read(tmp_path)
