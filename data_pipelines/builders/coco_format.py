"""Datasets whose annotation is one COCO-format JSON file a split."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from data_pipelines.builders import checks, raw_files
from data_pipelines.builders.base import PoseBuilder
from data_pipelines.builders.raw_files import Layout
from data_pipelines.builders.report import Fault

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
        self.files = raw_files.locate(self.folders, self.layout, raw_dir, annotations, images)

    def describe_source(self) -> dict[str, str]:
        return {"annotations": str(self.files.annotations), "images": str(self.files.images)}

    def load(self) -> dict[str, Any]:
        """The split's annotation as a COCO document."""
        return raw_files.read_json(self.files.annotations)

    def instance(self, annotation: dict[str, Any]) -> dict[str, Any]:
        """A COCO annotation as an instance of a record; keys that it lacks are left out."""
        return {field: annotation[key] for field, key in _INSTANCE_KEYS.items() if key in annotation}

    def picture(self, file_name: str) -> pathlib.Path:
        """Where the picture of that name lies."""
        return self.files.images / file_name

    def images(self) -> Iterator[tuple[pathlib.Path, dict[str, Any]]]:
        path = self.files.annotations
        document = self.load()
        (images,) = raw_files.document_lists(path, document, "images")
        annotations: list = []
        if self.layout.annotated or "annotations" in document:
            (annotations,) = raw_files.document_lists(path, document, "annotations")
        self.categories = self._categories(document)
        self.num_images = len(images)
        by_image = self._group(images, annotations)
        del document, annotations
        for image in images:
            if not isinstance(image, dict) or not isinstance(image.get("file_name"), str):
                number = image.get("id") if isinstance(image, dict) else None
                self.report.drop_image(Fault("bad image entry", f"{image!r:.200}"), path, number)
                continue
            number = image.get("id")
            yield (
                self.picture(image["file_name"]),
                {
                    "image_id": number,
                    "file_name": image["file_name"],
                    "width": image.get("width"),
                    "height": image.get("height"),
                    "crowd_index": image.get("crowdIndex", -1.0),
                    # Popped: a second image of the same id gets none, and is dropped.
                    "instances": [self.instance(entry) for entry in by_image.pop(checks.hashable(number), ())],
                },
            )

    def _categories(self, document: dict[str, Any]) -> tuple[tuple[int, str], ...]:
        if not document.get("categories"):
            return self.categories
        (entries,) = raw_files.document_lists(self.files.annotations, document, "categories")
        categories: dict[int, str] = {}
        for entry in entries:
            try:
                if not isinstance(entry, dict):
                    raise Fault("not an object", f"{entry!r:.80}")
                number = checks.integer(entry, "id", bits=32)
                categories.setdefault(number, str(entry.get("name", number)))
            except Fault as fault:
                # No fault in itself: if annotations use it they are dropped, for their unknown category.
                self.report.remark("unusable category", self.files.annotations, None, str(fault))
        return tuple(categories.items())

    def _group(self, images: list, annotations: list) -> dict[Any, list[dict]]:
        """Annotations by image id; those that are no objects or belong to no image are reported."""
        by_image = {checks.hashable(image.get("id")): [] for image in images if isinstance(image, dict)}
        path = self.files.annotations
        for annotation in annotations:
            if not isinstance(annotation, dict):
                self.report.drop_instance(Fault("not an object", f"{annotation!r:.80}"), path, None)
            elif annotation.get("image_id") is None:
                self.report.drop_instance(Fault("missing field", "image_id"), path, annotation.get("id"))
            elif checks.hashable(annotation["image_id"]) not in by_image:
                self.report.drop_instance(
                    Fault("annotation without image", f"image_id {annotation['image_id']!r:.80}"),
                    path,
                    annotation.get("id"),
                )
            else:
                by_image[checks.hashable(annotation["image_id"])].append(annotation)
        return by_image
