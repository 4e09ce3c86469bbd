"""AP-10K: animals of 54 species, in the three splits of its authors."""

from __future__ import annotations

from data_pipelines.builders.coco_format import CocoFormatBuilder
from data_pipelines.builders.raw_files import Layout


class Ap10k(CocoFormatBuilder):
    dataset = "ap10k"
    folders = ("ap10k", "ap-10k")
    layouts = {
        f"{part}-split{number}": Layout((f"annotations/ap10k-{part}-split{number}.json",), ("data",))
        for number in (1, 2, 3)
        for part in ("train", "val", "test")
    }
