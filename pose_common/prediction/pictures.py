"""One picture, of a file, an array or a Pillow image.

A picture is what a person sees: the orientation that a camera notes in the file (EXIF) is applied, and results are in
the coordinates of the picture so turned. (Evaluation reads the files of a dataset as its annotations were made, see
`data_pipelines.top_down.crops.decode`.)
"""

from __future__ import annotations

import io
import pathlib
import warnings
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps

from data_pipelines.fields import Fault
from data_pipelines.picture_formats import MAX_PIXELS, eight_bits


class Picture(NamedTuple):
    """One picture.

    Attributes:
      name: its file's name, or its path below the folder of all files where names of several would be one; of a
        video's frame that without a suffix, and `_<number>`; of others `picture_<number>`, in a list of lists with the
        numbers of both.
      image: uint8 [H, W, 3] RGB.
      time: of a video's frame, in seconds; None for a still.
      path: of its file as it was named, to tell apart boxes that fit the name; None where it has none.
      image_id: that a file of boxes gives it, by which COCO's tools compare results with it; None without.
    """

    name: str
    image: np.ndarray
    time: float | None = None
    path: pathlib.Path | None = None
    image_id: Any = None

    def __repr__(self) -> str:
        height, width = self.image.shape[:2]
        return f"<Picture: {self.name}, {width}x{height}>"


class PictureError(ValueError):
    """Something that is no picture; names it."""


class FramesLost(PictureError):
    """Of a video whose other frames were given: frames are numbered without those that are lost."""


def read_picture(path: str | pathlib.Path) -> np.ndarray:
    """A file as uint8 [H, W, 3] RGB, turned upright.

    Raises:
      PictureError: it cannot be read or decoded, or has, or claims to have, more than `MAX_PIXELS`.
    """
    try:
        data = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise PictureError(f"{path}: cannot be read as a picture: {error}") from error
    return decode(data, str(path))


def decode(data: bytes, name: str) -> np.ndarray:
    """As `read_picture`, of a file's bytes; `name` is what errors call them."""
    # OpenCV does not turn an AVIF upright, darkens what is transparent in a TIFF, and a PGM of 10 or 12 bits;
    # preparation reads them so.
    if _format_of(data, name) in ("AVIF", "TIFF", "PPM"):
        return from_pillow(Image.open(io.BytesIO(data)), name)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    except (TypeError, cv2.error) as error:
        raise PictureError(f"{name}: cannot be read as a picture: {error}") from error
    if image is None:
        raise PictureError(f"{name}: cannot be decoded as a picture ({len(data)} bytes)")
    return np.ascontiguousarray(image[..., ::-1])


def _format_of(data: bytes, name: str) -> str | None:
    """Pillow's name of the file's format; None of what it does not know, which is left to OpenCV and its own bound.
    Raises PictureError for more than `MAX_PIXELS`, by the file's header."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as header:
            (width, height), kind = header.size, header.format
    except Image.DecompressionBombError as error:
        raise PictureError(f"{name}: {error}") from error
    except Exception:  # whatever a damaged header makes Pillow's readers do
        return None
    if width * height > MAX_PIXELS:
        raise PictureError(f"{name}: {width}x{height}; at most {MAX_PIXELS:,} pixels are read")
    return kind


def from_pillow(image: Any, name: str) -> np.ndarray:
    """As `read_picture`, of a Pillow image; `name` is what errors call it."""
    try:
        turned = ImageOps.exif_transpose(image)
        turned.format = image.format  # which says how deep its pixels are
        return from_array(eight_bits(turned))
    except Fault as error:
        raise PictureError(f"{name}: {error.detail}") from error
    except Exception as error:  # whatever damage makes Pillow's readers do, which open a file before they read it
        raise PictureError(f"{name}: cannot be read as a picture: {error}") from error


def from_array(source: Any) -> np.ndarray:
    """As `read_picture`, of uint8 [H, W, 3], RGB, or [H, W], grey, of any library that NumPy knows; a copy, because a
    camera may fill the same array with its next picture."""
    source = np.asarray(source)
    if source.ndim == 2:
        source = np.repeat(source[..., None], 3, axis=2)
    if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or 0 in source.shape:
        raise PictureError(
            f"an array {source.dtype} {list(source.shape)} is no picture: give uint8 [height, width, 3], RGB"
        )
    return np.array(source, order="C")
