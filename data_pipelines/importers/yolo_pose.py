"""YOLO-pose: a `data.yaml` with `kpt_shape`, pictures in `images/...` and a text file a picture in `labels/...`.

A line is class, box (centre and size) and x, y(, v) of every keypoint, as shares of the picture. `flip_idx` gives the
mirror pairs, `kpt_names` (or `--keypoints`) the keypoints' names; without, they are numbered. With two numbers a
keypoint, one at (0, 0) or below is not labelled. Of a split that is not there the others are read. Labels whose picture
is not there are told.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
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

SPLITS = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}
"""Name -> its keys in `data.yaml`; the first that is there counts. Ultralytics takes `validation`, too."""
_OUTSIDE = 0.01  # of the picture; what a rounded coordinate may lie beyond its border
_FAR_OUTSIDE = 1.0  # what a keypoint may that was placed there; what is further is in pixels
_LABEL = re.compile(rb"(\xef\xbb\xbf)?\s*\d")  # how such a file begins, and lists of classes beside them do not


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
    return tuple(split for split in SPLITS if _named(settings, split))


def _named(settings: Mapping[str, Any], split: str) -> Any:
    """Where the settings say that a split is; None where they do not."""
    return next((settings[key] for key in SPLITS[split] if settings.get(key)), None)


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
            places = _places(file, root, _named(settings, split))
        except NoAnnotations as error:
            absent[split] = str(error)
            continue
        pictures: list[tuple[pathlib.Path, pathlib.Path]] = []
        for place in places:
            of_place = _with_label_files(_pictures(place, root))
            pictures += of_place
            # A list leaves pictures out on purpose.
            broken += _without_picture(place, of_place) if place.is_dir() else []
        for picture, label_file in pictures:
            try:
                found.append(_labelled(picture, label_file, root, split, names, numbers, classes))
            except Fault as fault:
                broken.append(Broken(fault, picture, "", False))
            except RawDataError as error:
                broken.append(Broken(Fault("unreadable label file", str(error)), picture, "", False))
    if not found and not broken:
        named = ", ".join(str(_named(settings, split)) for split in SPLITS)
        why = "; ".join(absent.values()) or f"no picture in {named} of {root}"
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


def _places(file: pathlib.Path, root: pathlib.Path, places: Any) -> list[pathlib.Path]:
    """Where the pictures of a split are: folders, and text files that list them.

    Raises:
      NoAnnotations: one of them is not there.
    """
    found: list[pathlib.Path] = []
    for written in map(str, places if isinstance(places, list) else [places] if places else []):
        place = written.replace("\\", "/")
        # Roboflow writes ../train/images for the folder beside the file; as Ultralytics, it is looked for there last.
        # So is a folder of another computer, by at least two names: one, such as images, could be another split's.
        parts = pathlib.PureWindowsPath(place).parts if pathlib.PureWindowsPath(place).root else ()
        elsewhere = ["/".join(parts[start:]) for start in range(1, len(parts) - 1)]
        names = dict.fromkeys((place, place.removeprefix("../"), *elsewhere))
        paths = [folder / name for name in names for folder in (root, file.parent)]
        path = next((path for path in paths if path.exists()), paths[0])
        if not path.exists():
            advice = f"; of another computer? Write it as seen from {file.parent}" if parts else ""
            raise NoAnnotations(f"there is no {place if parts else path}{advice}")
        found.append(path)
    return found


def _pictures(place: pathlib.Path, root: pathlib.Path) -> list[pathlib.Path]:
    if place.is_dir():
        return files_below(place, *SUFFIXES)
    return [_listed(place, root, line.strip()) for line in read_text(place).splitlines() if line.strip()]


def _listed(file: pathlib.Path, root: pathlib.Path, name: str) -> pathlib.Path:
    """A picture that a text file lists: beside the file, or else where the dataset has it by ever less of its path."""
    beside = file.parent / name
    return beside if os.path.exists(beside) else picture_files.find(root, name)


def _in_labels(path: pathlib.Path) -> pathlib.Path:
    """With `labels` for the last `images`."""
    parts = list(path.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return pathlib.Path(*parts)


def _with_label_files(pictures: Sequence[pathlib.Path]) -> list[tuple[pathlib.Path, pathlib.Path]]:
    """Each with its label file; what another system calls otherwise (see `pictures.find`) is not taken from another."""
    files = [(picture, _label_file(picture)) for picture in pictures]
    own = {file for picture, file in files if file.stem == picture.stem}
    return [
        (picture, _usual_file(picture) if file in own and file.stem != picture.stem else file)
        for picture, file in files
    ]


def _usual_file(picture: pathlib.Path) -> pathlib.Path:
    return _in_labels(picture).with_suffix(".txt")


def _label_file(picture: pathlib.Path) -> pathlib.Path:
    """In `labels` for the last `images` of the path; or beside the picture, if it is there alone."""
    usual, beside = _usual_file(picture), picture.with_suffix(".txt")
    found = (picture_files.find(path.parent, path.name) for path in (usual, beside))
    return next((path for path in found if path.is_file()), usual)


def _without_picture(folder: pathlib.Path, pictures: Sequence[tuple[pathlib.Path, pathlib.Path]]) -> Iterator[Broken]:
    """Label files for a folder of pictures that are none of its pictures'; beside pictures may be other texts."""
    places = {_in_labels(folder), *(file.parent for _, file in pictures)}
    places -= {folder, *(picture.parent for picture, _ in pictures)}
    used = {file for _, file in pictures}
    for file in sorted({file for place in places for file in files_below(place, ".txt")} - used):
        if _LABEL.match(file.read_bytes()):
            detail = f"no picture of these labels ({', '.join(SUFFIXES)})"
            yield Broken(Fault("missing image", detail), file, "", False)


def _labelled(
    picture: pathlib.Path,
    label_file: pathlib.Path,
    root: pathlib.Path,
    split: str,
    names: Sequence[str],
    numbers: int,
    classes: dict[int, str],
) -> LabelledPicture:
    """Raises Fault for a picture that cannot be read, RawDataError for a label file that cannot."""
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
        if not all(-_FAR_OUTSIDE <= share <= 1 + _FAR_OUTSIDE for share in (u, v)):
            raise Fault("number out of range", f"{name} at {u:g}, {v:g} is no share of the picture")
        points[name] = (u * width, v * height, visibility)
    return Person(points, entry, (float(x - w / 2), float(y - h / 2), float(w), float(h)), classes[kind])
