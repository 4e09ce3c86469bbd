"""Curves of a run: what is in which panel, what has no line, where stages begin, and the picture."""

from __future__ import annotations

import json

import cv2
import numpy as np

from pose_common.training.curves import (
    FIRST,
    draw_curves,
    logarithmic,
    panels,
    parts_of_labels,
    stage_names,
    stage_starts,
)
from pose_common.training.writers import MetricWriter, read_metrics


def write_run(workdir) -> list[dict]:
    """A run of two stages, logged every 10 steps and where the stage ends, evaluated twice."""
    writer = MetricWriter(workdir)
    for step, stage in ((10, 0), (20, 0), (25, 0), (30, 1), (40, 1)):
        accuracy = {"accuracy/coco": step / 100, "accuracy/mpii": -1.0}
        writer.write(
            step, "train", {"grad_norm": 1.0, "loss": 1 / step, "learning_rate": 1e-3, **accuracy, "stage": stage}
        )
    for step in (25, 40):
        writer.write(step, "eval/coco/heads", {"AR": 0.1, "AP": step / 100, "AP (M)": -1.0})
        writer.write(
            step, "eval/mpii/heads", {"PCKh": float(step), "Head": 90.0, "Ankle": float("nan"), "unmeasured": 3.0}
        )
    writer.close()
    (workdir / "config.json").write_text(json.dumps({"stages": [{"name": "heads"}, {"name": "all"}]}))
    return read_metrics(workdir / "metrics.jsonl")


def test_panels_that_matter_come_first_and_nothing_is_drawn_of_nothing(tmp_path):
    found = panels(write_run(tmp_path))
    names = [panel.name for panel in found]
    assert names[:5] == ["loss", "accuracy", "AP", "PCKh", "learning_rate"] == [n for n in FIRST if n in names]
    assert set(names[5:]) == {"AR", "Head", "grad_norm", "unmeasured"}, "values that do not exist make no panel"
    by_name = {panel.name: panel.series for panel in found}
    assert by_name["accuracy"] == {"coco": ([10, 20, 25, 30, 40], [0.1, 0.2, 0.25, 0.3, 0.4])}
    assert by_name["AP"] == {"coco/heads": ([25, 40], [25.0, 40.0])} and by_name["PCKh"]["mpii/heads"][1] == [
        25.0,
        40.0,
    ]
    assert by_name["Head"]["mpii/heads"][1] == [90.0, 90.0] and by_name["unmeasured"]["mpii/heads"][1] == [3.0, 3.0]
    assert parts_of_labels(found) == (["coco", "mpii"], ["heads"])
    assert list(by_name["loss"]) == [""]
    assert [panel.name for panel in found if logarithmic(panel)] == ["loss"]


def test_stages_begin_where_the_old_one_ended(tmp_path):
    rows = write_run(tmp_path)
    assert stage_starts(rows, stage_names(tmp_path)) == [(0, "heads"), (25, "all")]
    assert stage_starts(rows) == [(0, "stage 1"), (25, "stage 2")]
    assert stage_starts([row | {"stage": None} for row in rows]) == [] == stage_names(tmp_path / "elsewhere")


def test_the_picture_shows_stages_and_lines(tmp_path):
    """Taking the second stage away changes the picture, as other figures do."""
    rows = write_run(tmp_path)
    pictures = []
    for number, change in enumerate(({}, {"stage": 0}, {"AP": 0.4})):
        path = tmp_path / f"{number}.jsonl"
        path.write_text("".join(json.dumps({k: change.get(k, v) for k, v in row.items()}) + "\n" for row in rows))
        draw_curves(path, tmp_path / f"{number}.png")
        pictures.append(cv2.imread(str(tmp_path / f"{number}.png")))
    whole, one_stage, flat = pictures
    assert whole is not None and whole.shape == one_stage.shape == flat.shape and whole.min() < 50
    assert np.abs(whole.astype(int) - one_stage).max() > 50 and np.abs(whole.astype(int) - flat).max() > 50


def test_nothing_is_drawn_of_an_empty_file(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
