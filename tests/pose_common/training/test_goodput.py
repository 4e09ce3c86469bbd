"""Where a run's time goes: every moment belongs to one part; hosts that differ are named."""

from __future__ import annotations

import pytest

from pose_common.training import goodput, processes


@pytest.fixture
def time(monkeypatch):
    """A clock that is set by hand."""
    now = [0.0]
    monkeypatch.setattr(goodput.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(goodput, "_IMPORTED", 0.0)
    return now


def test_every_moment_belongs_to_one_part(time):
    clock = goodput.Clock()
    time[0] = 10
    clock.enter(goodput.STEP)
    time[0] = 40
    with clock.part(goodput.EVALUATION):
        time[0] = 45
        with clock.part(goodput.COMPILE):
            time[0] = 55
        time[0] = 60
    time[0] = 90
    clock.enter(goodput.LOST)
    time[0] = 100
    found = {part: clock.seconds(part) for part in goodput.PARTS if clock.seconds(part)}
    assert found == {"start": 10, "step": 60, "evaluation": 10, "compile": 10, "lost": 10}
    assert clock.line() == (
        "goodput 60% of 100 s, start 10%, compile 10%, data 0%, step 60%, evaluation 10%, checkpoint 0%, lost 10%"
    )


@pytest.mark.parametrize("seconds, shown", [(119, "119 s"), (120, "2 min"), (7080, "118 min"), (11520, "3.2 h")])
def test_the_whole_time_is_shown_in_a_fitting_unit(seconds, shown):
    time = dict.fromkeys(goodput.PARTS, 0.0) | {"step": float(seconds)}
    assert goodput.summary([time]).startswith(f"goodput 100% of {shown}, ")


def test_a_host_that_differs_is_named(monkeypatch):
    monkeypatch.setattr(processes, "title", lambda process: f"process {process} (host)")
    seconds = dict.fromkeys(goodput.PARTS, 0.0)
    hosts = [seconds | {"data": data, "step": 7200 - data} for data in (72, 108, 3600)]
    line = goodput.summary(hosts)
    assert line.startswith("goodput 99% of 2.0 h, start 0%, compile 0%, data 1% (50% on process 2 (host)), step 99% (")
    assert "process" not in goodput.summary(hosts[:2])
