"""YOLO-pose: splits, names, mirror pairs, and what may be wrong with settings and lines."""

from __future__ import annotations

import functools
import json
import unicodedata

import numpy as np
import pytest
from PIL import Image

from data_pipelines import records
from data_pipelines.builders.report import RawDataError
from data_pipelines.importers import yolo_pose
from scripts import prepare_data
from tests.data_pipelines.importers.same_people import HEIGHT, WIDTH, write_pictures

LINE = "0 0.5 0.5 0.5 0.5"
joined, apart = (functools.partial(unicodedata.normalize, form) for form in ("NFC", "NFD"))


def write(root, line=f"{LINE} 0.25 0.5 2 0.75 0.5 1", splits=("train",), **settings):
    for split in splits:
        write_pictures(root / split / "images", [f"{split}.png"])
        (root / split / "labels").mkdir(exist_ok=True)
        (root / split / "labels" / f"{split}.txt").write_text(f"{line}\n")
    known = {"names": ["mouse"], "kpt_shape": [2, 3]} | {split: f"{split}/images" for split in splits}
    (root / "data.yaml").write_text(json.dumps(known | settings))
    return root


def test_shares_become_pixels(tmp_path):
    labels = yolo_pose.read(write(tmp_path))
    (person,) = labels.document["annotations"]
    assert person["keypoints"] == [WIDTH / 4, HEIGHT / 2, 2, 3 * WIDTH / 4, HEIGHT / 2, 1]
    assert person["bbox"] == [WIDTH / 4, HEIGHT / 4, WIDTH / 2, HEIGHT / 2]
    assert labels.document["categories"][0]["keypoints"] == ["keypoint_1", "keypoint_2"]


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_shares_are_of_the_picture_as_it_is_seen(tmp_path, suffix):
    """Label tools turn it by its EXIF orientation; so does the prepared split, whatever the format."""
    exif = Image.Exif()
    exif[0x0112] = 6  # stored 60 x 40, seen 40 x 60
    picture, label = tmp_path / "images" / f"a{suffix}", tmp_path / "labels" / "a.txt"
    for file in (picture, label):
        file.parent.mkdir()
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(picture, exif=exif)
    label.write_text("0 0.5 0.75 0.8 0.4 0.25 0.75 2 0.75 0.75 2\n")
    settings = {"names": ["mouse"], "kpt_shape": [2, 3], "train": "images"}
    (tmp_path / "data.yaml").write_text(json.dumps(settings))
    command = ["custom", "--name=turned", f"--annotations={tmp_path}", f"--data_dir={tmp_path / 'data'}"]
    assert prepare_data.main(command) == 0
    table = records.load_annotations("turned", "train", tmp_path / "data")
    assert table.keypoints[0, :, :2].tolist() == [[10, 45], [30, 45]] and table.upright


def test_yaml_files_of_something_else_are_passed_over(tmp_path):
    write(tmp_path)
    (tmp_path / "classes.yaml").write_text("- left\n- right\n")
    assert yolo_pose.fits(tmp_path)
    (tmp_path / "data.yaml").unlink()
    assert not yolo_pose.fits(tmp_path)


def test_two_numbers_a_keypoint(tmp_path):
    labels = yolo_pose.read(write(tmp_path, f"{LINE} 0 0 0.5 0", kpt_shape=[2, 2]))
    assert labels.document["annotations"][0]["keypoints"] == [0, 0, 0, WIDTH / 2, 0, 2]


def test_its_splits_are_prepared(tmp_path):
    root = write(tmp_path, splits=("train", "val"), flip_idx=[1, 0], path="moved")
    command = ["custom", "--name=x", f"--annotations={root}", f"--data_dir={tmp_path / 'data'}", "--keypoints=a,b"]
    assert prepare_data.main(command) == 0
    for split in ("train", "val"):
        table = records.load_annotations("x", split, tmp_path / "data")
        assert list(table.file_name) == [f"{split}/images/{split}.png"]
    assert table.protocol.keypoints.keypoints == ("a", "b") and table.protocol.keypoints.flip_pairs == ((0, 1),)
    assert prepare_data.main([*command, "--split=test"]) == 1


@pytest.mark.parametrize("key", ["val", "valid", "validation"])
def test_the_split_for_validation_has_several_names(tmp_path, key):
    root = write(tmp_path, splits=("train", "val"), **({"val": None} | {key: "val/images"}))
    assert yolo_pose.own_splits(root) == ("train", "val")
    assert list(yolo_pose.read(root).splits.values()) == ["train", "val"]


def test_an_absent_split_costs_itself_alone(tmp_path, capsys):
    root = write(tmp_path, splits=("train", "val"), test="test/images")
    command = ["custom", "--name=x", f"--annotations={root}", f"--data_dir={tmp_path / 'data'}"]
    assert prepare_data.main(command) == 0
    why = f"there is no split 'test': there is no {root / 'test/images'}; the files have train, val"
    said = capsys.readouterr()
    assert f"x (test) is left out: {why}\n" in said.err and "test/images" not in said.out, "once"
    assert all(records.is_prepared("x", split, tmp_path / "data") for split in ("train", "val"))
    assert prepare_data.main([*command, "--split=test"]) == 1
    assert f"x (test) was not prepared: {why}\n" in capsys.readouterr().err
    assert prepare_data.main([*command, "--split=neither"]) == 1
    assert "there is no split 'neither': the files have train, val" in capsys.readouterr().err
    assert prepare_data.main([*command, "--name=y", "--val_share=0.5"]) == 0
    assert (
        f"split test is not there (left out): 1\n    {root}: there is no {root / 'test/images'}"
        in capsys.readouterr().out
    )


def test_folders_as_roboflow_names_them(tmp_path):
    """As if `data.yaml` lay in a folder of its own, which it does not."""
    (tmp_path / "export").mkdir()
    root = write(tmp_path / "export", splits=("train", "val"), train="../train/images", val="../val/images")
    labels = yolo_pose.read(root)
    names = [image["file_name"] for image in labels.document["images"]]
    assert names == ["train/images/train.png", "val/images/val.png"] and len(labels.document["annotations"]) == 2
    # Where there is such a folder, it is meant.
    write_pictures(tmp_path / "train" / "images", ["true.png"])
    assert yolo_pose.read(root).document["images"][0]["file_name"] == "../train/images/true.png"


@pytest.mark.parametrize("start", ["/home/x/dataset/", "C:\\Users\\x\\dataset\\"])
def test_folders_of_another_computer_are_looked_for_beside_the_settings(tmp_path, start):
    folders = {"train": f"{start}train/images", "val": f"{start}lost/images", "path": start}
    root = write(tmp_path, splits=("train",), **folders)
    write_pictures(tmp_path / "images", ["other.png"])  # of the same last name alone
    labels = yolo_pose.read(root)
    assert [image["file_name"] for image in labels.document["images"]] == ["train/images/train.png"]
    place = folders["val"].replace("\\", "/")
    assert labels.absent == {"val": f"there is no {place}; of another computer? Write it as seen from {tmp_path}"}


def test_a_picture_without_a_label_file_is_told(tmp_path, capsys):
    """It counts as one of nobody, as for Ultralytics; where a file was lost, or has another name, people are."""
    root = write(tmp_path, splits=("train", "val"))
    for split in ("train", "val"):
        write_pictures(root / split / "images", ["more.png"])
    command = ["custom", "--name=x", f"--annotations={root}", f"--data_dir={tmp_path / 'data'}"]
    assert prepare_data.main(command) == 0
    said = capsys.readouterr().out
    for split in ("train", "val"):
        file = root / split / "labels" / "more.txt"
        assert f"{split}: remark: label file that is not there (left out): 1\n    {file}: its picture counts as" in said
        assert records.load_annotations("x", split, tmp_path / "data").num_images == 2


@pytest.mark.parametrize(
    "picture, label",
    [
        ("IMG.png", "img"),
        (joined("Ö.png"), apart("Ö")),
        (apart("Ö.png"), joined("ö")),
        ("d écran.png", "d%20%C3%A9cran"),
    ],
)
def test_a_label_file_as_another_system_calls_it(tmp_path, picture, label):
    """In other capitals, with accents apart from their letters, or in an address; but not one of another picture's."""
    root = write(tmp_path)
    write_pictures(root / "train/images", [picture])
    (root / f"train/labels/{label}.txt").write_text(f"{LINE} 0.25 0.5 2 0.75 0.5 1\n")
    labels = yolo_pose.read(root)
    assert len(labels.document["annotations"]) == 2 and not labels.broken
    write_pictures(root / "train/images", [f"{label}.png"])
    labels = yolo_pose.read(root)
    owner = {image["id"]: image["file_name"] for image in labels.document["images"]}
    owners = {owner[person["image_id"]] for person in labels.document["annotations"]}
    assert owners == {"train/images/train.png", f"train/images/{label}.png"}
    assert [item.fault.reason for item in labels.broken] == ["label file that is not there"]


def test_labels_without_their_picture_are_told(tmp_path, capsys):
    """Of a picture that is lost, of a format that is not read, or that the tool called otherwise."""
    root = write(tmp_path, splits=("train", "val"))
    for name in ("lost", "d%C3%A9cran", "inside/lost", "nobody"):
        file = root / f"train/labels/{name}.txt"
        file.parent.mkdir(exist_ok=True)
        file.write_text("" if name == "nobody" else f"{LINE} 0.25 0.5 2 0.75 0.5 1\n")
    (root / "train/labels/classes.txt").write_text("mouse\n")
    (root / "train/images/notes.txt").write_text("2 mice\n")
    command = ["custom", "--name=x", f"--annotations={root}", f"--data_dir={tmp_path / 'data'}"]
    assert prepare_data.main(command) == 0
    said = capsys.readouterr().out
    assert "train: dropped images: missing image: 3\n" in said
    for name in ("lost", "d%C3%A9cran", "inside/lost"):
        assert f"    {root}/train/labels/{name}.txt: no picture of these labels (.jpg, " in said
    (root / "list.txt").write_text("train/images/train.png\n")
    settings = json.loads((root / "data.yaml").read_text()) | {"train": "list.txt"}
    (root / "data.yaml").write_text(json.dumps(settings))
    assert not yolo_pose.read(root).broken, "a list leaves others out on purpose"


def test_labels_whose_pictures_are_all_lost_are_told(tmp_path):
    root = write(tmp_path, splits=("train", "val"))
    (root / "val/images/val.png").unlink()
    (broken,) = yolo_pose.read(root).broken
    assert (broken.file, broken.fault.reason) == (root / "val/labels/val.txt", "missing image")


def test_keypoints_outside_the_picture(tmp_path):
    """Placed there by somebody, as COCO's may be: they are kept, with a remark of preparation."""
    labels = yolo_pose.read(write(tmp_path, f"{LINE} -0.25 0.5 2 0.75 1.5 1"))
    assert labels.document["annotations"][0]["keypoints"] == [-WIDTH / 4, HEIGHT / 2, 2, 3 * WIDTH / 4, 1.5 * HEIGHT, 1]
    assert not labels.broken


def test_labels_beside_their_pictures(tmp_path):
    root = write(tmp_path)
    (root / "train/labels/train.txt").rename(root / "train/images/train.txt")
    labels = yolo_pose.read(root)
    assert len(labels.document["annotations"]) == 1 and not labels.broken


@pytest.mark.parametrize("path", ["", "..\\set"])
def test_paths_of_windows(tmp_path, path):
    root = write(tmp_path / "set", train="train\\images", path=path)
    assert len(yolo_pose.read(root).document["annotations"]) == 1


@pytest.mark.parametrize(
    "line", ["C:\\set\\train\\images\\train.png", "/content/train/images/train.png", "train/images/train.png"]
)
def test_a_list_of_another_computer(tmp_path, line):
    """Or one of paths from the dataset's folder, in a folder of its own."""
    root = write(tmp_path, train="lists/train.txt")
    (root / "lists").mkdir()
    (root / "lists/train.txt").write_text(f"{line}\n")
    labels = yolo_pose.read(root)
    assert len(labels.document["annotations"]) == 1 and labels.document["images"][0]["file_name"].endswith("/train.png")


def test_a_list_of_pictures(tmp_path):
    root = write(tmp_path)
    (root / "train.txt").write_text("./train/images/train.png\n")
    (root / "data.yaml").write_text(json.dumps({"names": {"0": "mouse"}, "kpt_shape": [2, 3], "train": "train.txt"}))
    assert len(yolo_pose.read(root / "data.yaml").document["annotations"]) == 1


@pytest.mark.parametrize(
    "line, said",
    [
        (LINE, "wrong length: line has 5 numbers, 11 are needed"),
        (f"{LINE} 0.25 0.5 2 0.75 x 1", "not a number"),
        (f"3 {LINE[2:]} 0.25 0.5 2 0.75 0.5 1", "unknown category: class 3"),
        (f"{LINE} 25 50 2 0.75 0.5 1", "number out of range: keypoint_1 at 25, 50"),
        ("0 30 20 10 10 0.25 0.5 2 0.75 0.5 1", "number out of range: box"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, said):
    labels = yolo_pose.read(write(tmp_path, f"{LINE} 0.25 0.5 2 0.75 0.5 1\n\n{line}"))
    (broken,) = labels.broken
    assert str(broken.fault).startswith(said) and (broken.file.name, broken.entry) == ("train.txt", "line 3")
    assert len(labels.document["annotations"]) == 1


def test_a_picture_that_is_none_is_named(tmp_path):
    root = write(tmp_path)
    (root / "train/images/other.png").write_bytes(b"no picture")
    labels = yolo_pose.read(root)
    (broken,) = labels.broken
    assert broken.file.name == "other.png" and broken.fault.reason == "unreadable image"


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"kpt_shape": [2]}, "kpt_shape is"),
        ({"kpt_shape": [2, 4]}, "bad kpt_shape"),
        ({"kpt_shape": ["two", 3]}, "not a number: kpt_shape"),
        ({"flip_idx": [0]}, "flip_idx is"),
        ({"flip_idx": [1, 1]}, "bad flip_idx"),
        ({"kpt_names": {"0": ["a"]}}, "kpt_shape says 2 keypoints"),
        ({"kpt_names": {"0": ["a", "b"], "1": ["b", "a"]}}, "different kpt_names"),
        ({"names": None}, "missing field: nc"),
        ({"train": "nowhere"}, "there is no .*nowhere"),
        ({"train": None}, "no picture in None"),
    ],
)
def test_settings_that_cannot_be_name_the_file(tmp_path, settings, said):
    with pytest.raises(RawDataError, match=f"data.yaml: .*{said}"):
        yolo_pose.read(write(tmp_path, **settings))
