"""A tiny download of every annotation format: what `test_same_meaning.py` writes in other ways and damages."""

from __future__ import annotations

import copy
import dataclasses
import json
import pathlib
from typing import Any

from data_pipelines import records
from data_pipelines.builders import BUILDERS
from data_pipelines.datasets import find_dataset
from tests.data_pipelines import tiny_sets
from tests.golden_files import golden, golden_path

PARTS = {"foot_kpts": 6, "face_kpts": 68, "lefthand_kpts": 21, "righthand_kpts": 21}
PLAIN = {"coco": "val", "aic": "val", "ap10k": "val-split1", "crowdpose": "test", "ochuman": "val", "halpe": "val"}
NAMES = ["nose", "left_eye", "right_eye", "tail"]


@dataclasses.dataclass(frozen=True)
class Download:
    """One split: the annotation file's content, the files beside it, and (name, width, height) of its pictures."""

    dataset: str
    split: str
    content: Any
    pictures: tuple[tuple[str, int, int], ...]
    beside: dict[str, pathlib.Path] = dataclasses.field(default_factory=dict)
    name: str = "people_data.json"

    def prepare(self, folder: pathlib.Path, content: Any = None, **options) -> tuple[dict, records.Annotations]:
        """(summary, table) of the split, with other content if given, as an object or as the file's bytes."""
        for name, width, height in self.pictures:
            path = folder / "pictures" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.write_bytes(tiny_sets.jpeg(width, height))
        for name, path in self.beside.items():
            (folder / name).write_bytes(path.read_bytes())
        text = content if isinstance(content, bytes) else json.dumps(self.content if content is None else content)
        (folder / self.name).write_bytes(text if isinstance(text, bytes) else text.encode())
        more = {"dataset": "beasts"} if self.dataset == "custom" else {}
        builder = BUILDERS[self.dataset](
            self.split,
            annotations=folder / self.name,
            images=folder / "pictures",
            data_dir=folder / "data",
            progress=False,
            **more,
            **options,
        )
        summary = builder.prepare(overwrite=True)
        return summary, records.load_annotations(more.get("dataset", self.dataset), self.split, folder / "data")


def _keypoints(count: int, labelled: int = 4) -> list[float]:
    return [
        value for k in range(count) for value in ((10.5 + k % 9, 12 + k % 7, 1 + k % 2) if k < labelled else (0,) * 3)
    ]


def plain(dataset: str, split: str, count: int) -> Download:
    """COCO's format: people, a crowd with a mask, a person without labelled points."""
    content = tiny_sets.document(3)
    content["images"][0]["crowdIndex"] = 0.25
    for entry in content["annotations"]:
        entry["keypoints"] = _keypoints(count)
    content["annotations"][1] |= {
        "iscrowd": 1,
        "keypoints": [0] * 3 * count,
        "num_keypoints": 0,
        "segmentation": {"size": [tiny_sets.HEIGHT, tiny_sets.WIDTH], "counts": [100, 50, 32 * 48 - 150]},
    }
    content["annotations"][3] |= {
        "keypoints": [0] * 3 * count,
        "num_keypoints": 0,
        "segmentation": [[4, 5, 20.5, 5, 20, 20]],
    }
    pictures = tuple((image["file_name"], tiny_sets.WIDTH, tiny_sets.HEIGHT) for image in content["images"])
    return Download(dataset, split, content, pictures)


def custom() -> Download:
    """A skeleton of one's own, beside a category that has boxes alone."""
    download = plain("custom", "train", len(NAMES))
    kinds = [{"id": 7, "name": "beast", "keypoints": NAMES, "skeleton": [[1, 2], [1, 3]]}, {"id": 9, "name": "cart"}]
    annotations = [entry | {"category_id": 7} for entry in download.content["annotations"]]
    cart = {"id": 99, "image_id": 1, "category_id": 9, "bbox": [1, 1, 5, 5]}
    content = download.content | {"categories": kinds, "annotations": [*annotations, cart]}
    return dataclasses.replace(download, content=content)


def wholebody() -> Download:
    download = plain("coco_wholebody", "val", 17)
    for entry in download.content["annotations"]:
        entry |= {part: [7.5, 8, 0.25] * count for part, count in PARTS.items()}
    return download


def mpii() -> Download:
    entries = copy.deepcopy(golden("data/eval/mpii_synth_val.json")[:6])
    pictures = tuple((name, 640, 480) for name in dict.fromkeys(entry["image"] for entry in entries))
    return Download("mpii", "train", entries, pictures)


def interhand() -> Download:
    source = golden_path("data/eval/interhand2d_synth_data.json")
    content = json.loads(source.read_text())
    beside = {
        f"people_{kind}.json": source.with_name(f"interhand2d_synth_{kind}.json") for kind in ("camera", "joint_3d")
    }
    content["images"] = content["images"][:3]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in kept]
    pictures = tuple((image["file_name"], image["width"], image["height"]) for image in content["images"])
    return Download("interhand2d", "test", content, pictures, beside)


def pw3d() -> Download:
    pictures = golden("data/prepro/pw3d_expected.json")["images"]
    return Download(
        "pw3d",
        "test",
        copy.deepcopy(golden("data/prepro/pw3d_raw.json")),
        tuple((image["file_name"], image["width"], image["height"]) for image in pictures),
    )


def apt36k() -> Download:
    from data_pipelines.builders.apt36k import split_release

    raw = copy.deepcopy(golden("data/prepro/apt36k_raw.json"))
    pictures = (
        (image["file_name"], image["width"], image["height"])
        for part in split_release(raw).values()
        for image in part["images"]
    )
    return Download("apt36k", "val", raw, tuple(pictures))


def downloads() -> dict[str, Download]:
    """One of every format."""
    sets = {name: plain(name, split, find_dataset(name).num_keypoints) for name, split in PLAIN.items()}
    others = (custom(), wholebody(), mpii(), interhand(), pw3d(), apt36k())
    return sets | {download.dataset: download for download in others}
