"""A few annotated pictures of anybody's label tool, as arrays, without preparing a dataset on disk for good."""

from __future__ import annotations

import pathlib
import re
import tempfile
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from data_pipelines.builders.custom import Custom
from data_pipelines.builders.report import RawDataError
from data_pipelines.datasets import DATASETS, PoseDataset
from data_pipelines.top_down.crops import TopDownSource, decode
from data_pipelines.top_down.loader import open_source


class Annotated(NamedTuple):
    """People with their pictures.

    Attributes:
      dataset: the skeleton and how it is cropped, as `prepare_data custom` defines it.
      images: uint8 [H, W, 3] RGB of each of N people; a picture of several is there several times.
      keypoints: float32 [N, K, 3], pixels of the picture, and 1 where labelled, else 0.
      boxes: float64 [N, 4], x, y, width, height.
      left_out: what could not be used, a line each.
    """

    dataset: PoseDataset
    images: list[np.ndarray]
    keypoints: np.ndarray
    boxes: np.ndarray
    left_out: list[str]


def read_annotated(
    path: str | pathlib.Path,
    input_size: tuple[int, int],
    images: str | pathlib.Path | None = None,
    format: str | None = None,
) -> Annotated:
    """The people of a file or folder in one of `importers.FORMATS`.

    Args:
      path: the labels; the skeleton is named after it.
      input_size: (width, height) of the crops that they are for.
      images: the picture folder, where it is not where the labels say.
      format: of the labels; None recognises it.

    Raises:
      ValueError: no such labels, or nobody who can be used.
    """
    name = re.sub(r"\W+", "_", pathlib.Path(path).resolve().stem, flags=re.ASCII)
    if name.lower() in DATASETS or not name[:1].isalpha():
        name = f"new_{name}"
    try:
        with tempfile.TemporaryDirectory() as folder:
            builder = Custom(
                "train", dataset=name, data_dir=folder, annotations=path, images=images, format=format, progress=False
            )
            dropped = builder.prepare()["dropped"]
            source = open_source(name, "train", data_dir=folder, input_size=input_size)
            lines = [
                f"{example['file']}: {example['id']}: {reason}{example['detail'] and ': '}{example['detail']}"
                for of_kind in dropped.values()
                for reason, tally in of_kind.items()
                for example in tally["examples"]
            ]
            return arrays_of(source, range(len(source)), lines)
    except RawDataError as error:
        raise ValueError(str(error)) from error


def arrays_of(source: TopDownSource, rows: Iterable[int], left_out: Sequence[str] = ()) -> Annotated:
    """People of a prepared dataset."""
    samples = [source[row] for row in rows]
    return Annotated(
        source.dataset,
        [np.ascontiguousarray(decode(sample["encoded"], sample)[..., ::-1]) for sample in samples],
        np.stack([np.concatenate([sample["keypoints"], sample["visible"][:, None]], axis=1) for sample in samples]),
        np.stack([sample["box"] for sample in samples]),
        list(left_out),
    )
