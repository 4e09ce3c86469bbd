"""Bounds on time and memory around one case, and a watch on what a reader of data must never do."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator

FORBIDDEN = frozenset(
    {"os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "shutil.rmtree"}
)
"""Audit events (see Python's list of them) that reading a file never causes."""


class TimeLimit(BaseException):
    """A case took longer than it may."""


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raises `TimeLimit` inside the block once the time is over."""

    def stop(number, frame) -> None:
        raise TimeLimit(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def memory(field: str) -> float:
    """MB of this process: VmRSS (now), VmHWM (the most since `forget_peak`), VmData."""
    status = pathlib.Path("/proc/self/status").read_text()
    match = re.search(rf"{field}:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]) / 1024


def forget_peak() -> None:
    """The peak of memory counts from here (Linux)."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def limit_memory(megabytes: float) -> None:
    """Lets this process take so much more; what is beyond raises MemoryError."""
    limit = int((memory("VmData") + megabytes) * 2**20)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))


class Watch:
    """Notes forbidden events of this process from when it is made on."""

    def __init__(self):
        self.seen: list[str] = []
        self.active = False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple) -> None:
        if self.active and event in FORBIDDEN:
            self.seen.append(f"{event}{arguments!r:.200}")

    def __call__(self, function: Callable, *arguments):
        """(what the function returns, events during it)."""
        self.seen, self.active = [], True
        try:
            return function(*arguments), self.seen
        finally:
            self.active = False


def measured(function: Callable, *arguments):
    """(what the function returns, seconds, MB that it took at its peak)."""
    forget_peak()
    before, began = memory("VmRSS"), time.perf_counter()
    found = function(*arguments)
    return found, time.perf_counter() - began, max(0.0, memory("VmHWM") - before)


def quiet_threads() -> dict[str, str]:
    """Environment of a child whose memory is watched: every thread of a library would add its own heap."""
    return {**os.environ, "OPENBLAS_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu", "MALLOC_ARENA_MAX": "2"}
