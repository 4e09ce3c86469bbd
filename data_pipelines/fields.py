"""One reader for every field of every annotation format.

Files are written by many tools, and JSON has few types. The same rules hold for every field:

* a number may be a JSON number or a text that is one ("12", " 1.5e2 "); True and False are none
* a whole number may be written as 7, 7.0, "7" or "7.0"
* a flag may be true, false, 1, 0, 1.0, 0.0 or a text of these ("true", "yes", "0", ""), nothing else
* null is as good as absent
* what stands at a point with visibility 0 means nothing: NaN, infinity and null are read as 0 there
* lists may be flat, or nested in the one way that the format has

Whatever is not so is a `Fault`, which names the field and the value.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "infinity": math.inf}
_FLAGS = {"true": True, "yes": True, "false": False, "no": False, "": False, "none": False, "null": False}
_LARGEST = float(np.finfo(np.float32).max)  # what a record can hold
MAX_COORDINATE = 1e6
"""In pixels. A JPEG has at most 65,535 a side, so a coordinate far beyond that is damage, not an occluded limb."""


class Fault(Exception):
    """One entry is broken: `reason` is the kind that is counted, `detail` what is wrong with this one."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


def integer(entry: Mapping[str, Any], key: str, default: int | None = None, bits: int = 64) -> int:
    """A field that must be a whole number of `bits` bits; `default` where it is null or absent.

    Raises:
      Fault: missing field; bad id (of fields whose name ends with id) or not a number.
    """
    value = entry.get(key)
    if value is None and default is not None:
        return default
    if value is None:
        raise Fault("missing field", key)
    number = whole(value)
    if number is None or not -(2 ** (bits - 1)) <= number < 2 ** (bits - 1):
        raise Fault(
            "bad id" if key.endswith("id") else "not a number",
            f"{key} is {value!r:.80}; a whole number of {bits} bits is needed",
        )
    return number


def whole(value: Any) -> int | None:
    """The whole number that a value is, of any size; None if it is none."""
    if isinstance(value, (bool, np.bool_)):
        return None
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,20}", value.strip()):
        return int(value)
    try:
        number = _number(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return int(number) if number.is_integer() else None


def flag(entry: Mapping[str, Any], key: str) -> bool:
    """A field that says yes or no; no where it is null or absent.

    Raises:
      Fault: not a flag.
    """
    value = entry.get(key)
    if value is None:
        return False
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in _FLAGS:
        return _FLAGS[value.strip().lower()]
    if whole(value) in (0, 1):
        return whole(value) == 1
    raise Fault("not a flag", f"{key} is {value!r:.80}; 0 or 1 is needed")


def number(entry: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """A field that must be a finite number; `default` where it is null or absent. Raises Fault."""
    if entry.get(key) is None and default is not None:
        return default
    return float(numbers(entry, key, 1)[0])


def numbers(entry: Mapping[str, Any], key: str, *shape: int) -> np.ndarray:
    """float64 [product of `shape`]: a field that must hold that many finite numbers.

    The list is flat, or nested as `shape` says; a list in a list of one element is as good as the list.

    Raises:
      Fault: missing field, not a number, wrong length (wrong number of keypoints), not finite, number out of range.
    """
    array = _array(entry, key, shape, flags=False)
    _check_finite(key, array)
    return array


def flags(entry: Mapping[str, Any], key: str, count: int) -> np.ndarray:
    """bool [count]: a field that must hold that many numbers or flags; true above 0. Raises Fault."""
    array = _array(entry, key, (count,), flags=True)
    _check_finite(key, array)
    return array > 0


def unchecked(entry: Mapping[str, Any], key: str, *shape: int) -> np.ndarray:
    """float64 of that shape, as `numbers`, but with NaN (also for null) and infinity. Raises Fault."""
    return _array(entry, key, shape, flags=False).reshape(shape)


def are_boxes(rows: np.ndarray) -> np.ndarray:
    """bool [...]: which rows [..., 4] are x, y, width, height that a crop can be made of, or with their score [..., 5]:
    sides above 0, and no number that is damage (`MAX_COORDINATE`); NaN is.
    """
    return (np.abs(rows) <= MAX_COORDINATE).all(axis=-1) & (rows[..., 2:4] >= 1 / MAX_COORDINATE).all(axis=-1)


def points(entry: Mapping[str, Any], key: str, valid: np.ndarray, size: int = 2) -> np.ndarray:
    """float64 [n, size]: coordinates of n points; NaN becomes 0 where not `valid` (bool [n]). Raises Fault."""
    array = unchecked(entry, key, len(valid), size)
    array = np.where(np.isfinite(array) | valid[:, None], array, 0.0)
    _check_finite(key, array)
    return array


def keypoints(entry: Mapping[str, Any], key: str, count: int) -> np.ndarray:
    """float64 [count, 3]: x, y, visibility of each point, flat or nested.

    A point whose three numbers are all null is not labelled. Coordinates at visibility 0 mean nothing: they are kept as
    they are where they are numbers.

    Raises:
      Fault: as `numbers`; a negative visibility is out of range.
    """
    array = _array(entry, key, (count, 3), flags=True).reshape(count, 3)
    if not isinstance(entry[key], np.ndarray) and any(
        place % 3 != 2 and _is_flag(value) for place, value in enumerate(_leaves(entry[key]))
    ):
        raise Fault("not a number", f"{key} has a flag as a coordinate: {entry[key]!r:.80}")
    visibility = array[:, 2]
    visibility[np.isnan(array).all(axis=1)] = 0
    unlabelled = visibility == 0
    array[:, :2] = np.where(unlabelled[:, None] & ~np.isfinite(array[:, :2]), 0.0, array[:, :2])
    _check_finite(key, array)
    if (visibility < 0).any():
        found = f"negative visibility {visibility[visibility < 0][0]:g}"
        raise Fault("number out of range", f"{found}; 0 says that a point is not labelled")
    return array


def id_key(value: Any) -> Any:
    """An id as a dictionary key, whatever a damaged file holds there: 7, 7.0 and "7" are the same."""
    found = whole(value)
    return found if found is not None else repr(value)


def is_name(value: Any) -> bool:
    """Whether a picture's id is its name: a text that is no number, or has leading zeros, as 000012.jpg has."""
    return isinstance(value, str) and (whole(value) is None or re.fullmatch(r"0\d+", value.strip()) is not None)


def printable(text: str) -> str:
    """Text that can be encoded as UTF-8 and printed: bytes of a name that are no UTF-8 are written as \\x.. ."""
    return text.encode("utf-8", "surrogateescape" if _is_bytes(text) else "backslashreplace").decode(
        "utf-8", "backslashreplace"
    )


def in_slashes(name: str) -> str:
    """A path as paths are compared: with slashes, and with accents joined to their letters."""
    return unicodedata.normalize("NFC", name.replace("\\", "/"))


def is_numeric(value: Any) -> bool:
    """Whether a list holds JSON numbers alone, or lists of them."""
    if not isinstance(value, list):
        return False
    kinds = set(map(type, value))
    return kinds <= {int, float} or (kinds == {list} and all(map(is_numeric, value)))


def _is_bytes(text: str) -> bool:
    """Whether all lone surrogates of a text stand for bytes of a file name, as the system's calls write them."""
    return all(0xDC80 <= ord(letter) <= 0xDCFF for letter in text if 0xD800 <= ord(letter) <= 0xDFFF)


def _array(entry: Mapping[str, Any], key: str, shape: tuple[int, ...], flags: bool) -> np.ndarray:
    """float64 [product of shape], null being NaN."""
    value = entry.get(key)
    if value is None:
        raise Fault("missing field", key)
    try:
        array = _read(value, flags)
    except (TypeError, ValueError, OverflowError):
        raise Fault("not a number", f"{key} is {value!r:.80}") from None
    count = math.prod(shape)
    if array.size != count:
        kind = "wrong number of keypoints" if key == "keypoints" else "wrong length"
        pairs = key == "keypoints" and 3 * array.size == 2 * count
        hint = ": x, y without visibility; write x, y, 2 of a labelled point and 0, 0, 0 of another" if pairs else ""
        raise Fault(kind, f"{key} has {array.size} numbers, {count} are needed{hint}")
    nested = tuple(side for side in array.shape if side != 1)
    if nested not in {tuple(side for side in fit if side != 1) for fit in ((count,), shape)}:
        raise Fault("wrong length", f"{key} is nested as {list(array.shape)}; it should be flat or {list(shape)}")
    return array.reshape(-1)


def _read(value: Any, flags: bool) -> np.ndarray:
    """The numbers of a list in its nesting. Raises TypeError, ValueError or OverflowError."""
    if is_numeric(value) or isinstance(value, np.ndarray) and value.dtype.kind in "iuf":
        return np.array(value, np.float64)
    if isinstance(value, np.ndarray) and value.dtype.kind == "b":
        value = value.tolist()
    if isinstance(value, (list, tuple, np.ndarray)):
        rows = [_read(item, flags) for item in value]
        if len({row.shape for row in rows}) > 1:
            raise ValueError("lists of different lengths")
        return np.stack(rows) if rows else np.zeros(0)
    if flags and _is_flag(value):
        return np.float64(str(value).strip().lower() == "true")
    return np.float64(math.nan if value is None else _number(value))


def _is_flag(value: Any) -> bool:
    return isinstance(value, (bool, np.bool_)) or isinstance(value, str) and value.strip().lower() in ("true", "false")


def _leaves(value: Any) -> Iterator[Any]:
    """What stands in a list, however nested."""
    if isinstance(value, (list, tuple, np.ndarray)):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _number(value: Any) -> float:
    """Raises TypeError, ValueError or OverflowError for what is no number."""
    if isinstance(value, str):
        text = value.strip()
        if _NUMBER.fullmatch(text):
            return float(text)
        sign = -1 if text.startswith("-") else 1
        return sign * _NOT_FINITE[text.lstrip("+-").lower()] if text.lstrip("+-").lower() in _NOT_FINITE else float("x")
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.number)):
        raise TypeError(value)
    return float(value)


def _check_finite(key: str, array: np.ndarray) -> None:
    if not np.isfinite(array).all():
        raise Fault("not finite", f"{key} holds {array[~np.isfinite(array)][0]}")
    if array.size and np.abs(array).max() > _LARGEST:
        raise Fault("number out of range", f"{key} holds {np.abs(array).max():g}")
