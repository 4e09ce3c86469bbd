"""Is a zip archive exactly what was written? PyTorch reads its archives without looking at their checksums.

An archive says most things about an entry twice (local header and central directory) or three times (data
descriptor). All copies must agree, the data must have its checksum, and the entries must follow one another,
so that hardly a bit of it can change unnoticed.
"""

from __future__ import annotations

import pathlib
import struct
import zipfile
import zlib
from typing import BinaryIO

LOCAL_HEADER = struct.Struct("<4s5H3I2H")
LOCAL_MAGIC, DESCRIPTOR_MAGIC = b"PK\x03\x04", b"PK\x07\x08"
HAS_DESCRIPTOR = 1 << 3
SIZE_IN_EXTRA = 0xFFFFFFFF
DIRECTORY_ENTRY = struct.Struct("<28x3H12x")  # lengths of name, extra field and comment, which follow
END = struct.Struct("<4s4H2IH")
END64 = struct.Struct("<4sQ2H2I4Q4sIQI")  # the record of large archives and the locator behind it
VERSIONS = (0, 45, 0x031E)  # of what writes such records
END_MAGIC, END64_MAGIC, LOCATOR_MAGIC = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
PADDING = b"FB"
"""Id of the extra field with which PyTorch aligns its entries; the rest of it is the letter Z."""
EXTRA_FIELDS = (PADDING, b"\x01\x00", b"UT", b"ux")  # padding, large sizes, times and owners

_DAMAGE = (
    zipfile.BadZipFile,
    NotImplementedError,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
    zlib.error,
    struct.error,
)


def verify_zip(path: pathlib.Path) -> None:
    """Reads the whole archive.

    Raises:
      ValueError: it is cut or damaged; the message names the entry.
    """
    where = "its directory"
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            entries = sorted(archive.infolist(), key=lambda info: info.header_offset)
            position = 0
            for info in entries:
                where = f"entry {info.filename!r}"
                _check_same_writer(info, entries[0])
                if info.header_offset != position:
                    raise ValueError("it is not where the one before it ends")
                position = _check_entry(archive, info, file)
            where = "its directory"
            if not entries or position != archive.start_dir:
                raise ValueError("it is not where the last entry ends")
            _check_end(archive, file, path.stat().st_size)
    except _DAMAGE as error:
        raise ValueError(f"cut or damaged archive: {where}: {error}") from error


def _check_end(archive: zipfile.ZipFile, file: BinaryIO, file_size: int) -> None:
    """Compares the records at the end with the directory that they point to."""
    count, start = len(archive.infolist()), archive.start_dir
    directory_end = file_size - END.size - len(archive.comment)
    file.seek(directory_end - END64.size)
    large, end = END64.unpack(file.read(END64.size)), END.unpack(file.read(END.size))
    if large[0] == END64_MAGIC:
        directory_end -= END64.size
        truth64 = (0, 0, count, count, directory_end - start, start, LOCATOR_MAGIC, 0, directory_end, 1)
        if large[1] != END64.size - 32 or not set(large[2:4]) <= set(VERSIONS) or large[4:] != truth64:
            raise ValueError("it and the record at the end differ")
    truth = (0, 0, count, count, directory_end - start, start, len(archive.comment))
    allowed = [(value, 0xFFFF if i < 4 else 0xFFFFFFFF) for i, value in enumerate(truth)]
    if end[0] != END_MAGIC or any(value not in pair for value, pair in zip(end[1:], allowed, strict=True)):
        raise ValueError("it and the record at the end differ")
    position = start
    for _ in range(count):
        file.seek(position)
        position += DIRECTORY_ENTRY.size + sum(DIRECTORY_ENTRY.unpack(file.read(DIRECTORY_ENTRY.size)))
    if position != directory_end:
        raise ValueError("it has not the length of its entries")


def _check_same_writer(info: zipfile.ZipInfo, first: zipfile.ZipInfo) -> None:
    """What only the directory says, and says alike for all entries of one writer."""
    for field in (
        "create_version",
        "create_system",
        "reserved",
        "internal_attr",
        "external_attr",
        "volume",
        "comment",
    ):
        if getattr(info, field) != getattr(first, field):
            raise ValueError(f"it differs from the others in {field}")


def _check_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo, file: BinaryIO) -> int:
    """Compares an entry's headers and reads its data; returns where the next entry starts."""
    file.seek(info.header_offset)
    magic, version, flags, method, time, date, crc, packed, size, name_length, extra_length = LOCAL_HEADER.unpack(
        file.read(LOCAL_HEADER.size)
    )
    year, month, day, hour, minute, second = info.date_time
    directory_date = (year - 1980) << 9 | month << 5 | day
    directory_time = hour << 11 | minute << 5 | second // 2
    sizes_later = bool(flags & HAS_DESCRIPTOR)
    expected = (
        LOCAL_MAGIC,
        info.extract_version,
        info.flag_bits,
        info.compress_type,
        directory_time,
        directory_date,
    )
    if (magic, version, flags, method, time, date) != expected:
        raise ValueError("its header and the directory differ")
    in_extra = (SIZE_IN_EXTRA, SIZE_IN_EXTRA)
    allowed = [(info.CRC, info.compress_size, info.file_size), (info.CRC, *in_extra)]
    if sizes_later:
        allowed += [(0, 0, 0), (0, *in_extra)]
    if (crc, packed, size) not in allowed:
        raise ValueError("its header and the directory differ in size or checksum")
    _check_extra(file, name_length, extra_length)
    with archive.open(info) as data:  # compares the names and, at the end, the checksum
        while data.read(1 << 24):
            pass
    end = info.header_offset + LOCAL_HEADER.size + name_length + extra_length + info.compress_size
    return end + (_descriptor_length(file, end, info) if sizes_later else 0)


def _check_extra(file: BinaryIO, name_length: int, extra_length: int) -> None:
    file.seek(name_length, 1)
    extra = file.read(extra_length)
    while extra:
        identity, length = struct.unpack("<2sH", extra[:4])
        body, extra = extra[4 : 4 + length], extra[4 + length :]
        if identity not in EXTRA_FIELDS or len(body) != length or (identity == PADDING and body.strip(b"Z")):
            raise ValueError("its extra field is damaged")


def _descriptor_length(file: BinaryIO, position: int, info: zipfile.ZipInfo) -> int:
    """Bytes of the record behind the data that repeats checksum and sizes (longer in large archives)."""
    file.seek(position)
    record = file.read(24)
    for layout in ("<4s3I", "<4sI2Q"):
        form = struct.Struct(layout)
        if record[: form.size] == form.pack(DESCRIPTOR_MAGIC, info.CRC, info.compress_size, info.file_size):
            return form.size
    raise ValueError("the record behind its data is damaged")
