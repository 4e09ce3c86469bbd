"""APT-36K: animals in video clips, with AP-10K's skeleton.

The public release is one file for all clips. Its authors' split is 7:1:2 by video within each kind of animal,
in the file's order, and this module rebuilds it. The released script lists a video once per *frame*, so the
cuts fall at frame counts, and a video that is cut in two belongs to the earlier part; published figures are
on that split.
"""

from __future__ import annotations

import pathlib
import re
from typing import Any

from data_pipelines import fields
from data_pipelines.builders import raw_files
from data_pipelines.builders.coco_format import CocoFormatBuilder
from data_pipelines.builders.raw_files import Layout
from data_pipelines.builders.report import Fault

RAW_FILE = "apt36k_annotations.json"
SPLITS = ("train", "val", "test")
SPLIT_SIZES = {"train": (24937, 36957), "val": (3603, 5443), "test": (6943, 10734)}  # images, annotations

# Folders whose names are encoded otherwise in the archive than in the annotation file.
_RENAMED_CLIPS = {
    "clip46√": "clip46б╠",
    "video11_clip6_1m44s-1m46s_frame╬╩╠Γ": "video11_clip6_1m44s-1m46s_frameиpиmиdжг",
    "video20_clip5_1m44s-1m46s_frame╬╩╠Γ": "video20_clip5_1m44s-1m46s_frameиpиmиdжг",
    "video2_clip3_0m55s-0m57s_frame╬╩╠Γ": "video2_clip3_0m55s-0m57s_frameиpиmиdжг",
    "v2c21太多": "v2c21╠л╢р",
}


class Apt36k(CocoFormatBuilder):
    dataset = "apt36k"
    folders = ("ap36k", "apt36k")
    # Split files under the names that circulate; else the release itself, which is split here.
    layouts = {
        split: Layout(
            (
                f"annotations/apt36k_{split}.json",
                f"annotations/ap36k_{split}.json",
                f"annotations/{split}_annotations_1.json",
                f"annotations/{RAW_FILE}",
            ),
            ("images",),
        )
        for split in SPLITS
    }

    def load(self) -> dict[str, Any]:
        path = self.files.annotations
        document = super().load()
        images, annotations = raw_files.document_lists(path, document, "images", "annotations")
        if path.name != RAW_FILE and not any("\\" in _name(image) for image in images):
            return document  # split already, by the authors' script or by hand
        for image in images:
            if _video_of(image) is None:
                number = image.get("id") if isinstance(image, dict) else None
                self.report.drop_image(
                    Fault("bad image entry", f"no video_id or no path: {image!r:.200}"), path, number
                )
        part = split_release(document)[self.split]
        sizes = len(part["images"]), len(part["annotations"])
        if sizes != SPLIT_SIZES[self.split]:
            self.report.remark(
                "sizes differ from the authors' split",
                path,
                None,
                f"{sizes} images and annotations, published are {SPLIT_SIZES[self.split]}",
            )
        return part

    def picture(self, file_name: str) -> pathlib.Path:
        """Archives unpacked with the right encoding have the clip under its original name."""
        path = self.files.images / file_name
        original = {new: old for old, new in _RENAMED_CLIPS.items()}.get(path.parent.name)
        if original is not None and not path.exists():
            path = path.parent.with_name(original) / path.name
        return path


def split_release(document: dict[str, Any], whole_videos: bool = False) -> dict[str, dict[str, Any]]:
    """The release as one COCO document a split.

    Image names are cut to their last three parts (kind, clip, frame), `is_crowd` becomes `iscrowd`,
    categories are sorted by id. With `whole_videos` a video counts once, not once a frame: what the ratio was
    meant to be. Images without a video or with another kind of name are left out.
    """
    videos = {place: _video_of(image) for place, image in enumerate(document["images"])}
    images = [
        image | {"video_id": videos[place]}
        for place, image in enumerate(document["images"])
        if videos[place] is not None
    ]
    split_of = _split_of_videos(_places(document["images"]), whole_videos)
    parts = {
        split: document
        | {
            "images": [],
            "annotations": [],
            "categories": _sorted_categories(document.get("categories")),
        }
        for split in SPLITS
    }
    video_of_image = {fields.id_key(image.get("id")): image["video_id"] for image in images}
    for image in images:
        parts[split_of[image["video_id"]]]["images"].append(image | {"file_name": _file_name(image)})
    for annotation in document["annotations"]:
        if isinstance(annotation, dict):
            annotation = {"iscrowd" if key == "is_crowd" else key: value for key, value in annotation.items()}
            video = fields.whole(annotation.get("video_id"))
            if video not in split_of:
                video = video_of_image.get(fields.id_key(annotation.get("image_id")))
        else:
            video = None
        # One of no video and no picture is a fault of whatever split is prepared; the builder says what is wrong.
        for split in SPLITS if video is None else (split_of[video],):
            parts[split]["annotations"].append(annotation)
    return parts


def _places(images: list[Any]) -> list[tuple[str, int]]:
    """(kind of animal, video) of every picture, whose number decides where the splits are cut.

    A damaged entry counts as the others of its clip or of its video do, else as the entry before it, and one that is
    there twice once: so it moves nobody from split to split.
    """
    good = [image | {"video_id": video} for image in images if (video := _video_of(image)) is not None]
    kind_of = {image["video_id"]: _kind(image) for image in good}
    video_of_clip = {_clip(image): image["video_id"] for image in good}
    places: list[tuple[str, int]] = []
    seen = set()
    for image in images:
        entry = image if isinstance(image, dict) else {}
        this = fields.id_key(entry.get("id")), str(entry.get("file_name"))
        video = _video_of(image)
        guess = video_of_clip.get(_clip(entry), fields.whole(entry.get("video_id")))
        if this in seen:
            continue
        seen.add(this)
        if video is not None:
            places.append((_kind(entry), video))
        elif guess is not None and guess in kind_of:
            places.append((kind_of[guess], guess))
        elif places:
            places.append(places[-1])
    return places


def _name(image: Any) -> str:
    return str(image.get("file_name")) if isinstance(image, dict) else ""


def _parts(image: Any) -> list[str]:
    """Of a picture's path, which the release writes as Windows does, and copies of it with slashes."""
    return re.split(r"[\\/]", _name(image))


def _kind(image: dict[str, Any]) -> str:
    return _parts(image)[-3]


def _clip(image: dict[str, Any]) -> tuple[str, ...]:
    """The folder of a picture."""
    return tuple(_parts(image)[:-1])


def _split_of_videos(places: list[tuple[str, int]], whole_videos: bool) -> dict[int, str]:
    """Video id -> split: the first 70 % of each kind's list to train, the next 10 % to val."""
    by_kind: dict[str, list[int]] = {}
    for kind, video in places:
        by_kind.setdefault(kind, []).append(video)
    split_of: dict[int, str] = {}
    for videos in by_kind.values():
        if whole_videos:
            videos = list(dict.fromkeys(videos))
        cuts = int((len(videos) + 1) * 0.7), int((len(videos) + 1) * 0.8)
        for place, video in enumerate(videos):
            split = SPLITS[(place >= cuts[0]) + (place >= cuts[1])]
            split_of[video] = min(split, split_of.get(video, split), key=SPLITS.index)
    return split_of


def _sorted_categories(categories: Any) -> Any:
    """By id; what is no list stays as it is, and is refused when it is read."""
    return sorted(categories, key=_category_order) if isinstance(categories, list) else categories


def _category_order(category: Any) -> float:
    """The category's id; entries without one come last, and are reported when they are read."""
    number = fields.whole(category.get("id")) if isinstance(category, dict) else None
    return float("inf") if number is None else number


def _video_of(image: Any) -> int | None:
    """The image's video, or None where the entry cannot be assigned to one."""
    if not isinstance(image, dict):
        return None
    is_path = isinstance(image.get("file_name"), str) and len(_parts(image)) >= 3
    return fields.whole(image.get("video_id")) if is_path else None


def _file_name(image: dict[str, Any]) -> str:
    kind, clip, frame = _parts(image)[-3:]
    return f"{kind}/{_RENAMED_CLIPS.get(clip, clip)}/{frame}"
