"""Damaged, unusual and hostile pictures: prepared and predicted on, each beside two that are in order."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import pathlib
import shutil
from typing import Any

import numpy as np

from data_pipelines import records
from data_pipelines.builders import BUILDERS
from data_pipelines.builders.report import RawDataError
from data_pipelines.top_down.crops import decode
from pose_common.prediction import command
from pose_common.prediction.pictures import PictureError, read_picture
from posebh_jax import predict
from scripts.reliability import bounds, picture_files
from scripts.reliability.picture_files import Odd
from tests.data_pipelines import tiny_sets

TITLE = "pictures: prepared and predicted on"
COUNT = 300
SECONDS, MEGABYTES = 120, 2048

READ, NAMED, OTHER_PIXELS, LATE = "read", "named", "read, other pixels", "kept, fails when read"
TOLERANCE = 12.0
"""Mean difference from the truth, of 255: a lossy format, CMYK without a profile."""


@dataclasses.dataclass
class Material:
    """What the cases of a child have in common."""

    folder: pathlib.Path
    seed: int
    model: Any
    good: dict[str, bytes]
    expected: dict[str, Any]  # what prediction finds in the good ones


def prepare(folder: pathlib.Path, seed: int) -> Material:
    """The model, compiled, and what it finds in pictures that are in order."""
    rng = np.random.default_rng(seed)
    good = {name: picture_files.encode(picture_files.smooth(rng), ".jpg") for name in ("a.jpg", "z.jpg")}
    material = Material(folder, seed, predict.load(), good, {})
    place = _place(material, "good")
    for name, data in good.items():
        (place / name).write_bytes(data)
    status, found, said = _predict(material, place)
    if status:
        raise RuntimeError(f"prediction on pictures in order: {said}")
    return dataclasses.replace(material, expected=found)


def case(material: Material, number: int) -> list[tuple[str, str, str, bool]]:
    """(kind: prepare or predict, result, message, whether it is a fault)."""
    odd = picture_files.make(material.seed, number)
    place = _place(material, "case")
    picture_files.write(place, odd, material.good)
    bounds.forget_peak()  # of making the picture
    found = [("prepare", *_prepared(material, place, odd, number)), ("predict", *_predicted(material, place, odd))]
    return [(f"{odd.kind}: {what}", result, f"{odd.name}: {said}", fault) for what, result, said, fault in found]


def _place(material: Material, name: str) -> pathlib.Path:
    place = material.folder / name / "pictures"
    shutil.rmtree(place.parent, ignore_errors=True)
    place.mkdir(parents=True)
    return place


def _prepared(material: Material, place: pathlib.Path, odd: Odd, number: int) -> tuple[str, str, bool]:
    names = ["a.jpg", odd.name, "z.jpg"]
    sizes = [(picture_files.WIDTH, picture_files.HEIGHT)] * 3
    sizes[1] = odd.stored or (None, None)
    entries = [
        {"id": place, "file_name": name, "width": size[0], "height": size[1]}
        for place, (name, size) in enumerate(zip(names, sizes, strict=True), start=1)
    ]
    people = [tiny_sets.annotation(10 * image + k, image) for image in (1, 2, 3) for k in range(2)]
    if odd.stored:  # a box inside
        for person in people[2:4]:
            person["bbox"] = [0, 0, *odd.stored]
    annotations = place.parent / "people.json"
    annotations.write_text(json.dumps({"images": entries, "annotations": people, "categories": [tiny_sets.PERSON]}))
    builder = BUILDERS["coco"](
        "val",
        annotations=annotations,
        images=place,
        data_dir=place.parent / "data",
        progress=False,
        decode=number // len(picture_files.KINDS) % 2 == 1,
        allow_loss=True,
    )
    try:
        summary = builder.prepare()
    except RawDataError as error:
        return "stopped", str(error), True
    table = records.load_annotations("coco", "val", place.parent / "data")
    kept = list(map(str, table.file_name))
    said = json.dumps(summary["dropped"]["images"])
    if [name for name in kept if name != odd.name] != ["a.jpg", "z.jpg"]:
        return "others lost", f"{kept}; {said}", True
    if odd.name not in kept:
        return NAMED, said, odd.name not in said or (_in_order(odd) and odd.data[:3] == b"\xff\xd8\xff")
    if table.num_instances < (6 if _in_order(odd) else 4):
        return "people lost", f"{table.num_instances} of 6; {summary['dropped']}", True
    return _as_trained_on(place, odd, kept.index(odd.name))


def _as_trained_on(place: pathlib.Path, odd: Odd, row: int) -> tuple[str, str, bool]:
    opened = records.open_records("coco", "val", place.parent / "data")
    table = records.load_annotations("coco", "val", place.parent / "data")
    size = int(table.width[row]), int(table.height[row])
    try:
        image = decode(opened.image(row), {"size": size, "origin": ("coco", "val", odd.name), "image_id": row})
    except ValueError as error:
        return LATE, str(error), _in_order(odd) or odd.name not in str(error)
    if not _in_order(odd):
        return OTHER_PIXELS, f"{image.shape}", False
    return (READ, "", False) if image.shape[1::-1] == odd.stored else ("other size", f"{image.shape}", True)


def _predicted(material: Material, place: pathlib.Path, odd: Odd) -> tuple[str, str, bool]:
    status, found, said = _predict(material, place)
    others = {name: poses for name, poses in found.items() if name != odd.name}
    if others != material.expected:
        return "others lost", said, True
    if odd.name not in found:
        return NAMED, said, not status or odd.name not in said or _in_order(odd)
    if status:
        return "read, but an error", said, True
    try:
        image = read_picture(place / odd.name)
    except PictureError as error:
        return "read once only", str(error), True
    if odd.truth is None:
        return OTHER_PIXELS, f"{image.shape}", False
    if image.shape != odd.truth.shape:
        return "other size", f"{image.shape}, not {odd.truth.shape}", True
    difference = float(np.abs(image[::7].astype(np.int16) - odd.truth[::7]).mean())
    return (READ, "", False) if difference < TOLERANCE else ("other pixels", f"by {difference:.0f}", True)


def _predict(material: Material, place: pathlib.Path) -> tuple[int, dict[str, Any], str]:
    """(exit status, {picture: its poses}, what was said) of the command, with the model that is loaded."""
    out = place.parent / "poses"
    args = command.parser("").parse_args([str(place), f"--out={out}", "--save=csv", "--batch_size=4"])
    model = material.model
    names = model.names(None)

    def results(args):
        found = model.results(
            args.source,
            predict.boxes_of(predict.WHOLE),
            names,
            False,
            args.batch_size,
            predict.HEAD_MAPS,
            left_out=args.left_out.append,
        )
        return model.title, (list(of_picture.values()) for of_picture in found)

    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = command.run(args, results)
    lines = (out / "poses.csv").read_text().splitlines()[1:] if (out / "poses.csv").exists() else []
    rows: dict[str, Any] = {}
    for line in lines:
        rows.setdefault(line.split(",")[0], []).append(line)
    return status, rows, " ".join(line for line in said.getvalue().splitlines() if "picture/s" not in line)[:1000]


def _in_order(odd: Odd) -> bool:
    return odd.truth is not None
