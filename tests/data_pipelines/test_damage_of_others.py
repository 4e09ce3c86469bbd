"""Damage that could cost, or move, others than the damaged entry."""

from __future__ import annotations

import json
import pathlib

import pytest

from data_pipelines import records
from data_pipelines.builders import BUILDERS
from tests.data_pipelines import tiny_sets

ALL_IDS = [10, 11, 20, 21, 30, 31, 40, 41]


def _build(root: pathlib.Path, **options) -> dict:
    return BUILDERS["coco"]("val", raw_dir=root, data_dir=root / "data", progress=False, **options).prepare()


def _table(root: pathlib.Path) -> records.Annotations:
    return records.load_annotations("coco", "val", root / "data")


@pytest.mark.parametrize("number, other", [(1, 2), (2, 1)])
def test_an_id_of_two_pictures_leaves_nobody_in_the_wrong_one(tmp_path, number, other):
    """Whichever of the two comes first: whose the people are cannot be told."""
    content = tiny_sets.document()
    path = tiny_sets.write_coco(tmp_path, content)
    content["images"][number - 1]["id"] = other
    path.write_text(json.dumps(content))
    summary = _build(tmp_path)
    assert summary["dropped"]["images"]["duplicate image id"]["count"] == 2
    assert summary["dropped"]["instances"]["annotation without image"]["count"] == 2
    assert summary["remarks"]["instance lost with its image"]["count"] == 2
    assert _table(tmp_path).id.tolist() == [30, 31, 40, 41]


@pytest.mark.parametrize("decode", [False, True])
def test_a_picture_that_claims_more_pixels_than_fit_is_named(tmp_path, decode):
    content = tiny_sets.document()
    path = tiny_sets.write_coco(tmp_path, content)
    picture = path.parents[1] / "val2017" / content["images"][1]["file_name"]
    data = bytearray(picture.read_bytes())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = b"\xff\xdc\xff\xdc"  # 65,500 a side
    picture.write_bytes(data)
    summary = _build(tmp_path, decode=decode)
    (example,) = summary["dropped"]["images"]["picture too large"]["examples"]
    assert example["file"] == str(picture) and "65500x65500" in example["detail"]
    assert _table(tmp_path).image_id.tolist() == [1, 3, 4]


def test_coordinates_beyond_reason_mean_nothing_at_an_unlabelled_point(tmp_path):
    content = tiny_sets.document()
    content["annotations"][0]["keypoints"][9:12] = [2.3e21, -1e30, 0]
    tiny_sets.write_coco(tmp_path, content)
    _build(tmp_path)
    table = _table(tmp_path)
    assert table.num_instances == 8 and not table.keypoints[0, 3].any()


def test_a_picture_that_is_listed_twice_is_kept_once(tmp_path):
    content = tiny_sets.document()
    path = tiny_sets.write_coco(tmp_path, content)
    content["images"].append(dict(content["images"][0]))
    path.write_text(json.dumps(content))
    summary = _build(tmp_path)
    assert summary["dropped"]["images"]["duplicate image id"]["count"] == 1
    assert _table(tmp_path).id.tolist() == list(ALL_IDS)
