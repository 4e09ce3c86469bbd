"""Contact sheets of a prepared dataset: what is annotated, what training sees, what the network is to predict.

    python -m scripts.browse coco --data_dir=data --split=val
    python -m scripts.browse synthetic_mpii --count=40 --seed=3 --out=sheets

Three pictures are written: `raw` (annotations on the stored pictures: boxes, skeletons, ignored regions),
`crops` (person crops as the configurations augment them) and `targets` (their heatmaps, by the dataset's own codec).
The left of a body is green, its right orange, the middle blue, so that a swapped pair is seen at once. In `raw`, the
yellow box is the annotated one and the white one what is cropped without augmentation; crowds and people
without keypoints are grey.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence

import cv2
import numpy as np

from data_pipelines import geometry, records
from data_pipelines.paths import as_folder, as_path
from data_pipelines.top_down import instances
from data_pipelines.top_down.crops import TopDownSource, Train, decode
from data_pipelines.whole_image.pictures import WholeImageSource, segmentation_mask
from pose_common import heatmaps
from pose_common.console import outlive_console
from pose_common.evaluation import draw
from pose_common.training.processes import one_line
from posebh_jax import configuration

_GREY, _WHITE, _YELLOW = (150, 150, 150), (255, 255, 255), (255, 220, 0)
RAW_SIDE = 320
"""Longest side of a picture on the `raw` sheet."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    outlive_console()
    args = _parse(argv)
    try:
        split = args.split or _first_split(args.dataset, args.data_dir)
        paths = browse(args.dataset, split, args.data_dir, args.out, args.count, args.input_size, args.seed)
    except (records.DatasetNotPrepared, KeyError, ValueError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    for path in paths:
        print(path)
    return 0


def browse(
    dataset: str,
    split: str,
    data_dir: str | pathlib.Path,
    out: str | pathlib.Path,
    count: int = 24,
    input_size: tuple[int, int] = (192, 256),
    seed: int = 0,
) -> list[pathlib.Path]:
    """Writes `<out>/<dataset>_<split>_{raw,crops,targets}.png`, of `count` pictures or crops each.

    Pictures and instances are drawn by the seed, in the order of the records. A split without labelled people
    has only the first sheet.

    Raises:
      DatasetNotPrepared: with the command that prepares it.
    """
    rng = np.random.default_rng(seed)
    opened = _Opened(dataset, split, data_dir, input_size)
    keypoint_set = opened.protocol.keypoints
    chosen = _choose(rng, len(opened.records), count)
    captions = [str(opened.annotations.file_name[row]) for row in chosen]
    sheets = {"raw": draw.contact_sheet([opened.raw(row) for row in chosen], 4, captions)}
    if opened.source is not None:
        crops = opened.crops(_choose(rng, len(opened.source), count), rng)
        captions = [crop["caption"] for crop in crops]
        drawn = [draw.draw_skeleton(crop["image"], crop["points"], keypoint_set) for crop in crops]
        sheets["crops"] = draw.contact_sheet(drawn, 8, captions)
        sheets["targets"] = draw.contact_sheet(opened.targets(crops), 8, captions)
    folder = as_path(out)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{dataset}_{split}_{name}.png" for name in sheets]
    for path, sheet in zip(paths, sheets.values(), strict=True):
        draw.save_image(path, sheet)
    return paths


class _Opened:
    """A prepared split: its records, and its person crops where there are any."""

    def __init__(self, dataset: str, split: str, data_dir: str | pathlib.Path, input_size: tuple[int, int]):
        self.settings = configuration.read(
            "multi_head", [("data_dir", str(data_dir)), ("datasets", dataset), ("eval_also", "()")]
        )
        self.protocol, self.input_size = configuration.dataset(self.settings, dataset), tuple(input_size)
        self.annotations = records.load_annotations(dataset, split, data_dir)
        self.records = records.open_records(dataset, split, data_dir)
        self.pictures = WholeImageSource(self.records, self.annotations, self.protocol)
        chosen = instances.ground_truth(self.annotations, self.protocol, self.input_size)
        self.source = None
        if len(chosen):
            self.source = TopDownSource(self.records, self.annotations, chosen, self.protocol)
        self.crop_of = {int(row): number for number, row in enumerate(chosen.annotation)}

    def raw(self, row: int) -> np.ndarray:
        """A stored picture with everything that is annotated on it."""
        columns = self.annotations
        image = decode(self.records.image(row), self.pictures.describe(row))[..., ::-1]
        factor = RAW_SIDE / max(image.shape[:2])
        people = np.flatnonzero(columns.image_index == row)
        for person in people:
            if columns.mask[person]:
                image = _tint(image, json.loads(columns.mask[person]))
        size = [max(1, round(side * factor)) for side in image.shape[1::-1]]
        image = cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA)
        for person in people:
            number = self.crop_of.get(int(person))
            colour = _YELLOW if number is not None else _GREY
            image = draw.draw_box(image, columns.box[person] * factor, colour=colour)
            if number is not None:
                sample = self.source.describe(number)
                size = np.asarray(sample["scale"]) * geometry.SCALE_UNIT
                crop = np.concatenate([sample["centre"] - size / 2, size]) * factor
                image = draw.draw_box(image, crop, colour=_WHITE)
            keypoints = columns.keypoints[person].astype(np.float64)
            keypoints[:, :2] = (keypoints[:, :2] + 0.5) * factor - 0.5
            image = draw.draw_skeleton(image, keypoints, self.protocol.keypoints)
        return image

    def crops(self, numbers: Sequence[int], rng: np.random.Generator) -> list[dict]:
        """Training elements with `points` [K, 3] and a caption."""
        train = Train((self.protocol,), self.input_size, configuration.augmentation(self.settings))
        found = []
        for number in numbers:
            sample = self.source[number]
            element = train(sample, rng)
            points = np.concatenate([element["keypoints"], element["visible"][:, None]], axis=1)
            caption = f"image {sample['image_id']}, id {sample['instance_id']}"
            found.append(element | {"points": points, "caption": caption})
        return found

    def targets(self, crops: Sequence[dict]) -> list[np.ndarray]:
        """The largest of each crop's heatmaps, over the crop."""
        maps, _ = heatmaps.encode(
            np.stack([crop["keypoints"] for crop in crops]),
            np.stack([crop["visible"] for crop in crops]),
            self.protocol.codec == "udp",
            input_size=self.input_size,
            heatmap_size=(self.input_size[0] // 4, self.input_size[1] // 4),
            sigma=self.settings.heatmap_sigma,
        )
        return [draw.heatmap_overlay(crop["image"], own) for crop, own in zip(crops, np.asarray(maps), strict=True)]


def _choose(rng: np.random.Generator, total: int, count: int) -> np.ndarray:
    return np.sort(rng.choice(total, min(count, total), replace=False))


def _tint(image: np.ndarray, segmentation: list | dict) -> np.ndarray:
    """The picture with the region of a COCO segmentation in grey."""
    region = segmentation_mask(segmentation, image.shape[1], image.shape[0])
    return np.where(region[..., None], np.uint8(image // 2 + 75), image)


def _first_split(dataset: str, data_dir: str) -> str:
    """The validation split where it is prepared, else the first by name."""
    folders = sorted((as_path(data_dir) / dataset).glob(f"*/{records.VERSION}"))
    splits = [folder.parent.name for folder in folders]
    return "val" if "val" in splits or not splits else splits[0]


def positive(text: str) -> int:
    """An argument that is a number above 0."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is not above 0")
    return number


def not_negative(text: str) -> int:
    """An argument that is a number from 0."""
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{number} is below 0")
    return number


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m scripts.browse", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", help="a prepared dataset")
    parser.add_argument("--data_dir", default="data", help="where prepared datasets lie (default: %(default)s)")
    parser.add_argument("--split", help="default: val where it is prepared, else the first")
    parser.add_argument(
        "--out", type=as_folder, default="workdir/browse", help="folder of the sheets (default: %(default)s)"
    )
    parser.add_argument("--count", type=positive, default=24, help="pictures of a sheet (default: %(default)s)")
    parser.add_argument("--seed", type=not_negative, default=0, help="of the choice and of the augmentation")
    parser.add_argument("--input_size", type=positive, nargs=2, default=(192, 256), metavar=("WIDTH", "HEIGHT"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
