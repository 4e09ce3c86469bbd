"""Rows of many pictures in batches of one size, handed back picture by picture, and what makes them ahead."""

from __future__ import annotations

import collections
import queue
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

Rows = dict[str, np.ndarray]
T = TypeVar("T")


class Job(NamedTuple):
    """What one picture asks of the device.

    Attributes:
      tag: given back with the outputs.
      kind: rows of one kind can share a batch (same shapes, same program).
      rows: what goes through the device, an array of inputs each; may be empty.
      nbytes: of memory that the job holds while it waits, apart from its rows.
    """

    tag: Any
    kind: Hashable
    rows: Sequence[Rows]
    nbytes: int = 0


def require_batch_size(batch_size: Any) -> None:
    """Raises ValueError for what is no number of rows."""
    if not isinstance(batch_size, (int, np.integer)) or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r}: expected a whole number, 1 or more")


def require_number(name: str, value: Any) -> None:
    """Raises ValueError for what is no number; so for NaN, than which no score is higher."""
    array = np.asarray(value)
    if array.ndim or array.dtype.kind not in "iuf" or np.isnan(array):
        raise ValueError(f"{name}={value!r}: expected a number")


def in_batches(
    jobs: Iterable[Job],
    run: Callable[[Hashable, Rows], Rows],
    batch_size: int,
    patience: int = 64,
    most_bytes: int = 2**28,
) -> Iterator[tuple[Any, list[Rows]]]:
    """(tag, outputs of each row) of every job, in order; an error of `jobs` comes after those before it.

    A batch always has `batch_size` rows, so that each kind is compiled once; what is missing at the end is filled with
    copies of the last row.

    Args:
      run: (kind, inputs with a leading batch axis) -> outputs with one.
      patience, most_bytes: how many pictures, and of how many bytes, may wait for their batch to fill; bounds memory.
    """
    waiting: collections.deque[tuple[Job, list[Rows | None]]] = collections.deque()
    pending: dict[Hashable, list[tuple[list[Rows | None], int, Rows]]] = collections.defaultdict(list)

    def flush(kind: Hashable) -> None:
        entries = pending.pop(kind)
        padded = [entry[2] for entry in entries] + [entries[-1][2]] * (batch_size - len(entries))
        outputs = run(kind, {name: np.stack([row[name] for row in padded]) for name in padded[0]})
        arrays = {name: np.asarray(value) for name, value in outputs.items()}
        for number, (results, place, _) in enumerate(entries):
            results[place] = {name: value[number] for name, value in arrays.items()}

    def finished() -> Iterator[tuple[Any, list[Rows]]]:
        while waiting and all(result is not None for result in waiting[0][1]):
            job, results = waiting.popleft()
            yield job.tag, [result for result in results if result is not None]

    failed: list[Exception] = []
    for job in _before_error(jobs, failed):
        results: list[Rows | None] = [None] * len(job.rows)
        waiting.append((job, results))
        for place, row in enumerate(job.rows):
            pending[job.kind].append((results, place, row))
            if len(pending[job.kind]) == batch_size:
                flush(job.kind)
        if len(waiting) > patience or sum(job.nbytes for job, _ in waiting) > most_bytes:
            for kind in list(pending):
                flush(kind)
        yield from finished()
    for kind in list(pending):
        flush(kind)
    yield from finished()
    for error in failed:
        raise error


def _before_error(items: Iterable[T], failed: list[Exception]) -> Iterator[T]:
    """The items; an error that ends them goes to `failed`."""
    try:
        yield from items
    except Exception as error:  # raised again when what came before it is there
        failed.append(error)


def ahead(items: Iterable[T], size: int = 8, most_bytes: int = 2**28) -> Iterator[T]:
    """The items, made by a thread up to `size` ahead, so that decoding does not wait for the device.

    Items with `nbytes` are fewer where they are large: as many as have `most_bytes` together, or one. Where a program
    ends before it took all, the item that is being made is waited for.
    """
    ready: queue.Queue = queue.Queue(size)
    stop, end = threading.Event(), object()
    made, taken = 0, 0  # bytes so far, each counted by one thread alone

    def wanted() -> bool:
        return not stop.is_set() and threading.main_thread().is_alive()

    def put(item, error=None) -> None:
        nonlocal made
        nbytes = getattr(item, "nbytes", 0)
        while wanted():
            if made > taken and made - taken + nbytes > most_bytes:
                time.sleep(0.01)
                continue
            try:
                ready.put((item, error), timeout=0.1)
                made += nbytes
                return
            except queue.Full:
                continue

    def fill() -> None:
        try:
            for item in items:
                put(item)
                if not wanted():
                    return
            put(end)
        except BaseException as error:  # handed to the reader, whatever it is
            put(end, error)

    # No daemon: one that comes out of OpenCV while the interpreter ends aborts the process.
    threading.Thread(target=fill).start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is end:
                return
            taken += getattr(item, "nbytes", 0)
            yield item
    finally:
        stop.set()
