"""3DPW with the 24 SMPL joints, projected to the picture, as keypoints.

The annotation files either are prepared already (COCO format) or come as the release that lists `smpl_joint_img`, the
projected joints with a depth relative to the body's root; the latter is prepared here by the authors' rule.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from data_pipelines.builders.coco_format import CocoFormatBuilder
from data_pipelines.builders.raw_files import Layout

_UNUSED = {"fitted_3d_pose", "smpl_param", "h36m_joints", "smpl_joint_img", "smpl_joint_cam", "joint_2d"}


class Pw3d(CocoFormatBuilder):
    dataset = "pw3d"
    folders = ("pw3d", "3dpw")
    layouts = {
        split: Layout((f"annotations/pw3d_{split}.json", f"annotations/3DPW_{split}.json"), ("imageFiles",))
        for split in ("train", "test")
    }

    def load(self) -> dict[str, Any]:
        return prepare_release(super().load())


def prepare_release(document: dict[str, Any]) -> dict[str, Any]:
    """The COCO-format form of the release; entries that are in it already stay as they are.

    A joint is visible (1.0) where 0 <= x < width, 0 <= y < height and its depth value is not negative, else 0.0;
    coordinates are kept. Pictures get the name `<sequence>/<file>`.
    """
    images, sizes = [], {}
    for image in document.get("images", []):
        if isinstance(image, dict):
            sizes[repr(image.get("id"))] = image.get("width"), image.get("height")
            if "cam_param" in image and "sequence" in image:
                image = image | {"file_name": f"{image['sequence']}/{image.get('file_name')}"}
        images.append(image)
    annotations = [_with_keypoints(entry, sizes) if isinstance(entry, dict) and "smpl_joint_img" in entry else entry
                   for entry in document.get("annotations", [])]
    return document | {"images": images, "annotations": annotations}


def _with_keypoints(annotation: dict[str, Any], sizes: dict[str, tuple]) -> dict[str, Any]:
    joints = np.asarray(annotation["smpl_joint_img"], np.float64).reshape(-1, 3)
    # An annotation of no image keeps its joints; the builder reports it for lacking one.
    width, height = sizes.get(repr(annotation.get("image_id")), (np.inf, np.inf))
    inside = (joints >= 0).all(axis=1) & (joints[:, 0] < width) & (joints[:, 1] < height)
    kept = {key: value for key, value in annotation.items() if key not in _UNUSED}
    return kept | {
        "keypoints": np.column_stack([joints[:, :2], inside]).reshape(-1), "num_keypoints": int(inside.sum()),
        "iscrowd": 0, "category_id": 1}
