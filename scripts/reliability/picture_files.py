"""Pictures that are damaged, unusual or made to harm."""

from __future__ import annotations

import dataclasses
import io
import pathlib
import struct
import zlib
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

from data_pipelines import orientation

WIDTH, HEIGHT = 96, 64
SUFFIXES = (".jpg", ".png", ".webp", ".bmp", ".tif")


@dataclasses.dataclass(frozen=True)
class Odd:
    """One picture.

    Attributes:
      kind: what it is.
      name: its file's name.
      data: its bytes.
      truth: uint8 [H, W, 3] RGB that a viewer shows, where the file is in order; None where it is damaged.
      stored: (width, height) as stored, where it has one; else None.
    """

    kind: str
    name: str
    data: bytes
    truth: np.ndarray | None = None
    stored: tuple[int, int] | None = None


def smooth(rng: np.random.Generator, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A coloured picture without fine structure, which lossy formats keep well."""
    coarse = rng.integers(40, 216, (4, 6, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def encode(image: np.ndarray, suffix: str, **options) -> bytes:
    """The file of an array in Pillow's modes L, RGB, RGBA; lossy formats at high quality."""
    return _saved(Image.fromarray(image), suffix, **options)


def _saved(picture: Image.Image, suffix: str, **options) -> bytes:
    file = io.BytesIO()
    form = {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".tif": "TIFF", ".gif": "GIF"}[suffix]
    lossy = {"quality": 95, "subsampling": 0} if form == "JPEG" else {"quality": 95} if form == "WEBP" else {}
    picture.save(file, form, **(lossy | options))
    return file.getvalue()


def make(seed: int, number: int) -> Odd:
    """Picture `number` of the campaign: its kinds in turn."""
    rng = np.random.default_rng([seed, number])
    kinds = list(KINDS)
    kind = kinds[number % len(kinds)]
    odd = KINDS[kind](rng, number // len(kinds))
    return dataclasses.replace(odd, kind=kind)


def _whole(rng: np.random.Generator, turn: int) -> tuple[np.ndarray, str, bytes]:
    suffix = SUFFIXES[turn % len(SUFFIXES)] if turn % 2 else ".jpg"
    image = smooth(rng)
    return image, suffix, encode(image, suffix)


def _cut(rng, turn) -> Odd:
    _, suffix, data = _whole(rng, turn)
    return Odd("", f"odd{suffix}", data[: int(rng.integers(len(data)))])


def _flipped(rng, turn) -> Odd:
    _, suffix, data = _whole(rng, turn)
    raw = bytearray(data)
    for place in rng.integers(0, len(raw) if turn % 3 else min(200, len(raw)), 1 + turn % 4):
        raw[place] ^= 1 << int(rng.integers(8))
    return Odd("", f"odd{suffix}", bytes(raw))


def _zeroed(rng, turn) -> Odd:
    _, suffix, data = _whole(rng, turn)
    place = int(rng.integers(len(data)))
    length = int(rng.integers(1, 400))
    return Odd("", f"odd{suffix}", (data[:place] + bytes(length) + data[place + length :])[: len(data)])


def _behind_the_end(rng, turn) -> Odd:
    image, suffix, data = _whole(rng, turn)
    return Odd("", f"odd{suffix}", data + rng.bytes(int(rng.integers(1, 3000))), image, (WIDTH, HEIGHT))


def _other_format(rng, turn) -> Odd:
    image = smooth(rng)
    forms = [suffix for suffix in (*SUFFIXES, ".gif") if suffix != ".jpg"]
    if turn % 3 == 0:  # a jpg under another name, or another format as jpg
        return Odd("", "odd.png", encode(image, ".jpg"), image, (WIDTH, HEIGHT))
    if turn % 3 == 1:
        suffix = forms[turn // 3 % len(forms)]
        # A GIF has 256 colours; its pixels are not compared.
        truth = None if suffix == ".gif" else image
        return Odd("", "odd.jpg", encode(image, suffix), truth, (WIDTH, HEIGHT))
    texts = [
        b"",
        b"<html>404</html>",
        b"\xff\xd8",
        b"\xff\xd8\xff",
        b"PK\x03\x04" + bytes(50),
        rng.bytes(3000),
        b"\x89PNG",
    ]
    return Odd("", "odd.jpg", texts[turn // 3 % len(texts)])


def _cmyk(rng, turn) -> Odd:
    image = smooth(rng)
    return Odd("", "odd.jpg", _saved(Image.fromarray(image).convert("CMYK"), ".jpg"), image, (WIDTH, HEIGHT))


def _deep(rng, turn) -> Odd:
    """16 bits a channel."""
    image = smooth(rng)
    wide = image.astype(np.uint16) * 257
    if turn % 3 == 2:
        wide, image = wide[..., 0], np.repeat(image[..., :1], 3, axis=2)
    suffix = (".png", ".tif")[turn % 2]
    data = cv2.imencode(suffix, wide[..., ::-1] if wide.ndim == 3 else wide)[1].tobytes()
    return Odd("", f"odd{suffix}", data, image, (WIDTH, HEIGHT))


def _few_colours(rng, turn) -> Odd:
    image = smooth(rng)
    grey = image[..., 0]
    shown = np.repeat(grey[..., None], 3, axis=2)
    if turn % 4 == 0:
        return Odd("", "odd.jpg", encode(grey, ".jpg"), shown, (WIDTH, HEIGHT))
    if turn % 4 == 1:
        return Odd("", "odd.png", encode(grey, ".png"), shown, (WIDTH, HEIGHT))
    if turn % 4 == 2:
        palette = Image.fromarray(image).quantize(64)
        return Odd("", "odd.png", _saved(palette, ".png"), np.asarray(palette.convert("RGB")), (WIDTH, HEIGHT))
    black = Image.fromarray(np.where(grey > 128, 255, 0).astype(np.uint8)).convert("1")
    return Odd("", "odd.png", _saved(black, ".png"), np.asarray(black.convert("RGB")), (WIDTH, HEIGHT))


def _alpha(rng, turn) -> Odd:
    image = smooth(rng)
    suffix = (".png", ".webp", ".tif")[turn % 3]
    # What is half transparent in a TIFF is read on black, as its standard has it.
    opaque = np.dstack([image, np.full(image.shape[:2], 255 if turn % 2 or suffix == ".tif" else 200, np.uint8)])
    options = {"lossless": True} if suffix == ".webp" else {}
    return Odd("", f"odd{suffix}", encode(opaque, suffix, **options), image, (WIDTH, HEIGHT))


def _tiny(rng, turn) -> Odd:
    sides = [(1, 1), (1, 200), (200, 1), (2, 2), (1, 3000), (7, 5)]
    width, height = sides[turn % len(sides)]
    image = smooth(rng, width, height)
    suffix = (".jpg", ".png")[turn // len(sides) % 2]
    return Odd("", f"odd{suffix}", encode(image, suffix), image, (width, height))


def _wide(rng, turn) -> Odd:
    sides = [(30_000, 40), (30_000, 2_000), (40, 30_000), (65_500, 8), (12_000, 9_000)]
    width, height = sides[turn % len(sides)]
    image = smooth(rng, width, height)
    suffix = (".jpg", ".png")[turn // len(sides) % 2]
    options = {"compress_level": 1} if suffix == ".png" else {"subsampling": 2, "quality": 90}
    return Odd("", f"odd{suffix}", encode(image, suffix, **options), image, (width, height))


def _png(width: int, height: int, data: bytes, more: bytes = b"") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + more + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _zeros(megabytes: int) -> bytes:
    packer = zlib.compressobj(1)
    parts = [packer.compress(bytes(1 << 20)) for _ in range(megabytes)]
    return b"".join([*parts, packer.flush()])


def _text_bomb() -> bytes:
    content = b"comment\0\0" + _zeros(300)
    text = struct.pack(">I", len(content)) + b"zTXt" + content + struct.pack(">I", zlib.crc32(b"zTXt" + content))
    image = smooth(np.random.default_rng(0))
    rows = b"".join(b"\0" + row.tobytes() for row in image)
    return _png(WIDTH, HEIGHT, zlib.compress(rows), text)


def _claiming_jpeg(width: int, height: int) -> bytes:
    """A JPEG whose frame says that it is so large."""
    data = bytearray(encode(smooth(np.random.default_rng(0)), ".jpg"))
    frame = next(data.index(bytes([0xFF, mark])) for mark in (0xC0, 0xC2) if bytes([0xFF, mark]) in data)
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def _claiming_bmp(width: int, height: int) -> bytes:
    data = bytearray(encode(smooth(np.random.default_rng(0)), ".bmp"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def _claiming_tiff(width: int, height: int) -> bytes:
    data = bytearray(encode(smooth(np.random.default_rng(0)), ".tif"))
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        tag = struct.unpack_from("<H", data, entry)[0]
        if tag in (256, 257):
            data[entry + 2 : entry + 12] = struct.pack("<HII", 4, 1, width if tag == 256 else height)
    return bytes(data)


def _claiming_webp() -> bytes:
    """A canvas of 2^24 a side."""
    canvas = bytes([0, 0, 0, 0]) + b"\xff" * 6
    body = b"WEBP" + b"VP8X" + struct.pack("<I", len(canvas)) + canvas
    body += encode(smooth(np.random.default_rng(0)), ".webp")[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


BOMBS: list[tuple[str, Callable[[], bytes]]] = [
    ("odd.png", lambda: _png(60_000, 60_000, zlib.compress(bytes(1000)))),
    ("odd.png", lambda: _png(2**31 - 1, 2**31 - 1, b"")),
    ("odd.png", lambda: _png(30_000, 30_000, _zeros(2575))),
    ("odd.jpg", lambda: _claiming_jpeg(65_500, 65_500)),
    ("odd.jpg", lambda: _claiming_jpeg(30_000, 30_000)),
    ("odd.jpg", lambda: _claiming_jpeg(65_535, 1)),
    ("odd.bmp", lambda: _claiming_bmp(100_000, 100_000)),
    ("odd.bmp", lambda: _claiming_bmp(30_000, -30_000)),
    ("odd.tif", lambda: _claiming_tiff(100_000, 100_000)),
    ("odd.ppm", lambda: b"P6 100000 100000 255\n" + bytes(1000)),
    ("odd.ppm", lambda: b"P6 20000 20000 255\n" + bytes(1000)),
    ("odd.ppm", lambda: b"P3 99999999999999999999 1 255\n1 2 3"),
    ("odd.png", _text_bomb),
    ("odd.jpg", lambda: b"\xff\xd8" + b"\xff" * 2_000_000),
    ("odd.jpg", lambda: b"\xff\xd8\xff" + b"\xe1\x00\x02\xff" * 500_000),
    ("odd.jpg", lambda: b"\xff\xd8\xff\xe0\x00\x00" + bytes(1000)),
    ("odd.webp", _claiming_webp),
]


def _bomb(rng, turn) -> Odd:
    name, maker = BOMBS[turn % len(BOMBS)]
    return Odd("", name, maker())


def _turned(rng, turn) -> Odd:
    """An orientation in EXIF."""
    tag = 1 + turn % 8
    image = smooth(rng)
    exif = Image.Exif()
    exif[0x0112] = tag
    suffix = (".jpg", ".jpg", ".png", ".webp")[turn // 8 % 4]
    data = encode(image, suffix, exif=exif.tobytes())
    shown = orientation.upright(image, tag)
    return Odd("", f"odd{suffix}", data, shown, (WIDTH, HEIGHT))


def _damaged_exif(rng, turn) -> Odd:
    """A picture in order but for its EXIF, which no reader can go by."""
    image = smooth(rng)
    blocks = [
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + rng.bytes(300),
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",
        b"Exif\0\0" + rng.bytes(200),
        b"Exif\0\0",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x05\0\0\0\x01\xff\xff\xff\xff\0\0\0\0",
    ]
    block = blocks[turn % len(blocks)]
    data = encode(image, ".jpg")
    segment = b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block
    return Odd("", "odd.jpg", data[:2] + segment + data[2:], image, (WIDTH, HEIGHT))


def _progressive(rng, turn) -> Odd:
    image = smooth(rng)
    options = [{"progressive": True}, {"optimize": True}, {"restart_marker_rows": 1}, {"comment": b"x" * 60_000}]
    return Odd("", "odd.jpg", encode(image, ".jpg", **options[turn % len(options)]), image, (WIDTH, HEIGHT))


KINDS: dict[str, Callable[[np.random.Generator, int], Odd]] = {
    "cut": _cut,
    "flipped bits": _flipped,
    "zeroed": _zeroed,
    "more behind the end": _behind_the_end,
    "other format than its name": _other_format,
    "CMYK": _cmyk,
    "16 bit": _deep,
    "grey, palette, 1 bit": _few_colours,
    "alpha": _alpha,
    "1x1 and thin": _tiny,
    "30,000 wide": _wide,
    "bomb": _bomb,
    "EXIF orientation": _turned,
    "damaged EXIF": _damaged_exif,
    "progressive and alike": _progressive,
}


def write(folder: pathlib.Path, odd: Odd, good: dict[str, bytes]) -> None:
    """The odd picture between good ones."""
    for name, data in {**good, odd.name: odd.data}.items():
        (folder / name).write_bytes(data)
