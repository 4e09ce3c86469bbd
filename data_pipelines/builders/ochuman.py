"""OCHuman: heavily occluded people with COCO's keypoints, for evaluation only."""

from __future__ import annotations

from data_pipelines.builders.coco_format import CocoFormatBuilder
from data_pipelines.builders.raw_files import Layout


class OcHuman(CocoFormatBuilder):
    dataset = "ochuman"
    folders = ("ochuman",)
    layouts = {
        split: Layout((f"annotations/ochuman_coco_format_{split}_range_0.00_1.00.json",), ("images",))
        for split in ("val", "test")
    }
