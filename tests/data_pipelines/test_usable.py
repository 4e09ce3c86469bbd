"""Preparation says who can be learned from and judged, with the loader's own rules; and names of any encoding."""

from __future__ import annotations

import json
import os

import pytest

from data_pipelines import records
from data_pipelines.builders import BUILDERS
from data_pipelines.builders.report import RawDataError
from data_pipelines.builders.synthetic import prepare_synthetic
from data_pipelines.top_down.loader import open_source
from scripts import prepare_data
from tests.data_pipelines import annotation_formats, tiny_sets

DOWNLOADS = annotation_formats.downloads()
NAMES = ["tip", "left_wing", "right_wing", "tail"]
# Changes of an annotation after which it is usable no more, and the reason.
UNUSABLE = {
    "crowd": {"iscrowd": 1},
    "without keypoints": {"num_keypoints": 0},
    "box without extent": {"bbox": [10, 10, 0, 8]},
    "box outside the image": {"bbox": [47.5, 10, 8, 8]},
    "area of zero": {"area": 0},
}


def custom(folder, changes, *arguments, name="kites"):
    """The exit status of preparing one person for each of `changes`, and the summary (None: not prepared)."""
    kind = {"id": 5, "name": "kite", "keypoints": NAMES, "skeleton": []}
    points = [10, 12, 2, 14, 12, 2, 9, 13, 1, 12, 20, 2]
    content = tiny_sets.document(max(1, len(changes))) | {"categories": [kind]}
    content["annotations"] = [
        tiny_sets.annotation(number, number, category_id=5, keypoints=points, num_keypoints=4) | change
        for number, change in enumerate(changes, start=1)
    ]
    path = folder / "kites.json"
    path.write_text(json.dumps(content))
    tiny_sets.write_pictures(folder / "pictures", content["images"])
    status = prepare_data.main(
        [
            "custom",
            f"--name={name}",
            f"--annotations={path}",
            f"--images={folder / 'pictures'}",
            f"--data_dir={folder / 'data'}",
            "--overwrite",
            *arguments,
        ]
    )
    split = next((word.partition("=")[2] for word in arguments if word.startswith("--split=")), "train")
    summary = records.split_dir(name, split, folder / "data") / records.SUMMARY_FILE
    return status, json.loads(summary.read_text()) if summary.is_file() else None


@pytest.mark.parametrize("reason", UNUSABLE)
def test_nobody_usable_is_an_error(reason, tmp_path, capsys):
    status, summary = custom(tmp_path, [UNUSABLE[reason]] * 3)
    said = capsys.readouterr().err
    assert (
        status == 1 and summary is None and f"no usable person: 0 can be learned from and 0 judged ({reason} 3)" in said
    )
    assert ("leave the key out, and it is 0.53 of the box" in said) == (reason == "area of zero")
    assert not list((tmp_path / "data").rglob("*.json"))  # nor is the dataset defined
    status, summary = custom(tmp_path, [UNUSABLE[reason]] * 3, "--allow_loss")
    assert status == 0 and summary["usable"]["training"] == 0 and summary["usable"]["left_out"] == {reason: 3}
    said = capsys.readouterr().out
    assert f"{reason} 3" in said and ("leave the key out" in said) == (reason == "area of zero")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["kites"], "and nothing of TFDS's"


@pytest.mark.parametrize(
    "change, said",
    [
        ({"id": None}, "missing field: 4\n    {file}: id\n"),
        ({"bbox": None, "keypoints": None}, "missing field: 4\n    {file}, id 1: bbox\n"),
        ({"bbox": [1, 2, 3]}, "wrong length: 4\n    {file}, id 1: bbox has 3 numbers, 4 are needed\n"),
        ({"iscrowd": 7}, "not a flag: 4\n    {file}, id 1: iscrowd is 7; 0 or 1 is needed\n"),
        ({"category_id": "kite"}, "not a number: 4\n    {file}, id 1: category_id is 'kite'; a whole number of"),
        ({"id": "a"}, "bad id: 4\n    {file}, 'a': id is 'a'; a whole number of 64 bits is needed\n"),
        (
            {"keypoints": [1, 2]},
            "wrong number of keypoints: 4\n    {file}, id 1: keypoints has 2 numbers, 12 are needed\n",
        ),
        ({"keypoints": [[1, 2]] * 4}, "id 1: keypoints has 8 numbers, 12 are needed: x, y without visibility; write "),
    ],
)
def test_what_fails_says_its_first_cases_and_leaves_no_folder(change, said, tmp_path, capsys):
    assert custom(tmp_path, [change] * 4)[0] == 1
    error = capsys.readouterr().err
    assert said.format(file=tmp_path / "kites.json") in error and error.count("kites.json") >= 3
    assert not (tmp_path / "data" / "kites").exists()
    # What is there of the dataset stays.
    assert custom(tmp_path, [{}, {}])[0] == 0
    assert custom(tmp_path, [change] * 4, "--split=val")[0] == 1
    assert sorted(path.name for path in (tmp_path / "data" / "kites").iterdir()) == ["dataset.json", "train"]


def test_a_count_of_zero_beside_labelled_keypoints_is_told(tmp_path, capsys):
    """Tools write num_keypoints of 0 for all; by it people are left out, as COCO's protocol has it."""
    changes = [{"num_keypoints": 0}, {}, {}, {"num_keypoints": 0, "keypoints": [0] * 12}]
    assert custom(tmp_path, changes)[0] == 0
    said = capsys.readouterr().out
    assert f"remark: num_keypoints is 0, but some are labelled: 1\n    {tmp_path / 'kites.json'}, id 1: 4 are, " in said


@pytest.mark.parametrize(
    "change, said",
    [
        ({"file_name": None}, "id 1: file_name is missing or no text: {'id': 1, 'file_name': None"),
        ({"id": "b"}, "'b': id is 'b'; a whole number of 64 bits is needed"),
    ],
)
def test_pictures_that_are_all_lost_say_why(change, said, tmp_path, capsys):
    content = tiny_sets.document(1)
    path = tiny_sets.write_coco(tmp_path, content)
    path.write_text(json.dumps(content | {"images": [image | change for image in content["images"]]}))
    assert prepare_data.main(["coco", f"--raw_dir={tmp_path}", f"--data_dir={tmp_path / 'data'}"]) == 1
    assert said in capsys.readouterr().err and not (tmp_path / "data" / "coco" / "val").exists()


def test_damaged_splits_are_made_again_one_after_the_other(tmp_path):
    """Each of them looks at the others, for pictures that both have."""
    splits = ["--split=train", "--split=val"]
    for split in splits:
        assert custom(tmp_path, [{}], split)[0] == 0
    for file in (tmp_path / "data").rglob("annotations.npz"):
        os.truncate(file, file.stat().st_size // 2)
    for split in splits:
        assert custom(tmp_path, [{}], split)[0] == 0
        records.load_annotations("kites", split.removeprefix("--split="), tmp_path / "data")


@pytest.mark.parametrize("reason", UNUSABLE)
def test_heavy_loss_changes_the_exit_status(reason, tmp_path, capsys):
    status, summary = custom(tmp_path, [UNUSABLE[reason]] * 3 + [{}, {}])
    output = capsys.readouterr()
    assert status == prepare_data.HEAVY_LOSS and "under half of the people are usable" in output.err
    assert f"of 5 people, 2 can be learned from and 2 judged; kept but left out: {reason} 3" in output.out
    assert custom(tmp_path, [UNUSABLE[reason]] * 3 + [{}, {}], "--allow_loss")[0] == 0
    assert custom(tmp_path, [UNUSABLE[reason]] * 2 + [{}, {}])[0] == 0  # a half is no heavy loss
    # A repeated command, which finds the split finished, says the same.
    custom(tmp_path, [UNUSABLE[reason]] * 3 + [{}])
    arguments = [f"--annotations={tmp_path / 'kites.json'}", f"--images={tmp_path}", f"--data_dir={tmp_path / 'data'}"]
    assert prepare_data.main(["custom", "--name=kites", *arguments]) == prepare_data.HEAVY_LOSS


def test_dropped_people_are_a_loss_too(tmp_path):
    status, summary = custom(tmp_path, [{"id": 1}] * 5)
    assert status == prepare_data.HEAVY_LOSS and summary["usable"]["annotated"] == 5
    crowds = [{"iscrowd": 1, "keypoints": None, "num_keypoints": 0}] * 5  # regions of crowds are no people
    assert custom(tmp_path, [*crowds, {}])[0] == 0


@pytest.mark.parametrize("dataset", DOWNLOADS)
def test_preparation_counts_whom_the_loader_crops(dataset, tmp_path):
    download = DOWNLOADS[dataset]
    summary, table = download.prepare(tmp_path)
    source = open_source(table.dataset, download.split, data_dir=tmp_path / "data", input_size=(48, 64))
    labelled = sum(source.describe(number)["visible"].any() for number in range(len(source)))
    assert summary["usable"]["training"] == labelled > 0
    assert sum(summary["usable"]["left_out"].values()) >= table.num_instances - labelled
    assert summary["instances"] == table.num_instances


def test_rendered_people_are_counted(tmp_path):
    names = ["synthetic_mpii", "synthetic_crowd"]
    prepare_synthetic(tmp_path, names, num_train=4, num_val=0)
    for name in names:
        summary = json.loads((records.split_dir(name, "train", tmp_path) / records.SUMMARY_FILE).read_text())
        source = open_source(name, "train", data_dir=tmp_path, input_size=(48, 64))
        assert summary["usable"]["training"] == len(source) > 0 and not summary["usable"]["heavy_loss"]


def test_test_sets_lose_nobody(tmp_path):
    """Pictures without annotations, and MPII's test set, whose people have no joints."""
    entries = [
        {key: value for key, value in entry.items() if "joints" not in key} for entry in DOWNLOADS["mpii"].content
    ]
    for name, width, height in DOWNLOADS["mpii"].pictures:
        path = tmp_path / "mpii/images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tiny_sets.jpeg(width, height))
    (tmp_path / "mpii/annotations").mkdir()
    (tmp_path / "mpii/annotations/mpii_test.json").write_text(json.dumps(entries))
    assert prepare_data.main(["mpii", f"--raw_dir={tmp_path}", f"--data_dir={tmp_path / 'data'}"]) == 0


def test_a_log_has_the_whole_table_and_no_warning(tmp_path, capsys, caplog):
    assert custom(tmp_path, [{}, {}])[0] == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["split"])
    assert row.split() == ["split", "images", "empty", "instances", "crowds", "unlabelled", "usable", "dropped", "MB"]
    assert not caplog.text


def test_a_custom_file_of_nobody_is_an_error(tmp_path, capsys):
    assert custom(tmp_path, [])[0] == 1
    assert "no usable person" in capsys.readouterr().err
    assert custom(tmp_path, [], "--allow_loss")[0] == 0


def test_unlabelled_people_of_published_sets_are_no_loss(tmp_path):
    content = tiny_sets.document(4)
    for entry in content["annotations"][2:]:
        entry |= {"keypoints": [0] * 51, "num_keypoints": 0}
    tiny_sets.write_coco(tmp_path, content)
    assert prepare_data.main(["coco", f"--raw_dir={tmp_path}", f"--data_dir={tmp_path / 'data'}"]) == 0
    for entry in content["annotations"]:
        entry |= {"keypoints": [0] * 51, "num_keypoints": 0}
    tiny_sets.write_coco(tmp_path, content)
    with pytest.raises(RawDataError, match="no usable person.*without keypoints 8"):
        BUILDERS["coco"]("val", raw_dir=tmp_path, data_dir=tmp_path / "other", progress=False).prepare()


def test_mirror_pairs_and_sides_without_counterpart_are_listed_at_every_preparation(tmp_path, capsys):
    NAMES[3] = "left_foot"
    try:
        for more in ((), (), ("--mirror=tip:left_wing",)):
            assert custom(tmp_path, [{}, {}], *more)[0] == 0
            pairs, alone = ("tip:left_wing", "right_wing, left_foot") if more else ("left_wing:right_wing", "left_foot")
            odd = f"train: mirror pairs that their names say otherwise: {pairs}\n" if more else ""
            said = f"train: mirror pairs: {pairs}\n{odd}train: no counterpart in the mirror: {alone}\n"
            assert said in capsys.readouterr().out
    finally:
        NAMES[3] = "tail"


def test_pictures_that_another_split_has_as_well_are_told(tmp_path):
    custom(tmp_path, [{}] * 3)
    _, summary = custom(tmp_path, [{}] * 4, "--split=val")
    remark = summary["remarks"]["picture that train has as well (kept)"]
    assert [case["id"] for case in remark["examples"]] == [1, 2, 3]
    _, summary = custom(tmp_path, [{}] * 3)  # again, beside a finished val
    assert summary["remarks"]["picture that val has as well (kept)"]["count"] == 3


BAD_NAMES = {
    "lone byte": ("caf\udce9.jpg", b"caf\xe9.jpg", "caf\\xe9.jpg"),
    "surrogate": ("\ud83d.jpg", None, None),
    "nul": ("a\0.jpg", None, None),
    "too long": ("x" * 300 + ".jpg", None, None),
    "folder": (".", None, None),
    "windows": ("sub\\w.jpg", b"sub/w.jpg", "sub\\w.jpg"),
    "windows elsewhere": ("C:\\data\\w.jpg", None, None),
    "accents apart": ("cafe\u0301.jpg", "caf\u00e9.jpg".encode(), "cafe\u0301.jpg"),
    "accents joined": ("caf\u00e9.jpg", "cafe\u0301.jpg".encode(), "caf\u00e9.jpg"),
}


@pytest.mark.parametrize("case", BAD_NAMES)
@pytest.mark.parametrize("dataset", ["coco", "mpii"])
def test_a_bad_name_costs_one_picture_at_most(case, dataset, tmp_path, capsys):
    name, on_disk, stored = BAD_NAMES[case]
    pictures = tmp_path / "pictures"
    (pictures / "sub").mkdir(parents=True)
    data = tiny_sets.jpeg(seed=9)
    if on_disk is not None:
        with open(os.fsencode(pictures) + b"/" + on_disk, "wb") as file:
            file.write(data)
    for number in (1, 3):
        (pictures / f"{number}.jpg").write_bytes(tiny_sets.jpeg(seed=number))
    names = ["1.jpg", name, "3.jpg"]
    if dataset == "coco":
        content = tiny_sets.document(3)
        for image, own in zip(content["images"], names, strict=True):
            image["file_name"] = own
    else:
        points = [[10 + joint, 12] for joint in range(16)]
        content = [
            {"image": own, "center": [20, 15], "scale": 0.1, "joints": points, "joints_vis": [1] * 16} for own in names
        ]
    (tmp_path / "people.json").write_text(json.dumps(content))
    status = prepare_data.main(
        [
            dataset,
            "--split=train",
            f"--annotations={tmp_path / 'people.json'}",
            f"--images={pictures}",
            f"--data_dir={tmp_path / 'data'}",
        ]
    )
    output = capsys.readouterr().out
    output.encode()  # can be printed
    assert status == 0
    table = records.load_annotations(dataset, "train", tmp_path / "data")
    source = records.open_records(dataset, "train", tmp_path / "data")
    if stored is None or dataset == "mpii":  # MPII's image ids are the numbers in the names: here there are none
        assert table.file_name.tolist() == ["1.jpg", "3.jpg"] and "dropped images" in output
    else:
        assert table.file_name.tolist() == ["1.jpg", stored, "3.jpg"]
        assert source.image(1) == data and source[1]["file_name"] == stored
    assert source.image(len(source) - 1) == tiny_sets.jpeg(seed=3)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32-le"])
def test_annotation_files_of_any_unicode(encoding, tmp_path):
    path = tiny_sets.write_coco(tmp_path, tiny_sets.document(2))
    text = json.dumps(tiny_sets.document(2) | {"info": "été"}, ensure_ascii=False)
    path.write_bytes(text.encode(encoding))
    summary = BUILDERS["coco"]("val", raw_dir=tmp_path, data_dir=tmp_path / "data", progress=False).prepare()
    assert summary["instances"] == 4
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(RawDataError, match="person_keypoints_val2017.json is not valid JSON"):
        BUILDERS["coco"]("val", raw_dir=tmp_path, data_dir=tmp_path / "other", progress=False).prepare()
