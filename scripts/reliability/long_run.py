"""A long run: memory, threads and open files over time."""

from __future__ import annotations

import json
import pathlib
import re
import shutil
import sys
import time
from collections.abc import Sequence

import numpy as np
import rich.box
import rich.console
import rich.table

from scripts.reliability import training_runs
from scripts.reliability.outcomes import Outcome

TITLE = "long run: memory, threads and open files"
COUNT = 2000
"""Steps."""
CHECKPOINTS = 200
"""So many that the storage's caches (100 MB of Orbax's, which fill with some sixty checkpoints) are full in time."""
ROWS = 20
SAMPLE_SECONDS = 1.0
SETTLED = 0.4
"""The share of the run after which everything is compiled and every buffer is there."""
MOST_GROWTH = 20.0
"""MB of memory in a thousand steps, by a line through the samples of the settled part."""
FIELDS = ("step", "MB", "threads", "files")
MOST_HOURS = 6


def run(folder: pathlib.Path, seed: int, first: int, count: int, minutes: float | None) -> list[Outcome]:
    """One run of so many steps through every stage, most of them in the last, with checkpoints and evaluations."""
    del seed, first, minutes
    workdir = folder / "run"
    shutil.rmtree(workdir, ignore_errors=True)
    steps = max(10, count // 10)
    epochs = (1, 0, 1, max(1, count // steps - 2))
    every = max(1, count // CHECKPOINTS)
    arguments = training_runs.command("posebh", workdir, folder / "data", _settings(steps, epochs, every))
    program = training_runs.start(arguments, folder / "run.log")
    samples, began = [], time.monotonic()
    while program.process.poll() is None and time.monotonic() - began < 3600 * MOST_HOURS:
        if (sample := _sample(program.process.pid, workdir)) is not None:
            samples.append(sample)
        time.sleep(SAMPLE_SECONDS)
    program.process.kill()
    status, table = program.process.wait(), np.array(samples, np.float64).reshape(-1, len(FIELDS))
    (folder / "samples.json").write_text(json.dumps([dict(zip(FIELDS, row, strict=True)) for row in table.tolist()]))
    if status or not len(table):
        return [Outcome(0, "run", "failed", f"status {status}: {program.last_line()}", fault=True)]
    _print(table)
    last = table[-1, 0]  # where the run ends, what it had is given back
    return _verdicts(table[(table[:, 0] >= SETTLED * last) & (table[:, 0] < last)])


def _settings(steps: int, epochs: Sequence[int], checkpoint_every: int) -> tuple[str, ...]:
    return (
        f"--config.steps_per_epoch={steps}",
        f"--config.checkpoint_every={checkpoint_every}",
        "--config.evaluate_every=1",
        f"--config.log_every={max(1, steps // 10)}",
        *(f"--config.stages[{stage}].epochs={number}" for stage, number in enumerate(epochs)),
    )


def _sample(process: int, workdir: pathlib.Path) -> tuple[float, ...] | None:
    """(step, MB, threads, open files) of a process now; None while it starts or ends.

    Memory is what the process itself has filled (RssAnon): pages of files come and go with what others need.
    """
    place, metrics = pathlib.Path("/proc") / str(process), workdir / "metrics.jsonl"
    try:
        status = (place / "status").read_text()
        numbers = [int(re.search(rf"^{field}:\s+(\d+)", status, re.M)[1]) for field in ("RssAnon", "Threads")]
        lines = [line for line in metrics.read_text().splitlines() if '"train"' in line]
        return json.loads(lines[-1])["step"], numbers[0] / 1024, numbers[1], len(list((place / "fd").iterdir()))
    except (OSError, TypeError, IndexError, ValueError):
        return None


def _print(table: np.ndarray) -> None:
    shown = rich.table.Table(box=rich.box.SIMPLE_HEAD)
    for name in FIELDS:
        shown.add_column(name, justify="right")
    for row in table[np.unique(np.linspace(0, len(table) - 1, ROWS).astype(int))]:
        shown.add_row(*(f"{value:.0f}" for value in row))
    rich.console.Console(file=sys.stdout).print(shown)


def _verdicts(settled: np.ndarray) -> list[Outcome]:
    """Whether anything grows once the run has settled."""
    slope = float(np.polyfit(settled[:, 0], settled[:, 1], 1)[0] * 1000) if np.ptp(settled[:, 0]) else 0.0
    grows = slope > MOST_GROWTH
    found = [Outcome(0, "memory", "grows" if grows else "steady", f"{slope:+.1f} MB in 1,000 steps", grows)]
    half = len(settled) // 2
    for column, name in ((2, "threads"), (3, "open files")):
        before, after = settled[:half, column].max(initial=0), settled[half:, column].max()
        grows = after > before + 2
        result = "grow" if grows else "steady"
        found.append(Outcome(0, name, result, f"at most {before:.0f}, later {after:.0f}", bool(grows)))
    return found
