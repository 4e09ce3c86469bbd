"""What an evaluation leaves for people and reports: an analysis a result, its short row, and pictures.

* `<workdir>/results/step_<n>/analysis/<name>.json`: the document of `measure.analyse`; `.md`: its table per keypoint;
* `<workdir>/gallery/<name>.json`: the newest evaluation's pictures;
* `<workdir>/pictures/<name>_worst.png`: the worst of them on one sheet, the truth on the left.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from data_pipelines.datasets import PoseDataset
from data_pipelines.paths import write_whole
from pose_common.analysis import gallery
from pose_common.analysis.errors import KINDS
from pose_common.analysis.measure import WITHIN, analyse
from pose_common.evaluation import draw, result_table
from pose_common.metrics.columns import GroundTruth, Poses


def write_analysis(
    workdir: pathlib.Path,
    name: str,
    about: Mapping[str, Any],
    source: gallery.Source,
    truth: GroundTruth,
    poses: Poses,
    dataset: PoseDataset,
    *,
    by_instance: bool,
    pictures: int,
) -> dict[str, Any]:
    """Analyses the poses of an evaluation and writes what the module says.

    Args:
      workdir: of the run.
      name: of the result.
      about: `step` and what else tells the result from others; it stands in both documents.
      source: pictures and annotations.
      truth, poses, dataset, by_instance: see `measure.analyse`.
      pictures: see `gallery.choose`; 0: no gallery.

    Returns:
      The result's row in the table of errors, {} where nobody is annotated.
    """
    if not len(truth.id):
        return {}
    document, pairs, errors = analyse(dataset, truth, poses, by_instance=by_instance)
    document = {**about, **document}
    files = dict(zip(source.annotations.image_id.tolist(), source.annotations.file_name, strict=True))
    for case in document["worst"]:
        case["file"] = str(files[case["image_id"]])
    folder = workdir / "results" / f"step_{about['step']}" / "analysis"
    _write(folder / f"{name}.json", document)
    table = result_table.markdown([_shown(row) for row in document["keypoints"]])
    (folder / f"{name}.md").write_text(table, encoding="utf8")
    if pictures:
        made = gallery.make_gallery(source, dataset.keypoints, truth, poses, pairs, errors, pictures)
        _write(workdir / "gallery" / f"{name}.json", {**about, "dataset": dataset.name, **made})
        sheet = gallery.worst_sheet(made, dataset.keypoints, pictures)
        if sheet is not None:
            (workdir / "pictures").mkdir(exist_ok=True)
            draw.save_image(workdir / "pictures" / f"{name}_worst.png", sheet)
    return errors_row(document)


def errors_row(document: Mapping[str, Any]) -> dict[str, str]:
    """One result's errors on a line."""
    people, total = document["people"], document["total"]

    def kind(name: str) -> str:
        cost = document["costs"].get(name)
        return f"{_percent(total[name], total['labelled'])}" + (f" ({cost:+.1f})" if cost else "")

    return {
        "found": f"{people['found']}/{people['labelled']}",
        "median px": _figure(total["median_error"]),
        "median %": _figure(total["median_error_percent"]),
        **{f"PCK@{limit:g}": _percent(total[f"pck@{limit:g}"], 1) for limit in WITHIN},
        "OKS": _percent(total["oks"], 1),
        **{name: kind(name) for name in KINDS},
    }


def _shown(row: Mapping[str, Any]) -> dict[str, str]:
    """A keypoint's row for people: shares in percent."""
    shares = {f"PCK@{limit:g}": _percent(row[f"pck@{limit:g}"], 1) for limit in WITHIN}
    counts = {name: str(row[name]) for name in (*KINDS, "left_right_swaps")}
    return {
        "keypoint": row["name"],
        "labelled": str(row["labelled"]),
        "median error (px)": _figure(row["median_error"]),
        "median error (% of the box's longer side)": _figure(row["median_error_percent"]),
        **shares,
        "mean OKS": _percent(row["oks"], 1),
        **{name.replace("_", " "): value for name, value in counts.items()},
    }


def _percent(value: float | None, whole: float) -> str:
    return "-" if value is None or not whole else f"{100 * value / whole:.1f}"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _write(path: pathlib.Path, document: Mapping[str, Any]) -> None:
    """The file is there either complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(document, allow_nan=False))
