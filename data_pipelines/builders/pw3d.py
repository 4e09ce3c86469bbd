"""3DPW with the 24 SMPL joints, projected to the picture, as keypoints.

The annotation files either are prepared already (COCO format) or come as the release that lists
`smpl_joint_img`, the projected joints with a depth relative to the body's root; the latter is prepared here
by the authors' rule.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from data_pipelines import fields
from data_pipelines.builders import raw_files
from data_pipelines.builders.coco_format import CocoFormatBuilder
from data_pipelines.builders.raw_files import Layout
from data_pipelines.fields import Fault

NUM_JOINTS = 24
_UNUSED = {"fitted_3d_pose", "smpl_param", "h36m_joints", "smpl_joint_img", "smpl_joint_cam", "joint_2d"}


class Pw3d(CocoFormatBuilder):
    dataset = "pw3d"
    folders = ("pw3d", "3dpw")
    layouts = {
        split: Layout((f"annotations/pw3d_{split}.json", f"annotations/3DPW_{split}.json"), ("imageFiles",))
        for split in ("train", "test")
    }

    def load(self) -> dict[str, Any]:
        document = super().load()
        raw_files.document_lists(self.files.annotations, document, "images", "annotations")
        return prepare_release(document)


def prepare_release(document: dict[str, Any]) -> dict[str, Any]:
    """The COCO-format form of the release; a document that is in it already is returned as it is.

    A joint is visible (1.0) where 0 <= x < width, 0 <= y < height and its depth value is not negative, else
    0.0; coordinates are kept. Pictures get the name `<sequence>/<file>`.
    """
    entries = document["annotations"]
    if not any(isinstance(entry, dict) and entry.get("smpl_joint_img") is not None for entry in entries):
        return document
    images = [
        image | {"file_name": f"{image['sequence']}/{image.get('file_name')}"}
        if isinstance(image, dict) and image.get("sequence") is not None
        else image
        for image in document["images"]
    ]
    sizes = {
        fields.id_key(image.get("id")): (image.get("width"), image.get("height"))
        for image in images
        if isinstance(image, dict)
    }
    return document | {
        "images": images,
        "annotations": [_with_keypoints(entry, sizes) if isinstance(entry, dict) else entry for entry in entries],
    }


def _with_keypoints(annotation: dict[str, Any], sizes: dict[str, tuple]) -> dict[str, Any]:
    """The annotation in COCO's form; without keypoints, which the check reports, if joints are damaged."""
    kept = {key: value for key, value in annotation.items() if key not in _UNUSED}
    kept |= {"iscrowd": 0, "category_id": 1}
    try:
        joints = fields.unchecked(annotation, "smpl_joint_img", NUM_JOINTS, 3)
        size = fields.numbers({"size": sizes.get(fields.id_key(annotation.get("image_id")))}, "size", 2)
    except Fault:
        return kept
    known = np.isfinite(joints).all(axis=1)  # NaN: the joint is not there
    joints = np.where(known[:, None], joints, 0)
    inside = known & (joints >= 0).all(axis=1) & (joints[:, :2] < size).all(axis=1)
    return kept | {
        "keypoints": np.column_stack([joints[:, :2], inside]).reshape(-1),
        "num_keypoints": int(inside.sum()),
    }
