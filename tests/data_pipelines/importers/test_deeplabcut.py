"""DeepLabCut projects: single and several animals, config.yaml, and what may be wrong with them."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from data_pipelines import records
from data_pipelines.builders.report import RawDataError
from data_pipelines.importers import deeplabcut
from scripts import prepare_data

SAMPLE = pathlib.Path(__file__).parents[4] / "shared/samples/openfield"
HEAD = "scorer,Ann,Ann,Ann,Ann\nbodyparts,nose,nose,tail,tail\ncoords,x,y,x,y\n"


def project(root, table=HEAD, scorer="Ann", **config):
    """A project of one video; without a configuration unless there is something for it to say."""
    folder = root / "labeled-data" / "v"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"CollectedData_{scorer}.csv").write_text(table)
    if config:
        (root / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    return root


def people(labels):
    return [entry["keypoints"] for entry in labels.document["annotations"]]


def test_frames_are_named_by_one_column_or_three(tmp_path):
    one = HEAD + "C:\\Users\\Ann\\labeled-data\\v\\img1.png,1.5,2,,\n/old/v/img2.png,,,NaN,nan\n"
    three = (
        HEAD.replace("scorer,", "scorer,,,").replace("bodyparts,", "bodyparts,,,").replace("coords,", "coords,,,")
        + "labeled-data,v,img1.png,1.5,2,,\nlabeled-data,v,img2.png,,,,\n\n"
    )
    documents = [deeplabcut.read(project(tmp_path, table)).document for table in (one, three)]
    assert documents[0] == documents[1]
    assert [image["file_name"] for image in documents[0]["images"]] == [
        "labeled-data/v/img1.png",
        "labeled-data/v/img2.png",
    ]
    assert people(deeplabcut.read(tmp_path)) == [[1.5, 2, 2, 0, 0, 0]], "a frame of nobody has no person"


def test_the_configuration_gives_order_and_limbs(tmp_path):
    chains = [["tail", "ear", "nose"], ["objectA", "nose"]]
    root = project(tmp_path, HEAD + "a.png,1,2,3,4\n", bodyparts=["tail", "ear", "nose"], skeleton=chains, scorer="Ann")
    labels = deeplabcut.read(root / "config.yaml")
    (category,) = labels.document["categories"]
    assert category["keypoints"] == ["tail", "ear", "nose"] and category["skeleton"] == [[1, 2], [2, 3]]
    assert people(labels) == [[3, 4, 2, 0, 0, 0, 1, 2, 2]]
    assert [detail for _, _, detail in labels.remarks] == ["objectA - nose"]
    assert people(deeplabcut.read(root, names=["nose", "tail", "ear"])) == [[1, 2, 2, 3, 4, 2, 0, 0, 0]], "as asked for"


def test_several_animals(tmp_path):
    table = (
        "scorer,A,A,A,A,A,A\nindividuals,m1,m1,m2,m2,single,single\nbodyparts,nose,nose,nose,nose,lamp,lamp\n"
        "coords,x,y,x,y,x,y\na.png,1,2,3,4,9,9\nb.png,,,5,6,9,9\n"
    )
    names = {"bodyparts": "MULTI!", "multianimalbodyparts": ["nose"], "uniquebodyparts": ["lamp"]}
    labels = deeplabcut.read(project(tmp_path, table, **names))
    assert people(labels) == [[1, 2, 2], [3, 4, 2], [5, 6, 2]]
    assert [entry["image_id"] for entry in labels.document["annotations"]] == [1, 1, 2]
    assert labels.document["annotations"][2]["origin"][1] == "line 6, m2"
    assert "unique body parts" in labels.remarks[0][0]


def test_videos_whose_labels_are_not_read_are_told(tmp_path):
    """Of one the .csv was not copied, of another it has a name of its own; frames that nobody labelled are no loss."""
    root = project(tmp_path, HEAD + "a.png,1,2,3,4\n")
    for video, file in (("w", "CollectedData_Ann.h5"), ("x", "moth.csv"), ("x", "moth.h5"), ("y", "img1.png")):
        path = root / "labeled-data" / video / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    (root / "labeled-data/v/CollectedData_Ann.h5").write_bytes(b"")
    what = "video without CollectedData_*.csv (left out)"
    assert deeplabcut.read(root).remarks == [
        (what, root / "labeled-data/w", "it has CollectedData_Ann.h5"),
        (what, root / "labeled-data/x", "it has moth.csv, moth.h5"),
    ]


def test_the_scorer_of_the_configuration_counts(tmp_path):
    project(tmp_path, HEAD + "a.png,1,1,1,1\n", scorer="Bob")
    root = project(tmp_path, HEAD + "a.png,2,2,2,2\n")
    with pytest.raises(RawDataError, match="CollectedData_Ann.csv, CollectedData_Bob.csv; .*should name the scorer"):
        deeplabcut.read(root)
    (tmp_path / "config.yaml").write_text("scorer: Bob\nbodyparts: [nose, tail]\n")
    assert people(deeplabcut.read(root)) == [[1, 1, 2, 1, 1, 2]]


@pytest.mark.parametrize(
    "row, reason, entry",
    [
        ("b.png,1,,3,4", "missing field: nose y", "line 5"),
        ("b.png,1,2,x,4", "not a number: tail x is 'x'", "line 5"),
        ("b.png,1,2,inf,4", "not finite", "line 5"),
        ("b.png,1,2,3", "bad row: 4 cells under 5", "line 5"),
        ("a.png,1,2,3,4", "bad row: a.png again", "line 5"),
        (",1,2,3,4", "bad row", "line 5"),
    ],
)
def test_a_broken_row_is_named_and_the_others_are_read(tmp_path, row, reason, entry):
    labels = deeplabcut.read(project(tmp_path, f"{HEAD}a.png,1,2,3,4\n{row}\nc.png,5,6,7,8\n"))
    (broken,) = labels.broken
    assert str(broken.fault).startswith(reason) and broken.entry == entry
    assert broken.file.name == "CollectedData_Ann.csv"
    assert people(labels) == [[1, 2, 2, 3, 4, 2], [5, 6, 2, 7, 8, 2]]


@pytest.mark.parametrize(
    "table, config, said",
    [
        ("a,b\n1,2\n", {}, "first rows should be scorer, .* apart by commas; the first is 'a,b'"),
        (HEAD.replace("x,y,x,y", "x,y,y,x"), {}, "column 4 should be x"),
        (HEAD.replace("x,y,x,y", "x,y,likelihood,x"), {}, "column 4 should be x"),
        (HEAD, {"bodyparts": ["nose"]}, "'tail' is none of the body parts of config.yaml: nose"),
        (HEAD, {"bodyparts": "MULTI!"}, r"config.yaml: bodyparts or multianimalbodyparts should list"),
        (HEAD, {"bodyparts": ["nose", "tail"], "skeleton": ["nose"]}, "config.yaml: skeleton should be"),
        (HEAD, {"bodyparts": ["nose", "tail"], "skeleton": 5}, "config.yaml: skeleton should be .*, not 5"),
    ],
)
def test_what_cannot_be_understood_names_the_file(tmp_path, table, config, said):
    with pytest.raises(RawDataError, match=said):
        deeplabcut.read(project(tmp_path, table, **config))


def test_damaged_files_are_one_line(tmp_path):
    root = project(tmp_path)
    (root / "config.yaml").write_text("bodyparts: [nose\nskeleton: {")
    with pytest.raises(RawDataError, match=r"config.yaml is not valid YAML: .*line 2"):
        deeplabcut.read(root)
    (root / "config.yaml").unlink()
    next(root.glob("labeled-data/*/*.csv")).write_bytes(b"scorer\xff\xfe")
    with pytest.raises(RawDataError, match="is not text in UTF-8"):
        deeplabcut.read(root)
    with pytest.raises(RawDataError, match=r"has no labeled-data/\*/CollectedData_\*.csv"):
        deeplabcut.read(tmp_path / "labeled-data")


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="the samples of public datasets (shared/) are not beside the checkout")
def test_the_open_field_mouse(tmp_path):
    command = ["custom", "--name=mouse", f"--annotations={SAMPLE}", "--val_share=0.2", f"--data_dir={tmp_path}"]
    assert prepare_data.main(command) == 0
    train, val = (records.load_annotations("mouse", split, tmp_path) for split in ("train", "val"))
    assert (train.num_instances, val.num_instances) == (93, 23)
    names = [*train.file_name, *val.file_name]
    assert len(set(names)) == 116
    rows = {name: row for table in (train, val) for name, row in zip(table.file_name, table.keypoints, strict=True)}
    first = rows["labeled-data/m4s1/img0000.jpg"]
    wanted = [[21.521, 265.428, 2], [33.819, 265.941, 2], [19.984, 250.056, 2], [87.11, 152.698, 2]]
    np.testing.assert_allclose(first, wanted, rtol=1e-6)
    assert train.protocol.keypoints.flip_pairs == ((1, 2),)
    for table in (train, val):
        inside = (table.keypoints[..., :2] >= table.box[:, None, :2]) & (
            table.keypoints[..., :2] <= table.box[:, None, :2] + table.box[:, None, 2:]
        )
        assert inside.all()
