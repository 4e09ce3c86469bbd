"""Damaged and hostile files of weights: no code of theirs runs, memory is bounded, and each is named or read whole."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import shutil

import numpy as np

from pose_common.weights.keys import flatten
from pose_common.weights.torch_files import TorchMissing
from posebh_jax.sources import read
from scripts.reliability import weight_files
from scripts.reliability.bounds import Watch

TITLE = "weights: damaged and hostile files"
COUNT = 300
SECONDS = 60
MEGABYTES = 256
"""Beyond the program itself; the files have one MB, or claim to have gigabytes."""

WHOLE, NAMED, NUMBERS = "read whole", "named", "other numbers"
"""`NUMBERS`: the format has no checksum, and what was damaged is still numbers."""
NO_CHECKSUM = ("safetensors", "shards", "pth, legacy")
_FORMS = tuple(weight_files.FORMS)


@dataclasses.dataclass
class Material:
    """What the cases of a child have in common."""

    folder: pathlib.Path
    seed: int
    state: weight_files.State
    expected: str
    watch: Watch


def prepare(folder: pathlib.Path, seed: int) -> Material:
    """Undamaged files of every form, and what is in them."""
    undamaged = folder / "undamaged"
    state = weight_files.make_all(undamaged)
    expected = {}
    for name in ("safetensors.safetensors", "pth.pth", "pth_legacy.pth", "shards", "own", "run"):
        try:
            expected[name] = _digest(_read(undamaged / name))
        except TorchMissing:
            continue  # cases of these files say so
    if len(set(expected.values())) != 1:
        raise RuntimeError(f"undamaged files differ: {expected}")
    return Material(folder, seed, state, expected["own"], Watch())


def case(material: Material, number: int) -> list[tuple[str, str, str, bool]]:
    """(kind, result, message, whether it is a fault) of one file."""
    place = material.folder / "case"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    trap = place / "trap"
    kind, what, path = _make(material, number, place, trap)
    try:
        digest, events = material.watch(lambda: _digest(_read(path)))
        result, message, fault = _judged(kind, digest == material.expected, what)
    except (ValueError, KeyError, OSError) as error:
        events = material.watch.seen
        message = " ".join(str(error).split())
        result, fault = NAMED, str(place) not in message
        message = f"{what}: {message}"
    if trap.exists() or events or not (material.folder / "undamaged" / "own").exists():
        return [(kind, "ran code", f"{what}: {events}", True)]
    return [(kind, result, message, fault)]


def _judged(kind: str, same: bool, what: str) -> tuple[str, str, bool]:
    form, _, damage = kind.partition(": ")
    if same:
        return WHOLE, what, damage in weight_files.ENTRY_KINDS
    undetectable = form in NO_CHECKSUM and damage in weight_files.BYTE_KINDS
    return NUMBERS, what, not undetectable


def _make(material: Material, number: int, place: pathlib.Path, trap: pathlib.Path) -> tuple[str, str, pathlib.Path]:
    """(kind, what exactly, path) of case `number`, written into `place`: in turn a hostile file, and damage."""
    rng = np.random.default_rng([material.seed, number])
    turn, round_ = number % 4, number // 4
    undamaged = material.folder / "undamaged"
    if turn == 0:
        path = place / ("w.pth" if rng.random() < 0.7 else "w.safetensors")
        what = weight_files.write_hostile(path, trap, round_, material.state)
        return "made to harm", what, path
    if turn == 1:
        form = _FORMS[round_ % len(_FORMS)]
        kind = weight_files.ENTRY_KINDS[round_ // len(_FORMS) % len(weight_files.ENTRY_KINDS)]
        state = dict(material.state)
        name = weight_files.change_entry(state, kind, rng)
        path = place / f"w{weight_files.SUFFIXES[form]}"
        weight_files.FORMS[form](path, state)
        return f"{form}: {kind}", name, path
    if turn == 2:
        form = _FORMS[round_ % len(_FORMS)]
        kind = weight_files.BYTE_KINDS[round_ // len(_FORMS) % len(weight_files.BYTE_KINDS)]
        name = f"{form.replace(', ', '_')}{weight_files.SUFFIXES[form]}"
        path = weight_files.copied(undamaged / name, place / name)
        file = sorted(path.iterdir())[rng.integers(3)] if path.is_dir() else path
        weight_files.change_bytes(file, kind, rng)
        return f"{form}: {kind}", file.name, path
    form = ("own", "run")[round_ % 2]
    path = weight_files.copied(undamaged / form, place / form)
    what = weight_files.change_folder(path, rng)
    return f"{'folder of weights' if form == 'own' else 'checkpoint'}: {what.partition(':')[0]}", what, path


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """As every command reads them."""
    return flatten(read(path, weight_files.OPTIONS).weights)


def _digest(arrays: dict[str, np.ndarray]) -> str:
    found = hashlib.sha256()
    for name in sorted(arrays):
        if name.endswith("clusters/keypoint"):
            continue  # the original code's files do not have it
        value = np.asarray(arrays[name])
        found.update(f"{name} {value.dtype} {value.shape}".encode() + value.tobytes())
    return found.hexdigest()
