"""The common part of every dataset's builder: check, write as ArrayRecord, summarise.

To add a dataset:

1. Enter it in `data_pipelines/skeletons.py` .
2. Write a subclass of `PoseBuilder` with `dataset`, `splits` and `images()`, which yields pairs of a picture
   (a pathlib.Path or the JPEG's bytes, stored as they are) and its record:

     {"image_id": 7, "file_name": "a.jpg", "instances": [
         {"id": 1, "box": [x, y, width, height], "keypoints": [x, y, v] * K}]}

   Optional are an image's "width" and "height" (checked against the picture) and "crowd_index", and every
   other instance field of `data_pipelines.records`, with COCO's "segmentation" for the mask. Pixels count
   from 0. A builder checks nothing: the base class does that for every dataset, in one place.

   A COCO-format file needs no more than a subclass of `CocoFormatBuilder` that says where its files lie.
3. Enter the class in `BUILDERS` of `data_pipelines/builders/__init__.py`.

The records are written by our own loop into the folder that TFDS provides and renames when it is complete.
TFDS's generator path keeps a gigabyte in memory and then wants TensorFlow for its temporary files; this one
streams, needs no TensorFlow, and keeps the order of the annotation file.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import fcntl
import itertools
import json
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import tensorflow_datasets as tfds
import tqdm
from array_record.python import array_record_module

from data_pipelines import records
from data_pipelines.builders import checks
from data_pipelines.builders.report import Fault, RawDataError, Report
from data_pipelines.datasets import PoseDataset, find_dataset

SHARD_BYTES = 512 << 20
_CHUNK = 64  # images between two additions to the annotation table

Picture = pathlib.Path | bytes


class PoseBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Writes one split of one dataset; see the module's head for how to make one."""

    VERSION = tfds.core.Version(records.VERSION)
    dataset: ClassVar[str]
    splits: ClassVar[tuple[str, ...]] = ()
    url_infos = {}  # TFDS's table of downloads; looking for its file would need an optional package

    # What the subclass may set while `images` runs.
    categories: tuple[tuple[int, str], ...] = ((1, "person"),)
    num_images: int | None = None  # for the progress bar

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(skip_registration=True, **kwargs)
        cls.BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=split, version=cls.VERSION) for split in cls.splits]

    def __init__(
        self,
        split: str,
        *,
        data_dir: str | pathlib.Path,
        strict: bool = False,
        decode: bool = False,
        progress: bool = True,
        dataset: str | PoseDataset | None = None,
    ):
        """
        Args:
          split: name of the split; its folder's name as well.
          data_dir: where prepared datasets lie.
          strict: stop at the first broken entry instead of leaving it out.
          decode: decode every picture as a check; without it headers and end marker are checked.
          progress: show a progress bar.
          dataset: another dataset that is written by this class, by name or as its protocol; None for the class's own.
        """
        own = dataset or self.dataset
        self.pose_dataset = own if isinstance(own, PoseDataset) else find_dataset(own)
        self.name = self.pose_dataset.name
        self.split = split
        self.report = Report(strict)
        self.metadata: dict[str, str] = {}
        self._decode, self._progress = decode, progress
        super().__init__(
            data_dir=os.fspath(data_dir),
            file_format="array_record",
            config=next(
                (config for config in self.BUILDER_CONFIGS if config.name == split),
                tfds.core.BuilderConfig(name=split, version=self.VERSION),
            ),
        )

    def images(self) -> Iterator[tuple[Picture, dict[str, Any]]]:
        """Yields every picture of the split with its record, unchecked, in the order to store them in."""
        raise NotImplementedError

    def describe_source(self) -> dict[str, str]:
        """What the split was made from, for its summary."""
        return {}

    def prepare(self, overwrite: bool = False) -> dict[str, Any]:
        """Writes the split unless it is finished already; returns its summary.

        Raises:
          RawDataError: the raw data cannot be used at all, or strict mode found a fault. Nothing is left.
        """
        directory = records.split_dir(self.name, self.split, self._data_dir_root)
        with _only_one(directory.parent):
            _remove_interrupted(directory, also_finished=overwrite)
            self.download_and_prepare()
        return read_summary(directory)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=records.record_features(self.pose_dataset),
            disable_shuffling=True,
            description=f"{self.name}: people or animals with keypoints, one example an image.",
        )

    def _log_download_bytes(self) -> None:
        """Nothing is downloaded, and the summary says what is written."""

    _log_download_done = _log_download_bytes

    def _split_generators(self, dl_manager) -> dict[str, Iterator[tuple[int, dict]]]:
        del dl_manager  # pose datasets are behind forms and licences: the user downloads them
        # TFDS allows no dash in the name of a split; the folder (the config) has the true name.
        return {self.split.replace("-", "_"): self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        check = _Checker(self.pose_dataset.num_keypoints, self.report, self.describe_source().get("annotations", ""))
        images = _read_ahead(lambda item: _read(item, self._decode), self.images())
        with tqdm.tqdm(
            images,
            total=self.num_images,
            desc=f"{self.name} {self.split}",
            unit=" images",
            disable=not self._progress,
        ) as bar:
            number = itertools.count()
            for picture, record, read in bar:
                bar.total = self.num_images  # known once the annotation file is read
                example = check(picture, record, read, frozenset(number for number, _ in self.categories))
                if example is not None:
                    yield next(number), example
                elif self.report.num_dropped:
                    bar.set_postfix(dropped=self.report.num_dropped)

    def _download_and_prepare(self, dl_manager, download_config) -> None:
        """TFDS's hook: `self.data_path` is a temporary folder here, renamed by TFDS when this returns."""
        del download_config
        start = time.monotonic()
        ((name, examples),) = self._split_generators(dl_manager).items()
        table = records.AnnotationTableWriter(self.pose_dataset.num_keypoints)
        shards = _ShardWriter(
            tfds.core.ShardedFileTemplate(
                dataset_name=self.name,
                data_dir=self.data_path,
                split=name,
                filetype_suffix="array_record",
                template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}",
            ),
            self.info.features,
        )
        counts = collections.Counter()
        try:
            while chunk := [example for _, example in itertools.islice(examples, _CHUNK)]:
                for example in chunk:
                    shards.write(example)
                table.add(chunk)
                _count(counts, chunk)
        finally:
            shards.close()
        if not counts["images"]:
            raise RawDataError(f"{self.name} ({self.split}): not one usable image; {_first_faults(self.report)}")
        table.save(pathlib.Path(self.data_path) / records.ANNOTATIONS_FILE, self.categories, self.metadata)
        self.info.set_splits(tfds.core.SplitDict([shards.split_info(name)]))
        summary = {
            "dataset": self.name,
            "split": self.split,
            "source": self.describe_source(),
            "metadata": self.metadata,
            **counts,
            "bytes": sum(shards.bytes),
            "seconds": round(time.monotonic() - start, 1),
            "dropped": {kind: tallies for kind, tallies in self.report.as_dict().items() if kind != "remarks"},
            "remarks": self.report.as_dict()["remarks"],
        }
        (pathlib.Path(self.data_path) / records.SUMMARY_FILE).write_text(json.dumps(summary, indent=1))


class _ShardWriter:
    """Writes examples one after the other into ArrayRecord files of about `SHARD_BYTES`."""

    def __init__(self, template: tfds.core.ShardedFileTemplate, features: tfds.features.FeaturesDict):
        self._template, self._features = template, features
        self._writer: Any = None
        self.lengths: list[int] = []
        self.bytes: list[int] = []

    def write(self, example: dict[str, Any]) -> None:
        data = self._features.serialize_example(self._features.encode_example(example))
        if self._writer is None or self.bytes[-1] + len(data) > SHARD_BYTES:
            self.close()
            path = self._template.sharded_filepath(shard_index=len(self.lengths), num_shards=None)
            # Groups of one record: an epoch reads records in random order.
            self._writer = array_record_module.ArrayRecordWriter(os.fspath(path), "group_size:1")
            self.lengths.append(0)
            self.bytes.append(0)
        self._writer.write(data)
        self.lengths[-1] += 1
        self.bytes[-1] += len(data)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def split_info(self, name: str) -> tfds.core.SplitInfo:
        return tfds.core.SplitInfo(
            name=name, shard_lengths=self.lengths, num_bytes=sum(self.bytes), filename_template=self._template
        )


class _Checker:
    """Turns what a builder yields into examples, or into entries of the report."""

    def __init__(self, num_keypoints: int, report: Report, annotation_file: str):
        self._num_keypoints, self._report, self._file = num_keypoints, report, annotation_file
        self._image_ids: set[int] = set()
        self._instance_ids: set[int] = set()

    def __call__(
        self,
        picture: Picture,
        record: dict[str, Any],
        read: tuple[bytes, int, int] | Fault,
        categories: frozenset[int],
    ) -> dict[str, Any] | None:
        file = picture if isinstance(picture, pathlib.Path) else str(record.get("file_name"))
        try:
            if isinstance(read, Fault):
                raise read
            data, width, height = read
            example = checks.check_image_entry(record, width, height)
            if example["image_id"] in self._image_ids:
                raise Fault("duplicate image id")
        except Fault as fault:
            self._report.drop_image(fault, file, record.get("image_id"))
            for instance in record["instances"]:
                self._report.remark("instance lost with its image", self._file or file, instance.get("id"))
            return None
        self._image_ids.add(example["image_id"])
        instances = [self._instance(instance, file, width, height, categories) for instance in record["instances"]]
        return example | {
            "image": data,
            "instances": [instance for instance in instances if instance is not None],
        }

    def _instance(self, instance, file, width, height, categories) -> dict[str, Any] | None:
        file = self._file or file
        try:
            checked, remarks = checks.check_instance(instance, self._num_keypoints, width, height, categories)
            if checked["id"] in self._instance_ids:
                raise Fault("duplicate annotation id")
        except Fault as fault:
            self._report.drop_instance(fault, file, instance.get("id"))
            return None
        self._instance_ids.add(checked["id"])
        for remark in remarks:
            self._report.remark(remark, file, checked["id"])
        return checked


def read_summary(directory: pathlib.Path) -> dict[str, Any]:
    """The summary of a finished split."""
    return json.loads((directory / records.SUMMARY_FILE).read_text())


def _read(item: tuple[Picture, dict[str, Any]], decode: bool):
    picture, record = item
    try:
        return picture, record, checks.read_jpeg(picture, decode)
    except Fault as fault:
        return picture, record, fault


def _read_ahead(function: Callable, items: Iterator, window: int = 64) -> Iterator:
    """`map` in threads, in order, at most `window` items ahead of the consumer."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        pending: collections.deque[concurrent.futures.Future] = collections.deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) >= window:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _count(counts: collections.Counter, examples: list[dict[str, Any]]) -> None:
    instances = [instance for example in examples for instance in example["instances"]]
    counts["images"] += len(examples)
    counts["images_without_instances"] += sum(not example["instances"] for example in examples)
    counts["instances"] += len(instances)
    counts["crowds"] += sum(instance["crowd"] for instance in instances)
    counts["without_keypoints"] += sum(
        not instance["crowd"] and (instance["num_keypoints"] == 0 or not (instance["keypoints"][:, 2] > 0).any())
        for instance in instances
    )


def _first_faults(report: Report) -> str:
    found = [
        f"{reason} ({tally['count']}, first {tally['examples'][0]['file']})"
        for reason, tally in report.as_dict()["images"].items()
    ]
    return "dropped: " + "; ".join(found) if found else "the annotation file lists none"


@contextlib.contextmanager
def _only_one(directory: pathlib.Path) -> Iterator[None]:
    """Holds the split's lock, which the system releases even if the process is killed."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RawDataError(f"{directory} is being prepared by another process") from None
        yield


def _remove_interrupted(directory: pathlib.Path, also_finished: bool) -> None:
    """Removes what killed runs left. A finished split is renamed first: it is never there in part."""
    if also_finished and directory.exists():
        directory.rename(directory.with_name(f"incomplete.old_{directory.name}"))
    for leftover in directory.parent.glob("incomplete.*"):
        shutil.rmtree(leftover)
