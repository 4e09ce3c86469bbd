"""COCO's own format: which file of a folder, where its pictures lie, and what tools write that is not COCO's."""

from __future__ import annotations

import json

import pytest

from data_pipelines import records
from data_pipelines.builders.report import NoAnnotations, RawDataError
from data_pipelines.importers import coco
from scripts import prepare_data
from tests.data_pipelines import tiny_sets
from tests.data_pipelines.importers.test_pictures import kite_document


def test_the_only_file_of_a_folder_and_its_pictures(tmp_path):
    with pytest.raises(RawDataError, match="has no JSON file, or several"):
        coco.read(tmp_path)
    with pytest.raises(NoAnnotations, match="looked for .*absent.json"):
        coco.read(tmp_path / "absent.json")
    content = {"images": [], "annotations": []}
    (tmp_path / "labels.json").write_text(json.dumps(content))
    found = coco.read(tmp_path)
    assert found.document == content and found.images == tmp_path
    (tmp_path / "images").mkdir()
    assert coco.read(tmp_path / "labels.json").images == tmp_path / "images"
    assert coco.read(tmp_path, tmp_path).images == tmp_path


def test_what_images_say_of_splits_is_not_the_datasets(tmp_path, capsys):
    """Exporters write a `split` of an image; who prepares the file as a split means all of it."""
    content = pictures_of_kites(tmp_path, 3)
    for image, split in zip(content["images"], ("train", "train", "test"), strict=True):
        image["split"] = split
    assert prepare(tmp_path, content, "--split=val") == 0
    assert records.load_annotations("kites", "val", tmp_path / "data").num_instances == 6


@pytest.mark.parametrize("categories", [None, [], [{"id": 4, "name": "kite"}, {"id": 5, "name": "x", "keypoints": []}]])
def test_names_that_no_category_has_are_given(tmp_path, categories, capsys):
    content = pictures_of_kites(tmp_path, 2)
    content |= {"categories": categories}
    if categories is None:
        del content["categories"]
    assert prepare(tmp_path, content) == 1
    assert "give --keypoints=a,b,c" in capsys.readouterr().err
    assert prepare(tmp_path, content, "--keypoints=tip,tail,wing") == 0
    table = records.load_annotations("kites", "train", tmp_path / "data")
    assert table.protocol.keypoints.keypoints == ("tip", "tail", "wing") and table.category.tolist() == [4] * 4
    assert prepare(tmp_path, content, "--split=val") == 0, "the names are known then"


def test_names_do_not_replace_those_of_the_file(tmp_path, capsys):
    content = pictures_of_kites(tmp_path, 2)
    assert prepare(tmp_path, content, "--keypoints=tip,tail,wing") == 1
    assert "has a, b, c" in capsys.readouterr().err


def test_lists_that_are_none_are_named_with_their_kind(tmp_path, capsys):
    content = pictures_of_kites(tmp_path, 2)
    content["images"] = {image["id"]: image["file_name"] for image in content["images"]}
    assert prepare(tmp_path, content) == 1
    assert "has no list 'images'; it has 'images' (dict), 'annotations' (list)" in capsys.readouterr().err
    assert prepare(tmp_path, [{"id": 1, "image": "a.jpg"}]) == 1
    assert "holds a list, not COCO's object; of Label Studio, export JSON, not JSON-MIN" in capsys.readouterr().err


def test_a_size_of_zero_says_nothing(tmp_path):
    """As tools write that export labels without the pictures."""
    content = pictures_of_kites(tmp_path, 2)
    content["images"][0] |= {"width": 0, "height": "0"}
    content["annotations"][0] |= {"bbox": None}
    assert prepare(tmp_path, content) == 0
    table = records.load_annotations("kites", "train", tmp_path / "data")
    assert (table.width.tolist(), table.height.tolist()) == ([tiny_sets.WIDTH] * 2, [tiny_sets.HEIGHT] * 2)
    assert table.num_instances == 4 and (table.box[:, 2:] > 0).all()


@pytest.mark.parametrize("name", ["a\0b.jpg", "\ud83d.jpg", "x" * 300])
def test_a_name_that_no_system_has_costs_one_picture(tmp_path, name, capsys):
    content = pictures_of_kites(tmp_path, 3)
    content["images"][0]["file_name"] = name
    assert prepare(tmp_path, content) == 0
    assert "dropped images: unreadable image: 1" in capsys.readouterr().out


def test_pictures_of_one_name_are_told_apart_by_their_path(tmp_path):
    """coco-annotator's `file_name` has no folder, and the pictures of all folders below that of its data set."""
    places = ["b/1.jpg", "a/1.jpg", "1.jpg", "b/2.jpg"]
    content = kite_document(places)
    for folder in "ab":
        (tmp_path / folder).mkdir()
    tiny_sets.write_pictures(tmp_path, content["images"])
    for image, place in zip(content["images"], places, strict=True):
        image |= {"file_name": place.split("/")[-1], "path": f"/datasets/kites/{place}"}
    assert prepare(tmp_path, content) == 0
    table = records.load_annotations("kites", "train", tmp_path / "data")
    assert table.file_name.tolist() == places and table.num_instances == 8


def test_pictures_that_lie_elsewhere_are_asked_for(tmp_path, capsys):
    """As CVAT exports them: annotations/person_keypoints_default.json, images/default/1.jpg."""
    content = pictures_of_kites(tmp_path, 2)
    (tmp_path / "annotations").mkdir()
    assert prepare(tmp_path / "annotations", content) == 1
    assert (
        "missing image (2, first " in (said := capsys.readouterr().err)
        and "; --images (--skeleton_images of prediction) names their folder" in said
    )
    assert prepare(tmp_path / "annotations", content, f"--images={tmp_path}") == 0


def pictures_of_kites(folder, count):
    """COCO labels of two people of category 4 in each of `count` pictures, which are there."""
    content = kite_document([f"{number}.jpg" for number in range(1, count + 1)])
    content["categories"][0]["id"] = 4
    for entry in content["annotations"]:
        entry["category_id"] = 4
    tiny_sets.write_pictures(folder, content["images"])
    return content


def prepare(folder, content, *arguments):
    (folder / "kites.json").write_text(json.dumps(content))
    command = ["custom", "--name=kites", f"--annotations={folder / 'kites.json'}", f"--data_dir={folder / 'data'}"]
    return prepare_data.main([*command, *arguments])
