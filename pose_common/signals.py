"""What a program does when it is asked to end."""

from __future__ import annotations

import abc
import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Self

ENDING = (signal.SIGINT, signal.SIGTERM)


class SignalHandler(abc.ABC):
    """Inside its block some signals call its `handle`; but for other threads than the main one, to which none come."""

    def __init__(self, signals: Sequence[signal.Signals] = ENDING):
        self._signals = signals if threading.current_thread() is threading.main_thread() else ()
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self.handle) for number in self._signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @abc.abstractmethod
    def handle(self, number: int, frame: FrameType | None) -> None:
        """Called in the main thread, between any two of its instructions."""
