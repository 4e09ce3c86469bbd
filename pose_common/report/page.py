"""The page: what runs say, arranged for the template `page.html`, which has no dependency and asks no network."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from pose_common.analysis.errors import KINDS
from pose_common.analysis.files import errors_row
from pose_common.evaluation.tasks import in_percent, shown, shown_figure
from pose_common.report.charts import Series, line_chart
from pose_common.report.runs import Run, headline, notes, result_name
from pose_common.training.curves import logarithmic, parts_of_labels

NOT_FOUND, NOBODY = "not found", "nobody's"
"""Beside the kinds of error: a person without a pose, and a pose without a person."""
FIRST_CURVES = 6
MAX_PICTURES = 20e6
"""Bytes of embedded pictures by default."""
_HERE = pathlib.Path(__file__).parent


def make_page(runs: Sequence[Run], max_pictures: float = MAX_PICTURES) -> str:
    """The HTML document.

    Args:
      runs: one, or several to compare; differences are to the first.
      max_pictures: bytes that the embedded pictures take at most, as text.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    gallery, left_out = _gallery(runs, max_pictures)
    footnotes = list(dict.fromkeys(note for run in runs for row in run.rows for note in notes(row)))
    return environment.get_template("page.html").render(
        style=Markup((_HERE / "page.css").read_text(encoding="utf8")),
        script=Markup((_HERE / "page.js").read_text(encoding="utf8")),
        title=" and ".join(run.name for run in runs),
        runs=runs,
        kinds=[*KINDS, NOT_FOUND],
        results=_results(runs, footnotes),
        footnotes=footnotes,
        remarks=list(dict.fromkeys(remark for run in runs for remark in run.remarks)),
        curves=_curves(runs),
        first_curves=FIRST_CURVES,
        analyses=_analyses(runs),
        gallery=_embedded(gallery),
        num_pictures=len(gallery["items"]),
        left_out=left_out,
        settings=_settings(runs),
        metrics=_metrics(runs) if len(runs) > 1 else [],
        keypoints=_keypoint_differences(runs) if len(runs) > 1 else [],
    )


def _embedded(document: Mapping[str, Any]) -> Markup:
    """JSON that stands inside a script element: no `<` that could end it."""
    return Markup(json.dumps(document, separators=(",", ":")).replace("<", "\\u003c"))


def _by_result(runs: Sequence[Run]) -> dict[str, list[Mapping[str, Any] | None]]:
    """{result: its row in each run, None where that has none}, in the order of their first appearance."""
    names = dict.fromkeys(result_name(row) for run in runs for row in run.rows)
    rows = [{result_name(row): row for row in run.rows} for run in runs]
    return {name: [table.get(name) for table in rows] for name in names}


def _results(runs: Sequence[Run], footnotes: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of the result table, one a result, with a figure a run and its difference from the first run's."""
    table = []
    for rows in _by_result(runs).values():
        known = next(row for row in rows if row is not None)
        names = headline(known)
        table.append(
            {
                "dataset": known["dataset"],
                "split": known["split"],
                "maps": known.get("maps", ""),
                "metric": known["metric"],
                "figures": [
                    {
                        "shown": shown(names, row["metrics"]) if row else "",
                        "change": [_change(name, rows[0], row) for name in names] if number else [],
                    }
                    for number, row in enumerate(rows)
                ],
                "boxes": known.get("boxes", ""),
                "published": known.get("published", ""),
                "published boxes": known.get("published boxes", ""),
                "images": known["images"],
                "notes": sorted({1 + footnotes.index(note) for row in rows if row for note in notes(row)}),
            }
        )
    return table


def _change(name: str, first: Mapping[str, Any] | None, row: Mapping[str, Any] | None) -> dict[str, Any]:
    """How a metric differs from the first run's."""
    before, after = (in_percent(name, r["metrics"].get(name)) if r else None for r in (first, row))
    return _difference(before, after, -1 if name == "EPE" else 1)


def _difference(before: float | None, after: float | None, better: int = 1) -> dict[str, Any]:
    """`shown`, and `sign` -1 (worse), 0 or 1 (better), of figures of which more is better, or with -1 less."""
    if before is None or after is None:
        return {"shown": "–", "sign": 0}
    difference = after - before
    return {"shown": f"{difference:+.1f}", "sign": 0 if abs(difference) < 0.05 else int(np.sign(difference)) * better}


def _curves(runs: Sequence[Run]) -> dict[str, Any]:
    """Training curves: charts in the panels' order; a colour a dataset, a dash pattern for maps and runs."""
    by_run = [{panel.name: panel for panel in run.panels} for run in runs]
    names = list(dict.fromkeys(name for panels in by_run for name in panels))
    datasets, maps = parts_of_labels([panel for panels in by_run for panel in panels.values()])
    maps = maps or [""]
    trained = [number for number, panels in enumerate(by_run) if panels]  # an evaluation alone has no curves
    end = max((steps[-1] for run in runs for panel in run.panels for steps, _ in panel.series.values()), default=1)

    def series(label: str, number: int, points: tuple[Sequence[float], Sequence[float]]) -> Series:
        dataset, _, kind = label.partition("/")
        dash = trained.index(number) * len(maps) + (maps.index(kind) if kind else 0)
        return Series(
            _line_name(label, runs[number].name, runs), datasets.index(dataset) if label else 0, dash, *points
        )

    staged = next((run.stages for run in runs if run.stages), ())
    charts = []
    for name in names:
        drawn = [(number, panels[name]) for number, panels in enumerate(by_run) if name in panels]
        lines = [series(label, number, points) for number, panel in drawn for label, points in panel.series.items()]
        marks = [(start.step, start.name) for start in staged if start.step]
        log = all(logarithmic(panel) for _, panel in drawn)
        chart = line_chart(name, lines, logarithmic=log, marks=marks, x_range=(0, end))
        charts.append({"name": f"{name} (logarithmic)" if log else name, "svg": chart})
    dashes = [" ".join(filter(None, [k, runs[n].name if len(trained) > 1 else ""])) for n in trained for k in maps]
    stages = ", ".join(f"{start.name} from step {start.step}" for start in staged)
    return {"charts": charts, "datasets": datasets, "dashes": dashes if len(dashes) > 1 else [], "stages": stages}


def _line_name(label: str, run: str, runs: Sequence[Run]) -> str:
    return " ".join(filter(None, [label, f"({run})" if len(runs) > 1 else ""])) or "training"


def _analyses(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Tables per keypoint, one a result and run; a result's are together."""
    names = dict.fromkeys(name for run in runs for name in run.analyses)
    pairs = [(name, run, run.analyses[name]) for name in names for run in runs if name in run.analyses]
    return [
        {
            "result": name,
            "run": run.name,
            "rows": [_keypoint_row(row) for row in document["keypoints"]],
            "total": _keypoint_row(document["total"]),
            "people": document["people"],
            "short": errors_row(document),
            "metric": document["metric"],
            "score": shown_figure(document["metric"], document["score"]),
            "costs": {kind: cost for kind, cost in document["costs"].items() if cost is not None},
            "largest": max((cost or 0 for cost in document["costs"].values()), default=0),
            "worst": document["worst"],
            "curves": _error_curves(runs, name),
        }
        for name, run, document in pairs
    ]


def _keypoint_row(row: Mapping[str, Any]) -> dict[str, Any]:
    counts = {**{kind: row[kind] for kind in KINDS}, NOT_FOUND: row["labelled"] - row["found"]}
    shares = {kind: 100 * count / row["labelled"] if row["labelled"] else 0.0 for kind, count in counts.items()}
    return {**row, "shares": {kind: share for kind, share in shares.items() if share}}


def _error_curves(runs: Sequence[Run], result: str) -> dict[str, Markup]:
    """PCK and OKS curves of a result, all runs in one chart."""
    charts = {}
    for curve, x_name in (("pck", "share of the box's longer side"), ("oks", "OKS")):
        found = [
            (number, run.name, run.analyses[result]["curves"][curve])
            for number, run in enumerate(runs)
            if result in run.analyses
        ]
        series = [
            Series(name, number, 0, points["at"], [100 * share for share in points["share"]])
            for number, name, points in found
            if None not in points["share"]
        ]
        if series:
            charts[curve] = line_chart(f"{curve} of {result}", series, x_name=x_name, y_range=(0, 100))
    return charts


def _gallery(runs: Sequence[Run], max_pictures: float) -> tuple[dict[str, Any], int]:
    """What the page's script shows, within the given bytes, and how many pictures were left out.

    Every result gets an equal share; of one that has more, pictures are taken evenly from the best to the worst.
    """
    galleries = [(number, name, made) for number, run in enumerate(runs) for name, made in run.galleries.items()]
    budget = max_pictures / max(1, len(galleries))
    skeletons: list[dict[str, Any]] = [{} for _ in runs]  # a custom dataset may have got others from run to run
    items: list[dict[str, Any]] = []
    left_out = 0
    for number, name, made in galleries:
        skeletons[number][name] = {field: made[field] for field in ("keypoints", "sides", "limbs")}
        kept = _within(made["items"], budget)
        left_out += len(made["items"]) - len(kept)
        items += [{"run": number, "result": name, "step": made["step"], **item} for item in kept]
    kinds = [*KINDS, NOT_FOUND, NOBODY]
    return {"runs": [run.name for run in runs], "skeletons": skeletons, "kinds": kinds, "items": items}, left_out


def _within(items: Sequence[Mapping[str, Any]], budget: float) -> list[Mapping[str, Any]]:
    ordered = sorted(items, key=lambda item: -1.0 if item["oks"] is None else item["oks"])
    for count in range(len(ordered), 0, -1):
        kept = [ordered[i] for i in np.linspace(0, len(ordered) - 1, count).astype(int)]
        if sum(len(item["picture"]) for item in kept) <= budget:
            return kept
    return []


def _settings(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Every leaf with its value in each run that has settings, and whether they differ."""
    known = [run.settings for run in runs if run.settings]
    leaves = sorted(set[str]().union(*known))
    return [
        {
            "name": name,
            "values": [run.settings.get(name, "" if run.settings else "(not recorded)") for run in runs],
            "differs": len({settings.get(name) for settings in known}) > 1,
        }
        for name in leaves
    ]


def _metrics(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Every metric of every result in all runs."""
    return [
        {
            "result": result,
            "rows": [
                {
                    "name": name,
                    "values": [shown([name], row["metrics"]) if row else "–" for row in rows],
                    "changes": [_change(name, rows[0], row) for row in rows[1:]],
                }
                for name in dict.fromkeys(name for row in rows if row for name in row["metrics"])
            ],
        }
        for result, rows in _by_result(runs).items()
    ]


def _keypoint_differences(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """PCK of every keypoint, for results that all runs have with the same skeleton."""
    found = []
    for result in runs[0].analyses:
        documents = [run.analyses.get(result) for run in runs]
        names = [[row["name"] for row in document["keypoints"]] if document else None for document in documents]
        if any(other != names[0] for other in names):
            continue
        rows = zip(*(document["keypoints"] for document in documents if document), strict=True)
        found.append({"result": result, "rows": [_keypoint_change(row) for row in rows]})
    return found


def _keypoint_change(row: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    values = [None if r["pck@0.1"] is None else 100 * r["pck@0.1"] for r in row]
    changes = [_difference(values[0], value) for value in values[1:]]
    return {"name": row[0]["name"], "values": [shown_figure("PCK", v) for v in values], "changes": changes}
