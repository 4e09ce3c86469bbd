"""The project's own messages: on the console, and in one file a host in the working directory."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import pathlib
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax

from data_pipelines.paths import is_remote
from pose_common.console import outlive_console
from pose_common.training import processes

FOLDER = "logs"
LINE, TIME = "%(asctime)s %(message)s", "%H:%M:%S"
FILE_TIME = "%Y-%m-%d %H:%M:%S"


def start_logging() -> None:
    """The project's own messages on the console; libraries only when something is wrong."""
    outlive_console()
    logging.basicConfig(level=logging.INFO, format=LINE, datefmt=TIME, force=True)
    for library in ("absl", "jax", "orbax", "grain", "tensorboardX", "gcsfs", "fsspec"):
        logging.getLogger(library).setLevel(logging.WARNING)
    hide_abandoned_tasks()


@functools.cache  # once a process: each call would put a hook around the one before
def hide_abandoned_tasks() -> None:
    """Of a damaged checkpoint a command says one line, and not what Orbax's threads print beside it."""
    # What Orbax tells of a failure in a thread is raised as well, where it is said in one line.
    logging.getLogger("absl").addFilter(lambda record: not record.exc_info)
    # Where one array of a damaged checkpoint cannot be read, Orbax lets go of the tasks that read the others.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.unraisablehook = _without_abandoned_tasks(sys.unraisablehook)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


def _without_abandoned_tasks(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def show(unraisable: Any) -> None:
        if not inspect.iscoroutine(unraisable.object) and str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    return show


def name_host() -> None:
    """Lines on the console begin with the process and its host, if there are several."""
    if processes.several():
        host = f"[{jax.process_index()} {socket.gethostname()}]".replace("%", "%%")
        for handler in logging.getLogger().handlers:
            handler.setFormatter(logging.Formatter(f"%(asctime)s {host} %(message)s", TIME))


@contextlib.contextmanager
def written_to(workdir: pathlib.Path) -> Iterator[None]:
    """Messages also go to `<workdir>/logs/host_<process>.log`, behind those of earlier starts.

    In a bucket nothing can be appended to: there the file is put at each checkpoint (`put`) and at the end, but not
    after an error of one of several processes, none of which waits for anything then.
    """
    path = workdir / FOLDER / f"host_{jax.process_index()}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _BucketLog(path) if is_remote(path) else logging.FileHandler(path, encoding="utf8")
    handler.setFormatter(logging.Formatter(LINE, FILE_TIME))
    logging.getLogger().addHandler(handler)
    try:
        yield
    except BaseException as error:
        if processes.several():  # the handler stays: all end soon, and the reason is still to be said
            raise
        handler.handle(_why(error))  # the console is told by who catches it
        _end(handler)
        raise
    _end(handler)


def _why(error: BaseException) -> logging.LogRecord:
    trace = None if isinstance(error, processes.KNOWN) else (type(error), error, error.__traceback__)
    return logging.LogRecord("root", logging.ERROR, "", 0, "error: %s", (processes.one_line(error),), trace)


def _end(handler: logging.Handler) -> None:
    put()
    logging.getLogger().removeHandler(handler)
    handler.close()


def put() -> None:
    """Puts the log into the bucket, if it belongs there."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _BucketLog):
            handler.put()


class _BucketLog(logging.Handler):
    """Keeps the lines until they are put: what logs must not wait for a bucket."""

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self._path, self._lines = path, [path.read_text(encoding="utf8")] if path.exists() else []

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(self.format(record) + "\n")

    def put(self) -> None:
        try:
            self._path.write_text("".join(self._lines), encoding="utf8")
        except Exception as error:  # of the file system; a log that cannot be written ends no run
            logging.warning("%s cannot be written: %s", self._path, error)
