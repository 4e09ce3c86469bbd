"""A short form of the campaign of docs/reliability.md, and whether it would notice what it looks for."""

from __future__ import annotations

import collections
import json
import pathlib
import signal
import time

import numpy as np
import pytest

from data_pipelines.builders.report import RawDataError
from scripts.reliability import (
    __main__,
    annotation_damage,
    annotations,
    bounds,
    cases,
    kills,
    long_run,
    outcomes,
    processes,
    training_runs,
)
from scripts.reliability.annotation_damage import Damage
from scripts.reliability.outcomes import Outcome
from tests.data_pipelines import annotation_formats
from tests.scripts import faulty_part

pytestmark = pytest.mark.slow  # runs parts of the campaign


def campaign(folder: pathlib.Path, part: str, count: int) -> list[Outcome]:
    """The command on a part, which must find no fault."""
    status = __main__.main([part, f"--out={folder}", f"--count={count}"])
    lines = (folder / f"{part}.jsonl").read_text().splitlines()
    found = [Outcome(**json.loads(line)) for line in lines]
    assert status == 0, [outcome for outcome in found if outcome.fault]
    return found


def test_weights(tmp_path):
    found = campaign(tmp_path, "weights", 28)
    assert len(found) == 28
    results = collections.Counter(outcome.result for outcome in found)
    assert results["named"] > 15 and results["read whole"] > 0


def test_annotations(tmp_path):
    found = campaign(tmp_path, "annotations", 12)  # every format
    assert len(found) == 12 * annotations.EXAMPLES
    assert {outcome.kind.partition(":")[0] for outcome in found} == set(annotation_formats.downloads())
    assert {outcome.result for outcome in found} >= {"reported", "refused", "unchanged"}


@pytest.mark.slow  # compiles the embedded model
def test_pictures(tmp_path):
    found = campaign(tmp_path, "pictures", 15)  # every kind
    assert len(found) == 30
    assert {outcome.result for outcome in found} >= {"read", "named"}


def test_a_killed_preparation(tmp_path, monkeypatch):
    monkeypatch.setattr(kills, "PICTURES", 50)
    for number in range(2):
        assert not kills._killed_preparation(tmp_path, 0, number).fault


def test_a_child_that_dies_or_hangs_costs_its_case(tmp_path):
    found = cases.run(faulty_part.__name__, tmp_path, 5, 0, 6)
    by_number = collections.defaultdict(list)
    for outcome in found:
        by_number[outcome.number].append(outcome)
    assert sorted(by_number) == list(range(6))
    assert [(o.result, o.detail) for o in by_number[0]] == [("well", "seed 5"), ("well", "")]
    (died,) = by_number[faulty_part.DIES]
    assert died.fault and "status 7" in died.detail
    (hung,) = by_number[faulty_part.HANGS]
    assert hung.fault and hung.result == "too slow"
    *_, much = by_number[faulty_part.TAKES_MUCH]
    assert much.fault and much.result == "over the bound"
    (raised,) = by_number[faulty_part.RAISES]
    assert raised.fault and raised.result == "KeyError" and "faulty_part.py" in raised.detail
    assert len(by_number[5]) == 2 and not by_number[5][0].fault


def test_forbidden_events_are_seen():
    import os

    watch = bounds.Watch()
    _, events = watch(os.system, "true")
    assert len(events) == 1 and events[0].startswith("os.system")
    assert watch(len, "abc") == (3, [])
    with pytest.raises(bounds.TimeLimit), bounds.time_limit(1):
        time.sleep(5)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    material = annotations.prepare(tmp_path_factory.mktemp("annotations"), 0)
    return material.references["coco"], material.folder / "coco"


@pytest.mark.parametrize(
    "damage, verdict",
    [
        (Damage("", "", frozenset([1]), people=1), "reported"),
        (Damage("", "", frozenset([2]), people=1), "lost beside the damage"),
        (Damage("", "", frozenset([1]), people=0), "lost beside the damage"),
    ],
)
def test_people_lost_beside_the_damage_are_noticed(reference, damage, verdict):
    coco, place = reference
    content = json.loads(json.dumps(coco.download.content))
    content["annotations"][0]["bbox"] = None
    summary, table = coco.download.prepare(place, content)
    result, _, fault = annotations.judge(coco, summary, table, damage)
    assert result == verdict and fault == (verdict != "reported")


def test_silence_and_other_people_are_noticed(reference):
    coco, place = reference
    content = json.loads(json.dumps(coco.download.content))
    content["annotations"][0]["bbox"][0] += 1
    summary, table = coco.download.prepare(place, content)
    here = {"images": frozenset([1]), "people": 1}
    assert annotations.judge(coco, summary, table, Damage("", "", **here))[0] == "other people"
    assert annotations.judge(coco, summary, table, Damage("", "", others=1, **here))[0] == "silence"
    plain = Damage("", "", others=1, plain=True, **here)
    assert annotations.judge(coco, summary, table, plain)[0] == "other valid labels"
    del content["annotations"][0]
    summary, table = coco.download.prepare(place, content)
    assert annotations.judge(coco, summary, table, plain)[0] == "silence"


def test_what_a_preparation_raises_is_judged(reference, monkeypatch):
    coco, place = reference
    refused = RawDataError("people_data.json is no JSON")
    for error, allowed, fault in (
        (refused, annotation_damage.EVERYTHING, False),
        (refused, frozenset(), True),  # one damaged person is no reason
        (RawDataError("something is wrong"), annotation_damage.EVERYTHING, True),  # where?
        (KeyError("bbox"), annotation_damage.EVERYTHING, True),
    ):

        def prepare(self, folder, content, error=error, **options):
            raise error

        monkeypatch.setattr(annotation_formats.Download, "prepare", prepare)
        assert annotations._try(coco, place, {}, Damage("", "", allowed))[2] == fault


def test_runs_that_differ_in_one_bit_are_told_apart(monkeypatch, tmp_path):
    figures = {("train", 1): {"loss": 0.1}}
    arrays = {"18/weights/a": np.float32([1, 2])}

    def found(figure, array):
        """Where a run differs from one that has this figure and this array instead, or beside."""
        for name, own, changed in (("_figures", figures, figure), ("_arrays", arrays, array)):
            contents = {tmp_path: own, tmp_path / "other": own | changed}
            monkeypatch.setattr(training_runs, name, contents.__getitem__)
        return training_runs.differences(tmp_path, tmp_path / "other")

    assert found({}, {}) == []
    for figure, array in (
        ({("train", 1): {"loss": np.nextafter(0.1, 1)}}, {}),
        ({("eval/coco", 6): {"AP": 0.0}}, {}),
        ({}, {"18/weights/a": np.float32([1, np.nextafter(np.float32(2), np.float32(3))])}),
        ({}, {"18/weights/b": np.float32([0])}),
    ):
        assert len(found(figure, array)) == 1


class Ended:
    """A program that has ended."""

    def __init__(self, status: int | None, said: str):
        self.process, self.said = self, said
        self.poll, self.returncode = lambda: status, status

    def text(self) -> str:
        return self.said

    last_line = text


@pytest.mark.parametrize(
    "status, said, with_what, result, fault",
    [
        (1, "error: process 1 is gone", signal.SIGKILL, "ends, names it", False),
        (1, "UNAVAILABLE: Task 1 heartbeat timeout", signal.SIGKILL, "ends, names it", False),
        (1, "error: something is gone", signal.SIGKILL, "ends", True),
        (0, "process 1 is gone, all is well", signal.SIGKILL, "ends, names it", True),
        (None, "waiting", signal.SIGKILL, "hangs", True),
        (0, "saved", signal.SIGTERM, "all end in order", False),
        (1, "failed", signal.SIGTERM, "ends", True),
    ],
)
def test_how_the_other_process_ends(status, said, with_what, result, fault):
    found = processes._judged(0, "", Ended(status, said), 1, with_what, 3.0)
    assert (found.result, found.fault) == (result, fault)


@pytest.mark.parametrize(
    "status, said, sent, wrong",
    [
        (-9, "step 3", signal.SIGKILL, False),
        (-9, "Traceback (most recent call last):", signal.SIGKILL, True),
        (0, "saved", signal.SIGTERM, False),
        (-15, "", signal.SIGTERM, False),
        (1, "error", signal.SIGTERM, True),
    ],
)
def test_how_a_killed_program_ends(status, said, sent, wrong):
    assert bool(kills._wrong_end(Ended(status, said), sent)) == wrong


def test_growth_is_noticed():
    steps = np.arange(500, 2000, 10, dtype=np.float64)
    noise = np.random.default_rng(0).normal(0, 5, len(steps))
    steady = np.column_stack([steps, 900 + noise, np.full(len(steps), 30), np.full(len(steps), 40)])
    assert not any(outcome.fault for outcome in long_run._verdicts(steady))
    for column, per_step in enumerate((0.05, 0.01, 0.01), start=1):
        growing = steady.copy()
        growing[:, column] += per_step * steps
        assert [outcome.fault for outcome in long_run._verdicts(growing)] == [column == n for n in (1, 2, 3)]


def test_the_table_names_kinds_results_and_faults(capsys, tmp_path):
    found = [Outcome(0, "cut: a", "named", "x"), Outcome(1, "cut: b", "read", "what [is] wrong", True, 1.5, 20.0)]
    outcomes.print_table("title", found)
    text = capsys.readouterr().out
    assert "2 cases, 1 faults" in text and "fault: case 1, cut: b: read: what [is] wrong" in text
    outcomes.write(tmp_path / "a" / "b.jsonl", found)
    assert [Outcome(**json.loads(line)) for line in (tmp_path / "a" / "b.jsonl").read_text().splitlines()] == found


def test_unknown_parts_are_refused(capsys):
    with pytest.raises(SystemExit):
        __main__.main(["weigths"])
    assert "weigths: the parts are weights, annotations" in capsys.readouterr().err
