"""Prepared splits: where one lies, whether it is finished and whole, what makes it.

A split is one folder, `<data_dir>/<dataset>/<split>/<version>/`, made under another name and renamed when complete, so
a folder of that name is a finished split. `records.py` says what is in it.
"""

from __future__ import annotations

import json
import pathlib
import shlex
import zipfile
import zlib

from data_pipelines.datasets import DATASETS
from data_pipelines.paths import as_path, is_remote, not_as_written

VERSION = "1.0.0"
ANNOTATIONS_FILE = "annotations.npz"
SUMMARY_FILE = "summary.json"
_DOCUMENT = {True: "datasets.md", False: "your_own_dataset.md"}  # by whether the dataset is built in


class DatasetNotPrepared(FileNotFoundError):
    """The records of a split are not there; the message names the command that makes them."""


def split_dir(dataset: str, split: str, data_dir: str | pathlib.Path) -> pathlib.Path:
    """The folder of a finished split."""
    return as_path(data_dir) / dataset / split / VERSION


def is_prepared(dataset: str, split: str, data_dir: str | pathlib.Path) -> bool:
    """Whether the split is finished; an interrupted preparation is not."""
    return _finished(split_dir(dataset, split, data_dir))


def _finished(directory: pathlib.Path) -> bool:
    """Folders are renamed when they are complete; into a bucket the summary is copied last."""
    return (directory / SUMMARY_FILE).exists() if is_remote(directory) else directory.is_dir()


def finished_dir(dataset: str, split: str, data_dir: str | pathlib.Path) -> pathlib.Path:
    """The folder of a split that must be there, and whole.

    Raises:
      DatasetNotPrepared: with the command that prepares it.
      ValueError: a file is not there or of another size than it was written with, as after an interrupted copy.
    """
    directory = split_dir(dataset, split, data_dir)
    if not _finished(directory):
        folders = directory.parents[1].glob(f"*/{VERSION}")
        others = ", ".join(sorted(folder.parent.name for folder in folders))
        raise DatasetNotPrepared(
            f"{dataset} ({split}) is not prepared: there is no {directory}"
            f"{f', only {others}' if others else ''}. Prepare it with\n"
            f"  {preparation_command(dataset, split, data_dir)}\n(docs/{_DOCUMENT[dataset in DATASETS]} says more). The"
            " configuration `:demo` makes its own data and needs none."
        )
    summary = directory / SUMMARY_FILE  # the last that is copied
    sizes = json.loads(summary.read_text()).get("files", {}) if summary.exists() else {SUMMARY_FILE: 1}
    if damaged := not_as_written(directory, sizes):
        raise ValueError(f"{directory}: {damaged[0]}: copy the folder once more, or prepare it again (--overwrite)")
    return directory


def preparation_command(dataset: str, split: str, data_dir: str | pathlib.Path) -> str:
    """The command that prepares a split; what stands in <> is for the user to fill in."""
    command, rest = "python -m scripts.prepare_data", f"--data_dir={shlex.quote(str(data_dir))} --split={split}"
    if dataset.startswith("synthetic_"):
        return f"{command} {dataset} {rest}"
    if dataset in DATASETS:
        return f"{command} {dataset} --raw_dir=<the download> {rest}"
    return f"{command} custom --name={dataset} --annotations=<the labels' file or folder> {rest}"


def contents(dataset: str, split: str, data_dir: str | pathlib.Path) -> str:
    """A digest of what a prepared split holds, labels and pictures: the same where the same was prepared again.

    No column is read: the table is a zip file, which lists their checksums. Pictures count by their bytes together.

    Raises:
      DatasetNotPrepared, ValueError: see `finished_dir`.
    """
    directory = finished_dir(dataset, split, data_dir)
    with (directory / ANNOTATIONS_FILE).open("rb") as file, zipfile.ZipFile(file) as archive:
        columns = sorted((member.filename, member.CRC) for member in archive.infolist())
    summary = directory / SUMMARY_FILE
    size = json.loads(summary.read_text()).get("bytes") if summary.exists() else None
    labels = [column for column in columns if column[0] != "header.npy"]  # remarks of the builder
    return f"{zlib.crc32(json.dumps([labels, size]).encode()):08x}"
