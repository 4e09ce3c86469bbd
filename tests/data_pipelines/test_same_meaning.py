"""The same annotation written in another way gives the same records, in every format; damage is never silent."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pycocotools.mask
import pytest

from data_pipelines import fields
from data_pipelines.builders import masks
from data_pipelines.builders.report import RawDataError
from data_pipelines.fields import Fault
from tests.data_pipelines import annotation_formats

DOWNLOADS = annotation_formats.downloads()
FLAGS = {"iscrowd", "is_crowd"}
JUNK = [None, "x", "", [], {}, [[]], math.nan, math.inf, -1, 1e30, 2**70, True, "12;5", [1, [2]], "\udce9"]


def rewritten(value, rng, key=None):
    """Numbers as text, whole numbers as decimals, flags as words; nothing else."""
    if isinstance(value, dict):
        return {name: rewritten(entry, rng, name) for name, entry in value.items()}
    if isinstance(value, list):
        return [rewritten(entry, rng, key) for entry in value]
    if key in FLAGS:
        return rng.choice([value, float(value), str(value), ["false", "true"][value], bool(value)])
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    as_number = float(value) if rng.random() < 0.3 and abs(value) < 2**53 else value
    return f" {as_number!r}" if rng.random() < 0.5 else as_number


def plain_values(value):
    """NumPy's scalars, which `rng.choice` returns, as JSON can hold them."""
    return json.loads(json.dumps(value, default=lambda scalar: scalar.item()))


def assert_same(table, other):
    for name in (
        "image_id",
        "file_name",
        "height",
        "width",
        "crowd_index",
        "image_index",
        "id",
        "box",
        "area",
        "crowd",
        "category",
        "keypoints",
        "num_keypoints",
        "centre",
        "scale",
        "head_size",
    ):
        np.testing.assert_array_equal(getattr(table, name), getattr(other, name), err_msg=name)
    masks_of = [[json.loads(text) if text else None for text in columns.mask] for columns in (table, other)]
    assert masks_of[0] == masks_of[1] and table.categories == other.categories


@pytest.mark.parametrize("dataset", DOWNLOADS)
def test_other_ways_of_writing_are_read_alike(dataset, tmp_path):
    download = DOWNLOADS[dataset]
    summary, table = download.prepare(tmp_path, strict=True)
    assert summary["usable"]["training"] > 0 and table.num_instances > 0
    for seed in range(2):
        content = plain_values(rewritten(download.content, np.random.default_rng(seed)))
        assert content != download.content
        _, other = download.prepare(tmp_path, content, strict=True)
        assert_same(table, other)


@pytest.mark.parametrize("dataset", DOWNLOADS)
def test_null_is_as_good_as_absent(dataset, tmp_path):
    download = DOWNLOADS[dataset]
    optional = {"area", "iscrowd", "is_crowd", "num_keypoints", "segmentation", "crowdIndex"}

    def entries(content):
        return content if isinstance(content, list) else content["images"] + content["annotations"]

    absent, null = (json.loads(json.dumps(download.content)) for _ in range(2))
    for entry in entries(absent):
        for key in optional & entry.keys():
            del entry[key]
    for entry in entries(null):
        entry |= dict.fromkeys(optional)
    assert_same(*(download.prepare(tmp_path, content, strict=True)[1] for content in (absent, null)))


@pytest.mark.parametrize("dataset", DOWNLOADS)
def test_damage_is_reported_and_never_raises_anything_else(dataset, tmp_path):
    """One value at a time becomes junk: whoever is lost is accounted for."""
    download = DOWNLOADS[dataset]
    summary, _ = download.prepare(tmp_path)
    rng = np.random.default_rng(sum(map(ord, dataset)))
    for _ in range(8):
        content = json.loads(json.dumps(download.content))
        entries = (
            content if isinstance(content, list) else content[rng.choice(["images", "annotations", "annotations"])]
        )
        place = int(rng.integers(len(entries)))
        key = rng.choice(sorted(entries[place]))
        entries[place][key] = JUNK[rng.integers(len(JUNK))]
        case = f"{key} of {place}: {entries[place][key]!r}"
        try:
            found, table = download.prepare(tmp_path, content, allow_loss=True)
        except RawDataError:
            continue
        lost = summary["instances"] - found["instances"]
        told = [*found["dropped"]["instances"], *found["dropped"]["images"], *found["remarks"]]
        assert lost <= 0 or set(told) - set(summary["remarks"]) or found["remarks"] != summary["remarks"], case
        assert np.isfinite(table.keypoints).all() and np.isfinite(table.box).all() and np.isfinite(table.area).all(), (
            case
        )


@pytest.mark.parametrize("nothing", [math.nan, math.inf, None, "NaN", "-inf"])
def test_what_stands_at_an_unlabelled_point_means_nothing(nothing, tmp_path):
    download = DOWNLOADS["coco"]
    content = json.loads(json.dumps(download.content))
    for entry in content["annotations"]:
        for k in range(17):
            if entry["keypoints"][3 * k + 2] == 0:
                entry["keypoints"][3 * k : 3 * k + 2] = [nothing, nothing]
    tables = [download.prepare(tmp_path, document, strict=True)[1] for document in (download.content, content)]
    assert_same(*tables)


def test_unknown_visibility_is_named(tmp_path):
    download = DOWNLOADS["coco"]
    content = json.loads(json.dumps(download.content))
    content["annotations"][0]["keypoints"][2] = 3
    content["annotations"][2]["keypoints"][2] = -1
    summary, _ = download.prepare(tmp_path, content)
    (kept,) = summary["remarks"]["unknown visibility (taken as labelled)"]["examples"]
    (dropped,) = summary["dropped"]["instances"]["number out of range"]["examples"]
    assert kept["id"] == 10 and "visibility 3" in kept["detail"]
    assert dropped["id"] == 20 and "visibility -1; 0 says that a point is not" in dropped["detail"]


def test_joints_of_mpii_and_interhand_that_are_not_there(tmp_path):
    """NaN where the joint is not visible or not valid."""
    download = DOWNLOADS["mpii"]
    content = json.loads(json.dumps(download.content))
    hidden = 0
    for entry in content:
        for joint, visible in enumerate(entry["joints_vis"]):
            if not visible:
                entry["joints"][joint], hidden = [math.nan, None], hidden + 1
    entry = content[0]
    entry["joints_vis"][0], entry["joints"][0] = 0, [math.nan, math.nan]
    summary, table = download.prepare(tmp_path, content, strict=True)
    assert summary["instances"] == len(content) and np.isfinite(table.keypoints).all()
    assert table.keypoints[list(table.id).index(0), 0].tolist() == [-1, -1, 0]


@pytest.mark.parametrize(
    "value, expected",
    [(7, 7), (7.0, 7), ("7", 7), (" 7.0 ", 7), ("7e0", 7), (np.int32(7), 7), ("-3", -3), (2**62, 2**62)],
)
def test_whole_numbers(value, expected):
    assert fields.integer({"x": value}, "x") == expected and fields.id_key(value) == expected


@pytest.mark.parametrize("value", [7.5, "7.5", "seven", "", True, "1_000", "0x7", math.nan, [7], 2**63, "1,5"])
def test_what_is_no_whole_number(value):
    with pytest.raises(Fault, match="x_id is"):
        fields.integer({"x_id": value}, "x_id")


@pytest.mark.parametrize(
    "value, expected",
    [
        (None, False),
        (0, False),
        (0.0, False),
        ("0", False),
        ("False", False),
        ("", False),
        (1, True),
        ("1.0", True),
        ("TRUE", True),
        (True, True),
        ("yes", True),
    ],
)
def test_flags(value, expected):
    assert fields.flag({"x": value}, "x") is expected


@pytest.mark.parametrize("value", [2, -1, "maybe", 0.5, [1], math.nan])
def test_what_is_no_flag(value):
    with pytest.raises(Fault, match="not a flag: x is"):
        fields.flag({"x": value}, "x")


@pytest.mark.parametrize(
    "value", [[[1, 2], [3, 4]], [1, 2, 3, True], [1, 2, 3, "1,5"], {"x": 1}, [1, [2], 3, 4], "1 2 3 4"]
)
def test_lists_have_the_formats_nesting(value):
    """Two corners are no x, y, width, height."""
    with pytest.raises(Fault):
        fields.numbers({"box": value}, "box", 4)


def test_keypoints_are_rows_of_points_never_columns():
    flat = np.arange(51.0)
    for good in (flat.tolist(), flat.reshape(17, 3).tolist(), [str(v) for v in flat]):
        np.testing.assert_array_equal(fields.keypoints({"k": good}, "k", 17).ravel(), flat)
    with pytest.raises(Fault, match="nested"):
        fields.keypoints({"k": flat.reshape(3, 17).tolist()}, "k", 17)
    with pytest.raises(Fault, match="a flag as a coordinate"):
        fields.keypoints({"k": [[1, True, 2]]}, "k", 1)
    assert fields.keypoints({"k": [[1, 2, True], [None] * 3]}, "k", 2).tolist() == [[1, 2, 1], [0, 0, 0]]


def test_run_lengths_are_those_of_the_picture():
    rng = np.random.default_rng(0)
    for _ in range(30):
        height, width = (int(side) for side in rng.integers(1, 60, 2))
        region = np.asfortranarray(rng.random((height, width)) < rng.choice([0, 0.02, 0.5, 1]), np.uint8)
        coded = pycocotools.mask.encode(region)
        segmentation = {"size": [str(side) for side in coded["size"]], "counts": coded["counts"].decode()}
        text, remarks = masks.text_of(segmentation, width, height)
        assert not remarks and (pycocotools.mask.decode(json.loads(text)) == region).all()
        text, remarks = masks.text_of(segmentation, width + 1, height)
        assert text == "" and len(remarks) == 1
        assert masks.text_of(segmentation | {"counts": segmentation["counts"][:-1]}, width, height)[0] == ""


@pytest.mark.parametrize(
    "segmentation, said",
    [
        ({"size": [48, 32], "counts": [1536]}, r"\[48, 32\].*\[32, 48\]"),
        ({"size": [32, 48], "counts": [100, 50]}, "add up to 150"),
        ({"size": [32, 48], "counts": [2000, -464]}, "add up"),
        ({"counts": [1536]}, "size"),
        ({"size": [32, 48], "counts": "ü"}, "character"),
        ([[1, 2, 3, 4]], "three corners"),
        ([1, 2, 3, 4], "three corners"),
        ([[[1, 2], [3, 4]]], "three corners"),
        ([[[1, 2], [3, 4], [5]]], "three corners"),
        (["1", "2", "3", "4", "5", "6"], "three corners"),
        ([[1, 2, math.nan, 4, 5, 6]], "nan"),
        ("mask.png", "neither"),
    ],
)
def test_unusable_masks_say_what_is_wrong(segmentation, said, tmp_path):
    download = DOWNLOADS["coco"]
    content = json.loads(json.dumps(download.content))
    content["annotations"][1]["segmentation"] = segmentation
    summary, table = download.prepare(tmp_path, content)
    (example,) = summary["remarks"][masks.UNUSABLE]["examples"]
    assert example["id"] == 11 and example["file"].endswith("people_data.json")
    assert re.search(said, example["detail"]) and table.mask[1] == ""


@pytest.mark.parametrize(
    "written", [[[1, 2, 9, 2, 9, 8]], [1, 2, 9, 2, 9, 8], [[[1, 2], [9, 2], [9, 8]]], [["1", 2, 9, 2.0, "9", 8]]]
)
def test_a_polygon_may_be_alone_and_of_pairs(written):
    """As label tools write it; so are keypoints and boxes read."""
    text, remarks = masks.text_of(written, 48, 32)
    assert json.loads(text) == [[1, 2, 9, 2, 9, 8]] and not remarks


def test_an_unusable_polygon_costs_itself_alone():
    square = [0, 0, 9, 0, 9, 9, 0, 9]
    text, remarks = masks.text_of([square, [1, 2, 3, 4]], 48, 32)
    assert json.loads(text) == [square]
    assert [reason for reason, _ in remarks] == [masks.UNUSABLE_PART]
