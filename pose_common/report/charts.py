"""Line charts as SVG elements for a page whose style sheet has their colours; drawn once, no script needed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 32
MOST_DOTS = 40
"""Points of a line that are marked, each with its value on hover; longer lines have none."""
COLOURS = 8
"""Classes c0 to c7 of the style sheet; more series begin again, dashed differently."""


class Series(NamedTuple):
    """One line.

    Attributes:
      label: for the legend and on hover.
      colour: number of its colour; the same label has the same in all charts of a page.
      dash: number of its dash pattern, by which runs differ.
      x, y: its points.
    """

    label: str
    colour: int
    dash: int
    x: Sequence[float]
    y: Sequence[float]


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    logarithmic: bool = False,
    marks: Sequence[tuple[float, str]] = (),
    x_name: str = "step",
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
) -> Markup:
    """An `svg` element, in which every line names itself on hover.

    Args:
      title: of the chart, read out by screen readers.
      series: with at least one point altogether.
      logarithmic: the y axis; all values must be above 0.
      marks: (x, name) of vertical lines.
      x_name: what x is.
      x_range, y_range: fixed ends of the axes; by the values where they are None.
    """
    across = _Axis(*(x_range or _ends(line.x for line in series)), LEFT, WIDTH - RIGHT, False)
    upward = _Axis(*(y_range or _ends(line.y for line in series)), HEIGHT - BOTTOM, TOP, logarithmic)
    parts = [_frame(across, upward, x_name)]
    for x, name in marks:
        ends = {"x1": across(x), "x2": across(x), "y1": TOP, "y2": HEIGHT - BOTTOM}
        parts.append(_tag("line", _tag("title", name), class_="mark", **ends))
    parts += [_line(line, across, upward, x_name) for line in series]
    label = f"{title}: {len(series)} lines against {x_name}"
    return _tag("svg", *parts, class_="chart", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=label)


def _line(line: Series, across: _Axis, upward: _Axis, x_name: str) -> Markup:
    points = [(across(x), upward(y)) for x, y in zip(line.x, line.y, strict=True)]
    joined = _tag("polyline", _tag("title", line.label), points=" ".join(f"{x},{y}" for x, y in points))
    dots = []
    if len(points) <= MOST_DOTS:
        texts = [f"{line.label}: {y:.4g}, {x_name} {x:g}" for x, y in zip(line.x, line.y, strict=True)]
        dots = [
            _tag("circle", _tag("title", text), cx=x, cy=y, r=2.5) for (x, y), text in zip(points, texts, strict=True)
        ]
    style = f"line c{line.colour % COLOURS} d{(line.dash + line.colour // COLOURS) % 4}"
    return _tag("g", joined, *dots, class_=style, data_series=line.label)


def _tag(name: str, *content: str, **attributes: object) -> Markup:
    """An element; what is no `Markup` is escaped. `class_` is the attribute class, `aria_label` is aria-label."""
    shown = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items()
    )
    return Markup("<{0}{1}>{2}</{0}>").format(name, shown, Markup("").join(map(escape, content)))


def _ends(lines: Iterable[Sequence[float]]) -> tuple[float, float]:
    values = [value for line in lines for value in line]
    return min(values), max(values)


class _Axis:
    """Values to pixels, and where its ticks are."""

    def __init__(self, low: float, high: float, start: float, end: float, logarithmic: bool):
        if low == high:
            low, high = (low / 2, high * 2) if low > 0 else (low - 1 if low else 0, high + 1)
        self.start, self.end, self.logarithmic = start, end, logarithmic
        self.ticks = _powers(low, high) if logarithmic else _steps(low, high)
        self.low, self.high = (self._scaled(value) for value in (low, high))

    def __call__(self, value: float) -> float:
        share = (self._scaled(value) - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value


def _steps(low: float, high: float) -> list[float]:
    """Round values between the ends, four to eight of them."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _powers(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between the ends; powers alone where these are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if len(powers) > 4 else (1, 2, 5)
    return [f * 10.0**power for power in powers for f in factors if low <= f * 10.0**power <= high] or [low, high]


def _frame(across: _Axis, upward: _Axis, x_name: str) -> Markup:
    """Grid lines, ticks, and what x is."""
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for tick in upward.ticks:
        y = upward(tick)
        parts.append(_tag("line", class_="grid", x1=LEFT, x2=right, y1=y, y2=y))
        parts.append(_tag("text", f"{tick:g}", class_="tick", x=LEFT - 5, y=y + 3.5, text_anchor="end"))
    for tick in across.ticks:
        parts.append(_tag("text", f"{tick:g}", class_="tick", x=across(tick), y=bottom + 13, text_anchor="middle"))
    return Markup("").join([*parts, _tag("text", x_name, class_="tick", x=right, y=HEIGHT - 5, text_anchor="end")])
