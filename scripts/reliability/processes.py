"""Runs of two processes of which one is lost: the other ends soon and says why; another number of them goes on."""

from __future__ import annotations

import pathlib
import re
import shutil
import signal
import socket
import time

from scripts.reliability import training_runs
from scripts.reliability.outcomes import Outcome
from scripts.reliability.training_runs import Program

TITLE = "two processes: one is lost"
COUNT = 6
MOST_SECONDS = 120
"""Until the other process has ended."""
START_SECONDS = 900
LOSSES = (  # which process, by which signal
    (1, signal.SIGKILL),
    (0, signal.SIGKILL),
    (1, signal.SIGTERM),
)


def run(folder: pathlib.Path, seed: int, first: int, count: int, minutes: float | None) -> list[Outcome]:
    """Cases `first` ... `first + count - 1`: every kind of loss with one method, then with the other."""
    del seed
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    outcomes = []
    for number in range(first, first + count):
        if deadline is not None and time.monotonic() > deadline:
            break
        outcomes += _case(folder, number)
    return outcomes


def _case(folder: pathlib.Path, number: int) -> list[Outcome]:
    method = list(training_runs.METHODS)[number // len(LOSSES) % len(training_runs.METHODS)]
    lost, with_what = LOSSES[number % len(LOSSES)]
    workdir = folder / f"{method}_{number}"
    shutil.rmtree(workdir, ignore_errors=True)
    programs = _start_two(folder, method, workdir)
    kind = f"{method}: {'worker' if lost else 'coordinator'}, {with_what.name}"
    try:
        if not _steps_done(programs, workdir, 4):
            text = "; ".join(program.last_line() for program in programs)
            return [Outcome(number, kind, "ended by itself", text, fault=True)]
        programs[lost].process.send_signal(with_what)
        began, other = time.monotonic(), programs[1 - lost]
        while other.process.poll() is None and time.monotonic() - began < MOST_SECONDS:
            time.sleep(0.1)
        seconds = time.monotonic() - began
        found = [_judged(number, kind, other, lost, with_what, seconds)]
    finally:
        for program in programs:
            program.process.kill()
            program.process.wait()
    return [*found, _gone_on(folder, method, workdir, number, kind)]


def _start_two(folder: pathlib.Path, method: str, workdir: pathlib.Path) -> list[Program]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    workdir.mkdir(parents=True)
    return [
        training_runs.start(
            training_runs.command(
                method,
                workdir,
                folder / "data",
                (f"--coordinator={address}", "--num_processes=2", f"--process_id={process}"),
            ),
            folder / f"{workdir.name}_process_{process}.log",
        )
        for process in range(2)
    ]


def _steps_done(programs: list[Program], workdir: pathlib.Path, steps: int) -> bool:
    """Waits until both train and a checkpoint is there; False where one of them ended before."""
    metrics, began = workdir / "metrics.jsonl", time.monotonic()
    while time.monotonic() - began < START_SECONDS:
        if any(program.process.poll() is not None for program in programs):
            return False
        lines = metrics.read_text().count('"train"') if metrics.exists() else 0
        if lines >= steps and any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*")):
            return True
        time.sleep(0.05)
    return False


def _judged(number: int, kind: str, other: Program, lost: int, with_what: signal.Signals, seconds: float) -> Outcome:
    """How the process that was left alone ended."""
    status, text = other.process.poll(), other.text()
    pattern = re.compile(rf"(process|task:?|rank) ?{lost}\b|task_id: ?{lost}\b", re.IGNORECASE)
    named = next((line for line in text.splitlines() if pattern.search(line)), None)
    said = f"status {status} after {seconds:.0f} s: {(named or other.last_line())[:300]}"
    if status is None:
        return Outcome(number, kind, "hangs", said, True, seconds)
    if with_what == signal.SIGTERM:  # asks all for a checkpoint, and for an end in order
        return Outcome(number, kind, "all end in order" if status == 0 else "ends", said, status != 0, seconds)
    return Outcome(number, kind, "ends, names it" if named else "ends", said, status == 0 or not named, seconds)


def _gone_on(folder: pathlib.Path, method: str, workdir: pathlib.Path, number: int, kind: str) -> Outcome:
    """The same run, with one process."""
    program = training_runs.start(
        training_runs.command(method, workdir, folder / "data"), folder / f"{workdir.name}_alone.log"
    )
    began = time.monotonic()
    status = program.process.wait(timeout=START_SECONDS)
    resumed = re.search(r"resumed from step \d+", program.text())
    good = status == 0 and resumed is not None
    said = f"status {status}, {resumed[0] if resumed else 'did not resume'}: {program.last_line()[:200]}"
    result = "goes on with one process" if good else "does not go on"
    return Outcome(number, kind, result, said, not good, time.monotonic() - began)
