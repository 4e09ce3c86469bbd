"""Mutated annotation files of every format: no traceback, no silence, and nobody lost beside the damaged entry."""

from __future__ import annotations

import collections
import dataclasses
import logging
import pathlib
import shutil
from typing import Any

import hypothesis
import numpy as np
from hypothesis import HealthCheck, Phase, settings

from data_pipelines import fields, records
from data_pipelines.builders.report import RawDataError
from scripts.reliability import bounds
from scripts.reliability.annotation_damage import EVERYTHING, Damage, mutations
from tests.data_pipelines import annotation_formats
from tests.data_pipelines.annotation_formats import Download

TITLE = "annotations: mutated files, prepared"
COUNT = 50
EXAMPLES = 20
"""Mutations of a case."""
SECONDS, MEGABYTES = 300, 512
EXAMPLE_SECONDS = 20

REFUSED, REPORTED, SAME, OTHER = "refused", "reported", "unchanged", "other valid labels"
People = collections.Counter
"""(picture's name, labels) of every person."""


@dataclasses.dataclass
class Reference:
    """A download as it is, prepared."""

    download: Download
    people: People
    told: collections.Counter
    image_keys: dict[str, Any]  # name of a picture -> key that its entry has in the annotation file


@dataclasses.dataclass
class Material:
    """What the cases of a child have in common."""

    folder: pathlib.Path
    seed: int
    references: dict[str, Reference]


def prepare(folder: pathlib.Path, seed: int) -> Material:
    """The downloads, prepared undamaged."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    references = {}
    for name, download in annotation_formats.downloads().items():
        place = folder / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        summary, table = download.prepare(place)
        references[name] = Reference(download, people_of(table), told(summary), _image_keys(download, table))
    return Material(folder, seed, references)


def case(material: Material, number: int) -> list[tuple[str, str, str, bool]]:
    """(format: mutation, result, message, whether it is a fault) of every example."""
    names = list(material.references)
    name = names[number % len(names)]
    reference, place = material.references[name], material.folder / name
    found: list[tuple[str, str, str, bool]] = []

    @hypothesis.seed(material.seed * 10_000 + number)
    @settings(
        max_examples=EXAMPLES,
        database=None,
        deadline=None,
        phases=[Phase.generate],  # every example is one of the campaign's; a fault is told by itself
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(mutations(reference.download.content, per_entry(name)))
    def try_one(mutation: tuple[Any, Damage]) -> None:
        content, damage = mutation
        result, detail, fault = _try(reference, place, content, damage)
        found.append((f"{name}: {damage.kind}", result, f"{damage.where}: {detail}", fault))

    try_one()
    return found


def _try(reference: Reference, place: pathlib.Path, content: Any, damage: Damage) -> tuple[str, str, bool]:
    """(result, detail, fault) of one mutation."""
    try:
        with bounds.time_limit(EXAMPLE_SECONDS):
            summary, table = reference.download.prepare(place, content, allow_loss=True)
    except RawDataError as error:
        message = str(error)
        named = reference.download.name in message and "\n" not in message
        allowed = damage.images == EVERYTHING
        return REFUSED, message, not (named and allowed)
    except bounds.TimeLimit as error:
        return "hang", str(error), True
    except Exception as error:  # whatever comes out here, a user would see as a traceback
        return "traceback", f"{type(error).__name__}: {error}", True
    return judge(reference, summary, table, damage)


def judge(
    reference: Reference, summary: dict[str, Any], table: records.Annotations, damage: Damage
) -> tuple[str, str, bool]:
    """What is wrong with a preparation of a damaged file, if anything is."""
    people = people_of(table)
    lost, new = reference.people - people, people - reference.people
    report = told(summary) - reference.told
    message = _messages(summary)
    if not all(np.isfinite(getattr(table, name)).all() for name in ("keypoints", "box", "area")):
        return "not finite", message, True
    if damage.images != EVERYTHING:
        beside = [person for person in lost if reference.image_keys[person[0]] not in damage.images]
        if beside or sum(lost.values()) > damage.people:
            return (
                "lost beside the damage",
                f"{len(lost)} people, among them of {(beside or list(lost))[0][0]}; {message}",
                True,
            )
        if sum(new.values()) > damage.others:
            return "other people", f"{list(new)[0]}; {message}", True
    if not lost and not new:
        return SAME, message, False
    if not report:
        missing = sum(lost.values()) > sum(new.values())
        removed = damage.kind in ("entry removed", "other bytes")
        if (missing and not removed) or not damage.plain:
            return "silence", f"{len(lost)} people lost, {len(new)} other; {message}", True
        return OTHER, message, False
    return REPORTED, message, False


def per_entry(name: str) -> int:
    """People that one annotation of a format stands for."""
    return 2 if name == "interhand2d" else 1


def people_of(table: records.Annotations) -> People:
    """Everybody in a table, by picture and labels; ids, which some formats count, are left out."""
    found: People = collections.Counter()
    for row, image in enumerate(table.image_index):
        labels = (table.keypoints[row], table.box[row], table.area[row], table.crowd[row], table.category[row])
        found[str(table.file_name[image]), b"".join(np.asarray(part).tobytes() for part in labels)] += 1
    return found


def told(summary: dict[str, Any]) -> collections.Counter:
    """How many entries a summary reports, by reason."""
    kinds = [*summary["dropped"].values(), summary["remarks"]]
    return collections.Counter({reason: tally["count"] for tallies in kinds for reason, tally in tallies.items()})


def _messages(summary: dict[str, Any]) -> str:
    return "; ".join(f"{reason} {count}" for reason, count in told(summary).items())


def _image_keys(download: Download, table: records.Annotations) -> dict[str, Any]:
    if isinstance(download.content, list):
        return {str(name): str(name) for name in table.file_name}
    return {str(name): fields.id_key(int(number)) for name, number in zip(table.file_name, table.image_id, strict=True)}
