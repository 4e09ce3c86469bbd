"""Poses in pictures: `posebh_jax.load(weights)("photo.jpg")`, and the command.

    python -m posebh_jax.predict photo.jpg --checkpoint=workdir/base --out=poses
    python -m posebh_jax.predict holiday/ --checkpoint=vitpose++_base.pth --boxes=boir_w32.pth
    --dataset=coco,coco_wholebody

Crops, decoder and scores are those of evaluation (`posebh_jax/predictor.py`, `data_pipelines/top_down`).
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from data_pipelines import geometry
from data_pipelines.datasets import DATASETS, PoseDataset, find_dataset
from data_pipelines.top_down.crops import Crop
from pose_common.metrics.nms import rescore
from pose_common.prediction import command
from pose_common.prediction.batches import Job, in_batches
from pose_common.prediction.pictures import Picture, ahead, is_single, pictures_of
from pose_common.prediction.result import Result, extent_boxes
from pose_common.training import restore
from pose_common.training.configuration import nearest
from pose_common.weights.embedded import read_embedded
from pose_common.weights.hub_folders import local_path
from posebh_jax import configuration, sources
from posebh_jax.predictor import HEADS, PROTOTYPES, Predictor
from posebh_jax.weights.manifest import Options, model_of

WHOLE, AUTO, FINDING = "whole", "auto", "finding the people"
EMBEDDED = pathlib.Path(__file__).parent / "embedded.safetensors"


Found = tuple[np.ndarray, np.ndarray]
"""Boxes [N, 4] (x, y, width, height) in pixels of the picture, and their scores [N]."""


@dataclasses.dataclass(frozen=True, eq=False)
class PoseModel:
    """A PoseBH, ViTPose++ or ViTPose model with its weights, ready for pictures.

    Attributes:
      title: what the weights are.
      predictors: {flip test: the compiled predictor}.
      weights: on the device.
      datasets: the skeletons that it draws, by name.
      rescoring_threshold: confidences above it enter a pose's score.
    """

    title: str
    predictors: Mapping[bool, Predictor]
    weights: Mapping[str, Any]
    datasets: Mapping[str, PoseDataset]
    rescoring_threshold: float

    def __call__(
        self,
        source: Any,
        *,
        boxes: Any = WHOLE,
        dataset: str | Sequence[str] | None = None,
        flip: bool = True,
        batch_size: int = 16,
        maps: str = HEADS,
    ) -> Any:
        """Poses in one or many pictures.

        Args:
          source: see `pictures.pictures_of`.
          boxes: "whole" takes each picture as one box; an array [N, 4] of x, y, width, height in pixels ([N, 5]: with
            scores) of the one picture, or a list of them, one a picture; the path of a COCO detection file whose
            entries name the picture (`image` or `file_name`, or its number as `image_id`); or a model that finds people
            (`boir_jax.load(...)`).
          dataset: whose skeleton and expert to use; the first by default. With several, results are dictionaries.
          flip: average with the mirrored crop (slower, a little better).
          batch_size: crops that go through the network together.
          maps: "heads", or "prototypes" where the model has them.

        Returns:
          A `Result` for one picture ({dataset: Result} where several were asked for); for several pictures an iterator
          of them, which reads pictures as it goes.

        Raises:
          ValueError: a dataset that the model does not know, boxes that are none, or no picture.
        """
        several = not (dataset is None or isinstance(dataset, str))
        names = self.names(dataset)
        results = self.results(pictures_of(source), boxes_of(boxes), names, flip, batch_size, maps)
        chosen = (found if several else found[names[0]] for found in results)
        return next(iter(chosen)) if is_single(source) else chosen

    def results(
        self,
        pictures: Iterable[Picture],
        find_boxes: Callable[[int, Picture], Found],
        names: Sequence[str],
        flip: bool,
        batch_size: int,
        maps: str,
    ) -> Iterator[dict[str, Result]]:
        """{dataset: Result} of every picture, in order."""
        predictor = self.predictors[flip]

        def run(name, rows):
            head, protocol = list(self.datasets).index(name), self.datasets[name]
            found = predictor(self.weights, rows["image"], rows["inverse_warp"], head=head, protocol=protocol)
            if maps not in found:
                raise ValueError(f"maps={maps!r}: {self.title} has {', '.join(found)}")
            return {"keypoints": found[maps]}

        def jobs() -> Iterator[Job]:
            for number, picture in enumerate(pictures):
                found = find_boxes(number, picture)
                for name in names:
                    rows = crops_of(picture, found[0], self.datasets[name], predictor.input_size)
                    yield Job((picture, found, name), name, rows, picture.image.nbytes)

        collected: dict[str, Result] = {}
        for (picture, found, name), rows in in_batches(ahead(jobs()), run, batch_size):
            collected[name] = self._result(picture, found, name, rows)
            if name == names[-1]:
                yield collected
                collected = {}

    def _result(self, picture: Picture, found: Found, name: str, rows: Sequence[Mapping[str, np.ndarray]]) -> Result:
        protocol = self.datasets[name]
        keypoints = np.zeros((len(rows), protocol.num_keypoints, 3), np.float32)
        for number, row in enumerate(rows):
            keypoints[number] = row["keypoints"]
        scores = rescore(keypoints, found[1], self.rescoring_threshold).astype(np.float32)
        return Result(picture, name, protocol.keypoints, keypoints, found[0].astype(np.float32), scores)

    def names(self, dataset: str | Sequence[str] | None) -> tuple[str, ...]:
        """The datasets that were asked for, by default the first. Raises ValueError for one that the model has not."""
        names = (next(iter(self.datasets)),) if dataset is None else dataset
        names = tuple(names.split(",")) if isinstance(names, str) else tuple(names)
        for name in names:
            if name not in self.datasets:
                raise ValueError(
                    f"dataset {name!r}: {self.title} draws {', '.join(self.datasets)}{nearest(name, self.datasets)}"
                )
        return names


def load(
    source: str | pathlib.Path | None = None,
    *,
    datasets: Sequence[str] | None = None,
    num_heads: int | None = None,
    device: str | jax.Device | None = None,
) -> PoseModel:
    """A model with its weights.

    Args:
      source: a run's working directory, one of its checkpoints, a folder of weights, a `.pth` (PyTorch needed) or
        `.safetensors` file of the original repositories, or a folder as the Hugging Face hub lays it out, also by name:
        `hf://usyd-community/vitpose-plus-base`. Without, the embedded demonstration model, which knows rendered
        figures only.
      datasets, num_heads: what a file does not say of itself: the datasets of its heads in order, attention heads.
      device: where to compute, such as "cpu", "gpu", "cuda:1"; JAX's first by default.

    Raises:
      ValueError: there are no weights, or none of this method.
    """
    path = local_path(source or EMBEDDED)
    if source is None:
        conversion = read_embedded(EMBEDDED)
    else:
        conversion = sources.read(path, Options(datasets=tuple(datasets) if datasets else None, num_heads=num_heads))
    manifest = conversion.manifest
    if not manifest["datasets"]:
        raise ValueError(f"{source} ({conversion.title}) has no head: it is a backbone to start training from")
    run = restore.find_run(path, configuration.METHODS)
    config = configuration.of_run(run.config) if run else None
    protocols = _protocols(path, config, [tuple(pair) for pair in manifest["datasets"]])
    released = config or configuration.of_weights(manifest)
    model, size = model_of(manifest), tuple(manifest["input_size"])
    dark = released.dark_kernel, released.dark_blur
    predictors = {flip: Predictor(model, tuple(protocols.values()), size, flip, *dark) for flip in (False, True)}
    weights = jax.device_put({"prototypes": {}, **conversion.weights}, command.find_device(device))
    return PoseModel(conversion.title, predictors, weights, protocols, released.rescoring_threshold)


def _protocols(path: str, config: ConfigDict | None, heads: Sequence[tuple[str, int]]) -> dict[str, PoseDataset]:
    """How the model's datasets are cropped and drawn; custom ones are found where the run had its data."""
    found = {}
    for name, count in heads:
        if config is not None:
            found[name] = configuration.dataset(config, name)
        elif name in DATASETS:
            found[name] = find_dataset(name)
        else:
            raise ValueError(
                f"{path}: the skeleton of its head {name!r} ({count} keypoints) is unknown; name its heads' datasets: "
                "load(..., datasets=[...]) or --datasets=..."
            )
    return found


def crops_of(
    picture: Picture, boxes: np.ndarray, dataset: PoseDataset, input_size: tuple[int, int]
) -> list[dict[str, np.ndarray]]:
    """`image` uint8 [H, W, 3] and `inverse_warp` [2, 3] (crop -> picture pixels) of every box, as in evaluation."""
    crop = Crop(input_size, dataset.codec == "udp")
    bgr = np.ascontiguousarray(picture.image[..., ::-1])
    aspect = input_size[0] / input_size[1] if dataset.aspect_box else None
    nothing = np.zeros((0, 2), np.float32)
    rows = []
    for box in boxes:
        centre, scale = geometry.box_to_crop(box, aspect, dataset.padding)
        sample = {"centre": centre, "scale": scale, "rotation": 0.0, "mirrored": False, "keypoints": nothing}
        cropped = crop(sample | {"visible": nothing[:, 0], "size": picture.image.shape[1::-1]}, bgr)
        rows.append({"image": cropped["image"], "inverse_warp": np.float32(geometry.invert(cropped["matrix"]))})
    return rows


def boxes_of(boxes: Any) -> Callable[[int, Picture], Found]:
    """(number, picture) -> its boxes; for what `boxes` may be see `PoseModel.__call__`."""
    if isinstance(boxes, str) and boxes == WHOLE:
        return lambda number, picture: (np.array([[0, 0, *picture.image.shape[1::-1]]], np.float64), np.ones(1))
    if isinstance(boxes, (str, pathlib.Path)):
        return _from_file(pathlib.Path(boxes))
    if callable(boxes):
        return lambda number, picture: _found_by(boxes, picture)
    arrays = [boxes] if isinstance(boxes, np.ndarray) or np.ndim(boxes[0]) == 1 else list(boxes)

    def given(number: int, picture: Picture) -> Found:
        if number >= len(arrays):
            raise ValueError(f"boxes of {len(arrays)} pictures were given, none for picture {number} ({picture.name})")
        return _checked(np.asarray(arrays[number], np.float64), picture.name)

    return given


def _found_by(finder: Callable[[Picture], Result], picture: Picture) -> Found:
    found = finder(picture)
    return extent_boxes(found.keypoints).astype(np.float64), found.scores


def _checked(array: np.ndarray, where: str) -> Found:
    array = array.reshape(-1, array.shape[-1]) if array.size else np.zeros((0, 4))
    if array.shape[-1] not in (4, 5) or not np.isfinite(array).all() or (array[:, 2:4] <= 0).any():
        raise ValueError(
            f"boxes of {where}: expected [N, 4] of x, y, width, height with positive sides, or [N, 5] with scores"
        )
    return array[:, :4], array[:, 4] if array.shape[-1] == 5 else np.ones(len(array))


def _from_file(path: pathlib.Path) -> Callable[[int, Picture], Found]:
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ValueError(f"boxes: {path} cannot be read as a COCO detection file: {error}") from error
    entries, images = (document["annotations"], document["images"]) if isinstance(document, dict) else (document, [])
    names = {image["id"]: pathlib.Path(image["file_name"]).name for image in images}
    by_picture: dict[Any, list] = {}
    for number, entry in enumerate(entries):
        try:
            key = (
                entry.get("image") or entry.get("file_name") or names.get(entry.get("image_id"), entry.get("image_id"))
            )
            key = pathlib.Path(key).name if isinstance(key, str) else int(key)
            by_picture.setdefault(key, []).append([*entry["bbox"], float(entry.get("score", 1.0))])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"boxes: {path}: entry {number} is no detection: {error!r}") from error

    def of_picture(number: int, picture: Picture) -> Found:
        stem = pathlib.Path(picture.name).stem
        keys = (picture.name, int(stem) if stem.isdigit() else None, number)
        rows = next((by_picture[key] for key in keys if key in by_picture), [])
        return _checked(np.array(rows, np.float64), f"{path}, picture {picture.name}")

    return of_picture


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = command.parser(__doc__)
    parser.add_argument(
        "--boxes",
        default=WHOLE,
        help="whole (default), a COCO detection file, BoIR weights that find the people, or auto: the package's own "
        "small BoIR, which knows rendered figures only",
    )
    parser.add_argument("--dataset", help="skeletons to draw, separated by commas; the model's first by default")
    parser.add_argument(
        "--datasets", help="the datasets of the weights' heads in order, where the file does not say them"
    )
    parser.add_argument("--maps", choices=(HEADS, PROTOTYPES), default=HEADS)
    parser.add_argument("--no_flip", action="store_true", help="without the flip test: twice as fast, a little worse")
    return command.run(parser.parse_args(argv), _predict)


def _predict(args: Any) -> tuple[str, Iterator[list[Result]]]:
    model = load(args.checkpoint, datasets=args.datasets.split(",") if args.datasets else None, device=args.device)
    names = model.names(args.dataset)
    boxes: Any = args.boxes
    if args.demo and not args.checkpoint and boxes == WHOLE:
        boxes = AUTO
    if boxes != WHOLE and pathlib.Path(boxes).suffix.lower() != ".json":
        from boir_jax.predict import load as load_finder  # the other method, only where it was asked for

        boxes = load_finder(None if boxes == AUTO else boxes, device=args.device)
    boxes_by_number = boxes_of(boxes)

    def find_boxes(number: int, picture: Picture) -> Found:
        """Numbers count the files, whether they can be read or not."""
        began = time.perf_counter()
        found = boxes_by_number(number + len(args.left_out), picture)
        if callable(boxes):
            args.costs[FINDING] = args.costs.get(FINDING, 0.0) + time.perf_counter() - began
        return found

    pictures = pictures_of(args.source, args.left_out.append)
    results = model.results(pictures, find_boxes, names, not args.no_flip, args.batch_size, args.maps)
    return model.title, (list(found.values()) for found in results)


if __name__ == "__main__":
    raise SystemExit(main())
