"""Tables and plots of the two PoseBH experiments, from their lines."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

from scripts.experiments import lines

Lines = Sequence[lines.Line]


def differences(rows: Lines, figures: Mapping[str, str], arms: Sequence[str], baseline: str) -> str:
    """A table: the baseline's means, and every arm's paired difference from it.

    Args:
      figures: {name of the column: figure}.
    """
    table = [("arm", "runs", *figures)]
    table.append(
        (baseline, lines.mean(rows, next(iter(figures.values())), baseline).count)
        + tuple(lines.mean(rows, figure, baseline) for figure in figures.values())
    )
    for arm in arms:
        found = [lines.paired(rows, figure, arm, baseline) for figure in figures.values()]
        table.append((arm, found[0].count, *map(signed, found)))
    return lines.markdown(table)


def signed(value: lines.Interval) -> str:
    """A difference with its sign; bold where the interval leaves out 0."""
    if value.count < 2:
        return f"{value.mean:+.1f}" if value.count else "-"
    text = f"{value.mean:+.1f} [{value.low:+.1f}, {value.high:+.1f}]"
    return f"**{text}**" if value.low > 0 or value.high < 0 else text


def plot(path: pathlib.Path, rows: Lines, figures: Mapping[str, str], arms: Sequence[str], baseline: str) -> None:
    """Paired differences of all arms from the baseline, by figure."""
    groups = {
        name.replace(", ", ",\n"): {arm: lines.paired(rows, figure, arm, baseline) for arm in arms}
        for name, figure in figures.items()
    }
    lines.plot(path, groups, ylabel=f"PCK@0.1 minus {baseline}'s, points", zero=True)


def times(rows: Lines, arms: Sequence[str]) -> str:
    """Steps and processor time of each arm."""
    table = [("arm", "steps", "processor seconds")]
    for arm in arms:
        steps, seconds = lines.mean(rows, "steps", arm), lines.mean(rows, "cpu_seconds", arm)
        if steps.count:
            table.append((arm, f"{steps.mean:.0f}", f"{seconds.mean:.0f}"))
    return lines.markdown(table)
