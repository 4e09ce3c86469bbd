"""Where a run's metrics go: JSON lines, TensorBoard; curves are drawn from the JSON lines (`curves.py`)."""

from __future__ import annotations

import json
import logging
import math
import os
import pathlib
import re
import time
from collections.abc import Callable, Mapping

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import scalar

from data_pipelines.paths import as_path, is_remote
from pose_common.training.step import ABSENT

METRICS = "metrics.jsonl"
BOARD = "tensorboard"
BEFORE = {METRICS: "metrics.before.jsonl", BOARD: "tensorboard.before"}
"""What those of a start that left no checkpoint are called, once the next one has begun."""
TRAIN, EVAL = "train", "eval/"
"""Splits of the rows; of evaluations it is followed by the dataset."""
Scores = Mapping[str, Mapping[str, float]]
"""{row: {figure: value}}."""


class MetricWriter:
    """Writes scalars of one run. Only the first process should make one; the others pass `enabled=False`.

    `metrics.jsonl` gets one object a call, {"step", "split", name: value}; it is appended to when a run resumes. What
    does not exist (`ABSENT`) is left out.
    """

    def __init__(self, workdir: str | pathlib.Path, enabled: bool = True):
        self._enabled = enabled
        if enabled:
            self.path = as_path(workdir) / METRICS
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _end_line(self.path)
            self._lines = _Object(self.path) if is_remote(self.path) else self.path.open("a", encoding="utf8")
            board = self.path.parent / BOARD
            board.mkdir(exist_ok=True)
            # Not SummaryWriter: its thread ends where a file cannot be written for a moment, and all wait for it then.
            # A name has whole seconds: a second start within one would write over the first one's file.
            within = f".{time.time_ns() % 10**9:09d}"
            self._board: EventsWriter | None = EventsWriter(os.fspath(board / "events"), within)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Writes `values` under `split` ('train' or 'eval/<dataset>'). Raises OSError where it cannot be written."""
        self._write(step, {split: values})

    def write_evaluation(self, step: int, scores: Scores) -> None:
        """Writes all rows of an evaluation at once, so that a kill leaves none or all of them."""
        self._write(step, {f"{EVAL}{row}": values for row, values in scores.items()})

    def _write(self, step: int, rows: Scores) -> None:
        if not self._enabled:
            return
        known = {
            split: {name: float(value) for name, value in values.items() if value != ABSENT}
            for split, values in rows.items()
        }
        try:
            self._lines.write("".join(_line(step, split, values) for split, values in known.items()))
            self._lines.flush()
        except OSError as error:
            raise OSError(f"{self.path} cannot be written: {error.strerror or error}") from error
        self._on_board(lambda board: _add(board, step, known))
        if not is_remote(self.path):
            self._on_board(EventsWriter.flush)

    def _on_board(self, act: Callable[[EventsWriter], None]) -> None:
        """TensorBoard's is a copy, which ends no run: once it cannot be written, it gets no more."""
        if self._board is None:
            return
        try:
            act(self._board)
        except Exception as error:  # of whatever writes into a bucket
            logging.warning("%s gets no more figures: %s", self.path.parent / BOARD, error)
            self._board = None

    def evaluation(self, step: int) -> Scores | None:
        """{row: {figure: value}} of the evaluation at `step` as it was written, or None where there was none.

        All processes must ask; those that do not write know only whether it is there, and get {}.
        """
        self.flush()
        rows = read_metrics(self.path) if self._enabled else []
        found = {
            row["split"].removeprefix(EVAL): {
                name: value for name, value in row.items() if name not in ("step", "split") and value is not None
            }
            for row in rows
            if row["step"] == step and row["split"].startswith(EVAL)
        }
        return found if multihost_utils.broadcast_one_to_all(np.int32(bool(found))) else None

    def flush(self) -> None:
        """Makes sure that all that was written is there, as before a checkpoint after which it is not written again."""
        if self._enabled and isinstance(self._lines, _Object):
            self._lines.put()
            self._on_board(EventsWriter.flush)

    def close(self) -> None:
        """Flushes and closes the files; what cannot be written any more is lost."""
        if not self._enabled:
            return
        try:
            self._lines.close()
        except OSError as error:
            logging.warning("the last metrics cannot be written to %s: %s", self.path.parent, error)
        self._on_board(EventsWriter.close)


def _add(board: EventsWriter, step: int, rows: Scores) -> None:
    for split, values in rows.items():
        for name, value in values.items():
            summary = scalar(re.sub(r"[^\w./-]+", "_", f"{split}/{name}"), value)
            board.write_event(Event(wall_time=time.time(), step=step, summary=summary))


class _Object:
    """A text in a bucket, to which nothing can be appended: it is put as a whole, at most every `SECONDS`."""

    SECONDS = 30.0

    def __init__(self, path: pathlib.Path):
        there = path.exists()
        self._path, self._put_at, self._changed = path, time.monotonic(), not there
        self._parts = [path.read_text(encoding="utf8")] if there else []

    def write(self, text: str) -> None:
        self._parts.append(text)
        self._changed = True

    def flush(self) -> None:
        if time.monotonic() - self._put_at > self.SECONDS:
            self.put()

    def put(self) -> None:
        if self._changed:
            self._parts = ["".join(self._parts)]
            self._path.write_text(self._parts[0], encoding="utf8")
            self._put_at, self._changed = time.monotonic(), False

    close = put


def _line(step: int, split: str, values: Mapping[str, float]) -> str:
    # JSON has no NaN; null keeps the file readable by any parser.
    finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
    return json.dumps({"step": step, "split": split, **finite}) + "\n"


def _end_line(path: pathlib.Path) -> None:
    """Takes away half a last line, which a process that was killed may leave: the next row would be glued to it."""
    if is_remote(path) or not path.exists():  # an object is whole
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        logging.warning("%s: its last line was cut, and is taken away", path)
        os.truncate(path, whole)


def set_aside_metrics(workdir: str | pathlib.Path) -> None:
    """Renames what a start wrote of which there is no checkpoint to go on from; all processes must call it."""
    if jax.process_index() == 0:
        for name, before in BEFORE.items():
            path = epath.Path(as_path(workdir)) / name
            if not path.exists():
                continue
            if (aside := path.with_name(before)).exists():
                aside.rmtree()
            path.rename(aside)
            logging.warning("%s has no checkpoint to go on from: its %s is kept as %s", workdir, name, before)
    multihost_utils.sync_global_devices("metrics set aside")


def steps_done(workdir: str | pathlib.Path) -> int:
    """Up to which step a run was trained here before, as its last line of training says; 0 of a new one."""
    path = as_path(workdir) / METRICS
    rows = read_metrics(path) if path.exists() else []
    return max((row["step"] for row in rows if row["split"] == TRAIN), default=0)


def read_metrics(path: str | pathlib.Path) -> list[dict]:
    """The rows of a `metrics.jsonl`; later rows win where a resumed run wrote a step again.

    A cut last line is left out: the run may be writing it.

    Raises:
      ValueError: another line is damaged; names it.
    """
    rows: dict[tuple, dict] = {}
    lines = as_path(path).read_bytes().decode("utf8", "replace").split("\n")
    for number, line in enumerate(lines[:-1], start=1):  # what is behind the last newline is no line yet
        try:
            row = json.loads(line)
            rows[row["split"], row["step"]] = row
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is damaged: {line[:80]!r}") from error
    return sorted(rows.values(), key=lambda row: (row["split"], row["step"]))
