"""A run's figures: written, and read again after stops of any kind."""

from __future__ import annotations

import json
import logging
import struct

import numpy as np
import pytest
import tensorboardX
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event

from pose_common.training.writers import MetricWriter, read_metrics


def write(workdir, *steps: int, split: str = "train", **values: float):
    writer = MetricWriter(workdir)
    for step in steps:
        writer.write(step, split, values or {"loss": 1 / step})
    writer.close()
    return workdir / "metrics.jsonl"


def rows_of(path) -> list[tuple]:
    return [(row["split"], row["step"], row.get("loss")) for row in read_metrics(path)]


def test_rows_come_back_in_order(tmp_path):
    write(tmp_path, 2, 1, loss=0.5)
    write(tmp_path, 2, split="eval/coco", AP=0.75)
    path = write(tmp_path, 10, loss=np.float32(0.25))
    assert rows_of(path) == [("eval/coco", 2, None), ("train", 1, 0.5), ("train", 2, 0.5), ("train", 10, 0.25)]
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_resumed_run_has_each_step_once(tmp_path):
    """Steps after the last checkpoint are written again; the later row counts."""
    write(tmp_path, 1, 2, 3, loss=1.0)
    write(tmp_path, 3, 4, loss=2.0)
    path = write(tmp_path, 3, split="eval/coco", loss=5.0)
    train = [("train", 1, 1.0), ("train", 2, 1.0), ("train", 3, 2.0), ("train", 4, 2.0)]
    assert rows_of(path) == [("eval/coco", 3, 5.0), *train]


def test_every_cut_leaves_the_whole_rows(tmp_path):
    content = write(tmp_path, 1, 2, 3).read_bytes()
    for length in range(len(content) + 1):
        path = tmp_path / "cut.jsonl"
        path.write_bytes(content[:length])
        assert [row["step"] for row in read_metrics(path)] == [1, 2, 3][: content[:length].count(b"\n")]


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_run_resumes_after_a_cut_line(tmp_path, cut, caplog):
    path = write(tmp_path, 1, 2, 3)
    path.write_bytes(path.read_bytes()[:-cut])
    with caplog.at_level(logging.WARNING):
        write(tmp_path, 3, 4)
    assert "its last line was cut" in caplog.text
    assert [step for _, step, _ in rows_of(path)] == [1, 2, 3, 4]
    assert all(json.loads(line) for line in path.read_text().splitlines())


@pytest.mark.parametrize("line", ["{", "[1]", "3", '{"step": 2}', "", '{"step": 2, "spl{"step": 3, "split": "train"}'])
def test_a_damaged_line_is_named(tmp_path, line):
    path = write(tmp_path, 1)
    path.write_text(path.read_text() + line + "\n" + path.read_text())
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is damaged"):
        read_metrics(path)


def test_what_is_no_number_keeps_the_file_readable(tmp_path):
    path = write(tmp_path, 1, loss=float("nan"), other=float("inf"), fine=1.0)
    (row,) = read_metrics(path)
    assert row == {"step": 1, "split": "train", "loss": None, "other": None, "fine": 1.0}
    assert "NaN" not in path.read_text() and "Infinity" not in path.read_text()


def test_other_processes_write_nothing(tmp_path):
    writer = MetricWriter(tmp_path / "run", enabled=False)
    writer.write(1, "train", {"loss": 1.0})
    writer.close()
    assert not (tmp_path / "run").exists()


def test_a_board_that_cannot_be_written_once_ends_no_run(tmp_path, monkeypatch, caplog):
    """More rows than any queue holds: what waited for a thread that had ended would wait for ever."""
    writer = MetricWriter(tmp_path)
    writer.write(1, "train", {"loss": 1.0})

    def refused(board):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(EventsWriter, "flush", refused)
        writer.write(2, "train", {"loss": 1.0})
    for step in range(3, 30):
        writer.write(step, "train", {"loss": 1.0})
    writer.close()
    assert [step for _, step, _ in rows_of(tmp_path / "metrics.jsonl")] == list(range(1, 30))
    assert caplog.text.count("gets no more figures") == 1 and "No space left" in caplog.text


def test_tensorboard_keeps_what_a_start_of_the_same_second_wrote(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboardX.event_file_writer.time, "time", lambda: 1.8e9)
    for step in (1, 2):
        writer = MetricWriter(tmp_path)
        writer.write(step, "train", {"loss": 1.0})
        writer.close()
    assert sorted(row for path in (tmp_path / "tensorboard").iterdir() for row in on_board(path)) == [
        (step, "train/loss", 1.0) for step in (1, 2)
    ]


def test_tensorboard_reads_every_figure(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write(1, "train", {"loss": 0.5, "norm": 2.0})
    writer.write(2, "eval/coco, val", {"AP": 0.25})
    writer.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    assert on_board(path) == [(1, "train/loss", 0.5), (1, "train/norm", 2.0), (2, "eval/coco_val/AP", 0.25)]


def on_board(path):
    """[(step, figure, value)] of TensorBoard's records: length, checksum, an event, checksum."""
    content, found = path.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        event = Event.FromString(content[12 : 12 + length])
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        content = content[16 + length :]
    return found
