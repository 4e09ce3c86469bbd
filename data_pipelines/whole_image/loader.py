"""Batches of whole images: endless ones for training, finite ones by picture size for evaluation.

The machinery is that of `data_pipelines.top_down.loader`: one global order of batches, of which a process of n gets
its rows; exact resume; threads or worker processes.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Iterator

import cv2
import numpy as np

from data_pipelines import geometry, mixture
from data_pipelines.cache import cached
from data_pipelines.datasets import find_dataset
from data_pipelines.reading import Batch, Reading
from data_pipelines.records import Annotations, contents, load_annotations, open_records
from data_pipelines.sharing import Share, fitting_batch
from data_pipelines.top_down.crops import decode
from data_pipelines.top_down.loader import TrainIterator
from data_pipelines.whole_image.pictures import (
    STRIDE,
    Augmentation,
    Rules,
    Train,
    WholeImageSource,
    check_masks,
    inference_size,
    rules_of,
    training_images,
)

LONGEST = 16
"""Times the short side a picture's long side may be: longer ones, resized, would not fit into memory."""


def train_loader(
    dataset: str,
    split: str = "train",
    *,
    data_dir: str | pathlib.Path,
    batch_size: int,
    input_size: int,
    seed: int,
    instances: int,
    augmentation: Augmentation,
    rules: Rules | None = None,
    share: Share = Share(),
    reading: Reading = Reading(),
) -> TrainIterator:
    """Endless training batches of a prepared dataset (the whole-image batch contract).

    Args:
      data_dir: where `scripts.prepare_data` wrote.
      batch_size: rows of the global batch.
      input_size: side of the square pictures, a multiple of 32.
      seed: decides order and augmentation.
      instances: N, the instance axis.
      augmentation: see `Augmentation`.
      rules: which images and people are learned; those of the dataset's publication by default.
      share: which rows of each batch are this process's.
      reading: how to read ahead, and from which copy.

    Raises:
      DatasetNotPrepared: with the command that prepares it.
      ValueError: sizes (also of masks) that do not fit each other, or a dataset without usable images.
    """
    if input_size % (8 * STRIDE):
        raise ValueError(f"the input size must be a multiple of {8 * STRIDE}, not {input_size}")
    data_dir = cached(dataset, split, data_dir, reading.cache)
    protocol = find_dataset(dataset, data_dir)
    rules = rules or rules_of(protocol)
    annotations = load_annotations(dataset, split, data_dir)
    check_masks(annotations)
    images = training_images(annotations, rules, instances)
    source = WholeImageSource(open_records(dataset, split, data_dir), annotations, protocol, images)
    order_seed, draw_seed = mixture.derived_seeds(seed, 2)
    transform = Train(protocol, input_size, rules, instances, augmentation)
    samples = mixture.mix([source], mixture.CONCAT, order_seed)
    elements = samples.random_map(transform, seed=draw_seed)
    held = {f"{dataset} ({split})": contents(dataset, split, data_dir)}
    return TrainIterator(elements, batch_size, share, reading, len(source), samples, held)


def eval_loader(
    dataset: str,
    split: str,
    *,
    data_dir: str | pathlib.Path,
    batch_size: int,
    input_size: int,
    share: Share = Share(),
    reading: Reading = Reading(),
) -> EvalLoader:
    """Every image of a prepared split once, resized, in batches of one exact picture size.

    Args:
      input_size: of the short side.
      batch_size: largest number of rows of the global batch; see `fitting_batch`.
      The others: as for `train_loader`.

    Raises:
      DatasetNotPrepared: with the command that prepares it.
      ValueError: a batch that the processes cannot share equally, or a picture longer than `LONGEST` allows.
    """
    data_dir = cached(dataset, split, data_dir, reading.cache)
    annotations = load_annotations(dataset, split, data_dir)
    _check_sizes(annotations)
    source = WholeImageSource(open_records(dataset, split, data_dir), annotations, find_dataset(dataset, data_dir))
    return EvalLoader(source, batch_size, input_size, share, reading)


def _check_sizes(annotations: Annotations) -> None:
    """Raises ValueError for a picture, such as a panorama, that is too long to be resized as a whole."""
    sides = np.stack([annotations.width, annotations.height])
    long = np.flatnonzero(sides.max(axis=0) > LONGEST * sides.min(axis=0))
    if len(long):
        first = long[0]
        raise ValueError(
            f"{annotations.dataset} ({annotations.split}): {annotations.file_name[first]} is "
            f"{annotations.width[first]}x{annotations.height[first]}; the longer side may be {LONGEST} times the "
            f"shorter one, and {len(long)} of {annotations.num_images} pictures are longer: prepare the split without"
        )


@dataclasses.dataclass(frozen=True)
class EvalLoader:
    """Finite evaluation batches of one process; every process has the same number of them, of the same sizes.

    Fields: `image` uint8 [B, H, W, 3] RGB, `inverse_warp` float32 [B, 2, 3] (input pixels -> image pixels),
    `image_id` int64 [B], `valid` bool [B]. Pictures are never padded; where a size has too few of them to
    fill its last batch, rows are empty, with `valid` False.
    """

    source: WholeImageSource
    batch_size: int
    input_size: int
    share: Share = Share()
    reading: Reading = Reading()

    def __post_init__(self) -> None:
        self.share.rows_of(self.batch_size)

    @property
    def annotations(self) -> Annotations:
        return self.source.annotations

    @functools.cached_property
    def batches(self) -> tuple[tuple[tuple[int, int], int, tuple[int, ...]], ...]:
        """Picture size (width, height), rows and numbers of the images of every global batch."""
        by_size = collections.defaultdict(list)
        table = self.source.annotations
        for number, image in enumerate(self.source.images):
            size = (int(table.width[image]), int(table.height[image]))
            by_size[inference_size(size, self.input_size)[0]].append(number)
        rows = {
            size: fitting_batch(self.batch_size, len(numbers), self.share.parts) for size, numbers in by_size.items()
        }
        return tuple(
            (size, rows[size], tuple(numbers[first : first + rows[size]]))
            for size, numbers in sorted(by_size.items())
            for first in range(0, len(numbers), rows[size])
        )

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return self.reading.each(self)

    def __getitem__(self, index: int) -> Batch:
        (width, height), batch_size, numbers = self.batches[index]
        rows = self.share.rows_of(batch_size)
        batch = {
            "image": np.zeros((rows, height, width, 3), np.uint8),
            "inverse_warp": np.zeros((rows, 2, 3), np.float32),
            "image_id": np.zeros(rows, np.int64),
            "valid": np.zeros(rows, bool),
        }
        first = self.share.process_index * rows
        for row, number in enumerate(numbers[first : first + rows]):
            sample = self.source[number]
            batch["image"][row], matrix = resize(decode(sample["encoded"], sample), self.input_size)
            batch["inverse_warp"][row] = geometry.invert(matrix)
            batch["image_id"][row] = sample["image_id"]
            batch["valid"][row] = True
        return batch


def resize(image: np.ndarray, input_size: int) -> tuple[np.ndarray, np.ndarray]:
    """A BGR picture -> the RGB picture to run on, uint8, and the map between them [2, 3]; see
    `inference_size`.
    """
    size, matrix = inference_size(image.shape[1::-1], input_size)
    picture = cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR)
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), matrix
