"""MS COCO 2017 person keypoints, with test-dev (pictures without annotation)."""

from __future__ import annotations

from data_pipelines.builders.coco_format import CocoFormatBuilder
from data_pipelines.builders.raw_files import Layout


class Coco(CocoFormatBuilder):
    dataset = "coco"
    folders = ("coco",)
    layouts = {
        "train": Layout(("annotations/person_keypoints_train2017.json",), ("train2017",)),
        "val": Layout(("annotations/person_keypoints_val2017.json",), ("val2017",)),
        "test-dev": Layout(
            ("annotations/image_info_test-dev2017.json", "annotations/person_keypoints_test-dev-2017.json"),
            ("test2017",),
            annotated=False,
        ),
    }
