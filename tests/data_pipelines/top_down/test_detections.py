"""A detector's boxes: of any category ids, counted, and with a clear word on what cannot be."""

from __future__ import annotations

import dataclasses
import json
import unicodedata

import numpy as np
import pytest

from data_pipelines.datasets import DATASETS
from data_pipelines.top_down import instances
from tests.data_pipelines import fakes

SIZE = (192, 256)
BOX = {"image_id": 1, "category_id": 3, "bbox": [1, 2, 10, 20], "score": 0.5}


def table(categories=((3, "kite"),), dataset="coco", people=()):
    images = [{"id": number, "file_name": f"{number}.jpg", "height": 50, "width": 60} for number in (1, 2, 3)]
    found = fakes.annotation_table(DATASETS[dataset], images, list(people))
    return dataclasses.replace(found, categories=tuple(categories))


def detect(tmp_path, content, columns=None, dataset="coco", **options):
    path = tmp_path / "boxes.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return instances.detections(path, columns or table(), DATASETS[dataset], SIZE, **options)


@pytest.mark.parametrize("seed", range(5))
def test_every_entry_is_used_or_counted(tmp_path, seed):
    """Of any categories, in any writing; the account adds up to the file."""
    rng = np.random.default_rng(seed)
    ids = [int(number) for number in rng.choice(2**20, 4, replace=False)]
    kinds = [(number, f"kind {number}") for number in ids[:3]]
    entries = [
        {
            "image_id": int(rng.choice([1, 2, 3, 77], p=[0.4, 0.4, 0.1, 0.1])),
            "category_id": int(rng.choice(ids)),
            "bbox": [
                *rng.uniform(0, 9, 2).tolist(),
                *rng.choice([0.0, 5.0, -1.0, np.nan], 2, p=[0.1, 0.8, 0.05, 0.05]).tolist(),
            ],
            "score": float(rng.random()),
        }
        for _ in range(60)
    ]
    good = [
        entry
        for entry in entries
        if entry["category_id"] in ids[:3]
        and entry["score"] >= 0.3
        and all(side > 0 for side in entry["bbox"][2:])
        and entry["image_id"] != 77
    ]
    text = [
        {key: str(value) if key != "bbox" else [str(v) for v in value] for key, value in entry.items()}
        for entry in entries
    ]
    for content in (entries, text):
        chosen = detect(tmp_path, content, table(kinds), score_threshold=0.3)
        assert len(chosen) + sum(chosen.left_out.values()) == len(entries) and len(chosen) == len(good)
        order = np.argsort(chosen.instance_id)
        assert chosen.category[order].tolist() == [entry["category_id"] for entry in good]
        assert (chosen.image_index[order] + 1).tolist() == [entry["image_id"] for entry in good]
        np.testing.assert_allclose(chosen.box[order], [entry["bbox"] for entry in good])
        other = sum(entry["category_id"] == ids[3] for entry in entries)
        assert chosen.left_out.get(f"category {ids[3]}", 0) == other
        assert chosen.images_without == 3 - len({entry["image_id"] for entry in good})
        assert f"{len(good)} detected boxes used" in chosen.account and f"category {ids[3]}: {other}" in chosen.account


def test_people_of_a_test_set_that_lists_a_whole_benchmark(tmp_path):
    """COCO's test-dev lists 80 categories and has no annotations: the boxes of people count, whatever the id."""
    columns = table([(1, "person"), (18, "dog")])
    entries = [BOX | {"category_id": number} for number in (1, 18, 1)]
    chosen = detect(tmp_path, entries, columns)
    assert len(chosen) == 2 and chosen.left_out == {"category 18": 1} and set(chosen.category) == {1}
    kinds = table([(1, "cat"), (18, "dog")])
    assert len(detect(tmp_path, entries, kinds)) == 3


def test_a_score_at_the_threshold_is_enough(tmp_path):
    chosen = detect(tmp_path, [BOX, BOX | {"score": 0.4999}], score_threshold=BOX["score"])
    assert chosen.box_score.tolist() == [0.5] and chosen.left_out == {"score under 0.5": 1}


def test_a_box_may_be_smaller_than_a_pixel(tmp_path):
    chosen = detect(tmp_path, [BOX | {"bbox": [1, 2, 0.5, 1]}, BOX | {"bbox": [1, 2, 0, 1]}])
    assert len(chosen) == 1 and chosen.left_out == {"bad box": 1}


@pytest.mark.parametrize(
    "bbox, doubt",
    [
        ([0.1, 0.2, 0.3, 0.9], "have no side of over a pixel: are they shares of the image?"),
        ([90, 2, 10, 20], "lie outside their image: are they of images of another size?"),
        ([25, 22, 40, 42], "reach over the border, but would not as x1, y1, x2, y2: are they corners?"),
    ],
)
def test_boxes_that_are_meant_otherwise_are_doubted(tmp_path, caplog, bbox, doubt):
    """Where they are over a tenth; the images are 60x50. They are used as they are."""
    odd = BOX | {"bbox": bbox}
    chosen = detect(tmp_path, [odd, odd, *[BOX] * 17])
    assert len(chosen) == 19 and chosen.account.endswith(f"left out: none; 2 of 19 boxes {doubt}")
    assert [record.getMessage() for record in caplog.records] == [f"{tmp_path}/boxes.json: 2 of 19 boxes {doubt}"]
    usual = [BOX | {"bbox": box} for box in ([0, 0, 60, 50], [20, 3, 40.9, 47], [-4, -3, 30, 30])]
    assert not detect(tmp_path, [odd, odd, *usual * 6]).doubts, "a tenth"


def test_byte_order_marks(tmp_path):
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        assert len(detect(tmp_path, json.dumps([BOX]).encode(encoding))) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"image_id": "frame_2"},  # as Ultralytics writes it of names that are no numbers
        {"image_id": "frame_2.jpg"},
        {"image_id": 1, "file_name": "frame_2.jpg"},
        {"image_id": None, "image": "/elsewhere/b/frame_2.jpg"},
        {"image_id": 2, "file_name": "frame.jpg"},  # in two folders; then the number counts
        {"image_id": "2", "file_name": "other.jpg"},
        {"image_id": 1, "file_name": "a\\frame_2.jpg"},
    ],
)
def test_pictures_may_be_named(tmp_path, change):
    columns = table()
    columns.file_name[:] = ["a/frame.jpg", "a/frame_2.jpg", "b/frame.jpg"]
    assert detect(tmp_path, [BOX | change], columns).image_index.tolist() == [1]
    assert detect(tmp_path, [BOX | {"image_id": 1, "file_name": "b/frame.jpg"}], columns).image_index.tolist() == [2]


@pytest.mark.parametrize("written", ["NFC", "NFD"])
@pytest.mark.parametrize("detected", ["NFC", "NFD"])
def test_accents_of_another_system(tmp_path, written, detected):
    """A Mac writes them apart from their letters."""
    columns = table()
    columns.file_name[:] = [unicodedata.normalize(written, name) for name in ("é.jpg", "e.jpg", "è.jpg")]
    names = [unicodedata.normalize(detected, name) for name in ("è.jpg", "e", "pictures/é.jpg")]
    assert detect(tmp_path, [BOX | {"image_id": name} for name in names], columns).instance_id.tolist() == [2, 1, 0]


@pytest.mark.parametrize("slash", ["/", "\\"])
def test_as_many_folders_as_tell_pictures_apart(tmp_path, slash):
    """Of a detector's absolute paths, or its paths from a folder above; whichever slashes either has."""
    columns = table()
    columns.file_name[:] = [name.replace("/", slash) for name in ("a/1.jpg", "b/1.jpg", "1.jpg")]
    for name, row in (("/data/b/1.jpg", 1), ("C:\\data\\a\\1.jpg", 0), ("set/a/1", 0), ("b/1", 1), ("1.jpg", 2)):
        assert detect(tmp_path, [BOX | {"image_id": name}], columns).image_index.tolist() == [row], name
    for name in ("/data/c/1.jpg", "c/1.jpg", "./1.jpg"):  # of another folder, and so the one without
        assert detect(tmp_path, [BOX | {"image_id": name}], columns).image_index.tolist() == [2], name


def test_a_text_with_leading_zeros_is_a_name(tmp_path):
    """Of COCO's pictures, 000000000139.jpg; whichever id the annotation file gives them."""
    columns = table()
    columns.file_name[:] = ["0003.jpg", "0002.jpg", "0001.jpg"]
    for image_id, row in (("0001", 2), ("1", 0), (1, 0), ("0003", 0)):
        assert detect(tmp_path, [BOX | {"image_id": image_id}], columns).image_index.tolist() == [row], image_id
    assert detect(tmp_path, [BOX | {"image_id": "0001"}]).image_index.tolist() == [0], "where none is called so"


@pytest.mark.parametrize(
    "change, said",
    [
        ({"image_id": "x"}, "unknown image: 1.*entry 0 names image x, which is none"),
        ({"category_id": 1}, r"category ids 3 \(kite\).*category 1: 1, first: .*boxes.json: entry 0 is of category 1"),
        ({"score": -2}, "score under 0: 1, first: .*entry 0 has the score -2"),
        ({"bbox": [1, 2, float("nan"), 4]}, r"bad box: 1.*\(image 1\): bbox \[1.0, 2.0, nan, 4.0\]"),
        ({"bbox": [1, 2, 1e39, 4]}, r"bad box: 1.*bbox \[1.0, 2.0, 1e\+39, 4.0\] of score 0.5 is not .*, up to 1e6"),
        ({"bbox": [1e39, 2, 3, 4]}, "bad box: 1"),  # beyond float32: poses would be at infinity
        ({"bbox": [1, 2, 1e-310, 4]}, "bad box: 1"),  # of which the inverse is
        ({"score": 1e39}, "bad box: 1.*of score 1e"),
        ({"image_id": 8}, "unknown image: 1.*names image 8"),
        ({"category_id": "kite"}, "entry 0 is no COCO detection: bad id: category_id is 'kite'"),
        ({"image_id": 1.5}, "bad id: image_id is 1.5"),
        ({"score": "high"}, "not a number: score is 'high'"),
        ({"bbox": [[1, 2], [3, 4]]}, r"entry 0 \(image 1\): bbox \[\[1, 2\], \[3, 4\]\]"),
        ({"bbox": {"x": 1}}, r"entry 0 \(image 1\): bbox"),
    ],
)
def test_what_cannot_be_names_file_and_entry(tmp_path, change, said):
    with pytest.raises(ValueError, match=said) as error:
        detect(tmp_path, [BOX | change])
    assert "boxes.json" in str(error.value)


def test_the_only_category_need_not_be_named(tmp_path):
    unnamed = {key: value for key, value in BOX.items() if key != "category_id"}
    for entry in (unnamed, BOX | {"category_id": None}):
        assert detect(tmp_path, [entry]).category.tolist() == [3]
        with pytest.raises(ValueError, match="boxes.json: entry 0 is no COCO detection: missing field: category_id"):
            detect(tmp_path, [entry], table([(3, "kite"), (4, "boat")]))


def test_metrics_of_annotated_people_take_no_detections(tmp_path):
    """PCKh looks a prediction up by its annotation's id; a detection's count would be another person."""
    people = [{"id": 0, "image_id": 1, "centre": [20, 30], "scale": 1.5, "keypoints": np.ones((16, 3))}]
    columns = table([(3, "person")], "mpii", people)
    with pytest.raises(ValueError, match="boxes.json: the metric of dataset 'mpii' judges annotated people"):
        detect(tmp_path, [BOX], columns, "mpii")
    assert len(detect(tmp_path, [BOX], table([(3, "person")], "mpii"), "mpii")) == 1  # a test set, for submission


def test_annotated_people_have_their_account_too():
    people = [
        {"id": 7, "image_id": 1, "bbox": [10, 10, 20, 20], "area": 50, "keypoints": np.full((17, 3), 2.0)} | change
        for change in ({}, {"iscrowd": 1}, {"area": 0}, {"bbox": [1, 1, 0, 5]}, {"bbox": [70, 1, 5, 5]})
    ]
    chosen = instances.ground_truth(table(people=people), DATASETS["coco"], SIZE)
    assert len(chosen) == 1 and chosen.images_without == 2 and chosen.category.tolist() == [1]
    assert chosen.left_out == {"crowd": 1, "box without extent": 1, "box outside the image": 1, "area of zero": 1}
