"""The command line, on the samples laid out as the public downloads are, and under interruption."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from data_pipelines import records
from data_pipelines.builders import apt36k, base
from scripts import prepare_data
from tests.data_pipelines import tiny_sets
from tests.golden_files import golden, golden_path, shared_path

HANDS = "interhand2.6m/annotations"
# (dataset, split) -> ({place in the public layout: sample}, images, instances)
PUBLIC = {
    ("coco", "val"): (
        {"coco/annotations/person_keypoints_val2017.json": "coco/test_coco.json", "coco/val2017": "coco"},
        3,
        9,
    ),
    ("coco_wholebody", "val"): (
        {
            "coco/annotations/coco_wholebody_val_v1.0.json": "coco/test_coco_wholebody.json",
            "coco/val2017": "coco",
        },
        3,
        9,
    ),
    ("aic", "train"): (
        {
            "aic/annotations/aic_train.json": "aic/test_aic.json",
            "aic/ai_challenger_keypoint_train_20170902/keypoint_train_images_20170902": "aic",
        },
        2,
        6,
    ),
    ("mpii", "val"): ({"mpii/annotations/mpii_val.json": "mpii/test_mpii.json", "mpii/images": "mpii"}, 3, 3),
    ("ap10k", "test-split2"): (
        {"ap10k/annotations/ap10k-test-split2.json": "ap10k/test_ap10k.json", "ap10k/data": "ap10k"},
        1,
        1,
    ),
    ("crowdpose", "trainval"): (
        {
            "crowdpose/annotations/mmpose_crowdpose_trainval.json": "crowdpose/test_crowdpose.json",
            "crowdpose/images": "crowdpose",
        },
        1,
        3,
    ),
    ("ochuman", "test"): (
        {
            "ochuman/annotations/ochuman_coco_format_test_range_0.00_1.00.json": "ochuman/test_ochuman.json",
            "ochuman/images": "ochuman",
        },
        2,
        3,
    ),
    ("halpe", "val"): (
        {"halpe/annotations/halpe_val_v1.json": "halpe/test_halpe.json", "coco/val2017": "coco"},
        3,
        9,
    ),
    ("interhand2d", "val"): (
        {
            f"{HANDS}/machine_annot/InterHand2.6M_val_{kind}": f"interhand2.6m/test_interhand2.6m_{kind}"
            for kind in ("data.json", "camera.json", "joint_3d.json")
        }
        | {"interhand2.6m/images/val": "interhand2.6m"},
        3,
        4,
    ),
}


def _lay_out(root: pathlib.Path, places: dict[str, str]) -> None:
    for place, sample in places.items():
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).symlink_to(shared_path(f"samples/{sample}"))


def _summary(dataset: str, split: str, data_dir: pathlib.Path) -> dict:
    return json.loads((records.split_dir(dataset, split, data_dir) / records.SUMMARY_FILE).read_text())


@pytest.mark.parametrize("dataset, split", PUBLIC)
def test_samples_in_the_public_layout(dataset, split, tmp_path, capsys):
    places, images, instances = PUBLIC[dataset, split]
    _lay_out(tmp_path, places)
    arguments = [dataset, f"--raw_dir={tmp_path}", f"--data_dir={tmp_path / 'data'}", "--strict", "--decode"]
    assert prepare_data.main(arguments) == 0
    assert split in capsys.readouterr().out
    summary = _summary(dataset, split, tmp_path / "data")
    assert (summary["images"], summary["instances"]) == (images, instances)
    assert len(records.open_records(dataset, split, tmp_path / "data")) == images
    assert [path.name for path in (tmp_path / "data" / dataset).iterdir() if path.name[0] != "."] == [split]


def test_coco_mini_from_its_own_folder(tmp_path):
    assert prepare_data.main(["coco", f"--raw_dir={shared_path('samples/coco_mini')}", f"--data_dir={tmp_path}"]) == 0
    for split, labelled in (("train", 86), ("val", 68)):
        summary = _summary("coco", split, tmp_path)
        assert summary["images"] == 40
        assert summary["instances"] - summary["crowds"] - summary["without_keypoints"] == labelled
        assert summary["dropped"] == {"images": {}, "instances": {}}


def test_coco_test_dev_has_pictures_without_annotation(tmp_path):
    document = {
        "images": [tiny_sets.image_entry(number) for number in (7, 9)],
        "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
    }
    path = tmp_path / "coco/annotations/image_info_test-dev2017.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(document))
    tiny_sets.write_pictures(tmp_path / "coco/test2017", document["images"])
    data_dir = tmp_path / "data"
    assert prepare_data.main(["coco", f"--raw_dir={tmp_path}", f"--data_dir={data_dir}", "--split=test-dev"]) == 0
    table = records.load_annotations("coco", "test-dev", data_dir)
    assert (table.num_images, table.num_instances, table.keypoints.shape) == (2, 0, (0, 17, 3))
    assert table.to_coco()["annotations"] == [] and len(table.categories) == 2
    record = records.open_records("coco", "test-dev", data_dir)[1]
    assert record["image_id"] == 9 and record["instances"]["box"].shape == (0, 4)


def test_apt36k_and_pw3d_from_their_releases(tmp_path):
    raw = golden("data/prepro/apt36k_raw.json")
    folder = tmp_path / "ap36k"
    (folder / "annotations").mkdir(parents=True)
    (folder / "annotations/apt36k_annotations.json").write_text(json.dumps(raw))
    for part in apt36k.split_release(raw).values():
        tiny_sets.write_pictures(folder / "images", part["images"], noisy=False)
    annotations = tmp_path / "pw3d/annotations"
    annotations.mkdir(parents=True)
    (annotations / "3DPW_test.json").write_bytes(golden_path("data/prepro/pw3d_raw.json").read_bytes())
    tiny_sets.write_pictures(
        tmp_path / "pw3d/imageFiles", golden("data/prepro/pw3d_expected.json")["images"], noisy=False
    )
    for dataset in ("apt36k", "pw3d"):
        assert prepare_data.main([dataset, f"--raw_dir={tmp_path}", f"--data_dir={tmp_path / 'data'}"]) == 0
    released = golden("data/prepro/apt36k_expected.json")["released"]
    for split in apt36k.SPLITS:
        assert _summary("apt36k", split, tmp_path / "data")["images"] == len(released[split]["images"])
    people = golden("data/prepro/pw3d_expected.json")["annotations"]
    assert _summary("pw3d", "test", tmp_path / "data")["instances"] == len(people)


def test_synthetic_sets_need_no_download(tmp_path, monkeypatch):
    from data_pipelines.builders import synthetic

    monkeypatch.setattr(synthetic, "DEFAULT_IMAGES", {"train": 2, "val": 1})
    assert prepare_data.main(["synthetic_coco", f"--data_dir={tmp_path}"]) == 0
    assert _summary("synthetic_coco", "train", tmp_path)["images"] == 2
    with pytest.raises(SystemExit):
        prepare_data.main(["synthetic_coco", "--raw_dir=somewhere"])


def test_rendered_pictures_are_those_of_the_seed(tmp_path, monkeypatch, capsys):
    from data_pipelines.builders import synthetic

    monkeypatch.setattr(synthetic, "DEFAULT_IMAGES", {"train": 2, "val": 1})

    def prepare(*seed):
        return prepare_data.main(["synthetic_aic", "--split=val", f"--data_dir={tmp_path}", *seed])

    def picture():
        return records.open_records("synthetic_aic", "val", tmp_path).image(0)

    assert prepare() == 0
    own = picture()
    capsys.readouterr()
    assert prepare("--seed=5") == 1 and "--overwrite makes it again" in capsys.readouterr().err
    assert prepare("--seed=5", "--overwrite") == 0
    assert picture() != own and _summary("synthetic_aic", "val", tmp_path)["source"]["seed"] == "5"
    assert prepare() == prepare("--seed=5") == 0, "what is there is kept"
    assert prepare(f"--seed={synthetic.default_seed('synthetic_aic')}", "--overwrite") == 0 and picture() == own


def test_faults_are_printed_with_file_and_id(tmp_path, capsys):
    content = tiny_sets.document()
    content["annotations"][0]["keypoints"] = [1, 2, 2]
    tiny_sets.write_coco(tmp_path, content)
    (tmp_path / "coco/val2017/000000000003.jpg").unlink()
    arguments = ["coco", f"--raw_dir={tmp_path}", f"--data_dir={tmp_path / 'data'}"]
    assert prepare_data.main([*arguments, "--strict"]) == 1
    assert "annotation 10: wrong number of keypoints" in capsys.readouterr().err
    assert prepare_data.main(arguments) == 0
    output = capsys.readouterr().out
    assert "val: dropped images: missing image: 1" in output
    assert f"{tmp_path / 'coco/val2017/000000000003.jpg'}, id 3" in output
    assert "val: dropped instances: wrong number of keypoints: 1" in output
    assert "person_keypoints_val2017.json, id 10: keypoints has 3 numbers, 51 are needed" in output
    assert "1 / 1" in output


def test_one_broken_file_does_not_stop_the_other_splits(tmp_path, capsys):
    tiny_sets.write_coco(tmp_path, tiny_sets.document(), "train").write_text('{"images": [')
    tiny_sets.write_coco(tmp_path, tiny_sets.document(), "val")
    assert prepare_data.main(["coco", f"--raw_dir={tmp_path}", f"--data_dir={tmp_path / 'data'}"]) == 1
    assert "coco (train) was not prepared" in capsys.readouterr().err
    assert records.is_prepared("coco", "val", tmp_path / "data")
    assert not records.is_prepared("coco", "train", tmp_path / "data")


def test_missing_files_are_named(tmp_path, capsys):
    assert prepare_data.main(["mpii", f"--raw_dir={tmp_path}", f"--data_dir={tmp_path / 'data'}"]) == 1
    error = capsys.readouterr().err
    assert str(tmp_path / "mpii/annotations/mpii_val.json") in error
    path = tiny_sets.write_coco(tmp_path, tiny_sets.document())
    (path.parents[1] / "val2017").rename(tmp_path / "elsewhere")
    arguments = ["coco", f"--raw_dir={tmp_path}", f"--data_dir={tmp_path / 'data'}"]
    assert prepare_data.main(arguments) == 1
    assert "no picture folder; looked for" in capsys.readouterr().err
    assert prepare_data.main([*arguments, "--split=val", f"--images={tmp_path / 'elsewhere'}"]) == 0


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys):
    tiny_sets.write_coco(tmp_path, tiny_sets.document(3))
    (tmp_path / "file").write_text("")
    assert prepare_data.main(["coco", f"--raw_dir={tmp_path}", f"--data_dir={tmp_path / 'file' / 'data'}"]) == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("coco"))
    assert line.startswith("coco (val) was not prepared: ") and "Not a directory" in line and str(tmp_path) in line


def test_a_full_disk_is_one_line_and_leaves_no_split(tmp_path):
    """A limit of the size of files stands for it: to a process both are an error of the system's when it writes."""
    content = tiny_sets.document(8)
    for image in content["images"]:
        image |= {"width": 400, "height": 400}  # noise: over 100 kB each
    tiny_sets.write_coco(tmp_path, content)
    code = (
        "import resource, sys; from scripts import prepare_data\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
        "sys.exit(prepare_data.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "coco", f"--raw_dir={tmp_path}", f"--data_dir={tmp_path / 'data'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "coco (val) was not prepared: write() failed: File too large" in done.stderr
    assert not (tmp_path / "data" / "coco" / "val").exists()


def test_downloads_below_ones_home(tmp_path, monkeypatch):
    """A shell leaves the ~ of --raw_dir=~/downloads as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tiny_sets.write_coco(tmp_path / "downloads", tiny_sets.document())
    assert prepare_data.main(["coco", "--raw_dir=~/downloads", f"--data_dir={tmp_path / 'data'}"]) == 0
    labels = [f"--annotations=~/{path.relative_to(tmp_path)}", "--images=~/downloads/coco/val2017"]
    assert prepare_data.main(["coco", "--split=val", *labels, f"--data_dir={tmp_path / 'other'}"]) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["coco"],
        ["coco", "--annotations=a.json", "--images=b"],
        ["coco", "--annotations=a.json", "--split=val"],
        ["nothing", "--raw_dir=."],
        ["coco", "--raw_dir=.", "--seed=5"],
        ["custom", "--name=mine", "--annotations=a.json", "--seed=5"],
    ],
)
def test_arguments_that_do_not_fit_together(arguments):
    with pytest.raises(SystemExit) as error:
        prepare_data.parse_args(arguments)
    assert error.value.code == 2


def test_numbers_that_are_none_are_said(capsys):
    with pytest.raises(SystemExit):
        prepare_data.parse_args(["custom", "--name=mine", "--annotations=a.json", "--sigmas=0.1,x"])
    assert "argument --sigmas: '0.1,x' is not numbers" in capsys.readouterr().err


@pytest.mark.parametrize("split", ["", "..", "a/b", "../val"])
def test_a_split_is_the_name_of_a_folder(split, capsys):
    with pytest.raises(SystemExit):
        prepare_data.parse_args(["custom", "--name=mine", "--annotations=a.json", f"--split={split}"])
    assert f"--split={split}: the name of a folder is needed" in capsys.readouterr().err


def test_finished_splits_are_kept_and_can_be_made_again(tmp_path, capsys):
    path = tiny_sets.write_coco(tmp_path, tiny_sets.document(3))
    arguments = ["coco", f"--raw_dir={tmp_path}", f"--data_dir={tmp_path / 'data'}"]
    assert prepare_data.main(arguments) == 0
    directory = records.split_dir("coco", "val", tmp_path / "data")
    before = {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in directory.iterdir()}
    assert prepare_data.main(arguments) == 0 and "kept as it was" not in capsys.readouterr().err
    tiny_sets.write_coco(tmp_path, tiny_sets.document(5))
    assert prepare_data.main(arguments) == 0
    assert {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in directory.iterdir()} == before
    said = capsys.readouterr()
    assert f"coco (val) is finished already, made of {path}: {directory} (" in said.out
    assert said.err == f"coco (val) is kept as it was: {path} is newer; --overwrite takes it in\n"
    other = shutil.copy(path, tmp_path / "other.json")
    assert prepare_data.main([*arguments, f"--annotations={other}", "--split=val"]) == 0
    assert f"{other} is other labels; --overwrite" in capsys.readouterr().err
    summary = directory / records.SUMMARY_FILE
    text = summary.read_text()
    summary.write_text(json.dumps({key: value for key, value in json.loads(text).items() if key != "prepared"}))
    assert prepare_data.main(arguments) == 0 and not capsys.readouterr().err, "one of an older version"
    summary.write_text(text)
    assert prepare_data.main([*arguments, "--overwrite"]) == 0
    assert _summary("coco", "val", tmp_path / "data")["images"] == 5
    assert path.is_file() and not list((tmp_path / "data").rglob("incomplete.*"))


@pytest.mark.parametrize("killed_before", [False, True])
def test_a_finished_split_is_not_lost_to_one_that_fails(tmp_path, killed_before):
    path = tiny_sets.write_coco(tmp_path, tiny_sets.document(3))
    arguments = ["coco", f"--raw_dir={tmp_path}", f"--data_dir={tmp_path / 'data'}"]
    assert prepare_data.main(arguments) == 0
    directory = records.split_dir("coco", "val", tmp_path / "data")
    before = {file.name: file.read_bytes() for file in directory.iterdir()}
    if killed_before:  # while it wrote another
        directory.rename(directory.with_name(f"replaced.{directory.name}"))
        directory.with_name("incomplete.X").mkdir()
    text = path.read_text()
    path.write_text("{}")
    assert prepare_data.main([*arguments, "--overwrite"]) == 1
    assert {file.name: file.read_bytes() for file in directory.iterdir()} == before
    assert [folder.name for folder in directory.parent.iterdir() if folder.is_dir()] == [directory.name]
    path.write_text(text)
    assert prepare_data.main([*arguments, "--overwrite"]) == 0
    assert _summary("coco", "val", tmp_path / "data")["prepared"] not in before["summary.json"].decode()
    assert [folder.name for folder in directory.parent.iterdir() if folder.is_dir()] == [directory.name]


@pytest.mark.parametrize("finished", [False, True])
def test_interrupted_between_two_splits_one_is_there(tmp_path, monkeypatch, finished):
    """While it clears away what a killed run left; or when the new split has got its name."""
    tiny_sets.write_coco(tmp_path, tiny_sets.document(3))
    arguments = ["coco", f"--raw_dir={tmp_path}", f"--data_dir={tmp_path / 'data'}"]
    assert prepare_data.main(arguments) == 0
    directory = records.split_dir("coco", "val", tmp_path / "data")
    before = (directory / "summary.json").read_text()
    directory.with_name("incomplete.X").mkdir()
    write = base.PoseBuilder.download_and_prepare

    def interrupted(*args, **options):
        if finished:
            write(*args, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(*((base.PoseBuilder, "download_and_prepare") if finished else (shutil, "rmtree")), interrupted)
        prepare_data.main([*arguments, "--overwrite"])
    assert ((directory / "summary.json").read_text() != before) is finished
    assert not list(directory.parent.glob("replaced.*"))


def test_killed_run_leaves_nothing_that_passes_for_a_dataset(tmp_path):
    """The last picture is a pipe that nobody writes to: the run hangs there, half-written, until killed."""
    content = tiny_sets.document(300)
    tiny_sets.write_coco(tmp_path, content)
    last = tmp_path / "coco/val2017" / content["images"][-1]["file_name"]
    picture = last.read_bytes()
    last.unlink()
    os.mkfifo(last)
    arguments = ["coco", f"--raw_dir={tmp_path}", f"--data_dir={tmp_path / 'data'}"]
    process = subprocess.Popen([sys.executable, "-m", "scripts.prepare_data", *arguments], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not list((tmp_path / "data").rglob("incomplete.*/*array_record*")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        assert not records.is_prepared("coco", "val", tmp_path / "data")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert list((tmp_path / "data").rglob("incomplete.*"))
    with pytest.raises(records.DatasetNotPrepared):
        records.open_records("coco", "val", tmp_path / "data")

    last.unlink()
    last.write_bytes(picture)
    assert prepare_data.main(arguments) == 0
    assert len(records.open_records("coco", "val", tmp_path / "data")) == 300
    assert not list((tmp_path / "data").rglob("incomplete.*"))
