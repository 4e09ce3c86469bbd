"""Where the time of a run goes, on each of its hosts."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Iterator, Sequence

from pose_common.training import processes

START, COMPILE, DATA, STEP, EVALUATION, CHECKPOINT, LOST = PARTS = (
    "start",
    "compile",
    "data",
    "step",
    "evaluation",
    "checkpoint",
    "lost",
)
"""What a host's main thread waits for, or does: everything before the first step; the first call of each stage's step;
the next batch; steps; evaluations; a checkpoint until it is on its way; steps that were done before, by a run that was
ended after its last checkpoint. What is compiled for an evaluation belongs to the evaluation."""
DIFFERENT = 0.05
"""Shares of hosts that are further apart are named."""
_IMPORTED, _told = time.monotonic(), itertools.count()


class Clock:
    """Books all time since the program's start, each moment to one of `PARTS`."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._part, self._since = START, _IMPORTED

    def enter(self, part: str) -> str:
        """From now on the time is that of `part`; returns what it was until now."""
        now, before = time.monotonic(), self._part
        self._seconds[before] += now - self._since
        self._part, self._since = part, now
        return before

    @contextlib.contextmanager
    def part(self, part: str) -> Iterator[None]:
        """The time inside is that of `part`."""
        before = self.enter(part)
        try:
            yield
        finally:
            self.enter(before)

    def seconds(self, part: str) -> float:
        """Of a part so far."""
        self.enter(self._part)
        return self._seconds[part]

    def line(self) -> str:
        """The shares in one line, after those of all hosts are known; every process must ask for it."""
        self.enter(self._part)
        hosts = processes.gather(f"time/{next(_told)}", json.dumps(self._seconds))
        return summary([json.loads(text) for text in hosts])


def summary(hosts: Sequence[dict[str, float]]) -> str:
    """One line of seconds by part: the share of process 0, and of the host that differs most where one does."""
    totals = [sum(seconds.values()) for seconds in hosts]
    shares = [{part: seconds[part] / total for part in PARTS} for seconds, total in zip(hosts, totals, strict=True)]
    said = [f"goodput {shares[0][STEP]:.0%} of {_shown(totals[0])}"]
    for part in PARTS:
        own = shares[0][part]
        furthest = max(range(len(shares)), key=lambda host: abs(shares[host][part] - own))
        other = shares[furthest][part]
        note = f" ({other:.0%} on {processes.title(furthest)})" if abs(other - own) > DIFFERENT else ""
        said.append(f"{part} {own:.0%}{note}")
    return ", ".join(said)


def _shown(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
