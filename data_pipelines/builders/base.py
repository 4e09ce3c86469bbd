"""The common part of every dataset's builder: check, write as ArrayRecord, summarise.

To add a dataset:

1. Enter it in `DATASETS` of `data_pipelines/datasets.py`, and a new skeleton in `_SETS` of
   `data_pipelines/skeletons.py`.
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
import datetime
import fcntl
import itertools
import json
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import tensorflow_datasets as tfds
import tqdm
from array_record.python import array_record_module

from data_pipelines import orientation, records
from data_pipelines.builders import checks
from data_pipelines.builders import summary as summaries
from data_pipelines.builders.checker import Checker, Picture, told_by_sizes, vote
from data_pipelines.builders.report import Fault, RawDataError, Report
from data_pipelines.builders.summary import read_summary
from data_pipelines.datasets import PoseDataset, find_dataset
from data_pipelines.paths import as_path, copy_files, is_remote

SHARD_BYTES = 512 << 20
_CHUNK = 64  # images between two additions to the annotation table


class _Info(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """TFDS's own bucket has none of these datasets; it would be asked by network, into a folder that stays."""


class PoseBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Writes one split of one dataset; see the module's head for how to make one."""

    VERSION = tfds.core.Version(records.VERSION)
    dataset: ClassVar[str]
    splits: ClassVar[tuple[str, ...]] = ()
    url_infos = {}  # TFDS's table of downloads; looking for its file would need an optional package

    # What the subclass may set while `images` runs.
    categories: tuple[tuple[int, str], ...] = ((1, "person"),)
    num_images: int | None = None  # for the progress bar

    # Field of a record -> key of the annotation file, which messages name; those that are not there are called alike.
    keys: ClassVar[Mapping[str, str]] = {}
    # How pictures are read where nothing else is asked for; None: as the annotated sizes tell. Published protocols say.
    default_orientation: ClassVar[str | None] = orientation.STORED
    annotated: bool = True  # False: a test set, of which nobody expects people to learn from
    # Whether people without labelled keypoints belong to the dataset, and are no loss.
    unlabelled_belong: ClassVar[bool] = True

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
        orientation: str | None = None,
        allow_loss: bool = False,
    ):
        """
        Args:
          split: name of the split; its folder's name as well.
          data_dir: where prepared datasets lie.
          strict: stop at the first broken entry instead of leaving it out.
          decode: decode every picture as a check; without it headers and end marker are checked.
          progress: show a progress bar.
          dataset: another dataset that is written by this class, by name or as its protocol; None for the class's own.
          orientation: 'stored' or 'upright', how pictures are read; None for the dataset's own way.
          allow_loss: prepare a split of which nobody can be learned from or judged.
        """
        own = dataset or self.dataset
        self.pose_dataset = own if isinstance(own, PoseDataset) else find_dataset(own)
        self.name = self.pose_dataset.name
        self.split = split
        self.report = Report(strict)
        self.metadata: dict[str, str] = {}
        self._decode, self._progress = decode, progress
        self._orientation, self._allow_loss = orientation or self.default_orientation, allow_loss
        self.read_as = self._orientation
        self._target = as_path(data_dir)
        # Records are written to a file of this machine only.
        self._staging = tempfile.TemporaryDirectory() if is_remote(data_dir) else None
        super().__init__(
            data_dir=self._staging.name if self._staging else os.fspath(data_dir),
            file_format="array_record",
            config=tfds.core.BuilderConfig(name=split, version=self.VERSION),
        )

    def _create_builder_config(self, builder_config: tfds.core.BuilderConfig, version: Any) -> tfds.core.BuilderConfig:
        """TFDS's hook, as given: by itself it warns of splits that the class does not list, such as one's own."""
        del version
        return builder_config

    def images(self) -> Iterator[tuple[Picture, dict[str, Any]]]:
        """Yields every picture of the split with its record, unchecked, in the order to store them in."""
        raise NotImplementedError

    def read_picture(self, picture: Picture, record: Mapping[str, Any]) -> tuple[bytes, int, int]:
        """(JPEG, width, height) of a picture and its record as `images` yields them, in any thread. Raises Fault."""
        del record
        return checks.read_jpeg(picture, self._decode)

    def describe_source(self) -> dict[str, str]:
        """What the split was made from, for its summary."""
        return {}

    def findings(self) -> dict[str, Any]:
        """Further entries of the summary."""
        return {}

    def prepare(self, overwrite: bool = False) -> dict[str, Any]:
        """Writes the split unless it is finished already; returns its summary.

        Raises:
          RawDataError: the raw data cannot be used at all, or strict mode found a fault. Nothing is left of what was
            written, and a finished split that it was to replace stays.
          OSError: `data_dir` cannot be written; likewise.
        """
        directory = records.split_dir(self.name, self.split, self._data_dir_root)
        target = records.split_dir(self.name, self.split, self._target)
        if self._staging and not overwrite and records.is_prepared(self.name, self.split, self._target):
            return read_summary(target)
        config = tfds.download.DownloadConfig(try_download_gcs=False)
        # TFDS makes folders for downloads, of which there are none: they would stay, empty, among the datasets.
        with _only_one(directory.parent), _replacing(directory, overwrite), tempfile.TemporaryDirectory() as unused:
            self.download_and_prepare(download_dir=unused, download_config=config)
        summary = read_summary(directory)
        if self._staging:
            if target.exists():
                target.rmtree()  # type: ignore[attr-defined]  # of an epath
            copy_files(directory, target, last=records.SUMMARY_FILE)
            self._staging.cleanup()
        return summary

    def _info(self) -> tfds.core.DatasetInfo:
        return _Info(
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
        items: Iterable[tuple[Picture, dict[str, Any]]] = self.images()
        choice, why = self._orientation, ""
        if choice is None:
            items = everything = list(items)
            choice, why = self._told(everything)
        upright = choice == orientation.UPRIGHT
        source = self.describe_source().get("annotations", "")
        check = Checker(self.pose_dataset.num_keypoints, self.report, source, upright, self.keys)
        images = _read_ahead(self._read, iter(items))
        number = itertools.count()
        with tqdm.tqdm(
            images, total=self.num_images, desc=f"{self.name} {self.split}", unit=" images", disable=not self._progress
        ) as bar:
            for picture, record, read in bar:
                bar.total = self.num_images  # known once the annotation file is read
                example = check(picture, record, read, frozenset(category for category, _ in self.categories))
                if example is not None:
                    yield next(number), example
                elif self.report.num_dropped:
                    bar.set_postfix(dropped=self.report.num_dropped)
        self.read_as = choice
        if upright or check.tagged:
            self.metadata["orientation"] = summaries.orientation_note(choice, why, check.tagged, next(number))

    def _read(self, item: tuple[Picture, dict[str, Any]]):
        picture, record = item
        try:
            return picture, record, self.read_picture(picture, record)
        except Fault as fault:
            return picture, record, fault

    def _told(self, items: list[tuple[Picture, dict[str, Any]]]) -> tuple[str, str]:
        """('stored' or 'upright', why): as the annotated sizes tell, else as the dataset's other splits are read."""
        told = told_by_sizes(_read_ahead(lambda item: vote(*item), iter(items)))
        others = summaries.orientation_of_others(self._target, self.name, self.split)
        upright = [split for split, choice in others.items() if choice == orientation.UPRIGHT]
        if told is None:
            return (orientation.UPRIGHT, f"as {upright[0]}") if upright else (orientation.STORED, "")
        for split, choice in others.items():
            if choice != told:
                what = f"pictures are read otherwise than those of another split ({told} here, {choice} there)"
                self.report.remark(what, self.describe_source().get("annotations", ""), None, split)
        return told, "as the annotated sizes tell"

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
                counts.update(summaries.count(chunk))
        finally:
            shards.close()
        if not counts["images"]:
            file = self.describe_source().get("annotations", "its source")
            raise RawDataError(
                f"{self.name} ({self.split}): not one usable image in {file}; {summaries.first_faults(self.report)}"
            )
        columns = table.annotations(self.pose_dataset, self.split, self.categories, self.metadata)
        usable = (
            summaries.usable(columns, self.report, self.unlabelled_belong, self._allow_loss) if self.annotated else {}
        )
        table.save(pathlib.Path(self.data_path) / records.ANNOTATIONS_FILE, self.categories, self.metadata)
        self.info.set_splits(tfds.core.SplitDict([shards.split_info(name)]))
        summary = {
            "dataset": self.name,
            "split": self.split,
            # Tells a split that was prepared again from what it was, also where every number is the same.
            "prepared": datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
            "source": self.describe_source(),
            "metadata": self.metadata,
            **counts,
            "orientation": self.read_as,
            "usable": usable,
            **self.findings(),
            "bytes": sum(shards.bytes),
            "files": {path.name: path.stat().st_size for path in sorted(pathlib.Path(self.data_path).iterdir())},
            "seconds": round(time.monotonic() - start, 1),
            "dropped": {kind: tallies for kind, tallies in self.report.as_dict().items() if kind != "remarks"},
            "remarks": self.report.as_dict()["remarks"],
        }
        (pathlib.Path(self.data_path) / records.SUMMARY_FILE).write_text(json.dumps(summary, indent=1))


@contextlib.contextmanager
def _of_the_system() -> Iterator[None]:
    """ArrayRecord says as a RuntimeError what is the system's, such as a full disk."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(str(error)) from error


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
            with _of_the_system():
                # Groups of one record: an epoch reads records in random order.
                self._writer = array_record_module.ArrayRecordWriter(os.fspath(path), "group_size:1")
            self.lengths.append(0)
            self.bytes.append(0)
        with _of_the_system():
            self._writer.write(data)
        self.lengths[-1] += 1
        self.bytes[-1] += len(data)

    @_of_the_system()
    def close(self) -> None:
        writer, self._writer = self._writer, None  # one that fails is not closed again
        if writer is not None:
            writer.close()

    def split_info(self, name: str) -> tfds.core.SplitInfo:
        return tfds.core.SplitInfo(
            name=name, shard_lengths=self.lengths, num_bytes=sum(self.bytes), filename_template=self._template
        )


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


@contextlib.contextmanager
def _only_one(directory: pathlib.Path) -> Iterator[None]:
    """Holds the split's lock, which the system releases even if the process is killed; an error leaves no folder."""
    directory.mkdir(parents=True, exist_ok=True)
    lock = directory / ".lock"
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RawDataError(f"{directory} is being prepared by another process") from None
        try:
            yield
        except BaseException:
            lock.unlink()
            remove_empty(directory, directory.parent)
            raise


def remove_empty(*folders: pathlib.Path) -> None:
    """Removes folders, the inner first, as far as nothing is in them."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


@contextlib.contextmanager
def _replacing(directory: pathlib.Path, overwrite: bool) -> Iterator[None]:
    """Puts a finished split aside while another is written in its place; an error brings it back.

    Folders are renamed, so that a split is never there in part. What a killed run has put aside stays there until a
    split is finished, or an error brings it back; what it has written is removed.
    """
    aside = directory.with_name(f"replaced.{directory.name}")
    if directory.exists() and aside.exists():
        shutil.rmtree(aside)
    for leftover in directory.parent.glob("incomplete.*"):
        shutil.rmtree(leftover)  # may take its time, and nothing is put aside yet
    if directory.exists() and overwrite:
        directory.rename(aside)
    try:
        yield
    finally:
        if aside.exists() and directory.exists():  # an error may also come when the other is finished
            shutil.rmtree(aside)
        elif aside.exists():
            aside.rename(directory)
