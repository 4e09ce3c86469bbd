"""Rows of many pictures in batches of one size; what is made ahead."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

from pose_common.prediction.batches import Job, ahead, in_batches
from pose_common.prediction.pictures import PictureError
from tests.distribution import ROOT


def test_batches_have_one_size_and_results_come_back_in_order():
    rng = np.random.default_rng(0)
    sizes = []

    def run(kind, rows):
        sizes.append((kind, len(rows["x"])))
        return {"y": rows["x"] + (100 if kind == "b" else 0)}

    counts = rng.integers(0, 5, 40)
    jobs = [
        Job(tag, "ab"[tag % 2], [{"x": np.float32(10 * tag + row)} for row in range(count)])
        for tag, count in enumerate(counts)
    ]
    found = list(in_batches(iter(jobs), run, batch_size=4, patience=3))
    assert [tag for tag, _ in found] == list(range(40))
    for tag, rows in found:
        assert [float(row["y"]) for row in rows] == [10 * tag + row + 100 * (tag % 2) for row in range(counts[tag])]
    assert {size for _, size in sizes} == {4}


def test_what_was_read_before_an_error_is_not_lost():
    """As where a camera is unplugged, or a picture of a long list is none."""

    def jobs():
        for tag in range(6):
            yield Job(tag, tag % 2, [{"x": np.float32(tag)}])
        raise PictureError("the camera is gone")

    found = in_batches(jobs(), lambda kind, rows: {"y": rows["x"]}, batch_size=4)
    assert [float(next(found)[1][0]["y"]) for _ in range(6)] == list(range(6))
    with pytest.raises(PictureError, match="the camera is gone"):
        next(found)


def test_reading_ahead_keeps_order_and_hands_errors_on():
    assert list(ahead(range(100), size=3)) == list(range(100))

    def broken():
        yield 1
        raise PictureError("the second is none")

    reader = ahead(broken())
    assert next(reader) == 1
    with pytest.raises(PictureError, match="the second is none"):
        next(reader)


def test_large_items_wait_one_by_one():
    """Whoever reads ahead holds no more of them than their bytes allow."""
    made = []

    def jobs():
        for number in range(5):
            made.append(number)
            yield Job(number, 0, [], nbytes=100)

    items = ahead(jobs(), most_bytes=250)
    assert next(items).tag == 0
    time.sleep(0.3)
    assert len(made) <= 4  # one was taken, two wait, one is ready to
    assert [job.tag for job in items] == [1, 2, 3, 4]


def test_large_pictures_do_not_wait_for_their_batch_to_fill():
    batches = []

    def run(kind, rows):
        batches.append(len(rows["x"]))
        return {"y": rows["x"]}

    jobs = [Job(number, 0, [{"x": np.float32(number)}], nbytes=100) for number in range(6)]
    found = [(tag, float(rows[0]["y"])) for tag, rows in in_batches(jobs, run, batch_size=6, most_bytes=150)]
    assert found == [(number, number) for number in range(6)]
    assert batches == [6, 6, 6]  # each of two pictures, and filled


@pytest.mark.parametrize("left", ["open", "closed"])
def test_a_program_that_leaves_pictures_unread_ends_its_reader_first(left):
    """One that is inside OpenCV when the interpreter ends would abort the process."""
    program = f"""
import atexit, threading, time
from pose_common.prediction.batches import ahead

def items():
    while True:
        time.sleep(0.2)
        yield 0

reader = ahead(items())
next(reader)
if {left == "closed"}:
    reader.close()
atexit.register(lambda: print([thread.name for thread in threading.enumerate()]))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "['MainThread']\n"), done.stderr
