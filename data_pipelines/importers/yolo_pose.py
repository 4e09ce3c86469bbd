"""YOLO-pose: a `data.yaml` with `kpt_shape`, pictures in `images/...` and a text file a picture in `labels/...`.

A line is class, box (centre and size) and x, y(, v) of every keypoint, as shares of the picture. `flip_idx` gives the
mirror pairs, `kpt_names` (or `--keypoints`) the keypoints' names; without, they are numbered. With two numbers a
keypoint, one at (0, 0) or below is not labelled. Of a split that is not there the others are read.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines import fields
from data_pipelines.builders.report import NoAnnotations, RawDataError
from data_pipelines.fields import Fault
from data_pipelines.importers import pictures as picture_files
from data_pipelines.importers.labels import (
    VISIBLE,
    Broken,
    LabelledPicture,
    Labels,
    OfAnotherKind,
    Person,
    Point,
    assemble,
)
from data_pipelines.importers.text_files import files_below, files_in, read_text, read_yaml
from data_pipelines.picture_formats import SUFFIXES

SPLITS = ("train", "val", "test")
_OUTSIDE = 0.01  # of the picture; what a rounded coordinate may lie beyond its border


def fits(path: pathlib.Path) -> bool:
    """Whether this is such a `data.yaml`, or a folder with exactly one."""
    return _settings_file(path) is not None


def _settings_file(path: pathlib.Path) -> pathlib.Path | None:
    files = [path] if path.is_file() else files_in(path, "*.yaml", "*.yml")
    files = [file for file in files if file.suffix.lower() in (".yaml", ".yml")]
    found = [file for file in files if _has_keypoints(file)]
    return found[0] if len(found) == 1 else None


def _has_keypoints(file: pathlib.Path) -> bool:
    try:
        return "kpt_shape" in read_yaml(file)
    except RawDataError:  # a YAML file of something else
        return False


def own_splits(path: pathlib.Path) -> tuple[str, ...]:
    """The splits that `data.yaml` names."""
    file = _settings_file(path)
    settings = {} if file is None else read_yaml(file)
    return tuple(split for split in SPLITS if settings.get(split))


def read(path: pathlib.Path, images: pathlib.Path | None = None, names: Sequence[str] | None = None) -> Labels:
    """The labels of all splits.

    Args:
      path: `data.yaml`, or the folder that has it.
      images: what stands for its `path`, the folder of the dataset.
      names: the keypoints in order, where the file does not say.

    Raises:
      RawDataError: settings that cannot be understood, or no split that is there.
    """
    file = _settings_file(path)
    if file is None:
        raise RawDataError(f"{path} has no YAML file with kpt_shape, or several")
    settings = read_yaml(file)
    try:
        count, numbers = (fields.integer({"kpt_shape": v}, "kpt_shape") for v in _list(settings, "kpt_shape", 2))
        if count < 1 or numbers not in (2, 3):
            raise Fault("bad kpt_shape", f"{[count, numbers]}; keypoints, and 2 or 3 numbers each, are needed")
        names = _keypoint_names(settings, names, count)
        mirror = _mirror(settings, names)
        classes = _classes(settings)
    except Fault as fault:
        raise RawDataError(f"{file}: {fault}") from fault
    root = images or _root(file, settings)
    found, broken, absent = [], [], {}
    for split in SPLITS:
        try:
            pictures = _pictures(file, root, settings.get(split))
        except NoAnnotations as error:
            absent[split] = str(error)
            continue
        for picture in pictures:
            try:
                found.append(_labelled(picture, root, split, names, numbers, classes))
            except Fault as fault:
                broken.append(Broken(fault, picture, "", False))
            except RawDataError as error:
                broken.append(Broken(Fault("unreadable label file", str(error)), picture, "", False))
    if not found and not broken:
        places = ", ".join(str(settings.get(split)) for split in SPLITS)
        why = "; ".join(absent.values()) or f"no picture in {places} of {root}"
        raise RawDataError(f"{file}: {why}")
    labels = assemble(found, root, names, broken=broken, mirror=mirror)
    return dataclasses.replace(labels, absent=absent)


def _list(settings: Mapping[str, Any], key: str, count: int) -> list:
    value = settings.get(key)
    if not isinstance(value, list) or len(value) != count:
        raise Fault("wrong length", f"{key} is {value!r:.80}; a list of {count} is needed")
    return value


def _keypoint_names(settings: Mapping[str, Any], names: Sequence[str] | None, count: int) -> list[str]:
    found = settings.get("kpt_names")
    if isinstance(found, dict):  # of each class; they share a skeleton
        if any(other != next(iter(found.values())) for other in found.values()):
            raise Fault("different kpt_names", f"{found!r:.200}; classes with different keypoints are datasets apart")
        found = next(iter(found.values()), None)
    if found is None:
        found = names or [f"keypoint_{number}" for number in range(1, count + 1)]
    if not isinstance(found, (list, tuple)) or len(found) != count:
        raise Fault("wrong length", f"kpt_shape says {count} keypoints, but their names are {found!r:.200}")
    return [str(name) for name in found]


def _mirror(settings: Mapping[str, Any], names: Sequence[str]) -> tuple[tuple[str, str], ...] | None:
    if settings.get("flip_idx") is None:
        return None
    flip = [fields.integer({"flip_idx": v}, "flip_idx") for v in _list(settings, "flip_idx", len(names))]
    if any(not 0 <= other < len(names) or flip[other] != number for number, other in enumerate(flip)):
        raise Fault("bad flip_idx", f"{flip}: twice mirrored, every keypoint should be itself")
    return tuple((names[number], names[other]) for number, other in enumerate(flip) if number < other)


def _classes(settings: Mapping[str, Any]) -> dict[int, str]:
    names = settings.get("names")
    if isinstance(names, dict):
        return {fields.integer({"names": number}, "names"): str(name) for number, name in names.items()}
    if isinstance(names, list):
        return dict(enumerate(map(str, names)))
    return {number: f"class_{number}" for number in range(fields.integer(settings, "nc"))}


def _root(file: pathlib.Path, settings: Mapping[str, Any]) -> pathlib.Path:
    """`path`, if it is there from the file's folder; else that folder, as a dataset may have been moved."""
    named = file.parent / str(settings.get("path") or ".").replace("\\", "/")
    return named if named.is_dir() else file.parent


def _pictures(file: pathlib.Path, root: pathlib.Path, places: Any) -> list[pathlib.Path]:
    """The pictures of a split: of a folder, of a text file that lists them, or of several of these.

    Raises:
      NoAnnotations: one of them is not there.
    """
    pictures: list[pathlib.Path] = []
    for written in map(str, places if isinstance(places, list) else [places] if places else []):
        place = written.replace("\\", "/")
        # Roboflow writes ../train/images for the folder beside the file; as Ultralytics, it is looked for there last.
        names = dict.fromkeys((place, place.removeprefix("../")))
        paths = [folder / name for name in names for folder in (root, file.parent)]
        path = next((path for path in paths if path.exists()), paths[0])
        if path.is_dir():
            pictures += files_below(path, *SUFFIXES)
        elif path.is_file():
            pictures += [_listed(path, root, line.strip()) for line in read_text(path).splitlines() if line.strip()]
        else:
            raise NoAnnotations(f"there is no {path}")
    return pictures


def _listed(file: pathlib.Path, root: pathlib.Path, name: str) -> pathlib.Path:
    """A picture that a text file lists: beside the file, or else where the dataset has it by ever less of its path."""
    beside = file.parent / name
    return beside if os.path.exists(beside) else picture_files.find(root, name)


def _label_file(picture: pathlib.Path) -> pathlib.Path:
    """In `labels` for the last `images` of the path; or beside the picture, if it is there alone."""
    parts = list(picture.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    usual, beside = (path.with_suffix(".txt") for path in (pathlib.Path(*parts), picture))
    return beside if beside.is_file() and not usual.is_file() else usual


def _labelled(
    picture: pathlib.Path, root: pathlib.Path, split: str, names: Sequence[str], numbers: int, classes: dict[int, str]
) -> LabelledPicture:
    """Raises Fault for a picture that cannot be read, RawDataError for a label file that cannot."""
    label_file = _label_file(picture)
    size = picture_files.seen_size_of(picture)  # shares are of what the label tool showed
    people: list[Person] = []
    broken: list[tuple[Fault, str]] = []
    is_there = label_file.is_file()
    if not is_there:
        broken.append((OfAnotherKind("label file that is not there", "its picture counts as one of nobody"), ""))
    for number, line in enumerate(read_text(label_file).splitlines() if is_there else [], 1):
        if not line.split():
            continue
        try:
            people.append(_person(line.split(), f"line {number}", size, names, numbers, classes))
        except Fault as fault:
            broken.append((fault, f"line {number}"))
    name = picture.relative_to(root).as_posix() if picture.is_relative_to(root) else str(picture)
    return LabelledPicture(name, label_file, people, broken, size, split)


def _person(
    words: Sequence[str],
    entry: str,
    size: tuple[int, int],
    names: Sequence[str],
    numbers: int,
    classes: Mapping[int, str],
) -> Person:
    row = fields.numbers({"line": list(words)}, "line", 5 + len(names) * numbers)
    kind = fields.integer({"class": words[0]}, "class")
    if kind not in classes:
        raise Fault("unknown category", f"class {kind}; known are {', '.join(map(str, classes))}")
    if (row[1:5] < -_OUTSIDE).any() or (row[1:5] > 1 + _OUTSIDE).any():
        raise Fault("number out of range", f"box {row[1:5].tolist()} is no share of the picture")
    width, height = size
    x, y, w, h = row[1:5] * [width, height, width, height]
    points: dict[str, Point] = {}
    for name, values in zip(names, row[5:].reshape(len(names), numbers).tolist(), strict=True):
        u, v = values[:2]
        visibility = values[2] if numbers == 3 else VISIBLE * float(min(u, v) >= 0 and max(u, v) > 0)
        if visibility <= 0:
            continue
        if not all(-_OUTSIDE <= share <= 1 + _OUTSIDE for share in (u, v)):
            raise Fault("number out of range", f"{name} at {u:g}, {v:g} is no share of the picture")
        points[name] = (u * width, v * height, visibility)
    return Person(points, entry, (float(x - w / 2), float(y - h / 2), float(w), float(h)), classes[kind])
