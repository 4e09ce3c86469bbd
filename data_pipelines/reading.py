"""How a process makes batches ahead of the device."""

from __future__ import annotations

import dataclasses
import gc
import multiprocessing
import os
import pathlib
import pickle
import signal
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator
from concurrent import futures
from multiprocessing import resource_tracker, spawn
from typing import Any, Protocol

import cloudpickle
import cv2
import grain
import numpy as np
from absl import flags

Batch = dict[str, np.ndarray]
_IMPORTABLE = (
    "Worker processes import the program that starts them: it must be a file, and read under `if __name__ == "
    "'__main__':` alone. Without workers (num_workers=0) it may be anything"
)


class Batches(Protocol):
    """Random access over finite batches."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Batch: ...


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a process reads ahead. None of this changes what is read.

    Attributes:
      num_threads: threads that make batches, each a whole one; 0 makes them when asked for.
      num_workers: worker processes with `num_threads` each, for hosts where Python itself is the bottleneck
        (OpenCV and the record reader release its lock, the rest does not); 0 reads in the calling process.
      prefetch: batches kept ready for the process.
      cache: a folder of this machine to which splits are copied before they are read (`cache.py`); '' for none.
    """

    num_threads: int = 4
    num_workers: int = 0
    prefetch: int = 4
    cache: str = ""

    def start(self, batches: grain.MapDataset) -> grain.DatasetIterator | Workers:
        """An iterator over `batches` from the first, which reads ahead from now on and is to be closed.

        Raises:
          RuntimeError: workers that cannot import the main program; one that ended early, from the first `next`.
        """
        if self.num_workers:
            _check_main()
            if not flags.FLAGS.is_parsed():  # as in a notebook; Grain asks for flags of its own
                flags.FLAGS.mark_as_parsed()
            ready = max(1, self.prefetch // self.num_workers)
            options = grain.MultiprocessingOptions(self.num_workers, per_worker_buffer_size=ready)
            sent = grain.MapDataset.source(_InFile(batches))
            dataset = sent.to_iter_dataset(grain.ReadOptions(self.num_threads, self.num_threads))
            return Workers(iter(dataset.mp_prefetch(options, worker_init_fn=prepare_worker)))
        cv2.setNumThreads(0)  # one thread a batch; OpenCV's own would only compete
        ahead = max(self.prefetch, self.num_threads)
        reader = iter(batches.to_iter_dataset(grain.ReadOptions(self.num_threads, ahead)))
        reader.start_prefetch()
        return reader

    def each(self, batches: Batches) -> Iterator[Batch]:
        """All of `batches` in order, made ahead."""
        reader = self.start(grain.MapDataset.source(batches))
        try:
            yield from reader
        finally:
            reader.close()


def _check_main() -> None:
    """Refuses to start workers that would fail while they import the main program."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise SystemExit(1)  # a worker itself, which starts workers as it imports; its parent says so
    path = spawn.get_preparation_data("").get("init_main_from_path")
    if path and not pathlib.Path(path).is_file():  # standard input
        raise RuntimeError(_IMPORTABLE)


class _InFile:
    """Batches that each worker gets by the name of a file, which it removes.

    Python writes to a new process whatever it shall have, and goes on waiting if it ends before it has read that, for
    want of memory or because the main program cannot be imported. A name is written without waiting.
    """

    def __init__(self, batches: Batches):
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Batch:
        return self._batches[index]

    def __reduce__(self) -> tuple[Any, ...]:
        with tempfile.NamedTemporaryFile(delete=False) as file:
            cloudpickle.dump(self._batches, file)
        path = pathlib.Path(file.name)
        weakref.finalize(self, path.unlink, missing_ok=True)  # of a worker that did not come to it
        return _load, (path,)


def _load(path: pathlib.Path) -> Batches:
    batches = pickle.loads(path.read_bytes())
    path.unlink()
    return batches


class Workers(Iterator[Batch]):
    """What worker processes read, whom Ctrl-C and SIGTERM do not reach.

    A terminal, a scheduler and `timeout` send them to all processes, but they are for the training process alone: it
    saves, and until then needs the batches that it has asked for. A worker that ignored a signal by itself would die of
    one that comes while it is still importing, so it inherits blocked ones: a process has the mask of the thread that
    starts it, and a thread that of its own. Grain starts workers in threads that the first `next` makes; here that is
    in a thread too.
    """

    def __init__(self, reader: grain.DatasetIterator):
        self._reader = reader
        resource_tracker.ensure_running()  # starting it would unblock the signals of the thread that starts a worker
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            with_workers = futures.ThreadPoolExecutor(1)
            self._first: futures.Future[Batch] | None = with_workers.submit(next, reader)
            with_workers.shutdown(wait=False)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)

    def __next__(self) -> Batch:
        if self._first is None:
            return next(self._reader)
        first, self._first = self._first, None
        try:
            return first.result()
        except RuntimeError as error:
            if "terminated unexpectedly with exit code 1." not in str(error):
                raise  # of a worker that was killed, or of a batch
            raise RuntimeError(f"{error} {_IMPORTABLE}.") from None

    def close(self) -> None:
        """Ends the workers."""
        if self._first is not None:
            self._first.exception()  # of workers that are still to start, closing would know nothing
        self._reader.close()
        # The traceback of a reader's end is a cycle that has the last batch: shared memory, which Python would call
        # leaked when the program ends.
        gc.collect()


def prepare_worker(worker_index: int = 0, worker_count: int = 1) -> None:
    """Keeps a worker process off the accelerators, OpenCV to one thread, and itself to the life of its parent.

    A worker imports the main module and with it JAX, which must never open a device there: on a TPU the
    training process would find it taken.
    """
    del worker_index, worker_count
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if "jax" in sys.modules:  # it is already imported, so the environment comes too late
        sys.modules["jax"].config.update("jax_platforms", "cpu")
    cv2.setNumThreads(0)


def _end_with_parent() -> None:
    """Ends a worker whose parent was killed: it would wait for ever for someone to take its batches."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)
