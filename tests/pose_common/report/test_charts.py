"""Charts are valid XML, lie inside their frame, and put points where their values are."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from pose_common.report import charts
from pose_common.report.charts import Series, line_chart


def points_of(line: ElementTree.Element) -> np.ndarray:
    polyline = line.find("polyline")
    return np.array([[float(value) for value in point.split(",")] for point in polyline.get("points").split()])


def lines_of(svg: str) -> list[ElementTree.Element]:
    return [group for group in ElementTree.fromstring(svg).iter("g") if "line" in group.get("class").split()]


def test_values_become_places():
    x, y = [0, 50, 100], [0.0, 10.0, 5.0]
    (line,) = lines_of(line_chart("t", [Series("one", 0, 0, x, y)]))
    points = points_of(line)
    left, right = charts.LEFT, charts.WIDTH - charts.RIGHT
    top, bottom = charts.TOP, charts.HEIGHT - charts.BOTTOM
    # Places are rounded to a tenth.
    np.testing.assert_allclose(points[:, 0], [left, (left + right) / 2, right], atol=0.06)
    np.testing.assert_allclose(points[:, 1], [bottom, top, (top + bottom) / 2], atol=0.06)
    assert len(line.findall("circle")) == 3 and line.find("circle/title").text == "one: 0, step 0"


def test_a_logarithmic_axis_has_equal_ratios_at_equal_distances():
    (line,) = lines_of(line_chart("t", [Series("", 0, 0, [1, 2, 3], [1e-3, 1e-2, 1e-1])], logarithmic=True))
    heights = points_of(line)[:, 1]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.11)


@pytest.mark.parametrize("values", [[5.0], [0.0, 0.0], [1e-9, 1.1e-9], [-3.0, 4e6], [float(i) for i in range(300)]])
@pytest.mark.parametrize("logarithmic", [False, True])
def test_everything_lies_inside_and_has_ticks(values, logarithmic):
    if logarithmic and min(values) <= 0:
        values = [value - min(values) + 1 for value in values]
    svg = line_chart("t", [Series("a", 9, 1, list(range(len(values))), values)], logarithmic=logarithmic)
    (line,) = lines_of(svg)
    points = points_of(line)
    assert (points >= 0).all() and (points <= (charts.WIDTH, charts.HEIGHT)).all()
    ticks = [text for text in ElementTree.fromstring(svg).iter("text") if text.get("text-anchor") == "end"]
    assert 2 <= len(ticks) <= 16, "the axis' values, and the name of x"
    assert "c1 d2" in line.get("class"), "colours begin again, dashed differently"


def test_names_are_text_and_never_markup():
    name = 'a<b>&"c'
    svg = line_chart(name, [Series(name, 0, 0, [0, 1], [0, 1])], marks=[(0.5, name)], x_name=name)
    root = ElementTree.fromstring(svg)
    assert name in root.get("aria-label") and lines_of(svg)[0].get("data-series") == name
    assert not re.search("<b>", svg)
