"""Halpe-FullBody (136 keypoints): training pictures are HICO-DET's, validation pictures COCO's."""

from __future__ import annotations

from data_pipelines.builders.coco_format import CocoFormatBuilder
from data_pipelines.builders.raw_files import Layout


class Halpe(CocoFormatBuilder):
    dataset = "halpe"
    folders = ("halpe",)
    layouts = {
        "train": Layout(("annotations/halpe_train_v1.json",), ("hico_20160224_det/images/train2015",)),
        "val": Layout(("annotations/halpe_val_v1.json",), ("val2017", "../coco/val2017")),
    }
