"""Which checkpoint of a run is the best: by figures of its result table, named before the run begins."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pose_common.evaluation.tasks import in_percent
from pose_common.training.checks import ConfigError

NONE = "none"
SMALLER = ("EPE",)
"""Figures of which less is better."""


class Judgement(NamedTuple):
    """Of an evaluation: the mean in percent (EPE in pixels), and of how many figures."""

    value: float
    figures: int


@dataclasses.dataclass(frozen=True)
class BestMetric:
    """The mean of some figures of the table, as it shows them.

    Attributes:
      name: for logs.
      figures: (row, figure), such as ("coco/heads", "AP").
      smaller: whether less is better.
    """

    name: str
    figures: tuple[tuple[str, str], ...]
    smaller: bool = False

    def judge(self, scores: Mapping[str, Mapping[str, float]]) -> Judgement | None:
        """Of an evaluation; None where none of the figures is there."""
        shown = [in_percent(name, scores.get(row, {}).get(name)) for row, name in self.figures]
        known = [value for value in shown if value is not None]
        return Judgement(sum(known) / len(known), len(known)) if known else None

    def better(self, judged: Judgement, than: Judgement | None) -> bool:
        """Whether `judged` is the best so far; a mean of fewer figures, of which some failed, never is."""
        if than is None or judged.figures != than.figures:
            return than is None or judged.figures > than.figures
        return judged.value < than.value if self.smaller else judged.value > than.value


def best_metric(pattern: str, rows: Mapping[str, Sequence[str]], first: Sequence[str]) -> BestMetric | None:
    """What `config.best_metric` stands for.

    Args:
      pattern: '<row>/<figure>', with * and ? as in file names; '' for the first figure of each of the rows `first`;
        'none' for nothing.
      rows: {row: its figures} of the datasets that are trained on.
      first: see `pattern`.

    Raises:
      ConfigError: no figure fits, or figures of which more is better are mixed with those of which less is.
    """
    if pattern == NONE:
        return None
    known = {f"{row}/{name}": (row, name) for row, names in rows.items() for name in names}
    if pattern:
        chosen = tuple(figure for name, figure in known.items() if fnmatch.fnmatchcase(name, pattern))
    else:
        chosen = tuple((row, rows[row][0]) for row in first)
    if not chosen:
        raise ConfigError(
            f"config.best_metric={pattern!r}: expected '' or {NONE!r}, or a pattern of some of {', '.join(known)}"
        )
    smaller = {name in SMALLER for _, name in chosen}
    if len(smaller) > 1:
        raise ConfigError(
            f"config.best_metric={pattern!r} mixes {', '.join(SMALLER)}, of which less is better, with other figures"
        )
    title = ", ".join("/".join(figure) for figure in chosen)
    return BestMetric(title if len(chosen) == 1 else f"mean of {title}", chosen, smaller.pop())
