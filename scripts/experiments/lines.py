"""Lines of results: a run appends one line of JSON to a file; intervals, tables and plots are made from the lines.

A line is `{"arm": str, "seed": int, "steps": int, "seconds": float, "figures": {name: number}}` and whatever else tells
one run from another. An experiment asks `find` before it runs: what is a line already is not run again.
"""

from __future__ import annotations

import json
import math
import pathlib
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
Line = dict[str, Any]


class Interval(NamedTuple):
    """A mean over runs with its 95 % t-interval; the ends are NaN with fewer than two runs.

    Attributes:
      mean, low, high: in the figure's own unit.
      count: number of runs, or of pairs of runs.
    """

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        if self.count < 2:
            return f"{self.mean:.1f}" if self.count else "-"
        return f"{self.mean:.1f} [{self.low:.1f}, {self.high:.1f}]"


def read(path: pathlib.Path) -> list[Line]:
    """All lines of a file, none where it does not exist. A last line that was cut off by a stop is left out."""
    lines = []
    rows = path.read_text(encoding="utf8").splitlines() if path.is_file() else []
    for number, row in enumerate(rows, start=1):
        try:
            lines.append(json.loads(row))
        except json.JSONDecodeError as error:
            if number < len(rows):
                raise ValueError(f"{path}, line {number}, is not JSON ({error}); remove the line") from error
    return lines


def append(path: pathlib.Path, line: Line) -> None:
    """Adds a line; a line that was cut off by a stop is dropped first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.read_text(encoding="utf8") if path.is_file() else ""
    if text and not text.endswith("\n"):
        path.write_text(text[: text.rfind("\n") + 1], encoding="utf8")
    with path.open("a", encoding="utf8") as file:
        file.write(json.dumps(line) + "\n")


def find(lines: Iterable[Line], **key: Any) -> Line | None:
    """The first line whose fields have these values."""
    return next((line for line in lines if all(line.get(name) == value for name, value in key.items())), None)


def values(lines: Iterable[Line], figure: str, arm: str) -> dict[int, float]:
    """{seed: value} of an arm's runs that have the figure; `steps` and `seconds` are figures as well."""
    found = {}
    for line in lines:
        value = line.get("figures", {}).get(figure, line.get(figure))
        if line["arm"] == arm and value is not None and not math.isnan(value):
            found[line["seed"]] = float(value)
    return found


def interval(numbers: Sequence[float]) -> Interval:
    """Mean and two-sided 95 % interval of Student's t."""
    count = len(numbers)
    if not count:
        return Interval(math.nan, math.nan, math.nan, 0)
    middle = float(np.mean(numbers))
    if count == 1:
        return Interval(middle, math.nan, math.nan, 1)
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * np.std(numbers, ddof=1) / math.sqrt(count))
    return Interval(middle, middle - reach, middle + reach, count)


def mean(lines: Iterable[Line], figure: str, arm: str) -> Interval:
    """An arm's figure over its seeds."""
    return interval(list(values(lines, figure, arm).values()))


def paired(lines: Sequence[Line], figure: str, arm: str, baseline: str) -> Interval:
    """An arm's figure minus the baseline's, over the seeds that both have."""
    ours, theirs = values(lines, figure, arm), values(lines, figure, baseline)
    return interval([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])


def markdown(rows: Sequence[Sequence[Any]]) -> str:
    """A table of Markdown; the first row is the head."""
    texts = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join([texts[0], "|" + "---|" * len(rows[0]), *texts[1:]]) + "\n"


def plot(
    path: pathlib.Path,
    groups: dict[str, dict[str, Interval]],
    *,
    ylabel: str,
    title: str = "",
    zero: bool = False,
) -> None:
    """Means with their intervals, one group of bars a figure.

    Args:
      path: of the picture; its suffix says the format.
      groups: {figure: {arm: interval}}; the arms are the colours.
      ylabel, title: what the values are, and of what.
      zero: points about a line at zero, for differences, instead of bars.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "lines"  # the same lines give the same file
    arms = list(dict.fromkeys(arm for group in groups.values() for arm in group))
    figure, axis = plt.subplots(figsize=(min(11.0, max(5.0, 1.2 + 0.28 * len(groups) * (len(arms) + 1))), 3.8))
    width = 0.8 / len(arms)
    for number, arm in enumerate(arms):
        found = [
            (place, group[arm]) for place, group in enumerate(groups.values()) if arm in group and group[arm].count
        ]
        across = [place + (number - (len(arms) - 1) / 2) * width for place, _ in found]
        means = [value.mean for _, value in found]
        errors = [0.0 if value.count < 2 else value.high - value.mean for _, value in found]
        colour = plt.get_cmap("tab10")(number % 10)
        if zero:
            axis.errorbar(across, means, errors, fmt="o", markersize=3, capsize=2, color=colour, label=arm)
        else:
            axis.bar(across, means, width * 0.9, yerr=errors, capsize=2, color=colour, label=arm)
    if zero:
        axis.axhline(0, color="0.5", linewidth=0.8)
    axis.set_xticks(range(len(groups)), [textwrap.fill(name, 11) for name in groups], fontsize=7)
    axis.set_ylabel(ylabel)
    axis.set_title(title, fontsize=9)
    axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110)
    plt.close(figure)
