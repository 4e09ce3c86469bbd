"""Datasets whose annotation is one COCO-format JSON file a split."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from data_pipelines import fields
from data_pipelines.builders import raw_files
from data_pipelines.builders.base import PoseBuilder
from data_pipelines.builders.checker import LOST
from data_pipelines.builders.raw_files import Layout, RawFiles
from data_pipelines.builders.report import Fault

BOXES_ONLY = "of a category without keypoints (left out)"
_INSTANCE_KEYS = {  # field of a record -> key of COCO's format
    "id": "id",
    "box": "bbox",
    "keypoints": "keypoints",
    "area": "area",
    "crowd": "iscrowd",
    "category": "category_id",
    "num_keypoints": "num_keypoints",
    "segmentation": "segmentation",
}


class CocoFormatBuilder(PoseBuilder):
    """A subclass says where its files lie; one whose format differs overrides `load` or `instance`."""

    keys = _INSTANCE_KEYS | {"image_id": "id"}  # of an entry of `images`
    folders: ClassVar[tuple[str, ...]] = ()
    layouts: ClassVar[Mapping[str, Layout]]

    def __init_subclass__(cls, **kwargs):
        cls.splits = tuple(cls.layouts)
        super().__init_subclass__(**kwargs)

    def __init__(
        self,
        split: str,
        *,
        raw_dir: str | pathlib.Path | None = None,
        annotations: str | pathlib.Path | None = None,
        images: str | pathlib.Path | None = None,
        **kwargs,
    ):
        """
        Args:
          raw_dir: the folder of all downloads, or the dataset's own.
          annotations, images: this split's annotation file and picture folder, where they lie elsewhere.
          **kwargs: those of `PoseBuilder`.

        Raises:
          RawDataError: the split's files are not there.
        """
        super().__init__(split, **kwargs)
        # A split of the user's own (with --annotations and --images) has no layout to look for.
        self.layout = self.layouts.get(split, Layout((), ()))
        self.annotated = self.layout.annotated
        self.files = self.locate(raw_dir, annotations, images)

    def locate(self, raw_dir, annotations, images) -> RawFiles:
        """The split's files; see `raw_files.locate`."""
        return raw_files.locate(self.folders, self.layout, raw_dir, annotations, images)

    def describe_source(self) -> dict[str, str]:
        return {"annotations": str(self.files.annotations), "images": str(self.files.images)}

    def load(self) -> dict[str, Any]:
        """The split's annotation as a COCO document."""
        return raw_files.read_json(self.files.annotations)

    def instance(self, annotation: dict[str, Any]) -> dict[str, Any]:
        """A COCO annotation as an instance of a record; keys that it lacks are left out."""
        return {field: annotation[key] for field, key in _INSTANCE_KEYS.items() if key in annotation}

    def picture(self, file_name: str) -> pathlib.Path:
        """Where the picture of that name lies; see `raw_files.find_picture`."""
        return raw_files.find_picture(self.files.images, file_name)

    def images(self) -> Iterator[tuple[pathlib.Path, dict[str, Any]]]:
        path = self.files.annotations
        document = self.load()
        (images,) = raw_files.document_lists(path, document, "images")
        annotations: list = []
        if self.layout.annotated or "annotations" in document:
            (annotations,) = raw_files.document_lists(path, document, "annotations")
        self.annotated = self.annotated and bool(annotations)
        self.categories, boxes_only = self._categories(document)
        self.num_images = len(images)
        by_image, ambiguous = self._group(images, self._with_skeleton(annotations, boxes_only)), shared_ids(images)
        del document, annotations
        for image in images:
            if not isinstance(image, dict) or not isinstance(image.get("file_name"), str):
                number = image.get("id") if isinstance(image, dict) else None
                fault = Fault("bad image entry", f"file_name is missing or no text: {image!r:.200}")
                self.report.drop_image(fault, path, number)
                continue
            try:
                entries = self._entries_of(image, by_image, ambiguous)
            except Fault as fault:
                self.report.drop_image(fault, path, image.get("id"))
                continue
            yield (
                self.picture(image["file_name"]),
                {
                    "image_id": image.get("id"),
                    "file_name": image["file_name"],
                    "width": image.get("width"),
                    "height": image.get("height"),
                    "crowd_index": image.get("crowdIndex"),
                    "instances": [self.instance(entry) for entry in entries],
                },
            )

    def _categories(self, document: dict[str, Any]) -> tuple[tuple[tuple[int, str], ...], frozenset[int]]:
        """(id and name of the categories with keypoints, ids of the others); where none has any, all count as with."""
        if not document.get("categories"):
            return self.categories, frozenset()
        path = self.files.annotations
        (entries,) = raw_files.document_lists(path, document, "categories")
        names: dict[int, str] = {}
        with_keypoints: set[int] = set()
        for entry in entries:
            try:
                if not isinstance(entry, dict):
                    raise Fault("not an object", f"{entry!r:.80}")
                number = fields.integer(entry, "id", bits=32)
                if number in names:
                    raise Fault("duplicate id", f"{number}, of {entry.get('name')!r:.80} and {names[number]!r:.80}")
                names[number] = fields.printable(str(number if entry.get("name") is None else entry["name"]))
                if raw_files.has_skeleton(entry):
                    with_keypoints.add(number)
            except Fault as fault:
                # No fault in itself: if annotations use it they are dropped, for their unknown category.
                self.report.remark("unusable category", path, None, str(fault))
        kept = with_keypoints or set(names)
        categories = tuple((number, name) for number, name in names.items() if number in kept)
        return categories, frozenset(names) - kept

    def _with_skeleton(self, annotations: list, boxes_only: frozenset[int]) -> list:
        """Without the boxes of categories that have no keypoints, which label tools list beside the one that has."""
        if not boxes_only:
            return annotations
        kept = []
        for annotation in annotations:
            own = annotation if isinstance(annotation, dict) else {}
            category = fields.whole(own.get("category_id"))
            if category in boxes_only:
                self.report.remark(
                    BOXES_ONLY,
                    self.files.annotations,
                    own.get("id"),
                    f"category {category}",
                )
            else:
                kept.append(annotation)
        return kept

    def _entries_of(
        self, image: dict[str, Any], by_image: dict[Any, list[dict]], ambiguous: frozenset[Any]
    ) -> list[dict]:
        """The annotations of a picture, taken out: a second entry of the same picture gets none, and is dropped.

        Raises:
          Fault: its id is one of the `ambiguous` (see `shared_ids`); its annotations are lost with it.
        """
        key = fields.id_key(image.get("id"))
        entries = by_image.pop(key, [])
        if key in ambiguous:
            for entry in entries:
                self.report.remark(LOST, self.files.annotations, entry.get("id"))
            raise Fault("duplicate image id", f"pictures of different names have it; one is {image['file_name']!r:.80}")
        return entries

    def _group(self, images: list, annotations: list) -> dict[Any, list[dict]]:
        """Annotations by image id; those that are no objects or belong to no image are reported."""
        by_image = {fields.id_key(image.get("id")): [] for image in images if isinstance(image, dict)}
        path = self.files.annotations
        for annotation in annotations:
            if not isinstance(annotation, dict):
                self.report.drop_instance(Fault("not an object", f"{annotation!r:.80}"), path, None)
            elif annotation.get("image_id") is None:
                self.report.drop_instance(Fault("missing field", "image_id"), path, annotation.get("id"))
            elif (key := fields.id_key(annotation["image_id"])) not in by_image:
                self.report.drop_instance(
                    Fault("annotation without image", f"image_id {annotation['image_id']!r:.80}"),
                    path,
                    annotation.get("id"),
                )
            else:
                by_image[key].append(annotation)
        return by_image


def shared_ids(images: list) -> frozenset[Any]:
    """Ids (see `fields.id_key`) that pictures of different names share: whose an annotation is cannot be told."""
    names: dict[Any, str] = {}
    shared = set()
    for image in images:
        if isinstance(image, dict) and image.get("id") is not None and isinstance(image.get("file_name"), str):
            key = fields.id_key(image["id"])
            if names.setdefault(key, image["file_name"]) != image["file_name"]:
                shared.add(key)
    return frozenset(shared)
