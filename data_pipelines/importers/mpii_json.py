"""MPII-like JSON: a list of people, each with `image`, `joints` and `joints_vis`, and maybe `center` and `scale`.

Coordinates count from 1, as Matlab's. Sixteen joints are MPII's; others need their names. A person with a centre and a
scale has the square of side 200 x scale around it as box.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipelines import fields
from data_pipelines.builders import raw_files
from data_pipelines.builders.report import RawDataError
from data_pipelines.fields import Fault
from data_pipelines.importers.labels import VISIBLE, Broken, LabelledPicture, Labels, Person, assemble
from data_pipelines.importers.text_files import folder_of_pictures, require_json_file, starts_like, the_json_file
from data_pipelines.skeletons import KEYPOINT_SETS

UNIT = 200.0  # pixels of scale 1
MPII = KEYPOINT_SETS["mpii"]


def fits(path: pathlib.Path) -> bool:
    """Whether this is a JSON list of people with joints, or a folder with exactly one JSON file that is one."""
    file = the_json_file(path)
    return file is not None and starts_like(file, r'^\s*\[\s*\{(?s:.*)"joints"\s*:')


def read(path: pathlib.Path, images: pathlib.Path | None = None, names: Sequence[str] | None = None) -> Labels:
    """The people of a file.

    Args:
      path: the JSON file, or the folder that has it alone.
      images: where the pictures lie; None for the folder of the file, or `images` in it.
      names: the joints in order; None for MPII's.

    Raises:
      RawDataError: not such a file, or joints without names.
    """
    file = require_json_file(path)
    entries = raw_files.read_json(file)
    if not isinstance(entries, list):
        raise RawDataError(f"{file} does not hold a list of people but a {type(entries).__name__}")
    if names is None:
        joints = [entry.get("joints") for entry in entries if isinstance(entry, dict)]
        counts = {len(of_person) for of_person in joints if isinstance(of_person, list)}
        if counts != {MPII.num_keypoints}:
            raise RawDataError(f"{file} has people of {sorted(counts)} joints, which need names: --keypoints=a,b,...")
        names = MPII.keypoints
    is_mpii = tuple(names) == MPII.keypoints
    limbs = [(names[a], names[b]) for a, b in MPII.limbs] if is_mpii else []
    by_image: dict[str, tuple[list[Person], list[tuple[Fault, str]]]] = {}
    broken = []
    for number, entry in enumerate(entries, 1):
        name = entry.get("image") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name:
            broken.append(Broken(Fault("missing field", "image"), file, f"person {number}", True))
            continue
        people, faults = by_image.setdefault(name, ([], []))
        try:
            people.append(_person(entry, f"person {number}", names))
        except Fault as fault:
            faults.append((fault, f"person {number}"))
    pictures = [LabelledPicture(name, file, people, faults) for name, (people, faults) in by_image.items()]
    return assemble(pictures, images or folder_of_pictures(file), names, limbs=limbs, broken=broken)


def _person(entry: dict[str, Any], where: str, names: Sequence[str]) -> Person:
    count = len(names)
    if entry.get("joints_vis") is None:  # then a negative joint is one that is not labelled
        visible = (fields.unchecked(entry, "joints", count, 2) > 0).all(axis=1)
    else:
        visible = fields.flags(entry, "joints_vis", count)
    joints = fields.points(entry, "joints", visible) - 1
    points = {names[k]: (float(joints[k, 0]), float(joints[k, 1]), VISIBLE) for k in np.flatnonzero(visible)}
    if entry.get("center") is None or entry.get("scale") is None:
        return Person(points, where)
    x, y = fields.numbers(entry, "center", 2) - 1
    side = UNIT * fields.number(entry, "scale")
    if side <= 0:
        return Person(points, where)
    return Person(points, where, (float(x - side / 2), float(y - side / 2), side, side))
