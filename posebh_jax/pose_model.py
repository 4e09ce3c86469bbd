"""A model with its weights, ready for pictures: `posebh_jax.load(weights)("photo.jpg")`.

Crops, decoder and scores are those of evaluation (`posebh_jax/predictor.py`, `data_pipelines/top_down`).
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from data_pipelines.datasets import DATASETS, PoseDataset, defined, find_dataset
from pose_common.metrics.nms import rescore
from pose_common.prediction import command
from pose_common.prediction.batches import Job, ahead, in_batches, require_batch_size, require_number
from pose_common.prediction.pictures import Picture, PictureError
from pose_common.prediction.result import Result
from pose_common.prediction.sources import count_of, is_single
from pose_common.training import restore
from pose_common.training.checks import nearest
from pose_common.weights.embedded import read_embedded
from pose_common.weights.folder import is_weights, save_weights
from pose_common.weights.hub_folders import local_path
from posebh_jax import configuration, skeleton, sources
from posebh_jax.boxes import WHOLE, boxes_of, with_boxes, with_finder
from posebh_jax.crops import crops_of
from posebh_jax.figures import figures_of, protocol_of
from posebh_jax.named_boxes import Found
from posebh_jax.predictor import HEAD_MAPS, PROTOTYPE_MAPS, Predictor
from posebh_jax.weights.manifest import Options, manifest_of, model_of

EMBEDDED = pathlib.Path(__file__).parent / "embedded.safetensors"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
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

    def __repr__(self) -> str:
        return f"<PoseModel: {self.title}; draws {', '.join(self.datasets)}>"

    def __call__(
        self,
        source: Any,
        *,
        boxes: Any = WHOLE,
        box_threshold: float = 0.0,
        category: int | None = None,
        dataset: str | Sequence[str] | None = None,
        flip: bool = True,
        batch_size: int = 16,
        maps: str | None = None,
        threshold: float = 0.0,
        left_out: list | None = None,
    ) -> Any:
        """Estimates poses in one picture or several.

        Args:
          source: a path, an array, a folder, a video and more; see `pose_common.prediction.sources.pictures_of`.
          boxes: where the people are, one of
            "whole": each picture is the box of one person;
            an array [N, 4] of x, y, width, height in pixels, or [N, 5] with scores, for one picture; for several a list
              of these in order ([] for nobody), or a mapping from the picture's name or path;
            the path of a COCO detection file, or a list of its entries, such as those of `Result.to_coco`. An entry
              names its picture by `image` or `file_name`, or by `image_id`: the number that is the picture's name, or
              its place, counted from 0;
            a model that finds people (`boir_jax.load(...)`), or the path of BoIR weights;
            "auto": the package's own small BoIR model, which knows rendered figures only.
          box_threshold: lowest score of a box, wherever it comes from; evaluation keeps all (0).
          category: of boxes in COCO's format, the `category_id` to take; None takes all.
          dataset: the dataset whose skeleton and expert to use, the first by default. With several, results are
            dictionaries.
          flip: average with the mirrored crop (slower, a little better).
          batch_size: crops that go through the network together.
          maps: "heads" or "prototypes", whichever the model has; None takes the first of the model's `maps`.
          threshold: lowest score of a pose, which is the box's score times the mean confidence of its keypoints.
          left_out: a list, to which the errors of pictures are added that cannot be read, or that the model that finds
            people cannot take, if there are several pictures; without it the first error is raised.

        Returns:
          A `Result` for one picture ({dataset: Result} if several datasets were asked for); for several pictures an
          iterator of these, which reads pictures as it goes.

        Raises:
          ValueError: the model does not know the dataset, `boxes`, `batch_size` or a threshold is none of the above, or
            there is no picture.
        """
        require_batch_size(batch_size)
        require_number("box_threshold", box_threshold)
        require_number("threshold", threshold)
        if flip not in (True, False):
            raise ValueError(f"flip={flip!r}: expected True or False")
        names = self.names(dataset)
        several = len(names) > 1 or not (dataset is None or isinstance(dataset, str))
        told = None if left_out is None or is_single(source) else left_out.append
        boxes = with_finder(boxes, self.device)
        find_boxes = boxes_of(boxes, count_of(source), threshold=box_threshold, category=category)
        results = self.results(source, find_boxes, names, flip, batch_size, maps, threshold, told)
        chosen = (found if several else found[names[0]] for found in results)
        return next(iter(chosen)) if is_single(source) else chosen

    def results(
        self,
        source: Any,
        find_boxes: Callable[[int, Picture], Found],
        names: Sequence[str],
        flip: bool,
        batch_size: int,
        maps: str | None,
        threshold: float = 0.0,
        left_out: Callable[[PictureError], None] | None = None,
    ) -> Iterator[dict[str, Result]]:
        """{dataset: Result} of every picture, in order.

        Args:
          source, find_boxes, left_out: see `boxes.with_boxes`.
        """
        predictor, maps = self.predictors[flip], self.map_of(maps)

        def run(name, rows):
            head, protocol = list(self.datasets).index(name), self.datasets[name]
            found = predictor(self.weights, rows["image"], rows["inverse_warp"], head=head, protocol=protocol)
            return {"keypoints": found[maps]}

        def jobs() -> Iterator[Job]:
            for picture, found in with_boxes(source, find_boxes, left_out):
                picture = picture._replace(image_id=found.image_id)
                for name in names:
                    rows = crops_of(picture, found.boxes, self.datasets[name], predictor.input_size)
                    yield Job((picture, found, name), name, rows, picture.image.nbytes)

        collected: dict[str, Result] = {}
        for (picture, found, name), rows in in_batches(ahead(jobs()), run, batch_size):
            collected[name] = self._result(picture, found, name, rows, threshold)
            if name == names[-1]:
                yield collected
                collected = {}

    def _result(
        self, picture: Picture, found: Found, name: str, rows: Sequence[Mapping[str, np.ndarray]], threshold: float
    ) -> Result:
        protocol = self.datasets[name]
        keypoints = np.zeros((len(rows), protocol.num_keypoints, 3), np.float32)
        for number, row in enumerate(rows):
            keypoints[number] = row["keypoints"]
        scores = rescore(keypoints, found.scores, self.rescoring_threshold).astype(np.float32)
        kept, boxes = scores >= threshold, found.boxes.astype(np.float32)
        return Result(picture, name, protocol.keypoints, keypoints[kept], boxes[kept], scores[kept])

    @property
    def device(self) -> jax.Device:
        """Where it computes."""
        (device,) = jax.tree.leaves(self.weights)[0].devices()
        return device

    @property
    def maps(self) -> tuple[str, ...]:
        """Which of "heads" and "prototypes" it can be read by."""
        return (HEAD_MAPS,) * ("heads" in self.weights["params"]) + (PROTOTYPE_MAPS,) * bool(self.weights["prototypes"])

    def map_of(self, maps: str | None) -> str:
        """What was asked for, by default the first. Raises ValueError for maps that the model has not."""
        if maps is not None and maps not in self.maps:
            raise ValueError(f"maps={maps!r}: {self.title} has {', '.join(self.maps)}")
        return maps or self.maps[0]

    def learn_skeleton(
        self,
        images: Any,
        keypoints: Sequence,
        *,
        names: Sequence[str] | None = None,
        boxes: Sequence | None = None,
        mirror: Sequence[tuple[str, str]] | None = None,
        limbs: Sequence[tuple[str, str]] = (),
        name: str = "new_skeleton",
        per_keypoint: int | None = None,
        batch_size: int = 16,
    ) -> PoseModel:
        """A model of a new skeleton, from a few annotated pictures, without training (`posebh_jax/skeleton.py`).

        Args:
          images: pictures in any form that prediction takes; one picture takes its keypoints and boxes as they are.
          keypoints: for each picture [K, 3], or [n, K, 3] for n people: x and y in its pixels, and visibility, 0 for
            what is not labelled; without visibility ([K, 2]) NaN means not labelled.
          names: of the K keypoints; by default `point_1` and so on.
          boxes: for each picture [4] or [n, 4], x, y, width, height; by default the extent of the keypoints, enlarged
            on every side by a fifth of its longer side.
          mirror: pairs of names that a mirror image exchanges; by default those that differ only in the side.
          limbs: pairs of names, for drawing.
          name: of the skeleton.
          per_keypoint: number of prototypes per keypoint; by default the one that is best when people are left out.
          batch_size: crops that go through the network together.

        Returns:
          A new model, which draws only this skeleton; `title` says what was chosen.

        Raises:
          ValueError: a model without prototypes, no picture, a keypoint that nobody shows, names that are not unique
            or no texts, or numbers that do not fit each other.
        """
        if is_single(images) and np.ndim(keypoints) in (2, 3):
            images, keypoints, boxes = [images], [keypoints], None if boxes is None else [boxes]
        if names is None:
            count = max((np.shape(of_picture)[-2] for of_picture in keypoints if np.ndim(of_picture) > 1), default=0)
            if not count:
                raise ValueError("keypoints: there are none; give a list, of each picture [K, 3] or [people, K, 3]")
            names = [f"point_{number}" for number in range(1, count + 1)]
        protocol = protocol_of(name, names, mirror, limbs)
        return self.learn_protocol(
            images, keypoints, protocol, boxes=boxes, per_keypoint=per_keypoint, batch_size=batch_size
        )

    def learn_protocol(
        self,
        images: Any,
        keypoints: Sequence,
        protocol: PoseDataset,
        *,
        boxes: Sequence | None = None,
        per_keypoint: int | None = None,
        batch_size: int = 16,
    ) -> PoseModel:
        """`learn_skeleton` where the skeleton is defined: `protocol` is a custom dataset with codec udp."""
        require_batch_size(batch_size)
        predictor = self.predictors[True]
        if not self.weights["prototypes"] or not predictor.model.embedding_dim:
            raise ValueError(f"{self.title} has no prototypes: a new skeleton needs weights of PoseBH, not of ViTPose")
        figures = figures_of(images, keypoints, boxes, protocol, predictor.input_size)
        learned = skeleton.learn_skeleton(
            predictor, self.weights, figures, protocol, per_keypoint=per_keypoint, batch_size=batch_size
        )
        choice, people = learned.choice, len(figures.image)
        title = (
            f"{self.title}; {protocol.name} of {people} {'person' if people == 1 else 'people'}: {choice.source}, "
            f"expert of {predictor.datasets[choice.expert].name}, prototypes a keypoint: {choice.per_keypoint}"
        )
        return self.with_skeleton(protocol, learned, title)

    def with_skeleton(self, protocol: PoseDataset, learned: skeleton.Learned, title: str) -> PoseModel:
        """A model that draws the learned skeleton alone, with the settings of this one."""
        old = self.predictors[True]
        weights, model = skeleton.fold(self.weights, old.model, old.input_size, protocol, learned)
        predictors = {
            flip: dataclasses.replace(predictor, model=model, datasets=(protocol,))
            for flip, predictor in self.predictors.items()
        }
        weights = jax.device_put(weights, self.device)
        datasets = {protocol.name: protocol}
        return dataclasses.replace(self, title=title, predictors=predictors, weights=weights, datasets=datasets)

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes a folder of weights, which `load` reads as this model; datasets that are not as built in are in its
        manifest.

        Raises:
          ValueError: the folder holds weights already.
        """
        predictor = self.predictors[True]
        manifest = manifest_of(predictor.model, predictor.input_size, self.title)
        settings = configuration.for_manifest(
            self.datasets.values(), predictor.dark_kernel, predictor.dark_blur, self.rescoring_threshold
        )
        save_weights(folder, jax.device_get(dict(self.weights)), manifest | settings)

    def names(self, dataset: str | Sequence[str] | None) -> tuple[str, ...]:
        """The datasets that were asked for, by default the first. Raises ValueError for one that the model has not."""
        names = (next(iter(self.datasets)),) if dataset is None else dataset
        names = tuple(dict.fromkeys(names.split(",") if isinstance(names, str) else names))
        if not names:
            raise ValueError(f"dataset: none is named; {self.title} draws {', '.join(self.datasets)}")
        for name in names:
            if name not in self.datasets:
                raise ValueError(
                    f"dataset {name!r}: {self.title} draws {', '.join(self.datasets)}{nearest(name, self.datasets)}"
                )
        return names


def load(
    source: str | pathlib.Path | None = None,
    *,
    datasets: str | Sequence[str] | None = None,
    num_heads: int | None = None,
    device: str | jax.Device | None = None,
    dtype: str = "float32",
) -> PoseModel:
    """Loads a model with its weights.

    Args:
      source: a run's working directory, one of its checkpoints, a folder of weights, a `.pth` (PyTorch needed) or
        `.safetensors` file of the original repositories, or a folder as the Hugging Face hub lays it out, also by name:
        `hf://usyd-community/vitpose-plus-base`. None loads the embedded demonstration model, which knows rendered
        figures only.
      datasets, num_heads: what a file does not say itself: the datasets of its heads, in order (also as a text,
        separated by commas), and the number of attention heads. It is an error if the weights name other datasets.
      device: where to compute, such as "cpu", "gpu", "cuda:1"; JAX's first by default.
      dtype: of the network's products: "float32", as evaluation has it, or "bfloat16", faster where the device has
        instructions for it. Keypoints move by a fraction of a pixel: last sums and decoding stay in float32.

    Raises:
      ValueError: there are no weights, or none of this method; another dtype.
    """
    arithmetic = command.find_dtype(dtype)
    path = local_path(EMBEDDED if source is None else source)
    datasets = datasets.split(",") if isinstance(datasets, str) else datasets
    if source is None:
        conversion = read_embedded(EMBEDDED)
    else:
        conversion = sources.read(path, Options(datasets=tuple(datasets) if datasets else None, num_heads=num_heads))
    manifest = conversion.manifest
    if not manifest["datasets"]:
        raise ValueError(f"{source} ({conversion.title}) has no head: it is a backbone to start training from")
    names = tuple(name for name, _ in manifest["datasets"])
    if datasets and tuple(datasets) != names:
        raise ValueError(f"{path} says itself that its heads are {', '.join(names)}, not {', '.join(datasets)}")
    run = restore.find_run(path, configuration.METHODS)
    config = configuration.of_run(run.config) if run else None
    protocols = _protocols(path, config, manifest)
    released = config or configuration.of_weights(manifest)
    model, size = model_of(manifest, dtype=arithmetic), tuple(manifest["input_size"])
    dark = released.dark_kernel, released.dark_blur
    predictors = {flip: Predictor(model, tuple(protocols.values()), size, flip, *dark) for flip in (False, True)}
    weights = jax.device_put(conversion.weights, command.find_device(device))
    return PoseModel(conversion.title, predictors, weights, protocols, released.rescoring_threshold)


def _protocols(path: str, config: ConfigDict | None, manifest: Mapping[str, Any]) -> dict[str, PoseDataset]:
    """How the model's datasets are cropped and drawn; custom ones are found where the run had its data, in its
    configuration, or in the manifest."""
    found, own = {}, manifest.get("definitions", {})
    for name, count in manifest["datasets"]:
        if config is not None:
            found[name] = configuration.dataset(config, name)
        elif name in own:
            found[name] = defined(own[name], f"{path}: definition of {name!r}")
        elif name in DATASETS:
            found[name] = find_dataset(name)
        else:
            advice = (
                "convert the run or the file to a folder again"  # an older folder has no definitions
                if is_weights(path)
                else "name its heads' datasets, of those built in: load(..., datasets=[...]) or --datasets=..."
            )
            raise ValueError(f"{path}: the skeleton of its head {name!r} ({count} keypoints) is unknown; {advice}")
    return found
