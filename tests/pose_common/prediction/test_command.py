"""What the prediction commands write, of results that are given."""

from __future__ import annotations

import csv
import dataclasses
import errno
import json
import logging
import os
import pathlib
import re
import signal
import sys
import types

import numpy as np
import pytest

from data_pipelines.skeletons import KEYPOINT_SETS
from pose_common.evaluation.draw import save_image
from pose_common.prediction import command
from pose_common.prediction.pictures import Picture
from pose_common.prediction.result import Result, extent_boxes
from pose_common.prediction.sources import pictures_of
from pose_common.training import logs

COCO = KEYPOINT_SETS["coco"]
BODY = np.concatenate([np.random.default_rng(0).uniform(0, 30, (17, 2)), np.ones((17, 1))], axis=1)
SCORES = (0.9, 0.01)
FRAMES = 3


@pytest.fixture
def predicted(monkeypatch, tmp_path):
    """A function (flags, scores of every frame's poses) -> the folder of results; nothing is computed."""
    monkeypatch.setattr(command.distributed, "use_compilation_cache", lambda _: None)

    def write(*flags, scores=SCORES, passed=iter, status=0, name="clip"):
        places = [BODY + (40 * place, 0, 0) for place in range(len(scores))]
        keypoints = np.array(places, np.float32).reshape(-1, 17, 3)
        picture = np.zeros((32, 80, 3), np.uint8)
        frames = [Picture(f"{name}_{n}", picture, n / 30) for n in range(FRAMES)]
        boxes = extent_boxes(keypoints)
        results = [[Result(frame, "coco", COCO, keypoints, boxes, np.float32(scores))] for frame in frames]
        parser = command.parser(None, threshold=0.05)
        (clip := tmp_path / "clip.mp4").touch()
        args = parser.parse_args([str(clip), "--checkpoint=x", f"--out={tmp_path / 'out'}", *flags])
        assert command.run(args, lambda _: ("a model", passed(results))) == status
        return tmp_path / "out"

    return write


def entries(folder):
    return json.loads((folder / "poses_coco.json").read_text())


def test_a_video_beside_the_numbers_changes_none(predicted):
    pytest.importorskip("av", reason="PyAV is not installed")
    alone = entries(predicted("--save=json", "--threshold=0.01"))
    assert len(alone) == FRAMES * len(SCORES) and "track_id" not in alone[0]
    assert entries(predicted("--save=json,video", "--threshold=0.01")) == alone


def test_a_threshold_is_a_number(predicted, capsys):
    for flag in ("--threshold", "--draw_threshold"):
        predicted(f"{flag}=nan", status=1)
        assert capsys.readouterr().err == f"error: {flag}=nan: expected a number\n"


def test_what_orbax_lets_go_of_is_not_told(predicted, monkeypatch):
    """Of a damaged checkpoint the command says one line; what its other arrays' reading ends with is none."""
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    logs.hide_abandoned_tasks.cache_clear()
    predicted("--save=json")
    for text in ("Event loop is closed", "another"):
        sys.unraisablehook(types.SimpleNamespace(object=None, exc_value=RuntimeError(text)))
    assert [str(unraisable.exc_value) for unraisable in told] == ["another"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("while_writing", [False, True])
def test_what_was_found_before_a_signal_is_kept(predicted, monkeypatch, capsys, number, while_writing):
    pytest.importorskip("av", reason="PyAV is not installed")

    def interrupted(results):
        yield from results[:2]
        if not while_writing:
            os.kill(os.getpid(), number)
        yield results[2]

    def draw(result, threshold):
        if while_writing and result.name == "clip_1":
            os.kill(os.getpid(), number)
        return result.picture.image

    monkeypatch.setattr(Result, "draw", draw)
    before = signal.getsignal(number)
    folder = predicted("--save=json,csv,video", passed=interrupted, status=128 + number)
    assert signal.getsignal(number) == before
    assert len(entries(folder)) == 2 * len(SCORES) and len(list(pictures_of(folder / "poses.mp4"))) == 2
    with (folder / "poses.csv").open(newline="") as file:
        assert {row["image"] for row in csv.DictReader(file)} == {"clip_0", "clip_1"}
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1].startswith("interrupted after 2 pictures, 4 poses, ")
    assert "Traceback" not in printed.err


def test_a_message_does_not_stand_behind_the_bar(predicted, monkeypatch, capsys):
    """As that of a thread that reads pictures, while a bar is drawn."""
    console = logging.StreamHandler()
    console.setFormatter(logging.Formatter("%(message)s"))
    monkeypatch.setattr(logging.getLogger(), "handlers", [console])

    def telling(results):
        for result in results:
            logging.warning("notes.txt is not taken")
            yield result

    predicted("--save=json", passed=telling)
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    assert lines.count("notes.txt is not taken") == FRAMES


def test_a_picture_of_another_size_than_its_video_is_named(predicted, capsys):
    pytest.importorskip("av", reason="PyAV is not installed")

    def larger(results):
        (result,) = results[1]
        wide = result.picture._replace(image=np.zeros((32, 90, 3), np.uint8))
        return iter([results[0], [dataclasses.replace(result, picture=wide)]])

    folder = predicted("--save=json,video", passed=larger, status=1)
    message = "error: --save=video: clip_1: a frame of 90x32 in a video of 80x32; all have one size"
    assert message in capsys.readouterr().err
    assert len(entries(folder)) == 2 * len(SCORES) and len(list(pictures_of(folder / "poses.mp4"))) == 1


def test_a_signal_before_the_first_picture_is_one_line(predicted, capsys):
    folder = predicted(passed=lambda _: os.kill(os.getpid(), signal.SIGTERM), status=128 + signal.SIGTERM)
    assert capsys.readouterr().err == "interrupted\n" and not folder.exists()


def test_results_of_another_run_are_not_said_to_be_of_one_without_pictures(predicted, capsys):
    folder = predicted("--save=json")
    assert capsys.readouterr().out.endswith(f"results in {folder}/\n")
    predicted("--save=json", passed=lambda _: iter([]))
    assert capsys.readouterr().out.endswith(f"nothing is written; any results in {folder}/ are older\n")


def test_files_below_ones_home(predicted, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert command.parser(None).parse_args(["~/clips/*.mp4"]).source == [str(tmp_path / "clips/*.mp4")]
    predicted("--save=json", "--out=~/mine")
    assert len(entries(tmp_path / "mine")) == FRAMES * len(SCORES)


def test_poses_from_the_threshold_on_are_tracked(predicted):
    def ids(*flags):
        return [entry["track_id"] for entry in entries(predicted("--save=json", "--track", *flags))]

    assert ids("--threshold=0.01") == [1, 2] * FRAMES
    assert ids() == ids("--threshold=0.5") == [1] * FRAMES


def test_a_name_that_is_no_utf8_costs_no_table(predicted):
    folder = predicted("--save=json,csv", name=os.fsdecode(b"caf\xe9"))
    with (folder / "poses.csv").open(newline="", encoding="utf8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == FRAMES * len(SCORES) * 17 and rows[0]["image"] == r"caf\udce9_0"
    assert r'"image": "caf\udce9_0"' in (folder / "poses_coco.json").read_text()


@pytest.mark.parametrize("name", ["a" * 250, "é" * 125, "/".join(["folder" * 9] * 5)])
def test_a_drawing_of_a_long_name_is_written_under_a_shorter_one(predicted, name):
    folder = predicted("--save=images,json", name=name)
    names = {path.name for path in folder.glob("*.png")}
    assert len(names) == FRAMES and {drawn[-6:] for drawn in names} == {f"_{frame}.png" for frame in range(FRAMES)}
    assert entries(folder)[0]["image"] == f"{name}_0"


def test_where_nobody_is_found_no_table_of_another_run_stays(predicted):
    def table(**found):
        with (predicted("--save=json,csv", **found) / "poses.csv").open(newline="") as file:
            rows = csv.DictReader(file)
            return rows.fieldnames, list(rows)

    fields, rows = table()
    assert len(rows) == FRAMES * len(SCORES) * 17 and float(rows[-1]["time"]) == pytest.approx(2 / 30)
    assert table(scores=()) == (fields, [])


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["139.png", "000285.png", "7.png"], [7, 139, 285]),
        (["a.png", "b.png", "c.png"], [0, 1, 2]),
        (["7.png", "007.jpg", "8.png"], [0, 1, 2]),  # two of one number
        (["a.png", "1.png", "0.png"], [0, 1, 2]),
        (["a.png", "broken.png", "c.png"], [0, 2]),  # those behind it keep their places
    ],
)
def test_image_ids_are_the_numbers_that_are_names_or_places(tmp_path, monkeypatch, names, ids):
    """COCO's pictures are called by their ids, by which its tools compare results with annotations."""
    monkeypatch.setattr(command.distributed, "use_compilation_cache", lambda _: None)
    for name in names:
        save_image(tmp_path / name, np.zeros((8, 8, 3), np.uint8))
        if name == "broken.png":
            (tmp_path / name).write_bytes(b"")

    def predict(args):
        pictures = pictures_of(args.source, args.left_out.append)
        one = BODY[None].astype(np.float32), np.ones((1, 4), np.float32), np.ones(1, np.float32)
        return "a model", ([Result(picture, "coco", COCO, *one)] for picture in pictures)

    args = command.parser(None).parse_args(
        [str(tmp_path), "--checkpoint=x", "--save=json", f"--out={tmp_path / 'out'}"]
    )
    command.run(args, predict)
    assert [entry["image_id"] for entry in entries(tmp_path / "out")] == ids


def test_results_of_before_stay_until_new_ones_are_whole(predicted, monkeypatch, capsys):
    """A disk that is full leaves neither half a file nor none."""
    flags = "--save=images,json,csv"
    before = {path.name: path.read_bytes() for path in predicted(flags).iterdir()}

    def full(path, data):
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for kind in flags.removeprefix("--save=").split(","):
        with monkeypatch.context() as disk:
            disk.setattr(pathlib.Path, "write_bytes", full)
            folder = predicted(f"--save={kind}", scores=(0.5,), status=1)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        assert re.search(r"error: \S+/(clip_0\.png|poses\S+) cannot be written: No space left", capsys.readouterr().err)
