"""The same people in every format become the same records; which format a folder has."""

from __future__ import annotations

import gzip
import io
import json
import pathlib
import re
import zipfile

import numpy as np
import pytest

from data_pipelines import importers, records
from data_pipelines.builders.report import NoAnnotations, RawDataError
from data_pipelines.datasets import find_dataset
from data_pipelines.reading import Reading
from data_pipelines.top_down.loader import Entry, train_loader
from scripts import prepare_data
from tests.data_pipelines.importers.same_people import (
    BOXED,
    EMPTY_LEFT_OUT,
    NAMES,
    SAYS_NO_NAMES,
    UNBOXED,
    WRITERS,
    random_people,
)


def prepare(folder, name, source, *arguments):
    """The exit status of the command."""
    command = ["custom", f"--name={name}", f"--annotations={source}", f"--data_dir={folder}", *arguments]
    return prepare_data.main(command)


def written(tmp_path, form, people, boxes):
    root = tmp_path / form
    root.mkdir()
    return WRITERS[form](root, people, boxes)


def leave_hidden_files(root):
    """What a Mac leaves beside every file on other systems' disks."""
    for path in filter(pathlib.Path.is_file, list(root.rglob("*"))):
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")


@pytest.mark.parametrize("boxes, forms", [(True, BOXED), (False, UNBOXED)], ids=["boxes", "no boxes"])
@pytest.mark.parametrize("seed", range(2))
def test_the_same_people_in_every_format_are_the_same_records(tmp_path, seed, boxes, forms):
    people = random_people(seed)
    truth = np.concatenate([[person["points"] for person in found] for found in people.values() if found])
    tables = {}
    for form in forms:
        source = written(tmp_path, form, people, boxes)
        leave_hidden_files(source)
        more = [f"--keypoints={','.join(NAMES)}"] if form in SAYS_NO_NAMES else []
        assert prepare(tmp_path / "data", f"From_{form}", source, "--strict", *more) == 0, form
        table = tables[form] = records.load_annotations(f"From_{form}", "train", tmp_path / "data")
        names = [name for name in people if people[name] or form not in EMPTY_LEFT_OUT]
        assert [str(name).rpartition("/")[2] for name in table.file_name] == names, form
        np.testing.assert_array_equal(table.keypoints[..., 2], truth[..., 2], form)
        # Shares and percent are written with 9 digits or more; records hold float32.
        np.testing.assert_allclose(table.keypoints, truth, atol=1e-5, err_msg=form)
        np.testing.assert_allclose(table.box, tables["coco"].box, atol=1e-4, err_msg=form)
        np.testing.assert_array_equal(table.image_index, tables["coco"].image_index, form)
        assert [name for _, name in table.categories] == ["object"]
        skeleton = find_dataset(f"From_{form}", tmp_path / "data").keypoints
        assert skeleton.keypoints == NAMES and skeleton.flip_pairs == ((1, 2),), form
        if form not in (*SAYS_NO_NAMES, "yolo_pose"):
            assert {frozenset(limb) for limb in skeleton.limbs} == {frozenset((0, k)) for k in (1, 2, 3)}, form
    if boxes:
        wanted = [person["box"] for found in people.values() for person in found]
        np.testing.assert_allclose(tables["coco"].box, wanted, atol=1e-4)


@pytest.mark.parametrize("form", ["label_studio", "labelme"])
def test_boxes_gather_points_without_groups(tmp_path, form):
    """And one person alone needs none."""
    people = random_people(3)
    source = written(tmp_path, form, people, True)
    for path in source.rglob("*.json"):
        text = path.read_text().replace('"parentID"', '"ignored"').replace('"group_id"', '"ignored"')
        path.write_text(text)
    assert prepare(tmp_path / "data", "loose", source, "--strict", f"--keypoints={','.join(NAMES)}") == 0
    table = records.load_annotations("loose", "train", tmp_path / "data")
    truth = np.concatenate([[person["points"] for person in found] for found in people.values() if found])
    np.testing.assert_allclose(table.keypoints, truth, atol=1e-5)
    single = {name: found[:1] for name, found in people.items()}
    other = tmp_path / "single"
    other.mkdir()
    source = written(other, form, single, False)
    assert prepare(tmp_path / "data", "single", source, "--strict", f"--keypoints={','.join(NAMES)}") == 0
    assert records.load_annotations("single", "train", tmp_path / "data").num_instances == 3


def test_what_is_prepared_trains(tmp_path):
    source = written(tmp_path, "deeplabcut", random_people(1, pictures=9), False)
    assert prepare(tmp_path / "data", "Mouse", source, "--val_share=0.25", "--seed=3") == 0
    settings = {"batch_size": 4, "input_size": (24, 32), "seed": 0, "reading": Reading(num_threads=1)}
    batches = train_loader([Entry("Mouse")], data_dir=tmp_path / "data", **settings)
    assert next(batches)["image"].shape == (4, 32, 24, 3)
    batches.close()
    tables = [records.load_annotations("Mouse", split, tmp_path / "data") for split in ("train", "val")]
    assert [table.num_images for table in tables] == [7, 2]
    assert not set(tables[0].file_name) & set(tables[1].file_name)
    assert "9 of 9" not in tables[0].metadata["pictures"] and "7 (PNG) re-encoded" in tables[0].metadata["pictures"]


@pytest.mark.parametrize("form", WRITERS)
def test_formats_are_recognised(tmp_path, form):
    source = written(tmp_path, form, random_people(0), form in BOXED)
    assert importers.recognise(source) == form
    for file in (*source.glob("*.json"), *source.glob("*.xml"), *source.glob("*.yaml")):
        assert importers.recognise(file) == form


def test_what_is_not_recognised_is_said(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(RawDataError, match=r"looks like none of coco, cvat, .*--format"):
        importers.recognise(tmp_path)
    with pytest.raises(NoAnnotations, match="looked for .*absent"):
        importers.recognise(tmp_path / "absent")
    both = written(tmp_path, "labelme", random_people(0), True)
    (both / "a.xml").write_text("<annotations/>")
    with pytest.raises(RawDataError, match="looks like several: cvat, labelme"):
        importers.recognise(both)
    assert prepare(tmp_path / "data", "x", both) == 1
    assert "looks like several" in capsys.readouterr().err
    assert prepare(tmp_path / "data", "x", both, "--format=labelme") == 0
    (tmp_path / "list.json").write_text("{}")
    assert prepare(tmp_path / "data", "y", tmp_path / "list.json") == 1
    assert "has no list 'categories'" in capsys.readouterr().err


def test_labels_that_may_not_be_read_are_a_line(tmp_path, capsys, monkeypatch):
    def refused(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "labels.txt").write_text("0 0.5 0.5 1 1\n")
    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "open", refused)
        assert prepare(tmp_path / "data", "x", tmp_path / "labels.txt") == 1
    assert f"{tmp_path / 'labels.txt'} cannot be read: Permission denied" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["export.zip", "export.json", "export.json.gz", "annotations"])
def test_an_archive_is_to_be_unpacked(tmp_path, capsys, name):
    """What label tools' servers send is one, also where it was saved under the name of what was asked for."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("result.json", "{}")
    (tmp_path / name).write_bytes(gzip.compress(b"{}") if name.endswith(".gz") else content.getvalue())
    assert prepare(tmp_path / "data", "x", tmp_path / name) == 1
    assert f"{tmp_path / name} is an archive: unpack it" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--val_share=0.5", "--split=val"], "leave --split out"),
        (["--val_share=1"], "between 0 and 1"),
        (["--raw_dir=x"], "no --raw_dir"),
        (["--format=png"], "invalid choice"),
    ],
)
def test_arguments_that_do_not_fit_together(tmp_path, capsys, arguments, said):
    with pytest.raises(SystemExit) as stop:
        prepare(tmp_path, "x", tmp_path, *arguments)
    assert stop.value.code == 2 and said in capsys.readouterr().err


def test_a_share_that_leaves_nothing_is_an_error(tmp_path, capsys):
    source = written(tmp_path, "coco", random_people(0), True)
    assert prepare(tmp_path / "data", "x", source, "--val_share=0.01") == 1
    assert "leaves a split without any" in capsys.readouterr().err
    assert not list(tmp_path.glob("data/**/*.json"))


def test_shapes_of_another_kind_are_no_loss(tmp_path, capsys):
    source = written(tmp_path, "labelme", random_people(0), True)
    for path in source.rglob("*.json"):
        document = json.loads(path.read_text())
        document["shapes"] += [{"label": "mask", "shape_type": "polygon", "points": [[1, 1]] * 3}] * 9
        path.write_text(json.dumps(document))
    assert prepare(tmp_path / "data", "x", source, "--strict", f"--keypoints={','.join(NAMES)}") == 0
    assert "neither point nor rectangle (left out): 36" in capsys.readouterr().out


def test_the_same_labels_are_not_two_splits(tmp_path, capsys):
    source = written(tmp_path, "coco", random_people(0), True)
    assert prepare(tmp_path / "data", "x", source, "--split=train", "--split=val") == 1
    assert "give --split once, or --val_share" in capsys.readouterr().err


def test_parts_of_different_choices_are_not_mixed(tmp_path, capsys):
    source = written(tmp_path, "coco", random_people(0), True)
    command = (tmp_path / "data", "x", source, "--val_share=0.5")
    assert prepare(*command) == 0
    assert prepare(*command) == 0 and prepare(*command, "--seed=1") == 1
    assert "prepared with --val_share=0.5 --seed=0; --overwrite makes it again" in capsys.readouterr().err
    assert prepare(*command, "--seed=1", "--overwrite") == 0
    parts = [set(records.load_annotations("x", split, tmp_path / "data").file_name) for split in ("train", "val")]
    assert len(parts[0] | parts[1]) == 4 and not parts[0] & parts[1]


def test_a_share_of_what_is_prepared_whole_leaves_no_part_behind(tmp_path, capsys):
    source = written(tmp_path, "coco", random_people(0), True)
    assert prepare(tmp_path / "data", "x", source) == 0
    assert prepare(tmp_path / "data", "x", source, "--val_share=0.5") == 1
    assert "x (train) was not prepared" in capsys.readouterr().err
    assert not records.is_prepared("x", "val", tmp_path / "data"), "whose pictures train has as well"


def test_what_is_made_again_gets_no_picture_of_another_part(tmp_path, capsys):
    source = written(tmp_path, "coco", random_people(0), True)
    assert prepare(tmp_path / "data", "x", source, "--val_share=0.5") == 0
    for labels, again in ((source, "--overwrite"), (source / "labels.json", "--overwrite"), (source, "--split=test")):
        assert prepare(tmp_path / "data", "x", labels, again) == 1
        said = capsys.readouterr().err
        assert "1.0.0 is made of the same labels with --val_share=0.5 --seed=0" in said
    assert records.load_annotations("x", "train", tmp_path / "data").num_images == 2
    (tmp_path / "more").mkdir()
    others = written(tmp_path / "more", "coco", random_people(1), True)
    assert prepare(tmp_path / "data", "x", others, "--split=test") == 0, "which has pictures of its own"
    assert prepare(tmp_path / "data", "x", source, "--val_share=0.3", "--overwrite", "--allow_loss") == 0
    assert records.load_annotations("x", "train", tmp_path / "data").num_images == 3


@pytest.mark.parametrize("form", WRITERS)
def test_nobody_usable_is_an_error(tmp_path, form, capsys):
    people = random_people(0)
    for found in people.values():
        for person in found:
            person["points"][:] = 0
    source = written(tmp_path, form, people, form in BOXED)
    more = [f"--keypoints={','.join(NAMES)}"] if form in SAYS_NO_NAMES else []
    assert prepare(tmp_path / "data", "x", source, *more) == 1
    assert "no usable person" in capsys.readouterr().err
    assert not list(tmp_path.glob("data/**/*.json"))


def test_the_keypoints_of_a_definition_stay_in_their_order(tmp_path, capsys):
    people = random_people(0)
    source = written(tmp_path, "labelme", people, True)
    assert prepare(tmp_path / "data", "x", source, f"--keypoints={','.join(NAMES)}") == 0
    assert prepare(tmp_path / "data", "x", source, "--split=val") == 0
    assert find_dataset("x", tmp_path / "data").keypoints.keypoints == NAMES
    assert prepare(tmp_path / "data", "y", source, "--keypoints=Snout,tail") == 1
    assert "unknown keypoint 9" in capsys.readouterr().err
    assert prepare(tmp_path / "data", "y", source, "--keypoints=Snout,tail", "--strict") == 1
    said = capsys.readouterr().err
    assert re.search(r"Clip_0.PNG.json: annotation shape \d: unknown keypoint: '(left|right)Ear'", said)
    source = written(tmp_path, "deeplabcut", people, False)
    assert prepare(tmp_path / "data", "z", source, "--keypoints=a,b") == 1
    assert "--keypoints=a,b, but" in capsys.readouterr().err
