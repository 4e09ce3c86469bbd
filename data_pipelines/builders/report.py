"""What a preparation kept, what it left out and why."""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
from typing import Any

from data_pipelines.fields import Fault, printable

__all__ = ["Entry", "Fault", "NoAnnotations", "RawDataError", "Report"]

EXAMPLES_PER_REASON = 1000


class RawDataError(RuntimeError):
    """The raw data cannot be used: a file is missing or unreadable or, in strict mode, an entry is broken."""


class Entry(str):
    """Where somebody stands in a label file that knows no ids, such as 'line 5': printed as it is."""

    __repr__ = str.__str__


class NoAnnotations(RawDataError):
    """The split's annotation file is not among the downloads."""


@dataclasses.dataclass
class _Tally:
    count: int = 0
    examples: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def add(self, file: str, number: Any, detail: str) -> None:
        self.count += 1
        if len(self.examples) < EXAMPLES_PER_REASON:
            self.examples.append({"file": printable(file), "id": number, "detail": printable(detail)})


class Report:
    """Counts by reason, each with file and id of its cases (the first thousand).

    There are three kinds: `images` and `instances` are broken and dropped; `remarks` are not faults, but entries that
    are unusual and kept, or that the protocol leaves out.

    Args:
      strict: the first broken entry raises `RawDataError` instead.
    """

    def __init__(self, strict: bool = False):
        self._strict = strict
        self._tallies: dict[str, dict[str, _Tally]] = {
            kind: collections.defaultdict(_Tally) for kind in ("images", "instances", "remarks")
        }

    def drop_image(self, fault: Fault, file: str | pathlib.Path, number: Any) -> None:
        """Counts a picture that is left out, with all its people; `number` is its id."""
        self._drop("images", fault, file, number)

    def drop_instance(self, fault: Fault, file: str | pathlib.Path, number: Any) -> None:
        """Counts somebody who is left out of picture or annotation file `file`; `number` is the annotation's id."""
        self._drop("instances", fault, file, number)

    def remark(self, what: str, file: str | pathlib.Path, number: Any, detail: str = "") -> None:
        """Counts what is worth a word and no fault, in strict mode neither."""
        self._tallies["remarks"][printable(what)].add(os.fspath(file), _plain(number), detail)

    @property
    def num_dropped(self) -> int:
        """Pictures and instances together; people of a dropped picture are not counted."""
        return sum(tally.count for kind in ("images", "instances") for tally in self._tallies[kind].values())

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """{kind: {reason: {"count": int, "examples": [{"file", "id", "detail"}]}}}, as `summary.json` has it."""
        return {
            kind: {reason: dataclasses.asdict(tally) for reason, tally in sorted(tallies.items())}
            for kind, tallies in self._tallies.items()
        }

    def _drop(self, kind: str, fault: Fault, file: str | pathlib.Path, number: Any) -> None:
        file = os.fspath(file)
        if self._strict:
            raise RawDataError(
                f"{printable(file)}: {'image' if kind == 'images' else 'annotation'} {number!r}: {fault}"
            )
        self._tallies[kind][fault.reason].add(file, _plain(number), fault.detail)


def _plain(number: Any) -> int | str | None:
    """An id as JSON can hold it: a broken one may be of any type and size."""
    return number if number is None or (isinstance(number, int) and abs(number) < 2**63) else repr(number)[:100]
