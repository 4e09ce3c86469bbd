"""Standard output and error of a program that must not end with them."""

from __future__ import annotations

import io
import logging
import os
import sys
from typing import Any


def outlive_console() -> None:
    """What the console cannot take ends no work: a letter that its encoding has not is written as `\\xe4`, and what
    comes after its reader has ended (`| head`, `| tee` of a closed terminal) or where there is none (`2>&-`) is
    dropped."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__") or not isinstance(stream, io.TextIOWrapper):
            continue  # a notebook's or a test's own
        lasting = io.BufferedWriter(_Lasting(stream.fileno(), "w", closefd=False))
        stream.flush()
        buffering = stream.line_buffering, stream.write_through
        setattr(sys, name, io.TextIOWrapper(lasting, stream.encoding, "backslashreplace", None, *buffering))
        for handler in logging.getLogger().handlers:  # absl makes one when Orbax is imported
            if isinstance(handler, logging.StreamHandler) and handler.stream is stream:
                handler.setStream(getattr(sys, name))  # by this tqdm knows whose place to take


class _Lasting(io.FileIO):
    """A pipe that becomes the null device where nobody reads it any more."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            return super().write(data)
