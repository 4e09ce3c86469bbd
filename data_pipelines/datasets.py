"""Datasets of one's own: skeleton and protocol in a file beside the records, found again by name.

`<data_dir>/<dataset>/dataset.json` is written when a dataset with a skeleton of its own is prepared
(`builders/custom.py`). It may be edited: its fields are those of `keypoint_sets.PoseDataset` and of its
`KeypointSet`.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

from data_pipelines.skeletons import DATASETS, KeypointSet, PoseDataset, get_dataset, register_dataset

DEFINITION_FILE = "dataset.json"
BUILT_IN = frozenset(DATASETS)


def definition_path(name: str, data_dir: str | pathlib.Path) -> pathlib.Path:
    """Where the definition of a dataset of one's own lies."""
    return pathlib.Path(data_dir) / name / DEFINITION_FILE


def find_dataset(name: str, data_dir: str | pathlib.Path) -> PoseDataset:
    """The protocol of a dataset: built in, defined in `data_dir` (and then registered), or registered.

    Raises:
      KeyError: none of these.
      ValueError: a definition that cannot be used; the message names the file.
    """
    path = definition_path(name, data_dir)
    if name not in BUILT_IN and path.is_file():
        register_dataset(read_definition(path))
    elif name not in DATASETS:
        raise KeyError(
            f"unknown dataset {name!r}: there is no {path}, where `python -m scripts.prepare_data custom"
            f" --name={name}` would have defined it, and it is none of {', '.join(sorted(DATASETS))}"
        )
    return get_dataset(name)


def save_definition(dataset: PoseDataset, data_dir: str | pathlib.Path) -> None:
    """Writes a definition; it is there either whole or not at all."""
    fields = dataclasses.asdict(dataset) | {"skeleton": dataclasses.asdict(dataset.keypoints)}
    path = definition_path(dataset.name, data_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(fields, indent=1), encoding="utf8")
    partial.replace(path)


def read_definition(path: pathlib.Path) -> PoseDataset:
    """The dataset that a file defines.

    Raises:
      ValueError: not such a file, or numbers that do not fit each other.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf8"))
        skeleton = KeypointSet(**{name: _tuples(value) for name, value in fields.pop("skeleton").items()})
        dataset = PoseDataset(**fields, skeleton=skeleton)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} defines no dataset: {error}") from error
    check_skeleton(skeleton, str(path))
    return dataset


def check_skeleton(skeleton: KeypointSet, where: str) -> None:
    """Raises ValueError for a keypoint set whose parts do not fit each other."""
    count = skeleton.num_keypoints
    indices = [i for pair in (*skeleton.flip_pairs, *skeleton.limbs) for i in pair]
    indices += [*skeleton.upper_body, *skeleton.lower_body]
    mirrored = [i for pair in skeleton.flip_pairs for i in pair]
    if not count or len(set(skeleton.keypoints)) != count:
        raise ValueError(f"{where}: keypoints need names that differ, not {list(skeleton.keypoints)}")
    if not all(isinstance(i, int) and 0 <= i < count for i in indices):
        raise ValueError(f"{where}: a mirror pair, limb or half has a keypoint beyond the {count} there are")
    if len(set(mirrored)) != len(mirrored):
        raise ValueError(f"{where}: a keypoint is in two mirror pairs, or its own mirror image")
    if len(skeleton.sigmas) not in (0, count) or not all(sigma > 0 for sigma in skeleton.sigmas):
        raise ValueError(
            f"{where}: {count} keypoints need {count} positive sigmas or none, not {skeleton.sigmas}"
        )


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
