"""Starting a run of several processes, and leaving it in order."""

from __future__ import annotations

import logging
import os
import pathlib
import signal
import threading

import jax
from jax.experimental import multihost_utils


def start(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Joins the other processes, if there are any.

    With no argument a Cloud TPU pod or a Slurm/MPI job is recognised by JAX itself; a single process (no such
    environment) starts nothing. Call it before anything else touches JAX.

    Raises:
      ValueError: only some of the three arguments are given.
    """
    given = [value is not None for value in (coordinator, num_processes, process_id)]
    if any(given) and not all(given):
        raise ValueError("give all of coordinator, num_processes and process_id, or none")
    if all(given):
        jax.distributed.initialize(coordinator, num_processes, process_id)
    elif _in_cluster():
        jax.distributed.initialize()
    if jax.process_count() > 1:
        logging.info(
            "process %d of %d, %d devices here", jax.process_index(), jax.process_count(), jax.local_device_count()
        )


def _in_cluster() -> bool:
    several_tpu_workers = (
        "," in os.environ.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in os.environ
    )
    several_tasks = int(os.environ.get("SLURM_NTASKS", "1")) > 1 or int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1")) > 1
    return several_tpu_workers or several_tasks


def use_compilation_cache(directory: str | None) -> None:
    """Keeps compiled programs on disk, so that a second start skips the compiler. None or '' turns it off."""
    if directory:
        path = pathlib.Path(directory).expanduser().absolute()
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            logging.warning("config.compilation_cache=%r is not used: %s", directory, error)
            return
        jax.config.update("jax_compilation_cache_dir", str(path))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


class StopSignal:
    """SIGTERM and SIGINT ask for a stop at the next step boundary; a second one stops at once.

    With several processes all must leave at the same step: JAX's preemption service, which then owns SIGTERM, agrees on
    one.
    """

    def __init__(self):
        self._asked = threading.Event()
        self._previous = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            signals = [] if jax.process_count() > 1 else [signal.SIGINT, signal.SIGTERM]
            self._previous = {s: signal.signal(s, self._handle) for s in signals}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number, frame) -> None:
        del frame
        if self._asked.is_set():
            raise KeyboardInterrupt
        logging.warning("signal %d: saving and leaving after this step (once more to leave at once)", number)
        self._asked.set()

    def reached(self, step: int) -> bool:
        """True when this step is the last; the same answer on every process."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked.is_set()
