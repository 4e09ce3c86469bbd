"""DeepLabCut: a project folder, `config.yaml` and `labeled-data/<video>/CollectedData_<scorer>.csv`.

The tables have header rows scorer, (individuals,) bodyparts, coords, and a row a frame; a frame is named by its path,
in one column or in three. Pictures are looked for beside their table, whatever folder the path names. Points without
coordinates are not labelled. `config.yaml` gives the order of the body parts and the skeleton, and says whose labels
count where several people labelled; without it the tables do.
"""

from __future__ import annotations

import csv
import itertools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from data_pipelines import fields
from data_pipelines.builders.report import RawDataError
from data_pipelines.fields import Fault
from data_pipelines.importers.labels import VISIBLE, Broken, LabelledPicture, Labels, Person, Point, assemble, in_order
from data_pipelines.importers.text_files import files_in, read_text, read_yaml

CONFIG, TABLES = "config.yaml", "labeled-data/*/CollectedData_*.csv"
_HEADS = (["scorer", "bodyparts", "coords"], ["scorer", "individuals", "bodyparts", "coords"])
_UNIQUE = "single"  # individual under which a multi-animal project lists what belongs to no animal
_EMPTY = ("", "nan")
_Remark = tuple[str, pathlib.Path, str]


class _Table(NamedTuple):
    """What a table holds; see `Labels`."""

    parts: Sequence[str]
    pictures: Sequence[LabelledPicture]
    broken: Sequence[Broken]
    remarks: Sequence[_Remark]


def fits(path: pathlib.Path) -> bool:
    """Whether this is a DeepLabCut project, its configuration or its folder."""
    folder = path if path.is_dir() else path.parent
    if path.is_file():
        return path.name == CONFIG and bool(files_in(folder, TABLES))
    return bool(files_in(folder, TABLES))


def read(path: pathlib.Path, images: pathlib.Path | None = None, names: Sequence[str] | None = None) -> Labels:
    """The labels of a project.

    Args:
      path: its folder, or the `config.yaml` in it.
      images: the project's folder with the pictures, where that is another one.
      names: the body parts in order; where those of `config.yaml` are others, those count.

    Raises:
      RawDataError: no tables, or a table or configuration that cannot be understood.
    """
    folder = path if path.is_dir() else path.parent
    config = read_yaml(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    paths = _tables(folder, config)
    own = _names(folder / CONFIG, config, "bodyparts", "multianimalbodyparts") if config else None
    tables = zip(*(_read_table(path, own) for path in paths), strict=True)
    parts, pictures, broken, remarks = (list(itertools.chain(*of_tables)) for of_tables in tables)
    names = in_order(own, names) if own else names or list(dict.fromkeys(parts))
    limbs, unknown = _limbs(folder / CONFIG, config, names)
    remarks += unknown + _unread(folder, paths)
    return assemble(pictures, images or folder, names, limbs=limbs, broken=broken, remarks=remarks)


def _tables(folder: pathlib.Path, config: Mapping[str, Any]) -> list[pathlib.Path]:
    """One table a video."""
    found = files_in(folder, TABLES)
    if not found:
        raise RawDataError(f"{folder} has no {TABLES}; DeepLabCut writes the .csv beside each .h5 of labels")
    by_video: dict[pathlib.Path, list[pathlib.Path]] = {}
    for table in found:
        by_video.setdefault(table.parent, []).append(table)
    chosen = []
    for video, tables in by_video.items():
        own = [table for table in tables if table.stem == f"CollectedData_{config.get('scorer')}"]
        if len(tables) > 1 and not own:
            listed = ", ".join(table.name for table in tables)
            raise RawDataError(f"{video} has {listed}; {folder / CONFIG} should name the scorer whose labels count")
        chosen += own or tables
    return chosen


def _unread(folder: pathlib.Path, tables: Sequence[pathlib.Path]) -> list[_Remark]:
    """Remarks on the videos that have labels, but no table."""
    videos = {table.parent for table in tables}
    files = files_in(folder, "labeled-data/*/*.h5", "labeled-data/*/*.csv")
    of_video = itertools.groupby((file for file in files if file.parent not in videos), lambda file: file.parent)
    return [
        ("video without CollectedData_*.csv (left out)", video, f"it has {', '.join(file.name for file in others)}")
        for video, others in of_video
    ]


def _names(path: pathlib.Path, config: Mapping[str, Any], *keys: str) -> list[str]:
    """The body parts: `bodyparts`, or in a project of several animals `multianimalbodyparts`."""
    for key in keys:
        if isinstance(config.get(key), list) and config[key]:
            return [str(name) for name in config[key]]
    raise RawDataError(f"{path}: {' or '.join(keys)} should list the body parts, not {config.get(keys[0])!r:.80}")


def _limbs(
    path: pathlib.Path, config: Mapping[str, Any], names: Sequence[str]
) -> tuple[list[tuple[str, str]], list[_Remark]]:
    """(neighbours in every chain of `skeleton`, remarks); a new project's configuration has one of names that are not
    there."""
    chains = config.get("skeleton") or []
    if not isinstance(chains, list) or not all(isinstance(chain, list) for chain in chains):
        raise RawDataError(f"{path}: skeleton should be a list of lists of body parts, not {chains!r:.80}")
    limbs = [limb for chain in chains for limb in itertools.pairwise(map(str, chain))]
    unknown = [limb for limb in limbs if not set(limb) <= set(names)]
    remarks = [("limb of unknown body parts (left out)", path, " - ".join(limb)) for limb in unknown]
    return [limb for limb in limbs if limb not in unknown], remarks


def _read_table(path: pathlib.Path, names: Sequence[str] | None) -> _Table:
    rows = list(csv.reader(read_text(path).splitlines()))
    depth = next((len(head) for head in _HEADS if [row[0] for row in rows[: len(head)] if row] == head), 0)
    if not depth:
        heads = " or ".join(", ".join(head) for head in _HEADS)
        first_row = ",".join(rows[0]) if rows else ""
        raise RawDataError(
            f"{path}: the first rows should be {heads}, in columns apart by commas; the first is {first_row!r:.80}"
        )
    first = next((column for column, text in enumerate(rows[depth - 1]) if text in ("x", "y")), 0)
    columns = _columns(path, rows[:depth], first, names)
    parts = [part for individual, part, _ in columns if individual != _UNIQUE]
    unique = [("unique body parts, of no animal (left out)", path, "")] if len(parts) < len(columns) else []
    pictures: dict[str, LabelledPicture] = {}
    broken = []
    for line, row in enumerate(rows[depth:], depth + 1):
        if not any(row):
            continue
        name = re.split(r"[/\\]", "/".join(cell for cell in row[:first] if cell))[-1]
        file_name = f"{path.parent.parent.name}/{path.parent.name}/{name}"
        if len(row) != first + len(columns) or not name or file_name in pictures:
            detail = f"{name} again" if file_name in pictures else f"{len(row)} cells under {first + len(columns)}"
            broken.append(Broken(Fault("bad row", detail), path, f"line {line}", False))
            continue
        people, faults = _people(columns, row[first:], f"line {line}")
        pictures[file_name] = LabelledPicture(file_name, path, people, faults)
    return _Table(parts, list(pictures.values()), broken, unique)


def _columns(
    path: pathlib.Path, head: Sequence[Sequence[str]], first: int, names: Sequence[str] | None
) -> list[tuple[str, str, str]]:
    """(individual, body part, x or y) of every column of numbers."""
    individuals = head[1][first:] if len(head) == 4 else [""] * len(head[-1][first:])
    if not first or len({len(row) for row in head}) != 1:
        raise RawDataError(f"{path}: the rows of the head should name x and y of each body part")
    columns = list(zip(individuals, head[-2][first:], head[-1][first:], strict=True))
    for number, (individual, part, axis) in enumerate(columns):
        if axis != "xy"[number % 2] or (number % 2 and columns[number - 1][:2] != (individual, part)):
            raise RawDataError(f"{path}: column {first + number + 1} should be {'xy'[number % 2]} of a body part")
        if names is not None and part not in names and individual != _UNIQUE:
            raise RawDataError(f"{path}: {part!r} is none of the body parts of {CONFIG}: {', '.join(names)}")
    return columns


def _people(
    columns: Sequence[tuple[str, str, str]], cells: Sequence[str], entry: str
) -> tuple[list[Person], list[tuple[Fault, str]]]:
    """(animals, what is wrong) of a row."""
    points: dict[str, dict[str, Point]] = {}
    faults: dict[str, Fault] = {}
    for number in range(0, len(cells), 2):
        individual, part, _ = columns[number]
        pair = {axis: cells[number + place].strip() for place, axis in enumerate("xy")}
        if individual == _UNIQUE or all(text.lower() in _EMPTY for text in pair.values()):
            continue
        try:
            coordinates = {f"{part} {axis}": text or None for axis, text in pair.items()}
            x, y = (fields.number(coordinates, key) for key in coordinates)
            points.setdefault(individual, {})[part] = (x, y, VISIBLE)
        except Fault as fault:
            faults.setdefault(individual, fault)

    def where(individual: str) -> str:
        return f"{entry}, {individual}" if individual else entry

    people = [Person(found, where(name)) for name, found in points.items() if name not in faults]
    return people, [(fault, where(name)) for name, fault in faults.items()]
