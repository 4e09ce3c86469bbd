"""Prediction that is ended from outside keeps what it has found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from pose_common.signals import SignalHandler

T = TypeVar("T")


class Interruption(SignalHandler):
    """SIGINT and SIGTERM end what is being computed, but not the writing of what was.

    A batch may take longer than a scheduler waits before it kills, so none is waited for. A second signal ends all.

    Attributes:
      asked: the number of the signal; 0 without one.
    """

    def __init__(self):
        super().__init__()
        self.asked = 0
        self._computing = True  # what is loaded before the first item is given up, too

    def handle(self, number, frame) -> None:
        del frame
        at_once = self._computing or self.asked
        self.asked = number
        if at_once:
            raise KeyboardInterrupt

    def until(self, items: Iterator[T]) -> Iterator[T]:
        """The items before a signal; one that is being made then is given up, one that was handed out is not."""
        while not self.asked:
            try:
                self._computing = True
                item = next(items)
            except (StopIteration, KeyboardInterrupt):
                return
            finally:
                self._computing = False
            yield item
