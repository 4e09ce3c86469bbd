"""What came of every case of the campaign, as a table and as files."""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
from collections.abc import Sequence

import rich.box
import rich.console
import rich.markup
import rich.table

SHOWN_FAULTS = 20


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One case.

    Attributes:
      number: of the case; with the seed it says what was done. A case may have several outcomes.
      kind: what was done, in a word or two.
      result: what came of it, in a word or two.
      detail: the message, or what is wrong.
      fault: whether it is a fault of this project.
      seconds: that it took.
      megabytes: of memory that it took at its peak, beyond what was taken before it.
    """

    number: int
    kind: str
    result: str
    detail: str = ""
    fault: bool = False
    seconds: float = 0.0
    megabytes: float = 0.0


def print_table(title: str, outcomes: Sequence[Outcome]) -> None:
    """Kinds (up to a colon) against results, the longest time and the largest memory of each kind, and every fault."""
    console = rich.console.Console(width=150)
    results = sorted({outcome.result for outcome in outcomes})
    table = rich.table.Table(title=title, title_justify="left", box=rich.box.SIMPLE_HEAD)
    for column in ("kind", "cases", *results, "seconds", "MB"):
        table.add_column(column, justify="left" if column == "kind" else "right")
    by_kind = collections.defaultdict(list)
    for outcome in outcomes:
        by_kind[outcome.kind.partition(":")[0]].append(outcome)
    for kind, found in [*by_kind.items(), ("all", list(outcomes))]:
        counts = collections.Counter(outcome.result for outcome in found)
        longest, largest = max(o.seconds for o in found), max(o.megabytes for o in found)
        cells = [str(counts[result] or "") for result in results]
        table.add_row(kind, str(len(found)), *cells, f"{longest:.1f}", f"{largest:.0f}")
    console.print(table)
    faults = [outcome for outcome in outcomes if outcome.fault]
    for outcome in faults[:SHOWN_FAULTS]:
        line = f"fault: case {outcome.number}, {outcome.kind}: {outcome.result}: {outcome.detail}"
        console.print(rich.markup.escape(line), soft_wrap=True)
    console.print(f"{len(outcomes)} cases, {len(faults)} faults")


def write(path: pathlib.Path, outcomes: Sequence[Outcome]) -> None:
    """One JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(dataclasses.asdict(outcome)) + "\n" for outcome in outcomes))
