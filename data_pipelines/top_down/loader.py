"""Batches for training (endless, resumable) and evaluation (finite, padded), sharded over processes.

There is one global order of batches, whatever the number of processes: process p of n gets the rows p*B/n ..
(p+1)*B/n of each global batch of B. Reading happens in threads (`num_threads`), or in worker processes
(`num_workers`) that hold `num_threads` each where Python itself is the bottleneck; neither changes what is
read. Batches follow the top-down batch contract: `image` uint8 [B, H, W, 3] RGB, `keypoints` float32
[B, K, 2] in crop pixels, `visible` float32 [B, K], `dataset` int32 [B], `valid` bool [B].
"""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from data_pipelines import geometry
from data_pipelines import mixture as mixing
from data_pipelines.cache import cached
from data_pipelines.datasets import PoseDataset, find_dataset
from data_pipelines.reading import Batch, Reading, Workers
from data_pipelines.records import Annotations, contents, load_annotations, open_records
from data_pipelines.sharing import Share, fitting_batch
from data_pipelines.top_down import instances as boxes_of
from data_pipelines.top_down.augmentation import Augmentation
from data_pipelines.top_down.crops import Crop, TopDownSource, Train, decode


@dataclasses.dataclass(frozen=True)
class Entry:
    """One dataset of a training mixture, by name or protocol; its place in the mixture is its number in the batches."""

    dataset: str | PoseDataset
    split: str = "train"


class Row(NamedTuple):
    """One example of a training batch, to look at: its dataset, its picture ("split/file (id)"), what a batch holds."""

    dataset: str
    picture: str
    fields: Mapping[str, np.ndarray]


class TrainIterator(grain.DatasetIterator):
    """Endless batches of one process, and the place in them.

    The state is the number of examples taken of the global stream, and what data they were of. It depends neither on
    the process nor on how many there are, nor on threads, workers and batch size, and so restores under any of them
    (with the same datasets and seed). Data that are others than those of a state are warned of.

    Args:
      elements: the endless stream of all processes' examples.
      batch_size: of the global batch.
      share: which rows of each batch.
      reading: how to read ahead.
      num_examples: the length of a (nominal) epoch: the examples of all datasets together.
      samples: the stream before its examples were made, whose samples know their pictures' names.
      contents: {dataset and split: `records.contents`} of the stream.

    Raises:
      ValueError: a batch that the processes cannot share equally.
    """

    def __init__(
        self,
        elements: grain.MapDataset,
        batch_size: int,
        share: Share,
        reading: Reading,
        num_examples: int,
        samples: grain.MapDataset | None = None,
        contents: Mapping[str, str] = types.MappingProxyType({}),
    ):
        super().__init__()
        self._reader: grain.DatasetIterator | Workers | None = None  # first: closing asks for it, whatever fails below
        self.num_examples, self._samples, self.contents = num_examples, samples, dict(contents)
        self._elements, self._batch_size, self._reading = elements, batch_size, reading
        self._rows = share.rows_of(batch_size)
        self._every = slice(share.process_index, None, share.process_count)
        self._next_example = 0

    def __next__(self) -> Batch:
        self._assert_not_closed()
        batch = next(self._opened())
        self._next_example += self._batch_size
        return batch

    def get_state(self) -> dict[str, Any]:
        return {"next_example": self._next_example, "contents": self.contents}

    def set_state(self, state: dict[str, Any]) -> None:
        self._stop_reading()
        before = state.get("contents", {})  # older checkpoints have none
        if changed := [name for name, now in self.contents.items() if before.get(name, now) != now]:
            logging.warning(
                "%s: not the data that the run was trained on so far (prepared again, or of another config.data_dir); "
                "it goes on with those that are here now",
                ", ".join(changed),
            )
        if "next_index" in state:  # as older checkpoints have it, in batches
            state = {"next_example": state["next_index"] * self._batch_size}
        self._next_example = int(state["next_example"])

    def rows_at(self, state: dict[str, Any]) -> Iterator[Row]:
        """The rows of the global batch that begins at a state, read again one by one; they are always the same."""
        first = int(state["next_example"])
        for number in range(first, first + self._batch_size):
            sample = self._samples[number] if self._samples is not None else {}
            dataset, split, file = sample.get("origin", ("", "", f"example {number}"))
            yield Row(dataset, f"{split}/{file} (id {sample.get('image_id')})", self._elements[number])

    def start_prefetch(self) -> None:
        """Starts reading before the first batch is asked for."""
        self._opened()

    def _opened(self) -> grain.DatasetIterator | Workers:
        if self._reader is None:
            # In pieces of one process's rows, the n pieces of a global batch follow each other.
            # (Of pieces of one row Grain would count more than there are numbers for, but for drop_remainder.)
            pieces = self._elements[self._next_example :].batch(self._rows, drop_remainder=True)
            self._reader = self._reading.start(pieces[self._every])
        return self._reader

    def close(self) -> None:
        """Ends threads and workers."""
        self._stop_reading()
        super().close()

    def _stop_reading(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None


def train_loader(
    entries: Sequence[Entry],
    *,
    data_dir: str | pathlib.Path,
    batch_size: int,
    input_size: tuple[int, int],
    seed: int,
    mixture: str | Sequence[float] = mixing.CONCAT,
    together: int = 1,
    augmentation: Augmentation | None = None,
    share: Share = Share(),
    reading: Reading = Reading(),
) -> TrainIterator:
    """Endless training batches of a mixture of prepared datasets.

    Args:
      entries: the datasets. K of the batches is the largest keypoint count among them.
      data_dir: where `scripts.prepare_data` wrote.
      batch_size: rows of the global batch.
      input_size: (width, height) of the crops.
      seed: decides order and augmentation.
      mixture, together: 'concat', 'balanced' or weights, and people of a picture in a row, see `mixture.mix`.
      augmentation: without, the crops are those of evaluation.
      share: which rows of each batch are this process's.
      reading: how to read ahead, and from which copy.

    Raises:
      DatasetNotPrepared: with the command that prepares it.
      ValueError: sizes that do not fit each other, or a dataset without usable instances.
    """
    sources = [
        open_source(
            entry.dataset,
            entry.split,
            data_dir=data_dir,
            input_size=input_size,
            dataset_index=index,
            cache=reading.cache,
        )
        for index, entry in enumerate(entries)
    ]
    names = [(source.dataset.name, entry.split) for source, entry in zip(sources, entries, strict=True)]
    return train_iterator(
        sources,
        batch_size=batch_size,
        input_size=input_size,
        seed=seed,
        mixture=mixture,
        together=together,
        augmentation=augmentation,
        share=share,
        reading=reading,
        contents={f"{name} ({split})": contents(name, split, data_dir) for name, split in names},
    )


def train_iterator(
    sources: Sequence[TopDownSource],
    *,
    batch_size: int,
    input_size: tuple[int, int],
    seed: int,
    mixture: str | Sequence[float] = mixing.CONCAT,
    together: int = 1,
    augmentation: Augmentation | None = None,
    share: Share = Share(),
    reading: Reading = Reading(),
    contents: Mapping[str, str] = types.MappingProxyType({}),
) -> TrainIterator:
    """`train_loader` for sources that are open; the `dataset_index` of each must be its place among them.

    Raises:
      ValueError: no source, one with another `dataset_index`, or sizes or a mixture that do not fit.
    """
    if not sources or [source.dataset_index for source in sources] != list(range(len(sources))):
        raise ValueError(
            "a training mixture needs datasets numbered from 0, got "
            f"{[(source.dataset.name, source.dataset_index) for source in sources]}"
        )
    order_seed, draw_seed = mixing.derived_seeds(seed, 2)
    transform = Train(tuple(source.dataset for source in sources), input_size, augmentation)
    samples = mixing.mix(sources, mixture, order_seed, together)
    elements = samples.random_map(transform, seed=draw_seed)
    total = sum(len(source) for source in sources)
    return TrainIterator(elements, batch_size, share, reading, total, samples, contents)


def open_source(
    dataset: str | PoseDataset,
    split: str,
    *,
    data_dir: str | pathlib.Path,
    input_size: tuple[int, int],
    dataset_index: int = 0,
    boxes: str | pathlib.Path = boxes_of.GROUND_TRUTH,
    score_threshold: float = 0.0,
    cache: str = "",
) -> TopDownSource:
    """Opens a prepared split as a source of people to crop, one for each box.

    Args:
      dataset: its name, or a protocol to use in place of its own.
      split: such as 'train' or 'val'.
      data_dir: where `scripts.prepare_data` wrote.
      input_size: (width, height) of the crops, to whose aspect ratio boxes grow.
      dataset_index: value of the batches' `dataset`, that is, which head and expert to use.
      boxes: 'ground_truth', or the path of a COCO detection file.
      score_threshold: detections of a lower score are left out.
      cache: a folder of this machine to which the split is copied first; '' for none.

    Raises:
      DatasetNotPrepared: with the command that prepares it.
      ValueError: a dataset without usable instances, or a detection file that cannot be used.
    """
    protocol = find_dataset(dataset, data_dir) if isinstance(dataset, str) else dataset
    data_dir = cached(protocol.name, split, data_dir, cache)
    annotations = load_annotations(protocol.name, split, data_dir)
    if boxes == boxes_of.GROUND_TRUTH:
        chosen = boxes_of.ground_truth(annotations, protocol, input_size)
    else:
        chosen = boxes_of.detections(boxes, annotations, protocol, input_size, score_threshold)
    return TopDownSource(open_records(protocol.name, split, data_dir), annotations, chosen, protocol, dataset_index)


def eval_loader(
    dataset: str | PoseDataset,
    split: str,
    *,
    data_dir: str | pathlib.Path,
    batch_size: int,
    input_size: tuple[int, int],
    boxes: str | pathlib.Path = boxes_of.GROUND_TRUTH,
    score_threshold: float = 0.0,
    dataset_index: int = 0,
    share: Share = Share(),
    reading: Reading = Reading(),
) -> EvalLoader:
    """Every instance of a prepared split once, in image order, without augmentation.

    Args:
      batch_size: largest number of rows of the global batch; see `fitting_batch`.
      dataset, split, boxes, score_threshold, dataset_index: see `open_source`.
      The others: as for `train_loader`.

    Raises:
      DatasetNotPrepared, ValueError: see `open_source`; a batch that the processes cannot share equally.
    """
    source = open_source(
        dataset,
        split,
        data_dir=data_dir,
        input_size=input_size,
        boxes=boxes,
        dataset_index=dataset_index,
        score_threshold=score_threshold,
        cache=reading.cache,
    )
    return EvalLoader(
        source,
        fitting_batch(batch_size, len(source), share.parts),
        input_size,
        share,
        reading,
    )


@dataclasses.dataclass(frozen=True)
class EvalLoader:
    """Finite evaluation batches of one process; every process has the same number of them.

    Beside the training fields: `inverse_warp` float32 [B, 2, 3] (crop pixels -> image pixels), `image_id` and
    `instance_id` int64 [B], `box_score` and `area` float32 [B] (of the padded box, in image pixels). Rows
    after the last instance are zero, with `valid` False. Keypoints of detections are unknown: zero, and not
    visible.
    """

    source: TopDownSource
    batch_size: int
    input_size: tuple[int, int]
    share: Share = Share()
    reading: Reading = Reading()

    def __post_init__(self) -> None:
        self.share.rows_of(self.batch_size)

    @property
    def boxes(self) -> str:
        """'ground_truth' or the path of the detection file."""
        return self.source.instances.origin

    @property
    def annotated(self) -> bool:
        """Whether boxes are the annotated ones, not a detector's."""
        return self.boxes == boxes_of.GROUND_TRUTH

    @property
    def annotations(self) -> Annotations:
        return self.source.annotations

    def __len__(self) -> int:
        return -(-len(self.source) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return self.reading.each(self)

    def __getitem__(self, index: int) -> Batch:
        """One whole batch: neighbours share a decoded picture."""
        source = self.source
        rows = self.share.rows_of(self.batch_size)
        first = index * self.batch_size + self.share.process_index * rows
        batch = _empty_batch(rows, self.input_size, source.dataset.num_keypoints)
        batch["dataset"][:] = source.dataset_index
        crop = Crop(self.input_size, source.dataset.codec == "udp")
        picture, picture_row = None, -1
        for row, number in enumerate(range(first, min(first + rows, len(source)))):
            sample = source.describe(number)
            if sample["image_index"] != picture_row:
                picture_row = sample["image_index"]
                picture = decode(source.read(picture_row), sample)
            sample = crop(sample, picture)
            batch["inverse_warp"][row] = geometry.invert(sample["matrix"])
            batch["area"][row] = np.prod(sample["scale"] * geometry.SCALE_UNIT)
            for name in ("image", "keypoints", "visible", "image_id", "instance_id", "box_score"):
                batch[name][row] = sample[name]
            batch["valid"][row] = True
        return batch


def _empty_batch(rows: int, input_size: tuple[int, int], num_keypoints: int) -> Batch:
    width, height = input_size
    return {
        "image": np.zeros((rows, height, width, 3), np.uint8),
        "keypoints": np.zeros((rows, num_keypoints, 2), np.float32),
        "visible": np.zeros((rows, num_keypoints), np.float32),
        "dataset": np.zeros(rows, np.int32),
        "valid": np.zeros(rows, bool),
        "inverse_warp": np.zeros((rows, 2, 3), np.float32),
        "image_id": np.zeros(rows, np.int64),
        "instance_id": np.zeros(rows, np.int64),
        "box_score": np.zeros(rows, np.float32),
        "area": np.zeros(rows, np.float32),
    }
