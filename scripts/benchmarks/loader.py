"""Crops per second of the input pipeline, against a plain per-sample one in the style of PyTorch's tools.

    python -m scripts.benchmarks.loader --data_dir=data --dataset=coco --split=train

Both read the same prepared people with the same augmentation. *Ours* reads ArrayRecord and hands over bytes
and coordinates. *Per sample* is what a PyTorch dataset does: open the picture's file, decode it, put its
colours in order, mirror it, warp the crop, make it float, normalise it, draw one heatmap a keypoint, stack.
*Ours reduced* is ours with `augmentation.reduced_decoding`, whose effect on the pixels is reported as well; *ours
together* with `--together` people of a picture in a row (`config.people_together`).

First one core each: a single thread, by CPU time, which a busy machine changes little, and by wall time.
Then, with `--workers`, that many processes each, by wall time. The two pipelines take turns, `--rounds`
times; the medians are reported, and their ratios to the plain one's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable

import cv2
import grain
import numpy as np

from data_pipelines import geometry
from data_pipelines.reading import Reading
from data_pipelines.sharing import Share
from data_pipelines.top_down import crops as top_down
from data_pipelines.top_down.augmentation import Augmentation, steps_of
from data_pipelines.top_down.loader import TrainIterator, open_source, train_iterator
from pose_common.images import IMAGENET_MEAN, IMAGENET_STD
from posebh_jax import configuration

MEAN, STD = (np.array(values, np.float32) for values in (IMAGENET_MEAN, IMAGENET_STD))
_RELEASED = configuration.read("mdt")
SIGMA, AUGMENTATION = _RELEASED.heatmap_sigma, configuration.augmentation(_RELEASED)
REDUCED = dataclasses.replace(AUGMENTATION, reduced_decoding=True)


@dataclasses.dataclass(frozen=True)
class PerSample:
    """The plain pipeline: a sample of `source` -> normalised float32 crop and heatmaps.

    `channels` heatmaps are stacked (a multi-dataset recipe pads every sample to its largest skeleton).
    """

    source: top_down.TopDownSource
    files: tuple[str, ...]
    input_size: tuple[int, int]
    heatmap_size: tuple[int, int]
    channels: int

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> top_down.Sample:
        sample = self.source.describe(index)
        encoded = pathlib.Path(self.files[sample["image_index"]]).read_bytes()
        image = cv2.cvtColor(top_down.decode(encoded, sample), cv2.COLOR_BGR2RGB)
        return sample | {"picture": image}

    def transform(self, sample: top_down.Sample, rng: np.random.Generator) -> dict[str, np.ndarray]:
        dataset = self.source.dataset
        for step in steps_of(AUGMENTATION, dataset, self.input_size):
            sample = step.apply(sample, step.draw(rng))
        image = sample["picture"]
        if sample["mirrored"]:
            image = np.ascontiguousarray(image[:, ::-1])
        udp = dataset.codec == "udp"
        matrix = geometry.warp_matrix(sample["centre"], sample["scale"], sample["rotation"], self.input_size, udp)
        crop = cv2.warpAffine(image, matrix, self.input_size, flags=cv2.INTER_LINEAR)
        keypoints = geometry.transform(matrix, sample["keypoints"])
        target, weight = self.targets(keypoints, sample["visible"], udp)
        return {"image": normalised(crop), "target": target, "target_weight": weight}

    def targets(self, keypoints: np.ndarray, visible: np.ndarray, udp: bool) -> tuple[np.ndarray, np.ndarray]:
        """(maps float32 [channels, h, w], weights [channels]): a Gaussian patch a visible keypoint."""
        width, height = self.heatmap_size
        target = np.zeros((self.channels, height, width), np.float32)
        weight = np.zeros(self.channels, np.float32)
        size, grid = np.array(self.input_size), np.array(self.heatmap_size)
        stride = (size - 1) / (grid - 1) if udp else size / grid
        radius = int(3 * SIGMA)
        for channel in np.flatnonzero(visible):
            mean = keypoints[channel] / stride
            cell = (mean + 0.5).astype(int)
            first, last = np.maximum(cell - radius, 0), np.minimum(cell + radius + 1, grid)
            if (first >= last).any():
                continue
            x = np.arange(first[0], last[0], dtype=np.float32)
            y = np.arange(first[1], last[1], dtype=np.float32)[:, None]
            middle = mean if udp else cell
            patch = np.exp(-((x - middle[0]) ** 2 + (y - middle[1]) ** 2) / (2 * SIGMA**2))
            target[channel, first[1] : last[1], first[0] : last[0]] = patch
            weight[channel] = visible[channel]
        return target, weight

    def start(self, batch_size: int, reading: Reading) -> TrainIterator:
        samples = grain.MapDataset.source(self).shuffle(seed=0).repeat()
        elements = samples.random_map(self.transform, seed=0)
        return TrainIterator(elements, batch_size, Share(), reading, len(self))


def normalised(crop: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] -> float32 [3, H, W] with ImageNet's mean and deviation."""
    image = np.ascontiguousarray(crop.transpose(2, 0, 1), np.float32)
    image /= 255
    image -= MEAN[:, None, None]
    image /= STD[:, None, None]
    return image


def write_files(source: top_down.TopDownSource, folder: pathlib.Path) -> tuple[str, ...]:
    """The records' pictures as files, which the plain pipeline reads."""
    files = []
    for row in range(source.annotations.num_images):
        path = folder / f"{row:06d}.jpg"
        path.write_bytes(source.read(row))
        files.append(str(path))
    return tuple(files)


def one_round(start: Callable[[], TrainIterator], batches: int, warm_up: int) -> dict[str, float]:
    """Crops per second of wall and of this process's CPU time, after `warm_up` batches."""
    iterator = start()
    for _ in range(warm_up):
        next(iterator)
    crops, clocks = 0, {"wall_time": time.perf_counter, "cpu_time": time.process_time}
    started = {name: clock() for name, clock in clocks.items()}
    for _ in range(batches):
        crops += len(next(iterator)["image"])
    rates = {name: crops / (clock() - started[name]) for name, clock in clocks.items()}
    iterator.close()
    return rates


def compare(
    starts: dict[str, Callable[[], TrainIterator]],
    batches: int,
    warm_up: int,
    rounds: int,
    clocks: tuple[str, ...],
) -> dict[str, dict[str, float]]:
    """{clock: {pipeline: median rate, 'ratio': of each to the last}}; the pipelines take turns, one at a time."""
    measured = {name: [] for name in starts}
    for _ in range(rounds):
        for name, start in starts.items():
            measured[name].append(one_round(start, batches, warm_up))
    result = {}
    for clock in clocks:
        medians = {name: statistics.median(rates[clock] for rates in measured[name]) for name in starts}
        *ours, last = medians
        result[clock] = {name: round(rate, 1) for name, rate in medians.items()}
        result[clock]["ratio"] = {name: round(medians[name] / medians[last], 2) for name in ours}
    return result


def effect_of_reduction(source: top_down.TopDownSource, size: tuple[int, int]) -> dict[str, float]:
    """How many crops of one epoch are decoded reduced, and how far their pixels are from the exact ones, in levels."""
    exact, reduced = (top_down.Train((source.dataset,), size, settings) for settings in (AUGMENTATION, REDUCED))
    away = []
    for index in range(len(source)):
        images = (train(source[index], np.random.default_rng(index))["image"].astype(int) for train in (exact, reduced))
        away.append(np.abs(np.subtract(*images)).mean())
    changed = [value for value in away if value]
    return {
        "share_of_crops": round(len(changed) / len(away), 3),
        "mean_difference": round(statistics.mean(changed), 2) if changed else 0.0,
        "largest_mean_difference": round(max(away), 2),
    }


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--dataset", default="coco")
    parser.add_argument("--split", default="train")
    parser.add_argument("--input_size", type=int, nargs=2, default=(192, 256), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=8, help="batches timed in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--together", type=int, default=8, help="people of a picture in a row")
    parser.add_argument("--workers", type=int, default=2, help="processes of the second comparison; 0: none")
    parser.add_argument(
        "--channels",
        type=int,
        default=0,
        help="heatmaps a sample of the plain pipeline; "
        "0: one a keypoint. The release's mixture pads every sample to 133",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> dict:
    """Runs both comparisons, prints the figures as JSON and returns them."""
    args = parse_args(argv)
    size = tuple(args.input_size)
    source = open_source(args.dataset, args.split, data_dir=args.data_dir, input_size=size)
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(source, pathlib.Path(folder))
        plain = PerSample(
            source, files, size, (size[0] // 4, size[1] // 4), args.channels or source.dataset.num_keypoints
        )

        def ours(reading: Reading, augmentation: Augmentation, together: int = 1) -> TrainIterator:
            return train_iterator(
                [source],
                batch_size=args.batch_size,
                input_size=size,
                seed=0,
                together=together,
                augmentation=augmentation,
                reading=reading,
            )

        def starts(reading: Reading) -> dict[str, Callable[[], TrainIterator]]:
            return {
                "ours": lambda: ours(reading, AUGMENTATION),
                "ours_reduced": lambda: ours(reading, REDUCED),
                "ours_together": lambda: ours(reading, AUGMENTATION, args.together),
                "per_sample": lambda: plain.start(args.batch_size, reading),
            }

        result = {
            "dataset": f"{args.dataset}/{args.split}",
            "instances": len(source),
            "people_a_picture": round(len(source) / len(np.unique(source.pictures)), 2),
            "opencv": cv2.__version__,
            "heatmaps": plain.channels,
            "reduced_decoding": effect_of_reduction(source, size),
        }
        result["one_core"] = compare(
            starts(Reading(num_threads=0)), args.batches, 1, args.rounds, ("cpu_time", "wall_time")
        )
        if args.workers:
            # What lies ready in the queues when the clock starts must be little beside what is timed.
            reading = Reading(num_threads=1, num_workers=args.workers, prefetch=1)
            timed, warm_up = 4 * args.workers * args.batches, 3 * args.workers
            result[f"{args.workers}_workers"] = compare(starts(reading), timed, warm_up, args.rounds, ("wall_time",))
    print(json.dumps(result, indent=2))
    return result


if __name__ == "__main__":
    main()
