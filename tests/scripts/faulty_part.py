"""A part of the campaign whose cases do what cases must survive."""

from __future__ import annotations

import os
import pathlib
import time

SECONDS, MEGABYTES = 2, 64
DIES, HANGS, TAKES_MUCH, RAISES = 1, 2, 3, 4


def prepare(folder: pathlib.Path, seed: int) -> int:
    return seed


def case(material: int, number: int) -> list[tuple[str, str, str, bool]]:
    if number == DIES:
        os._exit(7)
    if number == HANGS:
        time.sleep(60)
    if number == TAKES_MUCH:
        return [("kind", "taken", str(len(bytearray(100 << 20).replace(b"\0", b"\1"))), False)]
    if number == RAISES:
        raise KeyError("field")
    return [("kind", "well", f"seed {material}", False), ("kind: more", "well", "", False)]
