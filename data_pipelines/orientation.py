"""Which way up a picture is: the EXIF orientation of a JPEG, and turning its pixels by it.

Cameras store the pixels as the sensor has them and say in EXIF tag 0x0112 how to turn them. Viewers and label tools do
so; a reader that does not sees another picture wherever the tag is not 1. A prepared split is read `stored`, as the
file has the pixels, or `upright`, as viewers show them; its metadata say which.
"""

from __future__ import annotations

import struct

import numpy as np

STORED, UPRIGHT = "stored", "upright"
CHOICES = (STORED, UPRIGHT)
TAG = 0x0112
_NUMBERS = {1: "B", 3: "H", 4: "I"}  # TIFF's types of whole numbers


def tag_of(data: bytes) -> int:
    """The EXIF orientation of a JPEG, 1 to 8; 1 (as stored) where there is none or none that can be read."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == 0xFF:  # filler
            position += 1
            continue
        if marker == 0xDA or length < 2:
            break
        segment = data[position + 4 : position + 2 + length]
        if marker == 0xE1 and segment.startswith(b"Exif\0\0"):
            return _orientation(segment[6:])
        position += 2 + length
    return 1


def turned(width: int, height: int, tag: int) -> tuple[int, int]:
    """(width, height) of the upright picture."""
    return (height, width) if tag >= 5 else (width, height)


def upright(image: np.ndarray, tag: int) -> np.ndarray:
    """The stored picture [height, width, ...] as viewers show it."""
    if tag in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if tag in (2, 3, 6, 7):
        image = image[:, ::-1]
    if tag in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


def stored(image: np.ndarray, tag: int) -> np.ndarray:
    """The picture [height, width, ...] as viewers show it, as the file stores it: the inverse of `upright`."""
    return upright(image, {6: 8, 8: 6}.get(tag, tag))


def _orientation(tiff: bytes) -> int:
    """The tag in the first directory of a TIFF block."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return 1
    (start,) = struct.unpack_from(f"{order}I", tiff, 4)
    if start + 2 > len(tiff):
        return 1
    (count,) = struct.unpack_from(f"{order}H", tiff, start)
    for entry in range(start + 2, min(start + 2 + 12 * count, len(tiff) - 11), 12):
        tag, kind = struct.unpack_from(f"{order}HH", tiff, entry)
        if tag == TAG and kind in _NUMBERS:
            (value,) = struct.unpack_from(f"{order}{_NUMBERS[kind]}", tiff, entry + 8)
            return value if 1 <= value <= 8 else 1
    return 1
