"""Pictures as label tools leave them: under moved folders, and in any format that Pillow reads."""

from __future__ import annotations

import functools
import io
import os
import pathlib
import unicodedata
import urllib.parse
from collections.abc import Sequence

import numpy as np
from PIL import Image

from data_pipelines import orientation
from data_pipelines.builders import checks, raw_files
from data_pipelines.fields import Fault
from data_pipelines.picture_formats import eight_bits

QUALITY = 95


def find(folder: pathlib.Path, file_name: str) -> pathlib.Path:
    """Where the picture of that name lies: as it is written, or with ever fewer of its folders, below `folder`.

    Names that are not there are looked for once more without regard to capitals, which Windows and Macs do not tell
    apart, and to how accents are written; addresses write them and blanks as %20. Of several that are so alike, none is
    taken.

    Returns:
      `folder / file_name` where nothing is there.
    """
    written = raw_files.find_picture(folder, file_name)
    if os.path.exists(written):
        return written
    parts = pathlib.PurePosixPath(file_name.replace("\\", "/")).parts
    names = ["/".join(parts[start:]) for start in range(1, len(parts))]
    shorter = (raw_files.find_picture(folder, name) for name in names)
    found = next((path for path in shorter if os.path.exists(path)), None)
    alike = (_of_another_system(folder, parts[start:]) for start in range(len(parts)))
    return found or next((path for path in alike if path), written)


def _of_another_system(folder: pathlib.Path, parts: Sequence[str]) -> pathlib.Path | None:
    for part in parts:
        try:
            alike = _entries(folder, os.stat(folder).st_mtime_ns).get(_plain(part), [])
        except OSError:
            return None
        if len(alike) != 1:
            return None
        folder = folder / alike[0]
    return folder


@functools.lru_cache(maxsize=64)
def _entries(folder: pathlib.Path, changed: int) -> dict[str, list[str]]:
    """Names in a folder by their `_plain` ones; `changed` makes a folder that was written another one."""
    del changed
    entries: dict[str, list[str]] = {}
    for name in os.listdir(folder):
        entries.setdefault(_plain(name), []).append(name)
    return entries


def _plain(name: str) -> str:
    """Without capitals, with accents joined to their letters, and as it was before it became part of an address."""
    return unicodedata.normalize("NFC", urllib.parse.unquote(name)).casefold()


def size_of(path: pathlib.Path) -> tuple[int, int]:
    """(width, height) as stored, from the file's head. Raises Fault: missing or unreadable image."""
    try:
        with Image.open(path) as image:
            # Pillow says the size of a TIFF as its orientation turns it.
            return (image.tag_v2[256], image.tag_v2[257]) if image.format == "TIFF" else image.size
    except FileNotFoundError:
        raise Fault("missing image") from None
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise Fault("unreadable image", str(error)) from error


def seen_size_of(path: pathlib.Path) -> tuple[int, int]:
    """(width, height) as viewers and label tools show it, turned by its EXIF orientation. Raises Fault as `size_of`."""
    width, height = size_of(path)
    return orientation.turned(width, height, tag_of(path))


def tag_of(path: pathlib.Path) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or none that can be read."""
    try:
        with Image.open(path) as image:
            tag = image.getexif().get(orientation.TAG, 1)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 1
    return tag if tag in range(1, 9) else 1


def read_as_jpeg(path: pathlib.Path, decode: bool = False) -> tuple[bytes, int, int, bool]:
    """(JPEG, width, height, whether it was re-encoded) of a picture in any format.

    A JPEG stays as it is. Anything else is encoded with QUALITY and full colour resolution, as stored, its orientation
    kept; of 16 bits the upper 8 count, transparency is dropped, and of several frames the first is taken.

    Raises:
      Fault: missing, unreadable or truncated image.
    """
    try:
        with path.open("rb") as file:
            is_jpeg = file.read(3) == b"\xff\xd8\xff"
    except (OSError, ValueError):  # ValueError: a name that the system cannot have
        is_jpeg = True  # whose reader says what is wrong
    if is_jpeg:
        return *checks.read_jpeg(path, decode), False
    try:
        with Image.open(path) as image:
            tag = image.getexif().get(orientation.TAG, 1)
            pixels = eight_bits(image)
            if image.getexif().get(orientation.TAG, 1) != tag:  # Pillow has turned them, as it does those of a TIFF
                pixels = Image.fromarray(orientation.stored(np.asarray(pixels), tag))
            exif = Image.Exif()  # without other tags: those of a TIFF may be too long for a JPEG
            exif[orientation.TAG] = tag
        buffer = io.BytesIO()
        pixels.save(buffer, "JPEG", quality=QUALITY, subsampling=0, exif=exif)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Fault("unreadable image", str(error)) from error
    return buffer.getvalue(), *pixels.size, True
