"""COCO's own format, of any tool: see `builders/coco_format.py`, which reads it."""

from __future__ import annotations

import collections
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from data_pipelines import fields
from data_pipelines.builders import raw_files
from data_pipelines.builders.report import NoAnnotations, RawDataError
from data_pipelines.fields import Fault
from data_pipelines.importers import labelme, pictures
from data_pipelines.importers.labels import NO_CATEGORY, Labels
from data_pipelines.importers.text_files import folder_of_pictures, require_json_file, starts_like, the_json_file


def fits(path: pathlib.Path) -> bool:
    """Whether this is a JSON object that is nobody else's, or a folder with exactly one JSON file that is one."""
    file = the_json_file(path)
    return file is not None and starts_like(file, r"^\s*\{") and not labelme.fits(file)


def read(path: pathlib.Path, images: pathlib.Path | None = None, names: Sequence[str] | None = None) -> Labels:
    """The document of a file, unchecked; pictures that coco-annotator calls alike are told apart by their `path`.

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
    if isinstance(document, list):
        raise RawDataError(f"{file} holds a list, not COCO's object; of Label Studio, export JSON, not JSON-MIN")
    if names is not None and isinstance(document, dict):
        document = _with_names(document, names)
    folder = images or folder_of_pictures(file)
    if isinstance(document, dict) and isinstance(document.get("images"), list):
        document = {**document, "images": _with_paths(document["images"], folder)}
    return Labels(document, folder)


def _with_paths(images: list, folder: pathlib.Path) -> list:
    """The images by their `path`, of which coco-annotator's `file_name` is the end, where that does not find them."""
    count = collections.Counter(str(image.get("file_name")) for image in images if isinstance(image, dict))

    def named(image: Any) -> Any:
        name, path = (image.get(key) if isinstance(image, dict) else None for key in ("file_name", "path"))
        if not isinstance(name, str) or not isinstance(path, str) or not path.endswith(f"/{name}"):
            return image
        alone = count[name] == 1 and os.path.exists(pictures.find(folder, name))
        return image if alone else {**image, "file_name": path}

    return list(map(named, images))


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


def category_skeleton(path: pathlib.Path, document: Any) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...]]:
    """(names, limbs from 0) of the categories, whose names must agree; limbs, which are drawn alone, may be of one.

    Raises:
      RawDataError: no category that lists keypoints, several that list others, or a bad list.
    """
    if isinstance(document, dict) and document.get("categories") is None:
        raise RawDataError(f"{path} has no list 'categories', which name the keypoints (or give --keypoints=a,b,c)")
    (categories,) = raw_files.document_lists(path, document, "categories")
    found = [entry for entry in categories if raw_files.has_skeleton(entry)]
    if not found:
        raise RawDataError(f"{path}: no category lists 'keypoints', their names in order (or give --keypoints=a,b,c)")
    skeletons: dict[tuple[str, ...], dict[tuple[int, int], None]] = {}
    for category in found:
        try:
            limbs = skeletons.setdefault(_names(category["keypoints"]), {})
            limbs |= dict.fromkeys(_limbs(category.get("skeleton") or ()))
        except Fault as fault:
            raise RawDataError(f"{path}: category {category.get('id')!r}: bad keypoints or skeleton: {fault}") from None
    if len(skeletons) > 1:
        raise RawDataError(f"{path}: categories with different keypoints are datasets apart: give a file to each")
    ((names, limbs),) = skeletons.items()
    # COCO counts limbs from 1; a 0 shows a file that counts from 0.
    first = 0 if any(0 in limb for limb in limbs) else 1
    return names, tuple((a - first, b - first) for a, b in limbs)


def _names(value: list) -> tuple[str, ...]:
    """Names that are digits may have been written as numbers. Raises Fault."""
    for name in value:
        if not isinstance(name, (str, int, float)):
            raise Fault("not a name", f"keypoints lists {name!r:.80}")
    return tuple(fields.printable(name) if isinstance(name, str) else f"{name:g}" for name in value)


def _limbs(value: Any) -> tuple[tuple[int, int], ...]:
    """Pairs of numbers of keypoints. Raises Fault."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(limb, list) and len(limb) == 2 for limb in value):
        raise Fault("not a list of pairs", f"skeleton is {value!r:.80}; [[1, 2], [1, 3]] joins the first to two others")
    return tuple(
        (fields.integer({"skeleton": a}, "skeleton"), fields.integer({"skeleton": b}, "skeleton")) for a, b in value
    )
