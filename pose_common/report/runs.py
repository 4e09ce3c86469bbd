"""What a working directory holds for a report: the newest evaluation, its analyses and galleries, curves, settings."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines.paths import absolute, as_path
from pose_common.evaluation import result_table
from pose_common.evaluation.published import ANNOTATED, UNBOXED
from pose_common.training import configuration
from pose_common.training.curves import Panel, StageStart, panels, stage_names, stage_starts
from pose_common.training.writers import read_metrics

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Run:
    """One run, as far as it got.

    Attributes:
      name: to tell it from the others of a report.
      path: its working directory.
      step: of the evaluation.
      rows, remarks: the result table.
      analyses: {result: document}, in the table's order; see `pose_common.analysis.measure`.
      galleries: {result: document}; they are the newest evaluation's, whatever `step` is (each says its own).
      panels, stages: of its curves.
      settings: {leaf: value}, {} where the working directory holds an evaluation only.
    """

    name: str
    path: pathlib.Path
    step: int
    rows: Sequence[Row]
    remarks: Sequence[str]
    analyses: Mapping[str, Row]
    galleries: Mapping[str, Row]
    panels: Sequence[Panel]
    stages: Sequence[StageStart]
    settings: Mapping[str, str]

    @property
    def method(self) -> str:
        """As the settings have it, else ''."""
        return self.settings.get("method", "").strip("'")

    @property
    def other_steps(self) -> list[int]:
        """Steps of galleries that are not of this evaluation: a later one has drawn its own."""
        return sorted({made["step"] for made in self.galleries.values()} - {self.step})


def read_runs(paths: Sequence[str | pathlib.Path]) -> list[Run]:
    """Reads working directories; each may be one evaluation of one, `<workdir>/results/step_<n>`.

    Raises:
      ValueError: nothing was evaluated there, or a file is damaged; names it.
    """
    split = [_split(as_path(path)) for path in paths]
    names = _names(split)
    return [_read(name, workdir, step) for name, (workdir, step) in zip(names, split, strict=True)]


def result_name(row: Row) -> str:
    """The result that a row of the table belongs to: 'coco val heads', with boxes that are a detector's behind it."""
    names = [str(row[field]) for field in ("dataset", "split", "maps") if row.get(field)]
    detector = row.get("boxes", "")
    return " ".join([*names, *([] if detector in ("", ANNOTATED, UNBOXED) else [detector])])


def _split(path: pathlib.Path) -> tuple[pathlib.Path, int]:
    """(working directory, step) of an argument."""
    found = re.fullmatch(r"step_(\d+)", path.name)
    if found and path.parent.name == "results":
        return path.parent.parent, int(found[1])
    if not path.is_dir():
        raise ValueError(f"{path}: there is no such folder; expected a run's working directory")
    steps = [int(p.parent.name[5:]) for p in path.glob("results/step_*/table.json") if p.parent.name[5:].isdigit()]
    if not steps:
        run = next((folder for folder in path.parents if any(folder.glob("results/step_*/table.json"))), None)
        if run is not None:
            raise ValueError(f"{path}: expected a working directory, which is {run}, or {run}/results/step_<n>")
        raise ValueError(
            f"{path}: nothing was evaluated here: there is no results/step_<n>/table.json; evaluate with "
            f"--config.mode=evaluate --config.checkpoint={path} --workdir={path}"
        )
    return path, max(steps)


def _names(split: Sequence[tuple[pathlib.Path, int]]) -> list[str]:
    """Folder names; with the step or the whole path where several have the same."""
    for names in (
        [absolute(path).name for path, _ in split],
        [f"{absolute(path).name} step {step}" for path, step in split],
        [f"{path} step {step}" for path, step in split],
    ):
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate(names, 1)]


def _read(name: str, workdir: pathlib.Path, step: int) -> Run:
    folder = workdir / "results" / f"step_{step}"
    table = _json(folder / "table.json")
    order = [result_name(row) for row in table["rows"]]
    metrics = workdir / "metrics.jsonl"
    figures = read_metrics(metrics) if metrics.is_file() else []
    config = workdir / "config.json"
    settings = configuration.shown(_json(config)) if config.is_file() else ""
    return Run(
        name=name,
        path=workdir,
        step=step,
        rows=table["rows"],
        remarks=table["remarks"],
        analyses=_by_result(folder / "analysis", order),
        galleries=_by_result(workdir / "gallery", order),
        panels=panels(figures),
        stages=stage_starts(figures, stage_names(workdir)),
        settings=dict(line.split(" = ", 1) for line in settings.splitlines()),
    )


def _by_result(folder: pathlib.Path, order: Sequence[str]) -> dict[str, Row]:
    """The documents of the named results."""
    documents = {result_name(document): document for document in map(_json, sorted(folder.glob("*.json")))}
    return {name: documents[name] for name in order if name in documents}


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf8"))
    except FileNotFoundError:
        raise ValueError(f"there is no {path}") from None
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); evaluate again") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path}: expected an object, not a {type(document).__name__}; evaluate again")
    return document


def headline(row: Row) -> list[str]:
    """Names of the metrics that stand in the table."""
    return str(row["metric"]).split(" / ")


def notes(row: Row) -> list[str]:
    """What stands under the table for this row."""
    return list(row.get(result_table.NOTES, ()))
