"""labelme: flags, folders, and what may be wrong with a file."""

from __future__ import annotations

import json

import pytest

from data_pipelines.builders.report import RawDataError
from data_pipelines.importers import labelme


def point(label, x, y, **more):
    return {"label": label, "shape_type": "point", "points": [[x, y]], "group_id": None} | more


def write(folder, shapes, name="a.json", **more):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps({"shapes": shapes, "imagePath": "a.png"} | more))
    return folder


def test_flags_hide_points_and_numbers_may_be_text(tmp_path):
    shapes = [point("nose", "1.5", 2, flags={"occluded": True}), point("tail", 3, 4, flags={"hidden": False})]
    (person,) = labelme.read(write(tmp_path, shapes)).document["annotations"]
    assert person["keypoints"] == [1.5, 2, 1, 3, 4, 2]


def rectangle(points, **more):
    return {"label": "mouse", "shape_type": "rectangle", "points": points} | more


@pytest.mark.parametrize(
    "corners", [[[9, 1], [4, 7]], [[4, 1], [9, 1], [9, 7], [4, 7]]], ids=["labelme", "x-anylabeling"]
)
def test_a_rectangle_is_two_corners_or_four(tmp_path, corners):
    shapes = [rectangle(corners, group_id=3), point("nose", 5, 2, group_id=3, difficult=True)]
    labels = labelme.read(write(tmp_path, shapes))
    (person,) = labels.document["annotations"]
    assert person["bbox"] == [4, 1, 5, 6] and person["keypoints"] == [5, 2, 1] and not labels.broken


def test_folders_keep_their_pictures(tmp_path):
    write(tmp_path / "one", [point("nose", 1, 2)])
    write(tmp_path / "two", [point("nose", 3, 4)], imagePath="../shared\\b.png")
    found = labelme.read(tmp_path)
    assert [image["file_name"] for image in found.document["images"]] == ["one/a.png", "two/../shared/b.png"]
    assert labelme.read(tmp_path / "one" / "a.json").images == tmp_path / "one"


@pytest.mark.parametrize(
    "shape, said, entry",
    [
        ({"shape_type": "polygon", "label": "x", "points": []}, "neither point nor rectangle: 'polygon'", "shape 2"),
        ("x", "not an object", "shape 2"),
        (point(None, 1, 2), "missing field: label", "shape 2"),
        (point("tail", 1, None), "not finite", "shape 2"),
        (point("tail", 1, 2) | {"points": [[1, 2], [3, 4]]}, "wrong length", "shape 2"),
        (point("tail", 1, 2, group_id="a"), "bad id", "shape 2"),
        (rectangle([[1, 2], [5, 3], [4, 8], [0, 7]]), "rotated region: rectangle of label 'mouse'", "shape 2"),
        (rectangle([[1, 2], [5, 3], [4, 8]]), "wrong length", "shape 2"),
        (point("tail", 1, 2, flags=["x"]), "not an object: flags", "shape 2"),
        (point("tail", 1, 2, flags={"occluded": "maybe"}), "not a flag", "shape 2"),
    ],
)
def test_a_broken_shape_is_named(tmp_path, shape, said, entry):
    labels = labelme.read(write(tmp_path, [point("nose", 1, 2), shape]))
    (broken,) = labels.broken
    assert str(broken.fault).startswith(said) and broken.entry == entry and broken.file == tmp_path / "a.json"
    assert len(labels.document["annotations"]) == 1


def test_a_broken_file_is_named_and_the_others_are_read(tmp_path):
    write(tmp_path, [point("nose", 1, 2)])
    write(tmp_path, [], "b.json", imagePath=None)
    (tmp_path / "c.json").write_text('{"shapes": [')
    (tmp_path / "d.json").write_text('{"other": 1}')
    labels = labelme.read(tmp_path)
    assert [broken.file.name for broken in labels.broken] == ["b.json", "c.json", "d.json"]
    assert "line 1" in str(labels.broken[1].fault) and "no list 'shapes'" in str(labels.broken[2].fault)
    assert len(labels.document["images"]) == 1


def test_nothing_there(tmp_path):
    with pytest.raises(RawDataError, match="has no JSON files"):
        labelme.read(tmp_path)
