"""MPII Human Pose, from the plain JSON lists that pose toolboxes distribute.

An entry is a person with Matlab-style coordinates (the first pixel is 1), which become 0-based here. The
record's instance id is the entry's place in the file, its image id the number in the picture's name. An entry
has a centre and a scale instead of a box; the box stored is the square of side 200 x scale around the final
centre.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.io

from data_pipelines import fields
from data_pipelines.builders import raw_files
from data_pipelines.builders.coco_format import CocoFormatBuilder
from data_pipelines.builders.raw_files import Layout
from data_pipelines.builders.report import Fault, RawDataError

NUM_JOINTS = 16
UPPER_NECK, HEAD_TOP = 8, 9
HEAD_BOX_FACTOR = 0.6  # PCKh's reference length is 0.6 x the head box's diagonal (Andriluka et al., CVPR 2014)
HEAD_SIZE_FROM_BOX = "head boxes (0.6 x diagonal)"
HEAD_SIZE_FROM_JOINTS = "distance of joints 8 and 9 (upper neck, head top); the .mat file was not there"


class Mpii(CocoFormatBuilder):
    """`mpii_gt_<split>.mat` beside the annotation file gives the head sizes; without it joints 8 and 9 do."""

    dataset = "mpii"
    keys = {}  # what the file has is read here
    folders = ("mpii",)
    layouts = {
        split: Layout((f"annotations/mpii_{split}.json",), ("images",), annotated=split != "test")
        for split in ("train", "val", "trainval", "test")
    }

    def images(self) -> Iterator[tuple[pathlib.Path, dict[str, Any]]]:
        path = self.files.annotations
        entries = raw_files.read_json(path)
        if not isinstance(entries, list):
            raise RawDataError(f"{path} does not hold a list of people but a {type(entries).__name__}")
        head_boxes = self._head_boxes(len(entries))
        by_image: dict[str, list[dict[str, Any]]] = {}
        for number, entry in enumerate(entries):
            try:
                name = entry.get("image") if isinstance(entry, dict) else None
                if not isinstance(name, str):
                    raise Fault("missing field", "image")
                person = _person(entry, None if head_boxes is None else head_boxes[..., number])
                by_image.setdefault(name, []).append({"id": number} | person)
            except Fault as fault:
                self.report.drop_instance(fault, path, number)
        self.num_images = len(by_image)
        for name, instances in by_image.items():
            stem = pathlib.PurePosixPath(name).stem
            yield (
                self.picture(name),
                {
                    "image_id": int(stem) if stem.isdecimal() else stem,
                    "file_name": name,
                    "instances": instances,
                },
            )

    def _head_boxes(self, count: int) -> np.ndarray | None:
        """[2 corners, 2, count], or None where the release gives none."""
        path = self.files.annotations.parent / f"mpii_gt_{self.split}.mat"
        self.metadata["head_size"] = HEAD_SIZE_FROM_BOX if path.is_file() else HEAD_SIZE_FROM_JOINTS
        if not path.is_file():
            return None
        try:
            boxes = scipy.io.loadmat(path)["headboxes_src"].astype(np.float64)
        except Exception as error:  # whatever a file of something else, or half a file, makes SciPy do
            raise RawDataError(
                f"{path} gives no head boxes ({type(error).__name__}: {error}): a MATLAB file before version 7.3 with"
                " headboxes_src is needed; without any, the distance of joints 8 and 9 stands for the head's size"
            ) from error
        if boxes.shape != (2, 2, count):
            raise RawDataError(
                f"{path} has head boxes of shape {boxes.shape}; {self.files.annotations.name} lists {count} people"
            )
        return boxes


def _person(entry: dict[str, Any], head_box: np.ndarray | None) -> dict[str, Any]:
    """An instance, without its id, of one MPII entry. Test entries have no joints."""
    centre, scale = fields.numbers(entry, "center", 2), fields.number(entry, "scale")
    if not 0 < scale < fields.MAX_COORDINATE:
        raise Fault("number out of range", f"scale is {scale:g}")
    if centre[0] != -1:  # every protocol moves the centre down and widens the square so that limbs are not cut off
        centre, scale = centre + [0, 15 * scale], 1.25 * scale
    centre = centre - 1
    keypoints = np.zeros((NUM_JOINTS, 3))
    if entry.get("joints") is not None:
        visible = fields.flags(entry, "joints_vis", NUM_JOINTS)
        keypoints[:, :2] = fields.points(entry, "joints", visible) - 1
        keypoints[:, 2] = visible
    side = 200 * scale
    return {
        "box": [*(centre - side / 2), side, side],
        "keypoints": keypoints,
        "centre": centre,
        "scale": scale,
        "head_size": _head_size(keypoints, head_box),
    }


def _head_size(keypoints: np.ndarray, head_box: np.ndarray | None) -> float:
    """PCKh's reference length in pixels; 0 where it is unknown."""
    if head_box is not None:
        return HEAD_BOX_FACTOR * float(np.linalg.norm(head_box[1] - head_box[0]))
    if (keypoints[[UPPER_NECK, HEAD_TOP], 2] > 0).all():
        return float(np.linalg.norm(keypoints[HEAD_TOP, :2] - keypoints[UPPER_NECK, :2]))
    return 0.0
