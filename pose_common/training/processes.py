"""Several processes of one run: what they tell each other, and that none is left behind when one is lost.

They talk through the key-value store of JAX's coordination service, which process 0 holds. It needs no accelerator, so
it still answers where a collective hangs. The first process that fails says so under one key; a thread of every process
waits for that key, logs which host failed and why, and leaves at once. A process that is killed says nothing: process 0
misses its beats, and where process 0 is the one, the store is gone.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import logging
import multiprocessing
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jax
import tqdm
from jax._src import distributed as _distributed  # the store has no public name

from data_pipelines.builders.report import RawDataError
from pose_common.training.nonfinite import NonFiniteError

BEAT_SECONDS = 2.0
SILENT_SECONDS = 40.0
"""Without a beat for so long a process is lost. A thread beats, which only a call that keeps the interpreter delays."""
SUSPECT_SECONDS = 10.0
"""The same once a collective has failed here."""
HEARTBEAT_SECONDS = 120
"""After which JAX itself ends all, with a stack trace: where the threads of this module cannot. It beats every half of
this, and so may miss a beat after half of it already: longer than `SILENT_SECONDS`, or the line that says who was lost
would come too late."""
LEAVE_SECONDS = 10.0
"""After which a process that leaves is gone, whatever it waits for."""
GATHER_SECONDS = 3600.0
"""For which a process waits for others that are alive: one may read its data more slowly."""
FAILURE, BEATS, LEFT, HOSTS = "pose/failure", "pose/beats", "pose/left", "pose/hosts"
NO_FAILURE = "none"
KNOWN = (ValueError, KeyError, OSError, NonFiniteError, RawDataError)
"""Errors that say all in one line, without a traceback."""
_GONE = "process 0, which holds the others together, is gone (killed, or its machine is)"
_OF_OTHERS = re.compile("(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION): ")
"""How the runtime's errors begin where another process may be the reason; JAX raises them as several classes."""

_leaving = threading.Lock()
_suspicious = threading.Event()
_ending = threading.Event()


class Disagreement(ValueError):
    """Processes of one run that are not alike; names the hosts and what differs."""


def several() -> bool:
    """Whether this is one of several processes that have joined."""
    return _distributed.global_state.client is not None and _distributed.global_state.num_processes > 1


def title(process: int) -> str:
    """`process 3 (host name)`, or without the name where it was never told."""
    own = {str(_own()): socket.gethostname()}
    host = (own if process == _own() or not several() else dict(_entries(HOSTS))).get(str(process), "")
    return f"process {process} ({host})" if host else f"process {process}"


def gather(name: str, text: str) -> list[str]:
    """What every process gives under `name`, in their order; a name is used once in a run.

    Raises:
      RuntimeError: a process that is alive gave nothing for an hour.
    """
    if not several():
        return [text]
    client, count = _client(), _distributed.global_state.num_processes
    client.key_value_set(f"pose/gather/{name}/{_own()}", text)
    keys = [f"pose/gather/{name}/{process}" for process in range(count)]
    return [client.blocking_key_value_get(key, int(1000 * GATHER_SECONDS)) for key in keys]


def require_alike(name: str, facts: Mapping[str, Any]) -> None:
    """Compares facts that must be the same in all processes: {what it is called in a message: value}.

    Raises:
      Disagreement: names the first process that differs from process 0, and all that differs.
    """
    told = [json.loads(text) for text in gather(name, json.dumps(facts))]
    for process, other in enumerate(told):
        if other != told[0]:
            names = [fact for fact in told[0] | other if told[0].get(fact) != other.get(fact)]
            here, there = ("; ".join(f"{fact} {side.get(fact)}" for fact in names) for side in (other, told[0]))
            raise Disagreement(f"{title(process)} has {here}; {title(0)} has {there}")


def watch() -> None:
    """Starts this process's watch over the others; to be called once they have joined."""
    client = _client()
    client.key_value_set(f"{HOSTS}/{_own()}", socket.gethostname())
    gather("joined", "")
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, type(_aborted)), ctypes.c_void_p
    libc.signal(signal.SIGABRT, _aborted)
    threads = [threading.Thread(target=target, args=(client,), daemon=True) for target in (_wait_for_failure, _beat)]
    for thread in threads:
        thread.start()
    atexit.register(_end, threads)  # before JAX's own, which closes the store


@contextlib.contextmanager
def leaving_together(debug: bool = False) -> Iterator[None]:
    """Ends this process and all others on an exception, if there are several; alone it changes nothing.

    Nothing is waited for: another process may be in a collective that never ends. A checkpoint that was being written
    is lost, the one before it is whole.

    Args:
      debug: log the traceback of known errors as well.
    """
    try:
        yield
    except BaseException as error:
        if not several() or (isinstance(error, SystemExit) and not error.code):
            raise
        if debug or not isinstance(error, (*KNOWN, SystemExit)):
            logging.error("%s", "".join(traceback.format_exception(error)).rstrip())
        _fail(error)


def one_line(error: BaseException) -> str:
    """The text of an error on one line."""
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(text).split()) or type(error).__name__


def _end(threads: Sequence[threading.Thread]) -> None:
    """Waits for all processes to come to their end; the watch goes on until then."""
    gather("end", "")
    _ending.set()
    _publish(NO_FAILURE)
    for thread in threads:  # one that is inside the store when Python ends would abort the process
        thread.join()


def _client() -> Any:
    return _distributed.global_state.client


def _own() -> int:
    return _distributed.global_state.process_id


def _entries(folder: str) -> Sequence[tuple[str, str]]:
    """[(name, value)] of the keys in a folder of the store; [] where the store is gone."""
    try:
        return [(key.rsplit("/", 1)[1], value) for key, value in _client().key_value_dir_get(folder)]
    except jax.errors.JaxRuntimeError:
        return []


def _fail(error: BaseException) -> NoReturn:
    if _of_collective(error):  # another process may be lost: the watch finds out which
        _suspicious.set()
        time.sleep(SILENT_SECONDS)
    _publish(f"{title(_own())} failed: {one_line(error)}")
    _leave(f"{title(_own())} failed: {one_line(error)}", wait=True)


def _of_collective(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, may be the loss of another process."""
    while error is not None and not _OF_OTHERS.match(str(error)):
        error = error.__cause__ or error.__context__
    return error is not None


def _publish(line: str) -> None:
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # another was first, or the store is gone
        _client().key_value_set(FAILURE, line)


def _leave(line: str, wait: bool) -> NoReturn:
    """Logs the line and ends the process; process 0 waits a little for others to have read why."""
    _leaving.acquire()
    # A call of the store may never return once process 0 is gone.
    threading.Timer(LEAVE_SECONDS, os._exit, (1,)).start()
    for bar in list(getattr(tqdm.tqdm, "_instances", ())):  # would be drawn again behind the line
        bar.clear()
        bar.disable = True
    logging.error("error: %s; all processes end", line)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    for child in multiprocessing.active_children():  # of the loader: nothing else would end them
        child.kill()
    count, until = _distributed.global_state.num_processes, time.monotonic() + 5
    if _own() and wait:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            _client().key_value_set(f"{LEFT}/{_own()}", "")
    while not _own() and wait and time.monotonic() < until and len(_entries(LEFT)) < count - 1:
        time.sleep(0.2)
    os._exit(1)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(number: int) -> None:
    """JAX aborts a process that lost process 0, often before the threads of this module know.

    A handler of Python's own would wait for the main thread, and never run.
    """
    if _own() and not _reachable(_distributed.global_state.coordinator_address):
        _leave(_GONE, wait=False)
    _leave(f"{title(_own())} was aborted by its runtime, whose reasons stand above", wait=False)


def _reachable(address: str) -> bool:
    host, port = address.rsplit(":", 1)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()
    except OSError:
        return False
    return True


def _wait_for_failure(client: Any) -> None:
    while True:
        try:
            line = client.blocking_key_value_get(FAILURE, int(1000 * GATHER_SECONDS))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" in str(error):
                continue
            _leave(_GONE, wait=False)
        if line == NO_FAILURE:
            return
        _leave(line, wait=True)


def _beat(client: Any) -> None:
    """Beats; process 0 looks for those who do not."""
    seen: dict[str, tuple[str, float]] = {}
    for number in range(sys.maxsize):
        try:
            client.key_value_set(f"{BEATS}/{_own()}", str(number), allow_overwrite=True)
        except jax.errors.JaxRuntimeError:
            return  # the other thread says it
        now = time.monotonic()
        for process, beat in _entries(BEATS) if _own() == 0 else ():
            if seen.get(process, ("", 0.0))[0] != beat:
                seen[process] = beat, now
            silent, most = now - seen[process][1], SUSPECT_SECONDS if _suspicious.is_set() else SILENT_SECONDS
            if silent > most and int(process) != _own():
                _publish(f"{title(int(process))} is silent for {silent:.0f} s (killed, or its machine is gone)")
        if _ending.wait(BEAT_SECONDS):
            return
