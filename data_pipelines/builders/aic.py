"""AI Challenger 2017 keypoints, in the COCO-format annotation files that pose toolboxes distribute.

Those give visibility as 2 (visible), 1 (occluded), 0 (absent); the challenge's own files count otherwise.
"""

from __future__ import annotations

from data_pipelines.builders.coco_format import CocoFormatBuilder
from data_pipelines.builders.raw_files import Layout


class Aic(CocoFormatBuilder):
    dataset = "aic"
    folders = ("aic",)
    layouts = {
        # The second name is the one that the released multi-dataset configuration uses for the same file.
        "train": Layout(
            ("annotations/aic_train.json", "annotations/person_keypoints_train2017.json"),
            ("ai_challenger_keypoint_train_20170902/keypoint_train_images_20170902",),
        ),
        "val": Layout(
            ("annotations/aic_val.json", "annotations/person_keypoints_val2017.json"),
            ("ai_challenger_keypoint_validation_20170911/keypoint_validation_images_20170911",),
        ),
    }
