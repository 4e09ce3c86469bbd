"""Label Studio: names of pictures, relations, several annotations, and what may be wrong with a task."""

from __future__ import annotations

import json

import pytest

from data_pipelines.builders.report import RawDataError
from data_pipelines.importers import label_studio
from data_pipelines.importers.labels import OfAnotherKind

SIZE = {"original_width": 200, "original_height": 50}


def point(name, x, y, **more):
    value = {"x": x, "y": y, "width": 1, "keypointlabels": [name]}
    return SIZE | {"id": f"p-{name}-{x}", "type": "keypointlabels", "value": value} | more


def box(number, x, y, w, h):
    value = {"x": x, "y": y, "width": w, "height": h, "rotation": 0, "rectanglelabels": ["mouse"]}
    return SIZE | {"id": number, "type": "rectanglelabels", "value": value}


def read(folder, *results, image="a.png"):
    annotations = [{"id": number, "result": result} for number, result in enumerate(results)]
    tasks = [{"id": 7, "data": {"image": image}, "annotations": annotations}]
    (folder / "export.json").write_text(json.dumps(tasks))
    return label_studio.read(folder)


@pytest.mark.parametrize("key", ["id", "parentID", "from_id"])
def test_an_id_that_is_none_costs_nobody(tmp_path, key):
    results = [point("nose", 1, 2), box("one", 0, 0, 50, 50), {"type": "relation", "from_id": "p", "to_id": "one"}]
    for damaged in ([], {"a": 1}):
        changed = [item | {key: damaged} if key in item or key == "parentID" else item for item in results]
        (person,) = read(tmp_path, changed).document["annotations"]
        assert (person["keypoints"], person["bbox"]) == ([2, 1, 2], [0, 0, 100, 25])


def test_percent_become_pixels(tmp_path):
    labels = read(tmp_path, [point("nose", 50, 20), point("tail", "1.5", 4)])
    (person,) = labels.document["annotations"]
    assert person["keypoints"] == [100, 10, 2, 3, 2, 2]
    assert (labels.document["images"][0]["width"], labels.document["images"][0]["height"]) == (200, 50)


def test_labels_beside_keypoints_and_rectangles(tmp_path):
    """A project with `Labels` and `KeyPoint` writes every region twice, once with its label, of a type of its own."""

    def labelled(region):
        value = {key: number for key, number in region["value"].items() if key != region["type"]}
        plain = region | {"type": region["type"].removesuffix("labels"), "value": value}
        return plain, region | {"type": "labels", "value": value | {"labels": region["value"][region["type"]]}}

    regions = [box("one", 10, 10, 50, 80), point("nose", 50, 20), point("tail", 30, 40)]
    tied = [region | {"parentID": "one"} for region in regions[1:]]
    usual, other = (
        read(tmp_path, [regions[0], *tied]),
        read(tmp_path, [result for region in (regions[0], *tied) for result in labelled(region)]),
    )
    assert other.document == usual.document and len(usual.document["annotations"]) == 1 and not other.broken
    alone = read(tmp_path, [*regions, labelled(point("tail", 1, 1))[0], {"type": "labels", "value": {"points": []}}])
    told = [
        "neither keypointlabels nor rectanglelabels: type 'keypoint'",
        "neither keypointlabels nor rectanglelabels: type 'labels'",
    ]
    assert [str(item.fault) for item in alone.broken] == told


def test_what_is_said_of_a_region_is_told(tmp_path):
    """Such as that a keypoint is hidden, which would be lost unsaid; of the whole picture it says nothing of poses."""
    region = point("nose", 50, 20)
    of_picture = {"id": "c", "type": "choices", "value": {"choices": ["blurred"]}}
    of_region = region | {"type": "choices", "value": {"choices": ["hidden"]}}
    labels = read(tmp_path, [region, of_picture, of_region])
    (left_out,) = labels.broken
    assert isinstance(left_out.fault, OfAnotherKind) and left_out.entry == "task 7, region p-nose-50"
    assert str(left_out.fault) == "choices of a region: {'choices': ['hidden']}"


@pytest.mark.parametrize("forwards", [True, False])
def test_a_relation_ties_a_point_to_its_box(tmp_path, forwards):
    """Where boxes overlap, containing says nothing."""
    ends = ("from_id", "to_id") if forwards else ("to_id", "from_id")
    results = [box("one", 0, 0, 60, 100), box("two", 40, 0, 60, 100), point("nose", 50, 50), point("tail", 80, 50)]
    labels = read(tmp_path, results)
    assert "point of nobody" in str(labels.broken[0].fault)
    relations = [{"type": "relation", ends[0]: name, ends[1]: "two"} for name in ("p-nose-50", "p-tail-80")]
    labels = read(tmp_path, [*results, *relations])
    assert not labels.broken
    with_points = [entry for entry in labels.document["annotations"] if any(entry["keypoints"])]
    assert [entry["bbox"] for entry in with_points] == [[80, 0, 120, 50]]
    assert with_points[0]["keypoints"] == [100, 25, 2, 160, 25, 2]


@pytest.mark.parametrize(
    "image, name",
    [
        ("/data/upload/3/0a1b2c3d-My%20mouse.png", "/data/upload/3/My mouse.png"),
        ("/data/local-files/?d=clips/My%20mouse.png", "clips/My mouse.png"),
        ("s3://bucket/clips/mouse.png", "/clips/mouse.png"),
        ("https://host/a/mouse.png?token=1", "/a/mouse.png"),
        ("clips/mouse.png", "clips/mouse.png"),
    ],
)
def test_names_of_pictures(tmp_path, image, name):
    labels = read(tmp_path, [point("nose", 1, 2)], image=image)
    assert labels.document["images"][0]["file_name"] == name


def test_a_name_that_only_looks_uploaded_is_kept(tmp_path):
    (tmp_path / "0a1b2c3d-a.png").write_bytes(b"")
    labels = read(tmp_path, [point("nose", 1, 2)], image="0a1b2c3d-a.png")
    assert labels.document["images"][0]["file_name"] == "0a1b2c3d-a.png"


def test_one_annotation_counts(tmp_path):
    labels = read(tmp_path, [point("nose", 50, 50)], [point("nose", 10, 10)])
    assert labels.document["annotations"][0]["keypoints"] == [100, 25, 2]
    assert labels.remarks[0][2] == "task 7"
    text = (tmp_path / "export.json").read_text().replace('"id": 1,', '"id": 1, "ground_truth": true,')
    (tmp_path / "export.json").write_text(text)
    assert label_studio.read(tmp_path).document["annotations"][0]["keypoints"] == [20, 5, 2]
    (tmp_path / "export.json").write_text(text.replace('"ground_truth"', '"was_cancelled"'))
    assert label_studio.read(tmp_path).document["annotations"][0]["keypoints"] == [100, 25, 2]


@pytest.mark.parametrize(
    "task, why",
    [
        ({"annotations": []}, ""),
        ({"annotations": [{"was_cancelled": True, "result": []}]}, "skipped"),
        ({"annotations": [], "predictions": [{"result": [point("nose", 1, 1)]}]}, "predictions are not read"),
    ],
)
def test_a_task_that_nobody_annotated_is_no_picture_of_nobody(tmp_path, task, why):
    tasks = [
        {"id": 1, "data": {"image": "a.png"}, "annotations": [{"result": [point("nose", 1, 1)]}]},
        {"id": 2, "data": {"image": "b.png"}, "annotations": [{"result": []}]},
        {"id": 3, "data": {"image": "c.png"}} | task,
    ]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    labels = label_studio.read(tmp_path)
    assert [image["file_name"] for image in labels.document["images"]] == ["a.png", "b.png"]
    (left_out,) = labels.broken
    assert isinstance(left_out.fault, OfAnotherKind) and (left_out.entry, left_out.fault.detail) == ("task 3", why)


@pytest.mark.parametrize(
    "region, said",
    [
        (point("tail", "x", 1), "not a number"),
        (point("tail", 1, 1) | {"original_width": None}, "missing field: original_width"),
        (point("tail", 1, 1, image_rotation=90), "rotated region"),
        (point("tail", 1, 1, value=None), "missing field: value"),
        (point("tail", 1, 1, value={"x": 1, "y": 1, "keypointlabels": []}), "not one label"),
        ({"id": "p-tail-1", "type": "polygonlabels"}, "neither keypointlabels"),
        (point("ear", 1, 1, parentID="one"), "keypoint twice"),
    ],
)
def test_a_broken_region_is_named(tmp_path, region, said):
    people = [box("one", 0, 0, 10, 10), point("ear", 5, 5, parentID="one"), box("two", 50, 0, 10, 10)]
    labels = read(tmp_path, [*people, point("ear", 55, 5, parentID="two"), region])
    (broken,) = labels.broken
    assert str(broken.fault).startswith(said) and broken.entry.startswith("task 7, region p-")


def test_a_picture_within_the_export_is_not_printed(tmp_path):
    with pytest.raises(
        RawDataError, match=r"task 7: bad image entry: 'data:image/png;base6'\.\.\. is the picture"
    ) as error:
        read(tmp_path, [point("nose", 1, 2)], image="data:image/png;base64," + 9999 * "A")
    assert len(str(error.value)) < 400


ANNOTATED = {"annotations": [{"result": []}]}


@pytest.mark.parametrize(
    "task", [[], {"id": 3}, {"id": 3, "data": {}} | ANNOTATED, {"id": 3, "data": {"image": 5}} | ANNOTATED]
)
def test_a_broken_task_is_named_and_the_others_are_read(tmp_path, task):
    read(tmp_path, [point("nose", 50, 50)])
    path = tmp_path / "export.json"
    path.write_text(json.dumps([*json.loads(path.read_text()), task]))
    labels = label_studio.read(path)
    (broken,) = labels.broken
    assert broken.entry == ("task 3" if task else "task 2") and len(labels.document["images"]) == 1


def test_what_is_no_export(tmp_path):
    path = tmp_path / "export.json"
    path.write_text('{"a": 1}')
    with pytest.raises(RawDataError, match="not hold a list of tasks"):
        label_studio.read(path)
    (tmp_path / "more.json").write_text("[]")
    with pytest.raises(RawDataError, match="or several: name one"):
        label_studio.read(tmp_path)
