"""InterHand2.6M, 2D: each hand of a picture is one instance with 21 keypoints.

The annotation is three files (data, camera, joint_3d); keypoints are the 3D joints projected by the picture's
camera. As the original protocol has it: the picture's first annotation counts; a hand whose wrist is not valid loses
all its joints; a hand needs at least 12 valid joints; its box is tight around these. An instance's id is the number of
hands that are kept before it in the file, its category 1 (right) or 2 (left).
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from data_pipelines import fields
from data_pipelines.builders import raw_files
from data_pipelines.builders.coco_format import CocoFormatBuilder, shared_ids
from data_pipelines.builders.raw_files import Layout
from data_pipelines.builders.report import Fault, RawDataError

NUM_JOINTS = 21
WRIST = 20
LEAST_JOINTS = 12
HANDS = ((1, "right hand"), (2, "left hand"))


class InterHand2d(CocoFormatBuilder):
    dataset = "interhand2d"
    folders = ("interhand2.6m", "interhand2d")
    layouts = {
        # The public protocol takes every annotation for training and test, but the machine's for validation.
        split: Layout(
            (
                f"annotations/{subset}/InterHand2.6M_{split}_data.json",
                f"annotations/{split}/InterHand2.6M_{split}_data.json",
            ),
            (f"images/{split}",),
        )
        for split, subset in (("train", "all"), ("val", "machine_annot"), ("test", "all"))
    }
    categories = HANDS

    def images(self) -> Iterator[tuple[pathlib.Path, dict[str, Any]]]:
        path = self.files.annotations
        document = raw_files.read_json(path)
        images, annotations = raw_files.document_lists(path, document, "images", "annotations")
        cameras, joints = (raw_files.read_json(self._companion(kind)) for kind in ("camera", "joint_3d"))
        self.num_images = len(images)
        by_image, ambiguous = self._group(images, annotations), shared_ids(images)
        hands_before = 0
        for image in images:
            number = image.get("id") if isinstance(image, dict) else None
            try:
                record = _image_record(image)
                found = self._entries_of(image, by_image, ambiguous)
                if not found:
                    raise Fault("image without annotation")
                for other in found[1:]:
                    self.report.remark(
                        "further annotation of an image (left out by the protocol)", path, other.get("id")
                    )
                hands = _hands(image, found[0], cameras, joints)
            except Fault as fault:
                self.report.drop_image(fault, path, number)
                continue
            for hand in hands:
                if hand["num_keypoints"] < LEAST_JOINTS:
                    name = dict(HANDS)[hand["category"]]
                    self.report.remark(
                        f"{name} with fewer than {LEAST_JOINTS} valid joints (left out by the protocol)",
                        path,
                        found[0].get("id"),
                    )
            hands = [hand for hand in hands if hand["num_keypoints"] >= LEAST_JOINTS]
            record["instances"] = [hand | {"id": hands_before + place} for place, hand in enumerate(hands)]
            hands_before += len(hands)
            yield self.picture(record["file_name"]), record

    def _companion(self, kind: str) -> pathlib.Path:
        """The file of cameras or 3D joints that belongs to the data file."""
        path = self.files.annotations
        if not path.name.endswith("_data.json"):
            raise RawDataError(f"{path}: the name of InterHand2.6M's annotation file ends with _data.json")
        return path.with_name(path.name.removesuffix("_data.json") + f"_{kind}.json")


def _image_record(image: Any) -> dict[str, Any]:
    if not isinstance(image, dict) or not isinstance(image.get("file_name"), str):
        raise Fault("bad image entry", f"{image!r:.200}")
    return {
        "image_id": image.get("id"),
        "file_name": image["file_name"],
        "width": image.get("width"),
        "height": image.get("height"),
    }


def _hands(image: dict, annotation: dict, cameras: dict, joints: dict) -> list[dict[str, Any]]:
    """The right and the left hand as instances without id, whatever their number of valid joints."""
    try:
        # Numbers in the data file, texts of them as keys of the others.
        capture, camera, frame = (_text(image[key]) for key in ("capture", "camera", "frame_idx"))
        views, world = cameras[capture], joints[capture][frame]
        view = {key: views[key][camera] for key in ("campos", "camrot", "focal", "princpt")}
    except (KeyError, TypeError) as error:
        raise Fault("no camera or no joints", f"{image.get('file_name')}: {error}") from None
    valid = fields.flags(annotation, "joint_valid", 2 * NUM_JOINTS)
    points = _project(
        fields.points(world, "world_coord", valid, size=3),
        fields.numbers(view, "campos", 3),
        fields.numbers(view, "camrot", 3, 3).reshape(3, 3),
        fields.numbers(view, "focal", 2),
        fields.numbers(view, "princpt", 2),
    ).reshape(2, NUM_JOINTS, 2)
    valid = valid.reshape(2, NUM_JOINTS) & valid.reshape(2, NUM_JOINTS)[:, WRIST:]
    size = np.array([fields.number(image, key) for key in ("width", "height")])
    return [
        {
            "category": category,
            "keypoints": np.column_stack([points[hand], valid[hand]]),
            "num_keypoints": int(valid[hand].sum()),
            "box": _tight_box(points[hand][valid[hand]], size),
        }
        for hand, (category, _) in enumerate(HANDS)
    ]


def _text(value: Any) -> str:
    """A number or its text as a key of the companion files; text with leading zeros stays as it is."""
    if isinstance(value, str) and (value.strip().isdigit() or fields.whole(value) is None):
        return value.strip()
    return str(fields.whole(value))


def _project(world: np.ndarray, position: np.ndarray, rotation: np.ndarray, focal: np.ndarray, centre: np.ndarray):
    """Pixels [n, 2] of world points [n, 3] (millimetres): R (X - position), divided by depth."""
    camera = (world - position) @ rotation.T
    return camera[:, :2] / (camera[:, 2:] + 1e-8) * focal + centre


def _tight_box(points: np.ndarray, size: np.ndarray) -> np.ndarray:
    """x, y, width, height around the points.

    The protocol's smallest corner starts at the picture's far corner, its largest at 0, so a hand outside the
    picture has its box drawn to the border.
    """
    first = np.minimum(points.min(axis=0, initial=np.inf), size)
    last = np.maximum(points.max(axis=0, initial=0), 0)
    return np.concatenate([first, last - first])
