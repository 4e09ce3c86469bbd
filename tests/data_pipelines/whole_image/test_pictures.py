"""Whole-image augmentation and coordinates replayed from recorded draws; test-time geometry."""

from __future__ import annotations

import json

import numpy as np
import pycocotools.mask
import pytest

from data_pipelines import geometry
from data_pipelines.datasets import find_dataset
from data_pipelines.whole_image.loader import resize
from data_pipelines.whole_image.pictures import (
    Augmentation,
    Rules,
    gaussian_radius,
    inference_size,
    rules_of,
    segmentation_mask,
    usable_pixels,
)
from tests.data_pipelines.whole_image_cases import CASES, RELEASED, recorded, replay
from tests.golden_files import golden, golden_config


@pytest.mark.parametrize("case", CASES)
def test_replayed_augmentation(case):
    """Picture, mask, coordinates and instance rules, in the record's order (smaller people first)."""
    element, record = replay(case)
    # The same OpenCV gives the same picture; others differ by a few grey levels in their interpolation.
    difference = np.abs(element["image"].astype(int) - record["image_warped_u8"])
    assert difference.max() <= 5
    assert np.mean(element["ignore"] == (record["mask"] == 0)) > 0.995

    count = int(record["num_inst"])
    assert element["instance_valid"].sum() == count
    rows = np.flatnonzero(element["instance_valid"])[::-1]
    cells = record["instance_coord"][:count, ::-1]
    np.testing.assert_array_equal(element["sample_cell"][rows], cells)
    np.testing.assert_allclose(element["boxes"][rows], record["bbox_fixed"][:count], rtol=1e-5, atol=1e-5)

    people = len(record["keypoints"])
    order = np.argsort(element["area"][:people], kind="stable")
    expected = np.argsort(record["area"][:, 0], kind="stable")
    np.testing.assert_allclose(element["area"][order], record["area"][expected, 0], rtol=1e-6)
    np.testing.assert_array_equal(element["has_centre"][order], record["centers"][expected, 0, 2] > 0)
    assert not element["keypoints"][people:].any()


def test_people_beyond_the_cap():
    """The instances stay, the larger ones first."""
    case = next(name for name in CASES if recorded(name)["num_inst"] > 2)
    full, _ = replay(case)
    cut, _ = replay(case, instances=2)
    for name in ("keypoints", "boxes", "area", "sample_cell", "instance_valid"):
        np.testing.assert_array_equal(cut[name], full[name][:2])
    assert cut["instance_valid"].all()
    assert cut["area"][0] >= cut["area"][1]
    # Who is left out is no background: the cells of the box ask for nothing.
    for left, top, width, height in full["boxes"][2 : full["instance_valid"].sum()]:
        box = np.s_[int(top) : int(top + height) + 1, int(left) : int(left + width) + 1]
        assert cut["ignore"][box].all() and not full["ignore"][box].all()


def test_gaussian_radius():
    """CornerNet's released formula on whole sides."""
    record = golden("boir/components.npz")
    height, width = record["gr:hw"].T
    zero = np.zeros_like(width)
    corners = np.stack(
        [
            np.stack([zero, zero], -1),
            np.stack([width, zero], -1),
            np.stack([zero, height], -1),
            np.stack([width, height], -1),
        ],
        axis=1,
    )
    np.testing.assert_array_equal(gaussian_radius(corners.astype(float)), record["gr:int_radius"])


def test_draws_stay_in_their_ranges():
    """The same generator gives the same draws; shifts are whole pixels, the upper end excluded."""
    sample = {"size": (300, 200), "boxes": np.zeros((4, 4))}
    augmentation = RELEASED
    draws = [augmentation.draw(sample, np.random.default_rng(seed)) for seed in range(300)]
    again = augmentation.draw(sample, np.random.default_rng(7))
    assert again[:4] == draws[7][:4] and np.array_equal(again.jitter, draws[7].jitter)
    scale = np.array([draw.scale for draw in draws])
    rotation = np.array([draw.rotation for draw in draws])
    reach = np.trunc(0.2 * scale * 200)
    shift = np.array([draw.shift for draw in draws])
    assert (shift >= -reach[:, None]).all() and (shift < reach[:, None]).all()
    assert 0.75 <= scale.min() < 0.8 and 1.45 < scale.max() <= 1.5
    assert -30 <= rotation.min() < -28 and 28 < rotation.max() <= 30
    assert (shift < -0.8 * reach[:, None]).any(axis=0).all() and (shift > 0.8 * reach[:, None]).any(axis=0).all()
    assert 0.4 < np.mean([draw.mirror for draw in draws]) < 0.6
    assert {int(value) for draw in draws for value in draw.jitter.ravel()} == {-1, 0, 1}
    augmentation.draw({"size": (2, 2), "boxes": np.zeros((0, 4))}, np.random.default_rng(0))


@pytest.mark.parametrize("mirror", [0, 1])
def test_what_is_drawn_at_the_ends(mirror):
    """Nobody or everybody is mirrored; without ranges nothing else changes."""
    augmentation = Augmentation(scale=(1.0, 1.0), rotation=0.0, translation=0.0, mirror=mirror)
    for seed in range(20):
        drawn = augmentation.draw({"size": (300, 200), "boxes": np.zeros((0, 4))}, np.random.default_rng(seed))
        assert drawn[:4] == (1, 0, (0, 0), mirror)


def test_rules():
    assert rules_of(find_dataset("coco")) == Rules(min_area=1024.0, labelled_images=True)
    assert rules_of(find_dataset("crowdpose")) == Rules(min_area=0.0, labelled_images=False)


def test_segmentations():
    """Polygons, plain and packed run lengths block the same pixels."""
    polygon = [[2, 1, 6, 1, 6, 4, 2, 4]]
    mask = segmentation_mask(polygon, 8, 6)
    assert mask[2, 3] and not mask[5, 7]
    packed = pycocotools.mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    packed["counts"] = packed["counts"].decode()
    runs = np.flatnonzero(np.diff(np.concatenate([[0], mask.ravel(order="F"), [0]])))
    plain = {"size": [6, 8], "counts": np.diff([0, *runs, 48]).tolist()}
    np.testing.assert_array_equal(segmentation_mask(packed, 8, 6), mask)
    np.testing.assert_array_equal(segmentation_mask(plain, 8, 6), mask)
    pixels = usable_pixels({"size": (8, 6), "masks": [json.dumps(polygon), json.dumps(plain)]})
    np.testing.assert_array_equal(pixels == 0, mask)


@pytest.mark.parametrize("table", ["size:table", "size:table_nondiv"])
def test_inference_sizes(table):
    columns = golden_config("boir/data_test.npz")["size_table_columns"]
    for values in golden("boir/data_test.npz")[table]:
        row = dict(zip(columns, values, strict=True))
        size, matrix = inference_size((int(row["w"]), int(row["h"])), int(row["input_size"]))
        assert size == (row["w_resized"], row["h_resized"])
        expected = geometry.warp_matrix(
            (row["center_x"], row["center_y"]), (row["scale_w"], row["scale_h"]), 0.0, size, udp=False
        )
        np.testing.assert_allclose(matrix, expected, rtol=1e-9)


@pytest.mark.parametrize("index", range(golden_config("boir/data_test.npz")["n_warp"]))
def test_resized_pictures(index):
    """The picture, and poses carried back; the reference makes its matrices from float32 points."""
    record = golden("boir/data_test.npz")
    size = golden_config("boir/data_test.npz")["warp_input_size"]
    picture, matrix = resize(record[f"warp{index}:image"][..., ::-1], size)
    np.testing.assert_allclose(matrix, record[f"warp{index}:matrix"], rtol=1e-5, atol=1e-4)
    assert np.abs(picture.astype(int) - record[f"warp{index}:output"]).max() <= 5
    poses = geometry.transform(geometry.invert(matrix), record[f"warp{index}:poses_in"][..., :2])
    np.testing.assert_allclose(poses, record[f"warp{index}:poses_out"][..., :2], rtol=1e-5, atol=1e-3)
