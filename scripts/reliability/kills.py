"""Training and preparation, killed anywhere and started again: what comes out is what an unbroken run gives."""

from __future__ import annotations

import collections
import functools
import itertools
import pathlib
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable

from data_pipelines import records
from data_pipelines.builders.base import read_summary
from scripts.reliability import training_runs
from scripts.reliability.outcomes import Outcome
from scripts.reliability.training_runs import Program
from tests.data_pipelines import tiny_sets

TITLE = "kills: training of both methods and preparation, killed and started again"
COUNT = 140
"""Kills: a seventh is of `prepare_data`; of training, every sixth is a SIGTERM."""
POLL = 0.01  # seconds
MOST_SECONDS = 1800
"""Of one process."""
PICTURES = 400

SAME, DIFFERENT, WHOLE, ABSENT = "same to the bit", "different", "split whole", "split absent"


def run(folder: pathlib.Path, seed: int, first: int, count: int, minutes: float | None) -> list[Outcome]:
    """So many kills, numbered from `first`, or as many as the minutes allow; every chain of runs is brought to its end.

    A chain is one working directory: a run in it is killed, goes on, is killed again, until one comes to the end.
    """
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    outcomes = [_killed_preparation(folder, seed, first + number) for number in range(count // 7)]
    whole: dict[str, float] = {}
    for chain in itertools.count():
        number = first + len(outcomes)
        if number >= first + count or _over(deadline):
            return outcomes
        method = list(training_runs.METHODS)[chain % len(training_runs.METHODS)]
        if method not in whole:
            whole[method] = _unbroken(folder, method)
        found = _chain(folder, method, f"{seed} {chain}", number, first + count - number, whole[method], deadline)
        outcomes += found
        print(f"{len(outcomes)} kills, the last chain of {method} had {len(found)}", file=sys.stderr)
    raise AssertionError


def _over(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() > deadline


def _unbroken(folder: pathlib.Path, method: str) -> float:
    """Runs a method to its end, twice where nothing is compiled yet; the seconds of the last run."""
    for attempt in ("first", "whole"):
        workdir = folder / method / attempt
        began = time.monotonic()
        if not (workdir / "seconds").exists():
            shutil.rmtree(workdir, ignore_errors=True)
            _to_the_end(folder, method, workdir)
            (workdir / "seconds").write_text(str(time.monotonic() - began))
    if found := training_runs.differences(folder / method / "first", folder / method / "whole"):
        raise RuntimeError(f"two unbroken runs of {method} differ: {found[:3]}")
    return float((folder / method / "whole" / "seconds").read_text())


def _start(folder: pathlib.Path, method: str, workdir: pathlib.Path) -> Program:
    return training_runs.start(
        training_runs.command(method, workdir, folder / "data"), workdir.with_name(f"{workdir.name}.log")
    )


def _to_the_end(folder: pathlib.Path, method: str, workdir: pathlib.Path) -> None:
    program = _start(folder, method, workdir)
    if program.process.wait(timeout=MOST_SECONDS):
        raise RuntimeError(f"{method} in {workdir} failed: {program.last_line()}")


def _chain(
    folder: pathlib.Path,
    method: str,
    seed: str,
    first: int,
    most: int,
    whole: float,
    deadline: float | None,
) -> list[Outcome]:
    """The kills of one working directory, up to `most`, numbered from `first`.

    Args:
      whole: seconds that an unbroken run takes.
    """
    workdir = folder / method / f"chain_{first}"
    shutil.rmtree(workdir, ignore_errors=True)
    kills: list[tuple[int, str, str]] = []
    problem = ""
    while len(kills) < most and not _over(deadline) and not problem:
        number = first + len(kills)
        rng = random.Random(f"{seed} {number}")
        moment = _Moment(rng, whole)
        with_what = signal.SIGTERM if number % 6 == 5 else signal.SIGKILL
        program = _start(folder, method, workdir)
        if not _wait_for(program, functools.partial(moment.reached, program, workdir)):
            break  # it came to its end before
        program.process.send_signal(with_what)
        program.process.wait(timeout=MOST_SECONDS)
        problem = _wrong_end(program, with_what)
        kills.append((number, f"{method}: {with_what.name}, {moment.name}", program.last_line()))
    if not problem:
        try:
            _to_the_end(folder, method, workdir)
            problem = "; ".join(training_runs.differences(workdir, folder / method / "whole")[:3])
        except RuntimeError as error:
            problem = str(error)
    result = DIFFERENT if problem else SAME
    if not problem:
        shutil.rmtree(workdir)
    if problem and not kills:
        return [Outcome(first, f"{method}: not killed", result, problem, True)]
    return [Outcome(number, kind, result, problem or said, bool(problem)) for number, kind, said in kills]


def _wait_for(program: Program, reached: Callable[[], bool]) -> bool:
    """Whether the moment came before the program's end."""
    while program.process.poll() is None:
        if reached():
            return True
        time.sleep(POLL)
    return False


def _wrong_end(program: Program, sent: signal.Signals) -> str:
    """What is wrong with how a killed program ended: a SIGTERM that it heard ends it in order."""
    status, text = program.process.returncode, program.text()
    if "Traceback (most recent call last)" in text:
        return f"traceback: {program.last_line()}"
    if sent == signal.SIGTERM and status not in (0, -signal.SIGTERM):
        return f"exit status {status} after SIGTERM: {program.last_line()}"
    return ""


class _Moment:
    """When a kill comes: at an event, with a delay, or at any time where that comes first."""

    def __init__(self, rng: random.Random, seconds: float):
        self.name = rng.choice(list(MOMENTS))
        share = (0.0, 1.0) if self.name == ANY_TIME else (0.6, 1.0)  # the event should have its time to come
        self.latest = time.monotonic() + rng.uniform(*share) * seconds
        self.delay = rng.uniform(0, MOMENTS[self.name][1])

    def reached(self, program: Program, workdir: pathlib.Path) -> bool:
        """Whether it is time."""
        if time.monotonic() > self.latest:
            self.name = ANY_TIME
            return True
        if not MOMENTS[self.name][0](program, workdir):
            return False
        time.sleep(self.delay)
        return True


def _never(program: Program, workdir: pathlib.Path) -> bool:
    return False


def _writing(program: Program, workdir: pathlib.Path) -> bool:
    """A checkpoint is on its way."""
    return any("tmp" in path.name for path in (workdir / "checkpoints").glob("*"))


def _evaluating(program: Program, workdir: pathlib.Path) -> bool:
    """The last step of an epoch is logged; what follows is a checkpoint and an evaluation."""
    steps = [int(step) for step in re.findall(r" step (\d+) of ", program.text())]
    return bool(steps) and steps[-1] > 0 and steps[-1] % training_runs.STEPS_PER_EPOCH == 0


def _next_stage(program: Program, workdir: pathlib.Path) -> bool:
    return len(re.findall(r"stage \S+ trains", program.text())) > 1


def _resuming(program: Program, workdir: pathlib.Path) -> bool:
    return "resumed from step" in program.text()


ANY_TIME = "any time"
MOMENTS: dict[str, tuple[Callable[[Program, pathlib.Path], bool], float]] = {
    ANY_TIME: (_never, 0.0),
    "checkpoint on its way": (_writing, 0.05),
    "evaluation": (_evaluating, 2.0),
    "stage change": (_next_stage, 2.0),
    "resume": (_resuming, 1.0),
}
"""Event -> what tells it, and the longest delay of a kill after it, in seconds."""


def _killed_preparation(folder: pathlib.Path, seed: int, number: int) -> Outcome:
    """One kill of `prepare_data`, after a random part of the time that it takes; the split is whole or absent."""
    place, rng = folder / "preparation", random.Random(f"{seed} {number}")
    annotations = place / "raw" / "coco" / "annotations" / "person_keypoints_val2017.json"
    arguments = [
        *(sys.executable, "-m", "scripts.prepare_data", "coco", "--split=val", "--overwrite"),
        *(f"--raw_dir={place / 'raw'}", f"--data_dir={place / 'data'}"),
    ]
    if not (place / "seconds").exists():
        tiny_sets.write_coco(place / "raw", tiny_sets.document(PICTURES))
        began = time.monotonic()
        if training_runs.start(arguments, place / "log").process.wait(timeout=MOST_SECONDS):
            raise RuntimeError(f"{annotations} cannot be prepared: {(place / 'log').read_text()[-500:]}")
        (place / "seconds").write_text(str(time.monotonic() - began))
    program = training_runs.start(arguments, place / "log")
    began, wait = time.monotonic(), rng.uniform(0.3, 1.0) * float((place / "seconds").read_text())
    reached = _wait_for(program, lambda: time.monotonic() - began > wait)
    program.process.kill()
    program.process.wait()
    kind = "prepare_data: SIGKILL" if reached else "prepare_data: done before"
    if not records.is_prepared("coco", "val", place / "data"):
        return Outcome(number, kind, ABSENT)
    directory = records.split_dir("coco", "val", place / "data")
    summary, opened = read_summary(directory), records.open_records("coco", "val", place / "data")
    table = records.load_annotations("coco", "val", place / "data")
    counts = collections.Counter([summary["images"], len(opened), len(table.image_id)])
    good = counts == {PICTURES: 3} and all(opened.image(row) for row in range(PICTURES))
    return Outcome(number, kind, WHOLE if good else DIFFERENT, str(dict(counts)), not good)
