"""A custom dataset: a COCO-format file with a skeleton that this project does not know.

Names and limbs come from the file's categories. Mirror pairs come from the names or are given, sigmas are
given or all the same, and with an upper body given half-body augmentation applies; docs/your_own_dataset.md
tells the rest. The first split that is prepared defines the dataset; the others must have the same keypoints.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipelines import datasets as definitions
from data_pipelines.builders import raw_files, sides
from data_pipelines.builders.coco_format import CocoFormatBuilder
from data_pipelines.builders.report import RawDataError
from data_pipelines.datasets import DATASETS, PoseDataset
from data_pipelines.fields import Fault, integer, printable
from data_pipelines.skeletons import KeypointSet

DEFAULT_SIGMA = 0.05
METRICS = ("coco", "hand")
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclasses.dataclass(frozen=True)
class SkeletonOptions:
    """What a COCO file does not say; None leaves it to the names, or to the defaults.

    Attributes:
      sigmas: one for all keypoints, or one each.
      mirror: pairs of names that a mirror exchanges.
      upper_body: names; the others are the lower body.
      metric: 'coco' (OKS) or 'hand' (PCK, AUC, EPE: no sigmas needed).
    """

    sigmas: Sequence[float] | None = None
    mirror: Sequence[tuple[str, str]] | None = None
    upper_body: Sequence[str] | None = None
    metric: str | None = None


class Custom(CocoFormatBuilder):
    dataset = "custom"
    layouts = {}
    default_orientation = None
    unlabelled_belong = False

    def __init__(
        self,
        split: str,
        *,
        dataset: str,
        data_dir: str | pathlib.Path,
        annotations: str | pathlib.Path,
        images: str | pathlib.Path,
        options: SkeletonOptions = SkeletonOptions(),
        **kwargs,
    ):
        """
        Args:
          dataset: the new dataset's name.
          options: its skeleton; used when it is defined, or to define it anew.
          **kwargs: those of `PoseBuilder`.

        Raises:
          RawDataError: a name that is taken or no identifier, or a file that does not define a skeleton.
        """
        path = pathlib.Path(annotations)
        self._document = raw_files.read_json(path)
        found, remarks = define(dataset, self._document, path, data_dir, options)
        super().__init__(split, dataset=found, data_dir=data_dir, annotations=annotations, images=images, **kwargs)
        self._definition = definitions.definition_path(dataset, data_dir)
        self._is_new = not self._definition.is_file()
        definitions.save_definition(found, data_dir)
        for remark in remarks:
            self.report.remark(remark, path, None)

    def prepare(self, overwrite: bool = False) -> dict[str, Any]:
        """As `PoseBuilder.prepare`; a split that fails defines no dataset."""
        try:
            return super().prepare(overwrite)
        except BaseException:
            if self._is_new:
                self._definition.unlink(missing_ok=True)
            raise

    def findings(self) -> dict[str, Any]:
        skeleton = self.pose_dataset.keypoints
        return {"unpaired_sides": sides.unpaired(skeleton.keypoints, skeleton.flip_pairs)}

    def load(self) -> dict[str, Any]:
        document, self._document = self._document, None  # let go: it may be large
        return document if document is not None else super().load()


def define(
    name: str, document: Any, path: pathlib.Path, data_dir: str | pathlib.Path, options: SkeletonOptions
) -> tuple[PoseDataset, list[str]]:
    """The dataset that a COCO document defines, and remarks on what had to be guessed.

    A definition that is there already is kept, but for what `options` say.

    Raises:
      RawDataError: see `Custom`; also keypoints that differ from those of the definition.
    """
    if name in DATASETS or not _NAME.fullmatch(name):
        raise RawDataError(f"--name={name}: a new name of small letters, digits and underscores is needed")
    keypoints, limbs = _category_skeleton(path, document)
    existing = definitions.definition_path(name, data_dir)
    try:
        if existing.is_file():
            dataset = definitions.read_definition(existing)
            if dataset.keypoints.keypoints != keypoints:
                raise ValueError(
                    f"{path} has the keypoints {list(keypoints)}, but {existing} says"
                    f" {list(dataset.keypoints.keypoints)}"
                )
            skeleton, remarks = dataset.keypoints, []
        else:
            pairs, _ = sides.mirror_pairs(keypoints)  # names without counterpart: see `findings`
            remarks = []
            if not pairs and options.mirror is None:
                remarks.append("no mirror pairs in the names: keypoints keep their names in mirrored pictures")
            if options.sigmas is None and options.metric != "hand":
                remarks.append(f"no sigmas given: {DEFAULT_SIGMA} for every keypoint; AP and AR are by these")
            skeleton = KeypointSet(name, keypoints, pairs, limbs, sigmas=(DEFAULT_SIGMA,) * len(keypoints))
            dataset = PoseDataset(name, name, codec="udp", half_body=False)
        dataset = _with_options(dataset, skeleton, options)
        definitions.check_skeleton(dataset.keypoints, str(path))
    except ValueError as error:
        raise RawDataError(str(error)) from error
    return dataset, remarks


def mirror_pairs(names: Sequence[str]) -> tuple[tuple[tuple[int, int], ...], list[str]]:
    """Pairs of keypoints whose names differ in the side alone, and remarks on those without counterpart."""
    pairs, alone = sides.mirror_pairs(names)
    remarks = [f"no counterpart in the mirror: {', '.join(alone)}"] if alone else []
    if not pairs:
        remarks.append("no mirror pairs in the names: keypoints keep their names in mirrored pictures")
    return pairs, remarks


def _with_options(dataset: PoseDataset, skeleton: KeypointSet, options: SkeletonOptions) -> PoseDataset:
    """Raises ValueError for names that are no keypoints."""
    count = skeleton.num_keypoints
    changes: dict[str, Any] = {}
    if options.sigmas is not None:
        changes["sigmas"] = tuple(options.sigmas) * (count if len(options.sigmas) == 1 else 1)
    if options.mirror is not None:
        changes["flip_pairs"] = tuple((_index(skeleton, a), _index(skeleton, b)) for a, b in options.mirror)
    if options.upper_body is not None:
        upper = tuple(_index(skeleton, name) for name in options.upper_body)
        changes |= {"upper_body": upper, "lower_body": tuple(i for i in range(count) if i not in upper)}
        dataset = dataclasses.replace(dataset, half_body=bool(upper))
    if options.metric is not None:
        dataset = dataclasses.replace(dataset, metric=options.metric)
    return dataclasses.replace(dataset, skeleton=dataclasses.replace(skeleton, **changes))


def _index(skeleton: KeypointSet, name: str) -> int:
    if name not in skeleton.keypoints:
        raise ValueError(f"{name!r} is none of the keypoints {list(skeleton.keypoints)}")
    return skeleton.keypoints.index(name)


def _category_skeleton(path: pathlib.Path, document: Any) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...]]:
    """(names, limbs from 0) of the categories, which must agree."""
    (categories,) = raw_files.document_lists(path, document, "categories")
    found = [
        entry
        for entry in categories
        if isinstance(entry, dict)
        and isinstance(entry.get("keypoints"), (list, np.ndarray))
        and len(entry["keypoints"])
    ]
    if not found:
        raise RawDataError(f"{path}: no category lists 'keypoints', their names in the annotations' order")
    skeletons = set()
    for category in found:
        try:
            # Names that are digits may have been written as numbers.
            names = tuple(printable(name) if isinstance(name, str) else f"{name:g}" for name in category["keypoints"])
            limbs = tuple((_limb(a), _limb(b)) for a, b in category.get("skeleton") or ())
        except (TypeError, ValueError, Fault) as error:
            number = category.get("id")
            raise RawDataError(f"{path}: category {number!r}: bad keypoints or skeleton: {error}") from None
        skeletons.add((names, limbs))
    if len(skeletons) > 1:
        raise RawDataError(f"{path}: categories with different skeletons are datasets apart: give a file to each")
    ((names, limbs),) = skeletons
    # COCO counts limbs from 1; a 0 shows a file that counts from 0.
    first = 0 if any(0 in limb for limb in limbs) else 1
    return names, tuple((a - first, b - first) for a, b in limbs)


def _limb(value: Any) -> int:
    """The number of a keypoint."""
    return integer({"skeleton": value}, "skeleton")
