"""CrowdPose; its images carry the crowd index that sorts them into easy, medium and hard."""

from __future__ import annotations

from data_pipelines.builders.coco_format import CocoFormatBuilder
from data_pipelines.builders.raw_files import Layout


class CrowdPose(CocoFormatBuilder):
    dataset = "crowdpose"
    folders = ("crowdpose",)
    layouts = {
        split: Layout((f"annotations/mmpose_crowdpose_{split}.json", f"json/crowdpose_{split}.json"), ("images",))
        for split in ("train", "val", "trainval", "test")
    }
