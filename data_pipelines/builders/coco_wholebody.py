"""COCO-WholeBody: COCO's people with feet, face and hands (133 keypoints)."""

from __future__ import annotations

from typing import Any

import numpy as np

from data_pipelines.builders.coco_format import CocoFormatBuilder
from data_pipelines.builders.raw_files import Layout

_PARTS = {"keypoints": 17, "foot_kpts": 6, "face_kpts": 68, "lefthand_kpts": 21, "righthand_kpts": 21}


class CocoWholeBody(CocoFormatBuilder):
    dataset = "coco_wholebody"
    folders = ("coco",)
    layouts = {
        split: Layout((f"annotations/coco_wholebody_{split}_v1.0.json",), (f"{split}2017",))
        for split in ("train", "val")
    }

    def instance(self, annotation: dict[str, Any]) -> dict[str, Any]:
        """Joins the five keypoint lists; where one has another length, the sum shows it to the check.

        Without the others `keypoints` may hold them all. A remark names those that are missing.
        """
        instance = super().instance(annotation)
        parts: list[Any] = [annotation.get(part) for part in _PARTS]
        missing = [name for name, part in zip(_PARTS, parts, strict=True) if part is None]
        if missing == list(_PARTS)[1:] and len(np.ravel(np.asarray(parts[0], object))) == 3 * sum(_PARTS.values()):
            return instance
        if missing:
            instance.pop("keypoints", None)
            if not annotation.get("iscrowd"):
                what = "keypoint lists of parts missing"
                self.report.remark(what, self.files.annotations, annotation.get("id"), ", ".join(missing))
        elif all(isinstance(part, np.ndarray) for part in parts):
            instance["keypoints"] = np.concatenate([part.reshape(-1) for part in parts])
        else:  # numbers as text, or damage: as it is, for the check
            lists = [part.tolist() if isinstance(part, np.ndarray) else part for part in parts]
            instance["keypoints"] = (
                [value for part in lists for value in part] if all(isinstance(p, list) for p in lists) else lists
            )
        return instance
