"""Starting a run of several processes, and leaving it in order."""

from __future__ import annotations

import importlib.util
import logging
import os
import pathlib
import threading
from typing import Any

import jax
from jax._src.clusters import ClusterEnv  # what `jax.distributed.initialize` asks; it cannot tell how many without
from jax.experimental import multihost_utils

from data_pipelines.paths import as_path, is_remote
from pose_common.signals import ENDING, SignalHandler
from pose_common.training import processes


def start(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Joins the other processes, if there are any, and watches over them.

    With no argument JAX finds them where it knows the surroundings: a Cloud TPU VM (by its metadata server), GKE,
    several slices, Slurm, Open MPI, Kubernetes, and any other MPI by mpi4py. A single process starts nothing; with
    `num_processes` of 1 alone no one is looked for. Call it before anything else touches JAX.

    Raises:
      ValueError: only some of the three arguments are given; there are several processes, which could not join.
    """
    given = [value is not None for value in (coordinator, num_processes, process_id)]
    alone = given == [False, True, False] and num_processes == 1
    if any(given) and not all(given) and not alone:
        raise ValueError("give all of --coordinator, --num_processes and --process_id, or none (or --num_processes=1)")
    if all(given):
        _join(coordinator, num_processes, process_id)
    elif not alone and _cluster_size() > 1:
        _join()
    elif not alone and _mpi_size() > 1 and importlib.util.find_spec("mpi4py"):
        _join(cluster_detection_method="mpi4py")
    if not jax.distributed.is_initialized():
        _require_alone(alone)
    if processes.several():
        processes.watch()
        logging.info(
            "%s of %d, %d devices here",
            processes.title(jax.process_index()),
            jax.process_count(),
            jax.local_device_count(),
        )


def _join(*arguments: Any, **keywords: Any) -> None:
    try:
        jax.distributed.initialize(*arguments, **keywords, heartbeat_timeout_seconds=processes.HEARTBEAT_SECONDS)
    except RuntimeError as error:
        raise ValueError(f"the other processes could not be joined: {processes.one_line(error)}") from error


def _cluster_size() -> int:
    """Number of processes of the surroundings that JAX recognises; 1 where it recognises none."""
    try:
        kinds = (kind for kind in ClusterEnv._cluster_types if not kind.opt_in_only_method and kind.is_env_present())
        kind = next(kinds, None)
        return 1 if kind is None else kind.get_process_count()
    except OSError as error:
        logging.warning("the metadata server does not say whether there are other processes: %s", error)
        return 1


def _mpi_size() -> int:
    return max(int(os.environ.get(name) or 1) for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"))


def _require_alone(asked: bool) -> None:
    """Raises ValueError where the surroundings, or the accelerator, speak of other processes."""
    environment = os.environ
    told = {
        "SLURM_STEP_NUM_TASKS": int(environment.get("SLURM_STEP_NUM_TASKS") or 1),
        "OMPI_COMM_WORLD_SIZE or PMI_SIZE": _mpi_size(),
        "TPU_WORKER_HOSTNAMES": len(environment.get("TPU_WORKER_HOSTNAMES", "").split(",")),
        "MEGASCALE_NUM_SLICES": int(environment.get("MEGASCALE_NUM_SLICES") or 1),
    }
    source, count = ("", 1) if asked else max(told.items(), key=lambda item: item[1])
    if count == 1:
        source, count = "the accelerator", jax.process_count()
    if count > 1:
        raise ValueError(
            f"{source} says that this is one of {count} processes, and JAX does not find the others: start each with "
            f"--coordinator=<host of the first>:<free port> --num_processes={count} --process_id=<0 ... {count - 1}>"
            " (--num_processes=1 runs one alone; MPI needs mpi4py)"
        )


def use_compilation_cache(directory: str | None) -> None:
    """Keeps compiled programs on disk, so that a second start skips the compiler. None or '' turns it off.

    It is off for several processes of CPUs, too: process 0 alone finds its programs again, and they may exchange
    otherwise than those that the others compile anew (`Gloo ... distributed collective mismatch`).
    """
    if directory and not (processes.several() and jax.default_backend() == "cpu"):
        try:
            path = as_path(directory) if is_remote(directory) else pathlib.Path(directory).expanduser().absolute()
            path.mkdir(parents=True, exist_ok=True)
        except (OSError, RuntimeError) as error:  # the second of a user without a home, as in containers
            logging.warning("config.compilation_cache=%r is not used: %s", directory, error)
            return
        jax.config.update("jax_compilation_cache_dir", str(path))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


class StopSignal(SignalHandler):
    """SIGTERM and SIGINT ask for a stop at the next step boundary; a second one stops at once.

    With several processes all must leave at the same step: JAX's preemption service, which then owns SIGTERM, agrees on
    one.
    """

    def __init__(self):
        super().__init__(ENDING if jax.process_count() == 1 else ())
        self._asked = threading.Event()

    def handle(self, number, frame) -> None:
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
