"""COCO's own format, of any tool: see `builders/coco_format.py`, which reads it."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from data_pipelines.builders import raw_files
from data_pipelines.builders.report import NoAnnotations
from data_pipelines.importers import labelme
from data_pipelines.importers.labels import Labels
from data_pipelines.importers.text_files import require_json_file, starts_like, the_json_file


def fits(path: pathlib.Path) -> bool:
    """Whether this is a JSON object that is nobody else's, or a folder with exactly one JSON file that is one."""
    file = the_json_file(path)
    return file is not None and starts_like(file, r"^\s*\{") and not labelme.fits(file)


def read(path: pathlib.Path, images: pathlib.Path | None = None, names: Sequence[str] | None = None) -> Labels:
    """The document of a file, unchecked.

    Args:
      path: the JSON file, or the folder that has it alone.
      images: where the pictures lie; None for the folder of the file, or `images` in it.
      names: not asked for: the file has them.

    Raises:
      RawDataError: not such a file.
    """
    del names
    if not path.exists():
        raise NoAnnotations(f"no annotation file; looked for {path}")
    file = require_json_file(path)
    folder = file.parent / "images"
    return Labels(raw_files.read_json(file), images or (folder if folder.is_dir() else file.parent))
