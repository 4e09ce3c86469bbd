"""What a preparation's summary says on the whole split: how many of what, who is usable, which way up pictures are."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from data_pipelines import orientation, records
from data_pipelines.builders.checker import LOST
from data_pipelines.builders.report import RawDataError, Report
from data_pipelines.paths import as_path
from data_pipelines.top_down import instances


def read_summary(directory: pathlib.Path) -> dict[str, Any]:
    """The summary of a finished split."""
    return json.loads((directory / records.SUMMARY_FILE).read_text())


def count(examples: list[dict[str, Any]]) -> dict[str, int]:
    """How many images and instances some examples are, and of what kinds."""
    found = [instance for example in examples for instance in example["instances"]]
    return {
        "images": len(examples),
        "images_without_instances": sum(not example["instances"] for example in examples),
        "instances": len(found),
        "crowds": sum(instance["crowd"] for instance in found),
        "without_keypoints": sum(
            not instance["crowd"] and (instance["num_keypoints"] == 0 or not (instance["keypoints"][:, 2] > 0).any())
            for instance in found
        ),
    }


def usable(columns: records.Annotations, report: Report, unlabelled_belong: bool, allow_none: bool) -> dict[str, Any]:
    """Who can be learned from and judged, and why the others cannot: see `instances.census`.

    Beside that `annotated`, the people that there should be, and `heavy_loss`, whether under half of them are usable.
    Crowds without labelled points are no people; nor, where they belong to the dataset, are others without.

    Raises:
      RawDataError: nobody is usable, unless that is allowed.
    """
    found = instances.census(columns, columns.protocol)
    dropped, remarks = report.as_dict()["instances"], report.as_dict()["remarks"]
    lost = {reason: tally["count"] for reason, tally in (dropped | {LOST: remarks.get(LOST)}).items() if tally}
    unlabelled = ~columns.labelled & (unlabelled_belong | columns.crowd)
    found["annotated"] = columns.num_instances - int(unlabelled.sum()) + sum(lost.values())
    least = min(found["training"], found["evaluation"])
    found["heavy_loss"] = 2 * least < found["annotated"]
    if not least and not allow_none:
        lost |= {reason: tally["count"] for reason, tally in remarks.items() if "(left out" in reason}
        why = ", ".join(f"{reason} {number}" for reason, number in (found["left_out"] | lost).items())
        raise RawDataError(
            f"{columns.dataset} ({columns.split}): no usable person: {found['training']} can be learned from and"
            f" {found['evaluation']} judged ({why or 'there is nobody'}); --allow_loss prepares it all the same"
            f"{advice(found['left_out'])}"
        )
    return found


def advice(left_out: Mapping[str, int]) -> str:
    """What to do about people who are left out for what many tools write, or ''."""
    if instances.NO_AREA not in left_out:
        return ""
    return "; `area` of 0 is nobody's size: leave the key out, and it is 0.53 of the box, or give square pixels"


def orientation_note(choice: str, why: str, tagged: int, total: int) -> str:
    """For the metadata: begins with 'stored' or 'upright'."""
    how = f"{choice}, {why}" if why else choice
    tags = f"{tagged} of {total} pictures have an EXIF orientation"
    if choice == orientation.UPRIGHT:
        return f"{how}; {tags}, which is applied"
    hint = "" if why else "; --orientation=upright if they were annotated as viewers show them"
    return f"{how}; {tags}, which is not applied{hint}"


def finished_splits(dataset: str, data_dir: str | pathlib.Path) -> dict[str, dict[str, Any]]:
    """{split: summary} of a dataset's finished splits."""
    paths = sorted((as_path(data_dir) / dataset).glob(f"*/{records.VERSION}/{records.SUMMARY_FILE}"))
    return {path.parts[-3]: json.loads(path.read_text()) for path in paths}


def orientation_of_others(data_dir: str | pathlib.Path, dataset: str, split: str) -> dict[str, str]:
    """{split: 'stored' or 'upright'} of the dataset's other finished splits, where some picture has an orientation."""
    found = {}
    for other, summary in finished_splits(dataset, data_dir).items():
        note = summary.get("metadata", {}).get("orientation", "")
        if other != split and note:
            found[other] = orientation.UPRIGHT if note.startswith(orientation.UPRIGHT) else orientation.STORED
    return found


def pictures_of_others(data_dir: str | pathlib.Path, dataset: str, split: str) -> dict[str, frozenset[str]]:
    """{split: absolute paths of its pictures, as far as they lie in their folder} of the other finished splits."""
    found = {}
    for other, summary in finished_splits(dataset, data_dir).items():
        if other == split or "images" not in summary["source"]:
            continue
        with contextlib.suppress(ValueError):  # a damaged one must not keep others from being made again
            names = records.load_annotations(dataset, other, data_dir).file_name
            found[other] = frozenset(os.path.abspath(os.path.join(summary["source"]["images"], name)) for name in names)
    return found


def first_faults(report: Report) -> str:
    """Why there is no image."""
    dropped = report.as_dict()["images"]
    found = [f"{reason} ({tally['count']}, first {tally['examples'][0]['file']})" for reason, tally in dropped.items()]
    advice = ["--images (--skeleton_images of prediction) names their folder"] if "missing image" in dropped else []
    return "dropped: " + "; ".join(found + advice) if found else "the annotation file lists none"
