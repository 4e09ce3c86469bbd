"""What a builder yields becomes examples, or entries of the report; and which way up a dataset's pictures are."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from data_pipelines import orientation
from data_pipelines.builders import checks
from data_pipelines.builders.report import Report
from data_pipelines.fields import Fault, whole
from data_pipelines.importers import pictures

Picture = pathlib.Path | bytes
LOST = "instance lost with its image"
TWICE = "labels of another one in the picture once more (kept)"
SEVERAL_IDS = "picture with several ids (kept with each)"
_HEAD_BYTES = 256 << 10  # enough for the headers of most pictures


class Checker:
    """Turns what a builder yields into examples, or into entries of the report.

    Attributes:
      upright: whether the pictures are read as their EXIF orientation says.
      tagged: how many of the pictures that were kept have an orientation tag other than 1.
    """

    def __init__(
        self, num_keypoints: int, report: Report, annotation_file: str, upright: bool, keys: Mapping[str, str]
    ):
        self._num_keypoints, self._report, self._file, self._keys = num_keypoints, report, annotation_file, keys
        self._image_ids: set[int] = set()
        self._pictures: set[pathlib.Path] = set()
        self._instance_ids: set[int] = set()
        self.upright, self.tagged = upright, 0

    def __call__(
        self,
        picture: Picture,
        record: Mapping[str, Any],
        read: tuple[bytes, int, int] | Fault,
        categories: frozenset[int],
    ) -> dict[str, Any] | None:
        file = picture if isinstance(picture, pathlib.Path) else str(record.get("file_name"))
        try:
            if isinstance(read, Fault):
                raise read
            data, example, tag = self._image(record, read)
        except Fault as fault:
            self._report.drop_image(_in_file(fault, self._keys), file, record.get("image_id"))
            for instance in record["instances"]:
                self._report.remark(LOST, *(instance.get("origin") or (self._file or file, instance.get("id"))))
            return None
        self._image_ids.add(example["image_id"])
        if isinstance(picture, pathlib.Path):
            if picture in self._pictures:
                self._report.remark(SEVERAL_IDS, file, example["image_id"], "each has only its own people")
            self._pictures.add(picture)
        self.tagged += tag != 1
        width, height = example["width"], example["height"]
        kept: list[dict[str, Any]] = []
        first: dict[bytes, int] = {}
        for instance in record["instances"]:
            checked = self._instance(instance, file, width, height, categories)
            if checked is None:
                continue
            kept.append(checked)
            one = first.setdefault(checked["box"].tobytes() + checked["keypoints"].tobytes(), checked["id"])
            if one != checked["id"] and (checked["keypoints"][:, 2] > 0).any():
                source, entry = instance.get("origin") or (self._file or file, checked["id"])
                self._report.remark(TWICE, source, entry, f"box and keypoints are those of {one}, too")
        return example | {"image": data, "instances": kept}

    def _image(self, record: Mapping[str, Any], read: tuple[bytes, int, int]) -> tuple[bytes, dict[str, Any], int]:
        """(picture, image fields, orientation tag). Raises Fault."""
        data, width, height = read
        tag = orientation.tag_of(data)
        size = orientation.turned(width, height, tag) if self.upright else (width, height)
        try:
            example = checks.check_image_entry(record, *size)
        except Fault as fault:
            if fault.reason != "image size differs" or tag < 5:
                raise
            how = "is applied" if self.upright else "is not applied (see --orientation)"
            raise Fault(fault.reason, f"{fault.detail}; its EXIF orientation {tag} {how}") from fault
        if example["image_id"] in self._image_ids:
            raise Fault("duplicate image id")
        return data, example, tag

    def _instance(self, instance, file, width, height, categories) -> dict[str, Any] | None:
        file, entry = instance.get("origin") or (self._file or file, instance.get("id"))
        keys = {} if instance.get("origin") else self._keys  # a label tool's importer has read the fields itself
        try:
            checked, remarks = checks.check_instance(instance, self._num_keypoints, width, height, categories)
            if checked["id"] in self._instance_ids:
                raise Fault("duplicate annotation id")
        except Fault as fault:
            self._report.drop_instance(_in_file(fault, keys), file, entry)
            return None
        self._instance_ids.add(checked["id"])
        for what, detail in remarks:
            self._report.remark(what, file, entry, _with_key(detail, keys))
        return checked


def _in_file(fault: Fault, keys: Mapping[str, str]) -> Fault:
    return Fault(fault.reason, _with_key(fault.detail, keys))


def _with_key(detail: str, keys: Mapping[str, str]) -> str:
    """A detail that begins with a field of the record, with the key of the annotation file in its place."""
    field, *rest = detail.split(" ", 1)
    return " ".join([keys.get(field, field), *rest])


def told_by_sizes(votes: Iterable[str | None]) -> str | None:
    """'stored' or 'upright' by the majority of `vote`; None where no picture tells."""
    found = list(votes)
    upright, stored = found.count(orientation.UPRIGHT), found.count(orientation.STORED)
    if not upright and not stored:
        return None
    return orientation.UPRIGHT if upright > stored else orientation.STORED


def vote(picture: Picture, record: Mapping[str, Any]) -> str | None:
    """Which way up a picture was when it was annotated; None unless its annotated size tells.

    It tells where the EXIF orientation exchanges width and height: the annotated size is that of the stored or of the
    upright picture.
    """
    annotated = whole(record.get("width")), whole(record.get("height"))
    try:
        tag, width, height = _headers(picture)
    except (OSError, ValueError, Fault):
        return None
    if tag < 5 or width == height:
        return None
    told: dict[Any, str] = {(height, width): orientation.UPRIGHT, (width, height): orientation.STORED}
    return told.get(annotated)


def _headers(picture: Picture) -> tuple[int, int, int]:
    """(orientation, width, height). Raises OSError, ValueError or Fault."""
    if isinstance(picture, bytes):
        return orientation.tag_of(picture), *checks.jpeg_size(picture)
    with picture.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        if not head.startswith(b"\xff\xd8"):  # of another format, which custom datasets may have
            return pictures.tag_of(picture), *pictures.size_of(picture)
        tag = orientation.tag_of(head)
        if tag < 5:
            return tag, 0, 0
        try:
            return tag, *checks.jpeg_size(head)
        except Fault:
            return tag, *checks.jpeg_size(head + file.read())
