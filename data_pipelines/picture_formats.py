"""Which picture files are read, labelled or to predict on: their suffixes, their largest size, and their pixels."""

from __future__ import annotations

import numpy as np
from PIL import Image

from data_pipelines.fields import Fault

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".avif", ".jp2", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
MAX_PIXELS = 178_956_970
"""Of a picture: as many as Pillow takes, over half a gigabyte decoded. What claims more is damage, or made to harm."""


def eight_bits(image: Image.Image) -> Image.Image:
    """RGB. Raises Fault for numbers of an unknown range."""
    # "I" has 16 bits in a PGM, and in a PNG before Pillow 11.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise Fault("unreadable image", f"pixels of mode {image.mode} have no known range; save it with 8 bits")
    return image.convert("RGB")
