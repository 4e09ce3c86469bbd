"""The parts of a dataset, and the document that is made of labelled pictures."""

from __future__ import annotations

import pathlib

import pytest

from data_pipelines.builders.report import Fault, RawDataError
from data_pipelines.importers.labels import LabelledPicture, Labels, Person, ValShare, assemble, select

FILE = pathlib.Path("labels.txt")


def document(count):
    return {
        "images": [{"id": number, "file_name": f"{number}.png"} for number in range(count)],
        "annotations": [{"id": number, "image_id": number} for number in range(count)],
        "categories": [],
    }


def names(labels):
    return {image["file_name"] for image in labels.document["images"]}


@pytest.mark.parametrize("share, count", [(0.2, 20), (0.333, 33), (0.99, 99)])
def test_a_share_is_exact_and_the_parts_are_the_whole(share, count):
    labels = Labels(document(100), FILE)
    parts = [select(labels, split, ValShare(share, 5)) for split in ("train", "val")]
    assert len(names(parts[1])) == count and len(names(parts[0])) == 100 - count
    assert names(parts[0]) | names(parts[1]) == names(labels)
    for part in parts:
        assert {entry["image_id"] for entry in part.document["annotations"]} == {
            image["id"] for image in part.document["images"]
        }


def test_the_choice_is_the_seeds_and_hardly_changes_with_more_pictures():
    labels, more = Labels(document(100), FILE), Labels(document(110), FILE)
    one, again, other = (names(select(labels, "val", ValShare(0.2, seed))) for seed in (0, 0, 1))
    assert one == again != other
    assert len(one & names(select(more, "val", ValShare(0.2, 0)))) >= 15
    shuffled = Labels(document(100), FILE)
    shuffled.document["images"].reverse()
    assert names(select(shuffled, "val", ValShare(0.2, 0))) == one


def test_what_belongs_to_no_picture_is_told_once():
    content = document(10)
    content["annotations"] += [{"id": 98, "image_id": 77}, {"id": 99}, "x"]
    parts = [select(Labels(content, FILE), split, ValShare(0.5)) for split in ("train", "val")]
    assert [len(part.document["annotations"]) for part in parts] == [8, 5]


def test_own_splits_count():
    pictures = [LabelledPicture(f"{s}.png", FILE, [Person({"a": (1, 2, 2)}, "line 1")], split=s) for s in ("x", "y")]
    labels = assemble(pictures, FILE, None)
    assert names(select(labels, "y", None)) == {"y.png"}
    with pytest.raises(RawDataError, match="no split 'val': the files have x, y"):
        select(labels, "val", None)


def test_classes_of_boxes_alone_have_no_keypoints():
    people = [Person({"a": (1, 2, 2)}, "1", category="mouse"), Person({}, "2", (0, 0, 5, 5), "cage")]
    kinds = assemble([LabelledPicture("x.png", FILE, people)], FILE, None).document["categories"]
    assert [("keypoints" in kind, kind["name"]) for kind in kinds] == [(True, "mouse"), (False, "cage")]


def test_people_of_no_class_are_of_the_only_one():
    people = [Person({"a": (1, 2, 2)}, "1", category="mouse"), Person({"a": (1, 2, 2)}, "2")]
    content = assemble([LabelledPicture("x.png", FILE, people)], FILE, None).document
    assert [kind["name"] for kind in content["categories"]] == ["mouse"]
    assert [entry["category_id"] for entry in content["annotations"]] == [1, 1]
    people.append(Person({"a": (1, 2, 2)}, "3", category="rat"))
    content = assemble([LabelledPicture("x.png", FILE, people)], FILE, None).document
    assert [kind["name"] for kind in content["categories"]] == ["mouse", "object", "rat"]
    assert [entry["category_id"] for entry in content["annotations"]] == [1, 2, 3]


def test_no_keypoint_has_a_name():
    with pytest.raises(RawDataError, match="nobody has a keypoint"):
        assemble([LabelledPicture("x.png", FILE)], FILE, None)


def test_names_that_hardly_differ_are_told():
    """Labels are typed: 'Nose' and 'nose ' are two keypoints, of which each is labelled in a part of the pictures."""
    people = [Person({name: (1, 2, 2)}, name) for name in ("nose", "Nose", "left_ear", "left ear", "tail", "左", "右")]
    labels = assemble([LabelledPicture("x.png", FILE, people)], FILE, None)
    told = ("keypoints whose names hardly differ (kept apart)", FILE, "'Nose', 'left ear', 'left_ear', 'nose'")
    assert labels.remarks == [told]
    assert not assemble([LabelledPicture("x.png", FILE, people[4:])], FILE, None).remarks


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["10.jpg", "a/000002.png"], [10, 2]),
        (["a\\7.jpg", "8.jpg"], [7, 8]),
        (["a/1.jpg", "b/01.jpg"], [1, 2]),
        (["1.jpg", "img2.jpg"], [1, 2]),
        (["9" * 30 + ".jpg", "5.jpg"], [1, 2]),
    ],
)
def test_ids_are_the_numbers_of_names_where_they_tell_pictures_apart(names, ids):
    """As a detector that never saw the labels numbers them, so that boxes by it are not another picture's."""
    person = [Person({"a": (1, 2, 2)}, "line 1")]
    pictures = [LabelledPicture(name, FILE, person, [(Fault("x"), "2")], split="s") for name in names]
    labels = assemble(pictures, FILE, None)
    assert [image["id"] for image in labels.document["images"]] == ids
    assert [entry["image_id"] for entry in labels.document["annotations"]] == ids
    assert [item.image_id for item in labels.broken] == ids and list(labels.splits) == ids
