"""COCO's own format, of any tool: see `builders/coco_format.py`, which reads it."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from data_pipelines import fields
from data_pipelines.builders import raw_files
from data_pipelines.builders.report import NoAnnotations
from data_pipelines.importers import labelme
from data_pipelines.importers.labels import NO_CATEGORY, Labels
from data_pipelines.importers.text_files import folder_of_pictures, require_json_file, starts_like, the_json_file


def fits(path: pathlib.Path) -> bool:
    """Whether this is a JSON object that is nobody else's, or a folder with exactly one JSON file that is one."""
    file = the_json_file(path)
    return file is not None and starts_like(file, r"^\s*\{") and not labelme.fits(file)


def read(path: pathlib.Path, images: pathlib.Path | None = None, names: Sequence[str] | None = None) -> Labels:
    """The document of a file, unchecked.

    Args:
      path: the JSON file, or the folder that has it alone.
      images: where the pictures lie; None for the folder of the file, or `images` in it.
      names: the keypoints in order, where no category lists any.

    Raises:
      RawDataError: not such a file.
    """
    if not path.exists():
        raise NoAnnotations(f"no annotation file; looked for {path}")
    file = require_json_file(path)
    document = raw_files.read_json(file)
    if names is not None and isinstance(document, dict):
        document = _with_names(document, names)
    return Labels(document, images or folder_of_pictures(file))


def _with_names(document: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """With `names` as the keypoints of every category where none lists any; of no categories, of those in use."""
    categories = document.get("categories")
    if not categories:
        entries = document.get("annotations")
        used = [e.get("category_id") for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []
        numbers = sorted({number for number in map(fields.whole, used) if number is not None}) or [1]
        categories = [{"id": number, "name": NO_CATEGORY} for number in numbers]
    if not isinstance(categories, list) or any(map(raw_files.has_skeleton, categories)):
        return document
    named = [{**kind, "keypoints": list(names)} if isinstance(kind, dict) else kind for kind in categories]
    return {**document, "categories": named}
