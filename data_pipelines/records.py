"""Records: what a prepared dataset holds, how it is read, and its annotation table.

A prepared split is one folder (`splits.py`): a TFDS dataset in ArrayRecord format (one example an image, with
all its instances), `annotations.npz` (everything but the pixels, in columns) and `summary.json` (what was kept,
what was dropped and why). `scripts/prepare_data.py` makes it; nothing here needs TensorFlow.

Conventions: coordinates are (x, y) in pixels of the stored picture (of the upright one where the metadata's
`orientation` says so: `Annotations.upright`), the centre of the top-left pixel is
(0, 0); boxes are (x, y, width, height) as annotated. The fields of an image, and of an instance with K
keypoints:

  image_id int64 · file_name str · height, width int32 · crowd_index float32 (CrowdPose's; -1 elsewhere)

  id int64 · box float32 [4] · area float32 (-1: not annotated) · crowd bool · category int32
  keypoints float32 [K, 3]: x, y, v; v > 0 is a labelled point, and may be fractional
  num_keypoints int32: the annotation's own count, which need not be that of v > 0 (-1: not annotated)
  centre float32 [2], scale float32: MPII's person position, final: 0-based, moved down by 15 scale units and
    the scale enlarged by 1.25 as every MPII protocol does, so that the crop is the square of side 200 * scale
    around the centre without further padding. 0 elsewhere
  head_size float32: reference length of MPII's PCKh in pixels (0: unknown, or another dataset)
  mask str: JSON of the COCO segmentation, kept only for crowds and for people without keypoints; "" elsewhere
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data_pipelines import orientation
from data_pipelines.datasets import PoseDataset, find_dataset
from data_pipelines.splits import (
    ANNOTATIONS_FILE,
    SUMMARY_FILE,
    VERSION,
    DatasetNotPrepared,
    contents,
    finished_dir,
    is_prepared,
    preparation_command,
    split_dir,
)

__all__ = [
    "ANNOTATIONS_FILE",
    "SUMMARY_FILE",
    "VERSION",
    "AnnotationTableWriter",
    "Annotations",
    "DatasetNotPrepared",
    "RecordSource",
    "contents",
    "finished_dir",
    "instance_fields",
    "is_prepared",
    "load_annotations",
    "open_records",
    "preparation_command",
    "record_features",
    "split_dir",
]

_IMAGE_FIELDS: dict[str, type] = {
    "image_id": np.int64,
    "file_name": str,
    "height": np.int32,
    "width": np.int32,
    "crowd_index": np.float32,
}


def instance_fields(num_keypoints: int) -> dict[str, tuple[type, tuple[int, ...]]]:
    """Name -> (dtype, shape of one instance) of every instance field."""
    return {
        "id": (np.int64, ()),
        "box": (np.float32, (4,)),
        "area": (np.float32, ()),
        "crowd": (np.bool_, ()),
        "category": (np.int32, ()),
        "keypoints": (np.float32, (num_keypoints, 3)),
        "num_keypoints": (np.int32, ()),
        "centre": (np.float32, (2,)),
        "scale": (np.float32, ()),
        "head_size": (np.float32, ()),
        "mask": (str, ()),
    }


def record_features(dataset: PoseDataset) -> tfds.features.FeaturesDict:
    """The TFDS features of one example: the image fields, `image` (the JPEG's own bytes) and `instances`."""

    def feature(dtype: type, shape: tuple[int, ...] = ()) -> tfds.features.FeatureConnector:
        return tfds.features.Text() if dtype is str else tfds.features.Tensor(shape=shape, dtype=dtype)

    fields = instance_fields(dataset.num_keypoints)
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            **{name: feature(dtype) for name, dtype in _IMAGE_FIELDS.items()},
            "instances": tfds.features.Sequence({name: feature(*spec) for name, spec in fields.items()}),
        }
    )


_UNDECODED = {"image": tfds.decode.SkipDecoding()}


class RecordSource:
    """Random access to the images of a prepared split. Picklable and safe to share between threads."""

    def __init__(self, directory: pathlib.Path, fields: Mapping[str, tuple[type, tuple[int, ...]]]):
        self._fields = dict(fields)
        builder = tfds.builder_from_directory(directory)
        (name,) = builder.info.splits
        self._features = builder.info.features
        self._image_only = tfds.features.FeaturesDict({"image": self._features["image"]})
        self._source = builder.as_data_source(name, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The image's fields; `image` are undecoded bytes, `instances` arrays [n, ...] (see the module)."""
        example = self._features.deserialize_example_np(self._bytes(index), decoders=_UNDECODED)
        instances = example.pop("instances")
        record = {
            name: example[name].decode() if dtype is str else dtype(example[name])
            for name, dtype in _IMAGE_FIELDS.items()
        }
        record["image"] = example["image"]
        record["instances"] = {
            name: _strings(value.decode() for value in instances[name])
            if dtype is str
            else np.asarray(instances[name], dtype).reshape(-1, *shape)
            for name, (dtype, shape) in self._fields.items()
        }
        return record

    def image(self, index: int) -> bytes:
        """The image's undecoded bytes alone, at a third of the time."""
        return self._image_only.deserialize_example_np(self._bytes(index), decoders=_UNDECODED)["image"]

    def _bytes(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return self._source[int(index)]


def open_records(dataset: str, split: str, data_dir: str | pathlib.Path) -> RecordSource:
    """The records of a prepared split.

    Raises:
      DatasetNotPrepared: with the command that prepares them.
    """
    return RecordSource(
        finished_dir(dataset, split, data_dir), instance_fields(find_dataset(dataset, data_dir).num_keypoints)
    )


@dataclasses.dataclass(frozen=True)
class Annotations:
    """Every field of a split but the pixels, in columns.

    Image columns have I rows, in the order of the records; instance columns have N rows, sorted by
    `image_index` (the image's row) and, within an image, in the order of the annotation file. `metadata` are
    remarks of the builder, such as where MPII's head sizes come from.
    """

    protocol: PoseDataset
    split: str
    categories: tuple[tuple[int, str], ...]
    metadata: Mapping[str, str]
    image_id: np.ndarray
    file_name: np.ndarray
    height: np.ndarray
    width: np.ndarray
    crowd_index: np.ndarray
    image_index: np.ndarray
    id: np.ndarray
    box: np.ndarray
    area: np.ndarray
    crowd: np.ndarray
    category: np.ndarray
    keypoints: np.ndarray
    num_keypoints: np.ndarray
    centre: np.ndarray
    scale: np.ndarray
    head_size: np.ndarray
    mask: np.ndarray

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        return self.protocol.name

    @property
    def upright(self) -> bool:
        """Whether pictures are turned by their EXIF orientation first; sizes and coordinates are meant so."""
        return self.metadata.get("orientation", "").startswith(orientation.UPRIGHT)

    @property
    def labelled(self) -> np.ndarray:
        """bool [N]: instances with at least one labelled point."""
        return (self.keypoints[..., 2] > 0).any(axis=1)

    @property
    def num_images(self) -> int:
        return len(self.image_id)

    @property
    def num_instances(self) -> int:
        return len(self.id)

    def to_coco(self) -> dict[str, Any]:
        """The split as a COCO ground-truth document (lists and Python numbers), which pycocotools accepts.

        What the annotation did not have (area, num_keypoints, crowd index, head size) is absent here too.
        Keypoints of sets with parts are written as COCO-WholeBody does: `keypoints` for the body,
        `<part>_kpts` for the others.
        """
        images = {
            "id": self.image_id.tolist(),
            "file_name": self.file_name,
            "height": self.height.tolist(),
            "width": self.width.tolist(),
            "crowdIndex": _where(self.crowd_index >= 0, self.crowd_index),
        }
        parts = self.protocol.keypoints.parts or (("body", 0, self.keypoints.shape[1]),)
        annotations = {
            "id": self.id.tolist(),
            "image_id": self.image_id[self.image_index].tolist(),
            "category_id": self.category.tolist(),
            "iscrowd": self.crowd.astype(int).tolist(),
            "bbox": self.box.tolist(),
            **{
                "keypoints" if part == "body" else f"{part}_kpts": self.keypoints[:, first:end]
                .reshape(self.num_instances, 3 * (end - first))
                .tolist()
                for part, first, end in parts
            },
            "area": _where(self.area >= 0, self.area),
            "num_keypoints": _where(self.num_keypoints >= 0, self.num_keypoints),
            "head_size": _where(self.head_size > 0, self.head_size),
            "segmentation": [json.loads(mask) if mask else None for mask in self.mask],
        }
        categories = [{"id": number, "name": name, "supercategory": name} for number, name in self.categories]
        return {"images": _rows(images), "annotations": _rows(annotations), "categories": categories}


def _where(known: np.ndarray, values: np.ndarray) -> list:
    """The values, None where they are not known."""
    return [value if there else None for value, there in zip(values.tolist(), known.tolist(), strict=True)]


def _rows(columns: Mapping[str, Iterable]) -> list[dict[str, Any]]:
    """A dictionary a row, without what is None."""
    rows = (zip(columns, row, strict=True) for row in zip(*columns.values(), strict=True))
    return [{name: value for name, value in row if value is not None} for row in rows]


def load_annotations(dataset: str, split: str, data_dir: str | pathlib.Path) -> Annotations:
    """The annotation table of a prepared split, without touching its pictures.

    Raises:
      DatasetNotPrepared: with the command that prepares it.
      KeyError: no dataset of that name is known or defined in `data_dir`.
      ValueError: labelled keypoints that are not finite.
    """
    protocol = find_dataset(dataset, data_dir)
    path = finished_dir(dataset, split, data_dir) / ANNOTATIONS_FILE
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        columns = {name: archive[name] for name in archive.files}
    header = json.loads(columns.pop("header").tobytes())
    for name in ("file_name", "mask"):
        columns[name] = _unpack_strings(columns.pop(f"{name}_text"), columns.pop(f"{name}_end"))
    bad = (columns["keypoints"][..., 2] > 0) & ~np.isfinite(columns["keypoints"]).all(axis=-1)
    if bad.any():
        first = int(columns["id"][np.flatnonzero(bad.any(axis=1))[0]])
        raise ValueError(
            f"{path}: {bad.sum()} labelled keypoints are not finite, the first of annotation {first}; prepare it again"
        )
    return Annotations(
        protocol=protocol,
        split=split,
        categories=tuple((number, name) for number, name in header["categories"]),
        metadata=header["metadata"],
        **columns,
    )


class AnnotationTableWriter:
    """Collects the annotation table while the records are written."""

    def __init__(self, num_keypoints: int):
        self._fields = instance_fields(num_keypoints)
        self._blocks: list[dict[str, np.ndarray]] = [self._block((), 0)]
        self._num_images = 0

    def add(self, examples: Sequence[Mapping[str, Any]]) -> None:
        """Adds images in the form in which TFDS encodes them (`instances` a list of dicts)."""
        self._blocks.append(self._block(examples, self._num_images))
        self._num_images += len(examples)

    def save(self, path: pathlib.Path, categories: Iterable[tuple[int, str]], metadata: Mapping[str, str]) -> None:
        """Writes the table as `load_annotations` reads it."""
        columns = self._columns()
        for name in ("file_name", "mask"):
            columns[f"{name}_text"], columns[f"{name}_end"] = _pack_strings(columns.pop(name))
        header = json.dumps({"categories": list(categories), "metadata": dict(metadata)})
        with path.open("wb") as file:
            np.savez(file, header=np.frombuffer(header.encode(), np.uint8), **columns)

    def annotations(
        self,
        protocol: PoseDataset,
        split: str,
        categories: Iterable[tuple[int, str]],
        metadata: Mapping[str, str],
    ) -> Annotations:
        """The table as `load_annotations` will read it."""
        return Annotations(protocol, split, tuple(categories), dict(metadata), **self._columns())

    def _columns(self) -> dict[str, np.ndarray]:
        return {name: np.concatenate([block[name] for block in self._blocks]) for name in self._blocks[0]}

    def _block(self, examples: Sequence[Mapping[str, Any]], first_image: int) -> dict[str, np.ndarray]:
        instances = [instance for example in examples for instance in example["instances"]]
        block = {
            name: _column([example[name] for example in examples], dtype, ()) for name, dtype in _IMAGE_FIELDS.items()
        }
        counts = [len(example["instances"]) for example in examples]
        block["image_index"] = np.repeat(np.arange(first_image, first_image + len(examples)), counts)
        return block | {
            name: _column([instance[name] for instance in instances], dtype, shape)
            for name, (dtype, shape) in self._fields.items()
        }


def _column(values: list, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    return _strings(values) if dtype is str else np.asarray(values, dtype).reshape(-1, *shape)


def _strings(values: Iterable[str]) -> np.ndarray:
    """An object array: NumPy's own strings would pad every mask to the longest one."""
    values = list(values)
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _pack_strings(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All strings in one byte array, and the end of each in it."""
    encoded = [value.encode() for value in values]
    return np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([len(text) for text in encoded], dtype=np.int64)


def _unpack_strings(text: np.ndarray, end: np.ndarray) -> np.ndarray:
    data = text.tobytes()
    start = np.concatenate([[0], end[:-1]]) if len(end) else end
    return _strings(data[a:b].decode() for a, b in zip(start.tolist(), end.tolist(), strict=True))
