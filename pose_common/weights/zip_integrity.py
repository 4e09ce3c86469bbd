"""Is one of PyTorch's zip archives whole? PyTorch does not look at their checksums, `zipfile` does."""

from __future__ import annotations

import collections
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Sequence

PICKLE = "data.pkl"
"""The entry in which PyTorch says what the arrays are."""

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
"""What `zipfile` raises, depending on where the damage is."""


def verify_zip(path: pathlib.Path) -> None:
    """Reads the whole archive and compares every entry with its checksum.

    What no entry's data depends on (dates, padding, which program wrote it) may differ unnoticed, and PyTorch itself
    misses an entry that the directory has lost.

    Raises:
      ValueError: it is cut or damaged; the message names the entry.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            foreign, damaged = _foreign(archive.namelist()), None
            if not foreign:
                _check_directory(archive.infolist(), path.stat().st_size)
                damaged = archive.testzip()
    except _DAMAGE as error:
        raise ValueError(f"cut or damaged archive: {error}") from error
    if foreign:
        raise ValueError(foreign)
    if damaged is not None:
        raise ValueError(f"cut or damaged archive: entry {damaged!r} has not its checksum")


def _foreign(names: Sequence[str]) -> str:
    """What an archive of these entries is where it is none of PyTorch's weights; "" where it is."""
    if any(pathlib.PurePosixPath(name).parts[1:2] == ("code",) for name in names):
        return "a TorchScript program, made of weights but not read as such; give the file of weights"
    if not any(pathlib.PurePosixPath(name).name == PICKLE for name in names):
        return f"PyTorch did not write it: it has no {PICKLE} but {list(names[:3])}; unpack an archive of weights"
    return ""


def _check_directory(entries: list[zipfile.ZipInfo], file_size: int) -> None:
    """What `zipfile` does not ask.

    PyTorch never compresses, so that a compressed entry is either damage or unpacks to more than memory holds; and
    entries that share their bytes could do the same. Of two entries with one name, `testzip` reads the last only.
    """
    for name, count in collections.Counter(entry.filename for entry in entries).most_common(1):
        if count > 1:
            raise ValueError(f"it has entry {name!r} twice")
    packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise ValueError(f"entry {packed[0]!r} is compressed, which PyTorch never does")
    total = sum(entry.file_size for entry in entries)
    if total > file_size:
        raise ValueError(f"its entries claim {total} bytes, the file has {file_size}")
