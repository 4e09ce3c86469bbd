"""Reading the files of label tools, with one line on what is wrong."""

from __future__ import annotations

import json
import os
import pathlib
import re
from typing import Any

import yaml

from data_pipelines.builders.report import RawDataError

_HEAD = 1 << 16


def files_in(folder: pathlib.Path, *patterns: str) -> list[pathlib.Path]:
    """What fits any of the patterns in a folder, by name; nothing hidden or in hidden folders, such as the `._a.json`
    that a Mac puts beside `a.json` on other systems' disks, or Jupyter's `.ipynb_checkpoints`."""
    paths = (path for pattern in patterns for path in folder.glob(pattern))
    return sorted(path for path in paths if not any(part[0] == "." for part in path.relative_to(folder).parts))


def files_below(folder: pathlib.Path, *suffixes: str) -> list[pathlib.Path]:
    """Files of any of the suffixes, in small letters or capitals, in a folder and those in it, by name; nothing hidden.

    Links to folders are followed, but no folder is looked into twice, so that a link to one around it does no harm.
    """
    found, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if name[0] != ".")
        found += [pathlib.Path(place, name) for name in names if name[0] != "."]
    return sorted(path for path in found if path.suffix.lower() in suffixes)


def read_text(path: pathlib.Path) -> str:
    """A text file in UTF-8, with or without a byte order mark.

    Raises:
      RawDataError: it cannot be read, or is no text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise RawDataError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise RawDataError(f"{path} is not text in UTF-8: {error}") from error


def starts_like(path: pathlib.Path, pattern: str) -> bool:
    """Whether the head of a JSON file has what a regular expression describes, which reads files of any size at once.

    Raises:
      RawDataError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise RawDataError(f"{path} cannot be read: {error.strerror}") from error
    return re.search(pattern, head.decode(json.detect_encoding(head), errors="ignore")) is not None


def the_json_file(path: pathlib.Path) -> pathlib.Path | None:
    """The file itself, or the only JSON file in a folder; None where there is no such, or several."""
    files = [path] if path.is_file() else files_in(path, "*.json")
    return files[0] if len(files) == 1 and files[0].suffix.lower() == ".json" else None


def require_json_file(path: pathlib.Path) -> pathlib.Path:
    """As `the_json_file`. Raises RawDataError where there is no such file, or several."""
    file = the_json_file(path)
    if file is None:
        raise RawDataError(f"{path} has no JSON file, or several: name one")
    return file


def folder_of_pictures(file: pathlib.Path) -> pathlib.Path:
    """Where the pictures of a file of labels lie, if nobody says it: in `images` beside it, or else beside it."""
    images = file.parent / "images"
    return images if images.is_dir() else file.parent


def read_yaml(path: pathlib.Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
      RawDataError: it cannot be read, or is none.
    """
    try:
        found = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise RawDataError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise RawDataError(f"{path} does not hold a mapping but a {type(found).__name__}")
    return found
