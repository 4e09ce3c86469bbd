"""Curves of a run from its `metrics.jsonl`: what belongs into one panel, where stages begin, and the picture."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from data_pipelines.paths import as_path
from pose_common.evaluation.tasks import in_percent
from pose_common.training.writers import EVAL, TRAIN, read_metrics

FIRST = ("loss", "accuracy", "AP", "PCKh", "learning_rate", "images_per_second_per_device")
"""Panels that matter most, where a run has them; training's others follow, then those of evaluations."""
DRAWN = 12
"""Panels of the picture; all of them are in the report, in TensorBoard and in the file."""
BY_DATASET = ("accuracy", "heatmap")
"""Training's figures that have one value a dataset, `accuracy/coco`."""
STAGE = "stage"
"""The field of a training row with the index of the run's stage."""
_NO_FIGURES = ("step", "split", STAGE)


class Panel(NamedTuple):
    """One figure against the step.

    Attributes:
      name: the metric's, without what tells its series apart.
      series: {label: (steps, values)}: a dataset, or dataset and maps, `coco/heads`; '' for training's only series of
        that name. Evaluations' figures are in percent, as in the result table.
    """

    name: str
    series: Mapping[str, tuple[list[int], list[float]]]


class StageStart(NamedTuple):
    """Where a stage begins: the step before its first, and its name."""

    step: int
    name: str


def panels(rows: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """The figures of `read_metrics`, those of `FIRST` first.

    Training's `accuracy/coco` is the series `coco` of the panel `accuracy`; AP of the split `eval/coco/heads` is the
    series `coco/heads` of the panel `AP`. What is not finite, or does not exist (-1), has no point.
    """
    found: dict[str, dict[str, tuple[list[int], list[float]]]] = {}
    for row in sorted(rows, key=lambda row: row["split"] != TRAIN):
        for name, value in row.items():
            if name in _NO_FIGURES or value is None or value == -1:
                continue
            panel, label = name, row["split"].removeprefix(EVAL)
            if row["split"] != TRAIN:
                value = in_percent(name, value)
            else:
                prefix, _, dataset = name.partition("/")
                panel, label = (prefix, dataset) if prefix in BY_DATASET else (name, "")
            steps, values = found.setdefault(panel, {}).setdefault(label, ([], []))
            steps.append(row["step"])
            values.append(value)
    order = [name for name in FIRST if name in found] + [name for name in found if name not in FIRST]
    return [Panel(name, found[name]) for name in order]


def stage_starts(rows: Sequence[Mapping[str, Any]], names: Sequence[str] = ()) -> list[StageStart]:
    """Where the stages of a run begin, the first at 0, as its training rows say; numbered where they have no name.

    A row of the old stage is written at the very step where the next one begins.
    """
    starts: dict[int, int] = {}
    last = 0
    for row in rows:
        if row["split"] == TRAIN and row.get(STAGE) is not None:
            starts.setdefault(int(row[STAGE]), last)
            last = row["step"]
    return [
        StageStart(step, names[index] if index < len(names) else f"stage {index + 1}") for index, step in starts.items()
    ]


def stage_names(workdir: pathlib.Path) -> list[str]:
    """Names of a run's stages from its `config.json`; [] without one."""
    path = workdir / "config.json"
    if not path.is_file():
        return []
    return [stage["name"] for stage in json.loads(path.read_text(encoding="utf8")).get("stages", ())]


def parts_of_labels(drawn: Sequence[Panel]) -> tuple[list[str], list[str]]:
    """The datasets and the maps that series are of; a colour each, and a dash pattern each."""
    labels = dict.fromkeys(label for panel in drawn for label in panel.series if label)
    parts = [label.partition("/") for label in labels]
    return list(dict.fromkeys(part[0] for part in parts)), list(dict.fromkeys(part[2] for part in parts if part[2]))


def logarithmic(panel: Panel) -> bool:
    """Whether a panel is drawn on a logarithmic scale: losses, where all are above 0."""
    values = [value for _, series in panel.series.values() for value in series]
    return "loss" in panel.name and min(values, default=0.0) > 0


def draw_curves(metrics_path: str | pathlib.Path, picture_path: str | pathlib.Path) -> None:
    """The first `DRAWN` panels in rows of three, stages marked, one legend; nothing where a run has no figures yet."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = read_metrics(metrics_path)
    drawn = panels(rows)[:DRAWN]
    if not drawn:
        return
    starts = stage_starts(rows, stage_names(as_path(metrics_path).parent))
    datasets, maps = parts_of_labels(drawn)
    columns = min(3, len(drawn))
    lines = math.ceil(len(drawn) / columns)
    legend = 0.25 * math.ceil(len(datasets) * max(1, len(maps)) / 4) + 0.2  # inches
    height = 2.6 * lines + legend
    figure, axes = plt.subplots(lines, columns, figsize=(5 * columns, height), squeeze=False)
    end = max(row["step"] for row in rows)
    handles = {}
    for number, (axis, panel) in enumerate(zip(axes.flat, drawn, strict=False)):
        for label, (steps, values) in panel.series.items():
            dataset, _, kind = label.partition("/")
            colour = plt.get_cmap("tab20")(datasets.index(dataset) % 20) if label else "black"
            style = ("-", "--", ":", "-.")[maps.index(kind) % 4] if kind else "-"
            marker = "o" if len(steps) < 8 else None
            (line,) = axis.plot(steps, values, marker=marker, markersize=3, color=colour, linestyle=style)
            if label:
                handles[label] = line
        axis.set_title(panel.name, fontsize=9)
        if logarithmic(panel):
            axis.set_yscale("log")
        axis.set_xlim(-0.02 * end - 0.5, 1.02 * end + 0.5)
        _mark_stages(axis, starts, named=number == 0)
    for axis in axes.flat[len(drawn) :]:
        axis.axis("off")
    if handles:
        figure.legend(handles.values(), handles, loc="upper center", ncols=4, fontsize=8)
    figure.tight_layout(rect=(0, 0, 1, 1 - legend / height))
    with as_path(picture_path).open("wb") as file:
        figure.savefig(file, dpi=90)
    plt.close(figure)


def _mark_stages(axis, starts: Sequence[StageStart], named: bool) -> None:
    for start in starts:
        if start.step:
            axis.axvline(start.step, color="0.6", linewidth=0.8, linestyle=":")
        if named and len(starts) > 1:
            place = {"transform": axis.get_xaxis_transform(), "ha": "left", "va": "top"}
            axis.text(start.step, 0.98, start.name, rotation=90, fontsize=7, color="0.4", **place)
