"""A custom dataset: labels of one's own, with a skeleton that this project does not know.

They are a COCO-format file, or in a format of `data_pipelines/importers`, which makes a COCO document of it. Names and
limbs come from its categories. Mirror pairs come from the names or are given, sigmas are
given or all the same, and with an upper body given half-body augmentation applies; docs/your_own_dataset.md
tells the rest. The first split that is prepared defines the dataset; the others must have the same keypoints, and
other options redefine it with `--overwrite` alone.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_pipelines import datasets as definitions
from data_pipelines import fields, importers, sides
from data_pipelines.builders import raw_files
from data_pipelines.builders import summary as summaries
from data_pipelines.builders.checker import Picture
from data_pipelines.builders.coco_format import CocoFormatBuilder
from data_pipelines.builders.report import Entry, RawDataError
from data_pipelines.datasets import DATASETS, PoseDataset
from data_pipelines.fields import Fault
from data_pipelines.importers import boxes, coco, pictures
from data_pipelines.orientation import STORED, UPRIGHT, turned
from data_pipelines.skeletons import DEFAULT_SIGMA, KeypointSet

METRICS = ("coco", "hand")
LARGEST_SIGMA = 0.2
"""That anybody means: published ones end at 0.107."""
AMBIGUOUS = "ambiguous"
"""Field of a picture's record: the names that were found as one picture, where this one was guessed."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


@dataclasses.dataclass(frozen=True)
class SkeletonOptions:
    """What a COCO file does not say; None leaves it to the names, or to the defaults.

    Attributes:
      keypoints: names in order, where the labels are in a format that has no order or no names.
      sigmas: one for all keypoints, or one each.
      mirror: pairs of names that a mirror exchanges.
      upper_body: names; the others are the lower body.
      metric: 'coco' (OKS) or 'hand' (PCK, AUC, EPE: no sigmas needed).
    """

    keypoints: Sequence[str] | None = None
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
        images: str | pathlib.Path | None = None,
        format: str | None = None,
        val_share: importers.ValShare | None = None,
        options: SkeletonOptions = SkeletonOptions(),
        **kwargs,
    ):
        """
        Args:
          dataset: the new dataset's name.
          annotations: a file, or a folder, in one of the formats of `importers.FORMATS`.
          images: the picture folder, where it is not where the labels say.
          format: of the annotations; None recognises it.
          val_share: makes the splits train and val of them.
          options: its skeleton; used when it is defined, or to define it anew.
          **kwargs: those of `PoseBuilder`.

        Raises:
          RawDataError: a name that is taken or no identifier, or labels that do not define a skeleton.
        """
        path = pathlib.Path(annotations)
        names = options.keypoints or _known_keypoints(dataset, data_dir)
        labels = importers.read(path, format, images, names)
        found, remarks = define(dataset, labels, path, data_dir, options)
        self._labels: importers.Labels | None = importers.select(labels, split, val_share)
        self._val_share = None if val_share is None else str(val_share)
        self._reencoded: list[pathlib.Path] = []
        super().__init__(split, dataset=found, data_dir=data_dir, annotations=path, images=labels.images, **kwargs)
        for remark in remarks:
            self.report.remark(remark, path, None)

    def locate(self, raw_dir, annotations, images) -> raw_files.RawFiles:
        return raw_files.RawFiles(annotations, images)

    def describe_source(self) -> dict[str, str]:
        return super().describe_source() | ({} if self._val_share is None else {"val_share": self._val_share})

    def prepare(self, overwrite: bool = False) -> dict[str, Any]:
        """As `PoseBuilder.prepare`; then the dataset is defined: a split that fails leaves the definition as it was."""
        summary = super().prepare(overwrite)
        definitions.save_definition(self.pose_dataset, self._target)
        return summary

    def findings(self) -> dict[str, Any]:
        names, pairs = self.pose_dataset.keypoints.keypoints, self.pose_dataset.keypoints.flip_pairs
        return {
            "mirror_pairs": [f"{names[a]}:{names[b]}" for a, b in pairs],
            "mirror_pairs_against_names": [f"{names[a]}:{names[b]}" for a, b in sides.against_names(names, pairs)],
            "unpaired_sides": sides.unpaired(names, pairs),
        }

    def load(self) -> dict[str, Any]:
        """The document, with boxes; what could not be read is reported."""
        labels, self._labels = self._labels, None  # let go: it may be large
        if labels is None:
            raise RuntimeError("a builder prepares its split once")
        for item in labels.broken:
            if isinstance(item.fault, importers.OfAnotherKind):
                self.report.remark(f"{item.fault.reason} (left out)", item.file, Entry(item.entry), item.fault.detail)
                continue
            drop = self.report.drop_instance if item.person else self.report.drop_image
            drop(item.fault, item.file, Entry(item.entry))
        for what, file, detail in labels.remarks:
            self.report.remark(what, file, None, detail)
        document = labels.document
        if not isinstance(document.get("annotations"), list) or not isinstance(document.get("images"), list):
            return document
        by_id = {fields.id_key(image.get("id")): image for image in document["images"] if isinstance(image, dict)}
        entries, filled = boxes.fill(
            document["annotations"],
            self.pose_dataset.num_keypoints,
            lambda entry: self._size(by_id.get(fields.id_key(entry.get("image_id")))),
        )
        if filled:
            self.metadata["boxes"] = (
                f"{filled} of {len(entries)} are the extent of their keypoints and {boxes.MARGIN:.0%} of its longer"
                " side all around, where nobody drew one"
            )
        return {**document, "annotations": entries}

    def _size(self, image: Mapping[str, Any] | None) -> tuple[int, int] | None:
        """(width, height) as annotated, else as the file has it; None where neither says.

        Where a file without an annotated size is turned by EXIF, whether it is read so may not be known yet.
        """
        width, height = (fields.whole((image or {}).get(key)) for key in ("width", "height"))
        if width and height:
            return width, height
        try:
            path = self.picture(str((image or {}).get("file_name")))
            size = pictures.size_of(path)
        except Fault:
            return None
        seen = turned(*size, pictures.tag_of(path))
        return {UPRIGHT: seen, STORED: size}.get(self._orientation or "", size if size == seen else None)

    def instance(self, annotation: dict[str, Any]) -> dict[str, Any]:
        origin = annotation.get("origin")
        mask = _box_mask(annotation, self.pose_dataset.num_keypoints)
        self._tell_of_count(annotation)
        return (
            super().instance(annotation)
            | ({"origin": origin} if isinstance(origin, tuple) else {})
            | ({} if mask is None else {"segmentation": mask})
        )

    def _tell_of_count(self, annotation: dict[str, Any]) -> None:
        """Remarks that somebody is left out for a count that is not that of the keypoints."""
        by_count = self.pose_dataset.drop_unlabelled_by == "num_keypoints"
        if not by_count or fields.whole(annotation.get("num_keypoints")) != 0:
            return
        with contextlib.suppress(Fault):  # of which the check of the instance tells
            if labelled := _num_labelled(annotation, self.pose_dataset.num_keypoints):
                what = "num_keypoints is 0, but some are labelled"
                detail = f"{labelled} are, and the entry counts as one of nobody; the number need not be given"
                self.report.remark(what, self.files.annotations, annotation.get("id"), detail)

    def picture(self, file_name: str) -> pathlib.Path:
        return pictures.find(self.files.images, file_name)

    def images(self) -> Iterator[tuple[pathlib.Path, dict[str, Any]]]:
        """As the format's; but what only a part of a name's path finds, and what another name is as well, is nobody's
        picture: its record says which names it might be (`AMBIGUOUS`).
        """
        items = list(super().images())
        self.annotated = True  # so that nobody is an error: a list of no people is no test set, but a slip
        found = collections.defaultdict(set)
        for path, record in items:
            found[path].add(record["file_name"])
        others = summaries.pictures_of_others(self._target, self.name, self.split)
        for path, record in items:
            name = record["file_name"]
            for split in (other for other, theirs in others.items() if os.path.abspath(path) in theirs):
                self.report.remark(f"picture that {split} has as well (kept)", path, record["image_id"])
            if len(found[path]) > 1 and raw_files.find_picture(self.files.images, name) != path:
                record[AMBIGUOUS] = sorted(found[path])
            if _is_absolute(name):
                inside = path.is_relative_to(self.files.images)
                record["file_name"] = path.relative_to(self.files.images).as_posix() if inside else path.name
            yield path, record

    def read_picture(self, picture: Picture, record: Mapping[str, Any]) -> tuple[bytes, int, int]:
        if isinstance(picture, bytes):
            return super().read_picture(picture, record)
        if AMBIGUOUS in record:
            raise Fault("ambiguous picture", f"{' and '.join(record[AMBIGUOUS])} would all be this one")
        data, width, height, reencoded = pictures.read_as_jpeg(picture, self._decode)
        if reencoded:
            self._reencoded.append(picture)
        return data, width, height

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from super()._generate_examples()
        if self._reencoded:
            kinds = ", ".join(sorted({path.suffix.lower().lstrip(".").upper() for path in self._reencoded}))
            self.metadata["pictures"] = (
                f"{len(self._reencoded)} ({kinds}) re-encoded as JPEG of quality {pictures.QUALITY}; JPEGs are kept"
            )


def _box_mask(annotation: Mapping[str, Any], num_keypoints: int) -> list[list[float]] | None:
    """The box as a polygon, of somebody of whom neither keypoints nor a mask are labelled; None for the others.

    Single-stage training then does not learn that nobody is there.
    """
    if annotation.get("segmentation"):
        return None
    try:
        if _num_labelled(annotation, num_keypoints):
            return None
        x, y, width, height = fields.numbers(annotation, "bbox", 4).tolist()
    except Fault:
        return None  # the check of the instance says what is wrong
    return [[x, y, x + width, y, x + width, y + height, x, y + height]] if width > 0 and height > 0 else None


def _num_labelled(annotation: Mapping[str, Any], num_keypoints: int) -> int:
    """How many keypoints are labelled, of a crowd none. Raises Fault."""
    if annotation.get("keypoints") is None or fields.flag(annotation, "iscrowd"):
        return 0
    return int((fields.keypoints(annotation, "keypoints", num_keypoints)[:, 2] > 0).sum())


def _is_absolute(file_name: str) -> bool:
    return pathlib.PurePosixPath(file_name).is_absolute() or pathlib.PureWindowsPath(file_name).is_absolute()


def require_defined(name: str, data_dir: str | pathlib.Path, options: SkeletonOptions) -> None:
    """Raises RawDataError where there is no definition, or one that says otherwise than `options`."""
    given = {option: value for option, value in vars(options).items() if value is not None}
    path = definitions.definition_path(name, data_dir)
    _check_name(name)
    try:
        if not path.is_file():
            raise ValueError(f"there are finished splits, but no {path} any more: --overwrite makes both again")
        dataset = definitions.read_definition(path)
        for option, value in given.items():
            if option == "keypoints" and tuple(value) != dataset.keypoints.keypoints:
                raise ValueError(f"{path} has other --keypoints; another skeleton needs a --name of its own")
            asked = _with_options(dataset, dataset.keypoints, SkeletonOptions(**{option: value}))
            definitions.check_skeleton(asked.keypoints, f"--{option}")
            if asked != dataset:
                raise ValueError(f"{path} is defined with another --{option}; edit it, or --overwrite makes it again")
    except ValueError as error:
        raise RawDataError(str(error)) from error


def _known_keypoints(dataset: str, data_dir: str | pathlib.Path) -> tuple[str, ...] | None:
    """The keypoints of a dataset that is defined already."""
    path = definitions.definition_path(dataset, data_dir)
    try:
        return definitions.read_definition(path).keypoints.keypoints if path.is_file() else None
    except ValueError as error:
        raise RawDataError(str(error)) from error


def define(
    name: str, labels: importers.Labels, path: pathlib.Path, data_dir: str | pathlib.Path, options: SkeletonOptions
) -> tuple[PoseDataset, list[str]]:
    """The dataset that labels define, and remarks on what had to be guessed.

    A definition that is there already is kept, but for what `options` say.

    Raises:
      RawDataError: see `Custom`; also keypoints that differ from those of the definition.
    """
    _check_name(name)
    keypoints, listed = coco.category_skeleton(path, labels.document)
    # Which are drawn alone; a tool may count on over its skeletons, or keep limbs of points that were deleted.
    limbs = tuple(limb for limb in listed if all(0 <= end < len(keypoints) for end in limb))
    if options.keypoints is not None and tuple(options.keypoints) != keypoints:
        raise RawDataError(f"--keypoints={','.join(options.keypoints)}, but {path} has {', '.join(keypoints)}")
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
            if labels.mirror is not None:
                pairs = tuple((keypoints.index(a), keypoints.index(b)) for a, b in labels.mirror)
            remarks = []
            if absent := len(listed) - len(limbs):
                remarks.append(
                    f"{absent} of {len(listed)} limbs are of keypoints beyond the {len(keypoints)} (left out)"
                )
            if not pairs and options.mirror is None:
                remarks.append("no mirror pairs in the names: keypoints keep their names in mirrored pictures")
            if options.sigmas is None and options.metric != "hand":
                remarks.append(f"no sigmas given: {DEFAULT_SIGMA} for every keypoint; AP and AR are by these")
            skeleton = KeypointSet(name, keypoints, pairs, limbs, sigmas=(DEFAULT_SIGMA,) * len(keypoints))
            dataset = PoseDataset(name, name, codec="udp", half_body=False)
        dataset = _with_options(dataset, skeleton, options)
        definitions.check_skeleton(dataset.keypoints, str(path))
        if (largest := max(dataset.keypoints.sigmas, default=0)) > LARGEST_SIGMA:
            remarks.append(
                f"sigmas of up to {largest:g}, by which nearly every pose is right: COCO's are 0.025 to 0.107 of the"
                " object's size, and some codes list them times ten"
            )
    except ValueError as error:
        raise RawDataError(str(error)) from error
    return dataset, remarks


def _check_name(name: str) -> None:
    if name.lower() in DATASETS or not _NAME.fullmatch(name):
        raise RawDataError(f"--name={name}: a new name of letters, digits and underscores is needed")


def _with_options(dataset: PoseDataset, skeleton: KeypointSet, options: SkeletonOptions) -> PoseDataset:
    """The order of mirror pairs and halves is no change. Raises ValueError for names that are no keypoints."""
    count = skeleton.num_keypoints
    changes: dict[str, Any] = {}
    if options.sigmas is not None:
        changes["sigmas"] = tuple(options.sigmas) * (count if len(options.sigmas) == 1 else 1)
    if options.mirror is not None:
        pairs = tuple((_index(skeleton, a), _index(skeleton, b)) for a, b in options.mirror)
        if set(map(frozenset, pairs)) != set(map(frozenset, skeleton.flip_pairs)):
            changes["flip_pairs"] = pairs
    if options.upper_body is not None:
        upper = tuple(_index(skeleton, name) for name in options.upper_body)
        if set(upper) != set(skeleton.upper_body):
            changes |= {"upper_body": upper, "lower_body": tuple(i for i in range(count) if i not in upper)}
        dataset = dataclasses.replace(dataset, half_body=bool(upper))
    if options.metric is not None:
        dataset = dataclasses.replace(dataset, metric=options.metric)
    return dataclasses.replace(dataset, skeleton=dataclasses.replace(skeleton, **changes))


def _index(skeleton: KeypointSet, name: str) -> int:
    if name not in skeleton.keypoints:
        raise ValueError(f"{name!r} is none of the keypoints {list(skeleton.keypoints)}")
    return skeleton.keypoints.index(name)
