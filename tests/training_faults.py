"""Faults put into prepared data by hand, for the tests of both methods' programs."""

from __future__ import annotations

import pathlib

import numpy as np

from data_pipelines.records import ANNOTATIONS_FILE, split_dir


def change_annotations(dataset: str, split: str, data_dir: pathlib.Path, **columns) -> None:
    """Rewrites the annotation table: `columns` are functions that get a copy of a column and change it in place."""
    path = split_dir(dataset, split, data_dir) / ANNOTATIONS_FILE
    with np.load(path) as archive:
        table = {name: archive[name].copy() for name in archive.files}
    for name, change in columns.items():
        change(table[name])
    np.savez(path.open("wb"), **table)


def spoil(keypoints: np.ndarray) -> None:
    """Makes the first labelled point of each of the first people NaN."""
    for person in keypoints[:8]:
        for labelled in np.flatnonzero(person[:, 2] > 0)[:1]:
            person[labelled, 0] = np.nan
