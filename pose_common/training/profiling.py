"""Traces of single steps, to be looked at with xprof."""

from __future__ import annotations

import logging
import os
import pathlib
import tempfile
from typing import Any

import jax

FOLDER = "profile"
"""In the working directory: what `xprof --logdir` takes."""


class Profiler:
    """Traces the steps `first` to `last`, numbered as in the log, on every host; without them it does nothing.

    A trace is written on this machine and then copied, so that the working directory may be a bucket and one run of
    xprof shows the files of all hosts.
    """

    def __init__(self, steps: tuple[int, ...], workdir: pathlib.Path):
        self._first, self._last = steps or (1, 0)
        self._workdir, self._name = workdir, f"steps_{self._first}_{self._last}"
        self._trace: tempfile.TemporaryDirectory | None = None

    def before(self, step: int) -> None:
        """To be called before a step is done."""
        if self._first <= step <= self._last and self._trace is None:
            self._trace = tempfile.TemporaryDirectory()
            jax.profiler.start_trace(self._trace.name)

    def after(self, step: int, outputs: Any) -> None:
        """To be called after a step was started; `outputs` of the last one are waited for."""
        if self._trace is not None and step >= self._last:
            jax.block_until_ready(outputs)
            self.close()

    def close(self) -> None:
        """Ends and writes a trace that is going on."""
        if self._trace is None:
            return
        jax.profiler.stop_trace()
        target = self._workdir / FOLDER / "plugins" / "profile" / self._name
        target.mkdir(parents=True, exist_ok=True)
        for file in pathlib.Path(self._trace.name).rglob("*.xplane.pb"):
            (target / f"host_{jax.process_index()}.xplane.pb").write_bytes(file.read_bytes())
        self._trace.cleanup()
        self._trace, self._first = None, self._last + 1
        logging.info("a trace was written: xprof --logdir=%s", os.fspath(self._workdir / FOLDER))
