"""Pose datasets: the protocol on top of a skeleton, built in or defined by the user, found by name.

A protocol says how a box becomes a crop, which heatmap codec the targets use, how a sample is augmented and by which
metric predictions are judged. Adding a dataset to the project is one entry in `DATASETS` (and, if the skeleton is new,
one in `data_pipelines/skeletons.py`) plus one builder in `data_pipelines/builders`.

A custom dataset is a file beside its records: `<data_dir>/<dataset>/dataset.json` is written when a dataset with a
skeleton of its own is prepared (`builders/custom.py`). It may be edited: its fields are those of `PoseDataset` and,
under `skeleton`, of `KeypointSet`. Nothing is registered: `find_dataset` reads the file whenever it is asked.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data_pipelines.paths import as_path, write_whole
from data_pipelines.skeletons import KEYPOINT_SETS, KeypointSet

CODECS = ("udp", "msra")
OKS_METRICS = ("coco", "wholebody", "crowdpose")
CHOICES = {
    "metric": (*OKS_METRICS, "mpii", "hand"),
    "codec": CODECS,
    "area": ("annotated", "box"),
    "drop_unlabelled_by": ("num_keypoints", "visibility", "never"),
}
"""Fields of `PoseDataset` that take one of a few values."""
_KINDS: dict[str, tuple[Any, str]] = {
    "str": (str, "a text"),
    "bool": (bool, "true or false"),
    "float": ((int, float), "a number"),
}
"""Type of a field -> (what JSON makes of it, in words)."""
_PAIRS, _POINTS = ((int, int), "pairs of keypoints' numbers"), ((int,), "keypoints' numbers")
_FORMS: dict[str, tuple[Sequence[Any], str]] = {
    "keypoints": ((str,), "names"),
    "flip_pairs": _PAIRS,
    "limbs": _PAIRS,
    "upper_body": _POINTS,
    "lower_body": _POINTS,
    "sigmas": (((int, float),), "numbers"),
    "parts": ((str, int, int), "(name, first keypoint, end)"),
}
"""Fields of `KeypointSet` -> (types in a row, in words)."""


@dataclasses.dataclass(frozen=True)
class PoseDataset:
    """How one dataset is cropped, encoded, augmented and judged.

    Attributes:
      name: the name used in configs, on disk and in result tables.
      keypoint_set: key of `KEYPOINT_SETS`.
      metric: 'coco' (OKS), 'wholebody', 'crowdpose', 'mpii' (PCKh) or 'hand' (PCK, AUC, EPE).
      codec: 'udp' (unbiased data processing: affine and sub-pixel Gaussian) or 'msra' (plain affine, Gaussian on the
        rounded centre; definitions may still say 'unshifted'). Used in training and evaluation alike.
      area: 'annotated', or 'box' (0.53 x width x height) where the annotation has no usable area.
      clean_box: clip the annotated box to the image before cropping, as the COCO loaders do.
      aspect_box: grow the box to the input's aspect ratio. False only for mpii, whose square boxes are stretched.
      padding: factor on the box before cropping.
      half_body, centre_jitter: whether these augmentations apply.
      scale_factor, rotation_factor: standard deviations of the scale and rotation (degrees) augmentation.
      drop_unlabelled_by: which people are left out as unlabelled: those whose own count 'num_keypoints' is 0 or whose
        keypoint numbers all are, by 'visibility' only the latter, or 'never'.
      min_person_area: single-stage training: people whose box is smaller after augmentation, in input pixels squared,
        are not to be found.
      images_need_labels: single-stage training: whether only images with a labelled person are used.
      skeleton: the keypoint set itself, where it is not in `KEYPOINT_SETS`: a custom dataset carries its own.
    """

    name: str
    keypoint_set: str
    metric: str = "coco"
    codec: str = "msra"
    area: str = "annotated"
    clean_box: bool = True
    aspect_box: bool = True
    padding: float = 1.25
    half_body: bool = True
    centre_jitter: bool = True
    scale_factor: float = 0.5
    rotation_factor: float = 40.0
    drop_unlabelled_by: str = "num_keypoints"
    min_person_area: float = 32.0**2
    images_need_labels: bool = True
    skeleton: KeypointSet | None = None

    @property
    def keypoints(self) -> KeypointSet:
        return self.skeleton or KEYPOINT_SETS[self.keypoint_set]

    @property
    def num_keypoints(self) -> int:
        return self.keypoints.num_keypoints


DATASETS: dict[str, PoseDataset] = {
    d.name: d
    for d in (
        PoseDataset("coco", "coco", codec="udp"),
        PoseDataset("aic", "aic", area="box"),
        PoseDataset(
            "mpii",
            "mpii",
            metric="mpii",
            codec="udp",
            clean_box=False,
            aspect_box=False,
            half_body=False,
            centre_jitter=False,
            drop_unlabelled_by="never",
        ),
        PoseDataset("ap10k", "ap10k"),
        PoseDataset("apt36k", "ap10k"),
        PoseDataset("coco_wholebody", "coco_wholebody", metric="wholebody", drop_unlabelled_by="visibility"),
        PoseDataset(
            "crowdpose", "crowdpose", metric="crowdpose", area="box", min_person_area=0.0, images_need_labels=False
        ),
        PoseDataset("ochuman", "coco"),
        PoseDataset(
            "interhand2d",
            "interhand2d",
            metric="hand",
            clean_box=False,
            padding=1.5,
            half_body=False,
            scale_factor=0.3,
            rotation_factor=90.0,
        ),
        PoseDataset("pw3d", "pw3d", area="box"),
        PoseDataset("halpe", "halpe"),
    )
}
# Rendered stand-ins (`builders/synthetic.py`), each with the protocol of the real one; only the augmentation is milder,
# because they are there for runs of minutes.
DATASETS |= {
    f"synthetic_{name}": dataclasses.replace(
        DATASETS[like], name=f"synthetic_{name}", scale_factor=0.2, rotation_factor=15.0
    )
    for name, like in (
        ("coco", "coco"),
        ("aic", "aic"),
        ("mpii", "mpii"),
        ("ap10k", "ap10k"),
        ("apt36k", "apt36k"),
        ("coco_wholebody", "coco_wholebody"),
        ("crowd", "crowdpose"),
    )
}

SPLITS = {"ap10k": ("train-split1", "val-split1"), "pw3d": ("train", "test")}
"""Of built-in datasets without a split `train` or `val`: those to train on and to evaluate."""
DEFINITION_FILE = "dataset.json"


def definition_path(name: str, data_dir: str | pathlib.Path) -> pathlib.Path:
    """Where the definition of a custom dataset lies."""
    return as_path(data_dir) / name / DEFINITION_FILE


def known_datasets(data_dir: str | pathlib.Path) -> list[str]:
    """Names of the datasets that are built in or defined in `data_dir`."""
    return sorted({*DATASETS, *(path.parent.name for path in as_path(data_dir).glob(f"*/{DEFINITION_FILE}"))})


def find_dataset(
    name: str, data_dir: str | pathlib.Path | None = None, saved: Mapping[str, Any] | None = None
) -> PoseDataset:
    """The protocol of a dataset that is built in, or defined in `data_dir`.

    Args:
      saved: name -> definition; those that a run has kept, for where its data is not.

    Raises:
      KeyError: neither; the message lists what is known and says how to define one.
      ValueError: a definition that cannot be used; the message names the file.
    """
    if name in DATASETS:
        return DATASETS[name]
    if data_dir is None:
        raise KeyError(f"unknown dataset {name!r}; built in are {', '.join(sorted(DATASETS))}")
    path = definition_path(name, data_dir)
    if not path.is_file() and saved and name in saved:
        return defined(saved[name], f"the run's definition of {name!r}")
    if not path.is_file():
        raise KeyError(
            f"unknown dataset {name!r}: there is no {path}, where `python -m scripts.prepare_data custom --name={name}"
            f" --annotations=<the labels' file or folder> --data_dir={shlex.quote(str(data_dir))}` would have defined"
            f" it, and it is none of {', '.join(sorted(DATASETS))}"
        )
    dataset = read_definition(path)
    if dataset.name != name:  # its records would be looked for in the other's folder
        raise ValueError(f"{path} defines {dataset.name!r}: set its name to {name!r}, as its folder is called")
    return dataset


def save_definition(dataset: PoseDataset, data_dir: str | pathlib.Path) -> None:
    """Writes a definition; it is there either whole or not at all."""
    path = definition_path(dataset.name, data_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(definition_of(dataset), indent=1))


def definition_of(dataset: PoseDataset) -> dict[str, Any]:
    """A dataset's fields with those of its skeleton, as a definition has them."""
    return dataclasses.asdict(dataset) | {"skeleton": dataclasses.asdict(dataset.keypoints)}


def custom_definitions(datasets: Iterable[PoseDataset]) -> dict[str, dict[str, Any]]:
    """name -> definition of those datasets that are not built in."""
    return {dataset.name: definition_of(dataset) for dataset in datasets if dataset.name not in DATASETS}


def read_definition(path: pathlib.Path) -> PoseDataset:
    """The dataset that a file defines.

    Raises:
      ValueError: not such a file, or numbers that do not fit each other.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} defines no dataset: {error}") from error
    return defined(fields, str(path))


def defined(fields: Any, where: str) -> PoseDataset:
    """The dataset of `definition_of`'s fields; `where` they stand is for messages.

    Raises:
      ValueError: no such fields, or numbers that do not fit each other.
    """
    try:
        skeleton = KeypointSet(**{name: _tuples(value) for name, value in fields["skeleton"].items()})
        codec = {"unshifted": "msra"}.get(fields.get("codec", "msra"), fields.get("codec", "msra"))
        dataset = PoseDataset(**{**fields, "codec": codec, "skeleton": skeleton})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{where} defines no dataset: {error}") from error
    check_protocol(dataset, where)
    check_skeleton(skeleton, where)
    if dataset.metric in OKS_METRICS and not skeleton.sigmas:
        raise ValueError(f"{where}: metric {dataset.metric!r} needs skeleton.sigmas, one a keypoint")
    return dataset


def check_protocol(dataset: PoseDataset, where: str) -> None:
    """Raises ValueError for a field of another type, or with a value that cannot be."""
    for field in dataclasses.fields(dataset):
        value = getattr(dataset, field.name)
        kind, expected = _KINDS.get(str(field.type), (object, ""))
        if not isinstance(value, kind) or (field.type == "float" and isinstance(value, bool)):
            raise ValueError(f"{where}: {field.name} {value!r} is not {expected}")
        known = CHOICES.get(field.name, (value,))
        if value not in known:
            raise ValueError(f"{where}: {field.name} {value!r} is none of {', '.join(known)}")
    for name, fits, expected in (
        ("padding", 0 < dataset.padding < math.inf, "above 0"),
        ("scale_factor", 0 <= dataset.scale_factor < 1, "from 0 to below 1"),
        ("rotation_factor", 0 <= dataset.rotation_factor < math.inf, "from 0"),
        ("min_person_area", 0 <= dataset.min_person_area < math.inf, "from 0"),
    ):
        if not fits:
            raise ValueError(f"{where}: {name} {getattr(dataset, name)!r} is no number {expected}")


def check_skeleton(skeleton: KeypointSet, where: str) -> None:
    """Raises ValueError for a keypoint set whose fields are of another form, or do not fit each other."""
    for name, (kinds, expected) in _FORMS.items():
        value = getattr(skeleton, name)
        if not isinstance(value, tuple) or not all(_is_row(row, kinds) for row in value):
            raise ValueError(f"{where}: skeleton.{name} {value!r} is no list of {expected}")
    count = skeleton.num_keypoints
    indices = [i for pair in (*skeleton.flip_pairs, *skeleton.limbs) for i in pair]
    indices += [*skeleton.upper_body, *skeleton.lower_body]
    mirrored = [i for pair in skeleton.flip_pairs for i in pair]
    if not count or len(set(skeleton.keypoints)) != count:
        raise ValueError(f"{where}: keypoints need names that differ, not {list(skeleton.keypoints)}")
    if not all(0 <= i < count for i in indices):
        raise ValueError(f"{where}: a mirror pair, limb or half has a keypoint beyond the {count} there are")
    if not all(0 <= first < end <= count for _, first, end in skeleton.parts):
        raise ValueError(f"{where}: skeleton.parts {skeleton.parts} has a keypoint beyond the {count} there are")
    if len(set(mirrored)) != len(mirrored):
        raise ValueError(f"{where}: a keypoint is in two mirror pairs, or its own mirror image")
    if len(skeleton.sigmas) not in (0, count) or not all(0 < sigma < math.inf for sigma in skeleton.sigmas):
        raise ValueError(f"{where}: {count} keypoints need {count} positive sigmas or none, not {skeleton.sigmas}")


def _is_row(row: Any, kinds: Sequence[Any]) -> bool:
    """Whether it is a tuple of such values; of one, the value alone."""
    values = row if len(kinds) > 1 else (row,)
    return (
        isinstance(values, tuple)
        and len(values) == len(kinds)
        and all(
            isinstance(value, kind) and not isinstance(value, bool) for value, kind in zip(values, kinds, strict=True)
        )
    )


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
