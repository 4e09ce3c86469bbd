"""What every importer makes of a label tool's files: a COCO document with a skeleton, and what could not be read."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines import fields
from data_pipelines.builders.report import Entry, NoAnnotations, RawDataError
from data_pipelines.fields import Fault

NO_CATEGORY = "object"
VISIBLE, HIDDEN = 2.0, 1.0
Point = tuple[float, float, float]
"""x, y in pixels, the centre of the top-left pixel at (0, 0), and COCO's visibility."""


class OfAnotherKind(Fault):
    """A shape that is neither keypoint nor box, such as a polygon: left out with a remark; nobody is lost with it."""


@dataclasses.dataclass(frozen=True)
class Person:
    """A person or animal as labelled.

    Attributes:
      points: keypoint's name -> x, y, v; those that are not there are not labelled.
      entry: what it is in its file, such as 'line 5' or 'shape 3'.
      box: x, y, width, height in pixels; None where nobody drew one.
      category: its class.
    """

    points: Mapping[str, Point]
    entry: str
    box: tuple[float, float, float, float] | None = None
    category: str = NO_CATEGORY


@dataclasses.dataclass(frozen=True)
class LabelledPicture:
    """A picture with its people.

    Attributes:
      file_name: below the picture folder, or as the tool wrote it.
      source: the label file.
      people: those that could be read.
      broken: (what is wrong, entry) of the others.
      size: (width, height) as annotated, to be compared with the picture's own.
      split: the part of the dataset it belongs to; '' where the format has no splits.
    """

    file_name: str
    source: pathlib.Path
    people: Sequence[Person] = ()
    broken: Sequence[tuple[Fault, str]] = ()
    size: tuple[Any, Any] | None = None
    split: str = ""


@dataclasses.dataclass(frozen=True)
class Broken:
    """Something that is left out: a picture, or (`person`) somebody in one. `image_id` is None where unknown."""

    fault: Fault
    file: pathlib.Path
    entry: str
    person: bool
    image_id: int | None = None


@dataclasses.dataclass(frozen=True)
class Labels:
    """A dataset as its label files have it.

    Attributes:
      document: a COCO document. An annotation may have its 'origin', (file, entry).
      images: the folder below which its pictures lie.
      mirror: pairs of names that a mirror exchanges, where the files say so.
      broken: what is left out.
      remarks: (what, file, detail) of what is unusual.
      absent: split that the files name, but that is not there -> why.
      splits: id of an image -> its split, where the format has splits.
    """

    document: Any
    images: pathlib.Path
    mirror: tuple[tuple[str, str], ...] | None = None
    broken: Sequence[Broken] = ()
    remarks: Sequence[tuple[str, pathlib.Path, str]] = ()
    absent: Mapping[str, str] = dataclasses.field(default_factory=dict)
    splits: Mapping[int, str] = dataclasses.field(default_factory=dict)


def in_order(own: Sequence[str], wanted: Sequence[str] | None) -> Sequence[str]:
    """A file's own keypoints; in the order of the dataset's, or of those that were asked for, if they are the same.

    Points are found by their names, and tools list them in another order in the file of another task.
    """
    return wanted if wanted is not None and sorted(wanted) == sorted(own) else own


def assemble(
    pictures: Sequence[LabelledPicture],
    images: pathlib.Path,
    names: Sequence[str] | None,
    *,
    limbs: Sequence[tuple[str, str]] = (),
    broken: Sequence[Broken] = (),
    mirror: tuple[tuple[str, str], ...] | None = None,
    remarks: Sequence[tuple[str, pathlib.Path, str]] = (),
) -> Labels:
    """The COCO document of labelled pictures.

    Their ids are the numbers that they are called by, as COCO's are and detectors write them, if all have one of their
    own; else ids count from 1, as those of people do.

    Args:
      names: of the keypoints in order; None takes them as they first appear.
      limbs: pairs of names.
      broken: label files or pictures that could not be read at all; for the rest see `Labels`.

    Raises:
      RawDataError: no keypoint has a name.
    """
    found = dict.fromkeys(name for picture in pictures for person in picture.people for name in person.points)
    if names is None and (alike := _alike(list(found))):
        remarks = [*remarks, ("keypoints whose names hardly differ (kept apart)", images, ", ".join(map(repr, alike)))]
    names = list(found if names is None else names)
    place = {name: number for number, name in enumerate(names)}
    lost = list(broken)
    numbers = _ids(pictures)
    for number, picture in zip(numbers, pictures, strict=True):
        lost += [Broken(fault, picture.source, entry, True, number) for fault, entry in picture.broken]
    if not names:
        why = f"; left out {len(lost)}, first {lost[0].file}, {lost[0].entry}: {lost[0].fault}" if lost else ""
        raise RawDataError(f"{images}: nobody has a keypoint, and the format does not name them (--keypoints){why}")
    skeleton = {"keypoints": names, "skeleton": [[place[a] + 1, place[b] + 1] for a, b in limbs]}
    categories, number_of = _categories(pictures, skeleton)
    document: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}
    for number, picture in zip(numbers, pictures, strict=True):
        width, height = picture.size or (None, None)
        image = {"id": number, "file_name": picture.file_name, "width": width, "height": height}
        document["images"].append(image)
        for person in picture.people:
            if unknown := [name for name in person.points if name not in place]:
                fault = Fault("unknown keypoint", f"{unknown[0]!r:.80}; known are {', '.join(names)}")
                lost.append(Broken(fault, picture.source, person.entry, True, number))
                continue
            points = [value for name in names for value in person.points.get(name, (0.0, 0.0, 0.0))]
            annotation = {
                "id": len(document["annotations"]) + 1,
                "image_id": number,
                "category_id": number_of[person.category],
                "keypoints": points,
                "origin": (str(picture.source), Entry(person.entry)),
            }
            document["annotations"].append(annotation | ({} if person.box is None else {"bbox": list(person.box)}))
    splits = {number: picture.split for number, picture in zip(numbers, pictures, strict=True) if picture.split}
    return Labels(document, images, mirror, lost, remarks, splits=splits)


def _ids(pictures: Sequence[LabelledPicture]) -> Sequence[int]:
    stems = [pathlib.PurePosixPath(picture.file_name.replace("\\", "/")).stem for picture in pictures]
    numbers = [int(stem) for stem in stems if re.fullmatch(r"[0-9]{1,18}", stem)]
    return numbers if len(set(numbers)) == len(pictures) else range(1, len(pictures) + 1)


def _alike(names: Sequence[str]) -> list[str]:
    """Those that another one is but for capitals, blanks and marks: of labels that people type, probably mistakes."""
    plain = [re.sub(r"[\W_]", "", name).casefold() for name in names]
    return sorted(name for name, letters in zip(names, plain, strict=True) if plain.count(letters) > 1)


def _categories(
    pictures: Sequence[LabelledPicture], skeleton: dict[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """(categories, number of every class).

    A class of boxes alone lists no keypoints, and is left out by what reads the document. People of no class are of the
    only class with keypoints, if there is one.
    """
    people = [person for picture in pictures for person in picture.people]
    kinds = {person.category: False for person in people}
    kinds |= {person.category: True for person in people if person.points}
    named = [kind for kind, has_points in kinds.items() if has_points and kind != NO_CATEGORY]
    alias = named[0] if len(named) == 1 and kinds.pop(NO_CATEGORY, False) else NO_CATEGORY
    if not any(kinds.values()):
        kinds[NO_CATEGORY] = True
    number_of = {kind: number for number, kind in enumerate(kinds, 1)}
    categories = [
        {"id": number_of[kind], "name": kind} | (skeleton if has_points else {}) for kind, has_points in kinds.items()
    ]
    return categories, {NO_CATEGORY: number_of.get(alias, 0)} | number_of


@dataclasses.dataclass(frozen=True)
class ValShare:
    """A part of the pictures, chosen by `seed`, is for validation."""

    share: float
    seed: int = 0

    def __str__(self) -> str:
        return f"--val_share={self.share:g} --seed={self.seed}"


def select(labels: Labels, split: str, part: ValShare | None) -> Labels:
    """The part of a dataset that is one of its splits.

    With a `part`, 'val' are so many pictures, rounded, and 'train' the others, in an order that depends on their names
    and the seed alone: the same on every machine, and nearly the same when pictures are added. Else the format's own
    splits count, and where it has none everything is `split`. What belongs to no picture goes to 'train'.

    Raises:
      NoAnnotations: the files do not have that split.
      RawDataError: a share that leaves a split without pictures, or of another split.
    """
    images = labels.document.get("images") if isinstance(labels.document, dict) else None
    if not isinstance(images, list):
        return labels  # the builder says what is wrong
    remarks = list(labels.remarks)
    if part is not None:
        chosen = _by_share(images, split, part)
        # Nobody asks for these by name.
        remarks += [(f"split {s} is not there (left out)", labels.images, why) for s, why in labels.absent.items()]
    elif labels.splits:
        chosen = [image for image in images if labels.splits[image["id"]] == split]
        if not chosen:
            why = f"{labels.absent[split]}; " if split in labels.absent else ""
            own = ", ".join(sorted(set(labels.splits.values())))
            raise NoAnnotations(f"there is no split {split!r}: {why}the files have {own}")
    else:
        return labels
    kept = {fields.id_key(image.get("id")) for image in chosen if isinstance(image, dict)}
    others = {fields.id_key(image.get("id")) for image in images if isinstance(image, dict)} - kept
    first = split == "train"

    def belongs(number: Any) -> bool:
        key = fields.id_key(number)
        return key in kept or (first and key not in others)

    document = {**labels.document, "images": chosen}
    if isinstance(document.get("annotations"), list):
        document["annotations"] = [
            entry
            for entry in document["annotations"]
            if (belongs(entry.get("image_id")) if isinstance(entry, dict) else first)
        ]
    broken = [item for item in labels.broken if belongs(item.image_id)]
    return dataclasses.replace(labels, document=document, broken=broken, remarks=remarks if first else ())


def _by_share(images: list, split: str, part: ValShare) -> list:
    count = math.floor(part.share * len(images) + 0.5)
    if not 0 < count < len(images):
        raise RawDataError(f"a share of {part.share:g} of {len(images)} pictures leaves a split without any")
    if split not in ("train", "val"):
        raise RawDataError(f"a share makes the splits train and val, not {split!r}")

    def rank(number: int) -> bytes:
        image = images[number]
        name = image.get("file_name") if isinstance(image, dict) else None
        return hashlib.sha256(f"{part.seed}/{name if isinstance(name, str) else number}".encode()).digest()

    chosen = set(sorted(range(len(images)), key=rank)[:count])
    return [image for number, image in enumerate(images) if (number in chosen) == (split == "val")]
