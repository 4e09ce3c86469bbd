"""Every dataset, one table: predictions of a split, metrics by the dataset's protocol, results files, pictures."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from data_pipelines.datasets import PoseDataset
from data_pipelines.reading import Reading
from data_pipelines.sharing import Share
from data_pipelines.top_down.loader import EvalLoader, eval_loader
from pose_common.analysis.files import write_analysis
from pose_common.evaluation import published as publications
from pose_common.evaluation.best import BestMetric, best_metric
from pose_common.evaluation.predictions import predict_split
from pose_common.evaluation.published import ANNOTATED, shown_boxes
from pose_common.evaluation.tasks import Score, check_tasks, evaluate_tasks, shown
from pose_common.metrics import columns, evaluate
from posebh_jax import visualise
from posebh_jax.predictor import HEAD_MAPS, PROTOTYPE_MAPS, Predictor
from posebh_jax.published import published
from posebh_jax.same_keypoints import retrieval

PARTS = ("body", "foot", "face", "lefthand", "righthand")
"""Of a whole body; their APs stand beside its own."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One row of the table.

    Attributes:
      protocol, split: the dataset and which part of it is evaluated.
      head: number of the mixture's dataset whose head judges; it draws the same keypoints.
      boxes: 'ground_truth' or the path of a COCO detection file.
      name: of its figures and files.
      field: of the configuration, that names the split; "" for a further row.
    """

    protocol: PoseDataset
    split: str
    head: int
    boxes: str
    name: str
    field: str = ""

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        return self.protocol.name


@dataclasses.dataclass
class Evaluator:
    """Evaluates weights on a list of tasks; what it opens and compiles is kept for the next time.

    Attributes:
      predictor: compiled predictions.
      tasks: the rows.
      selection: which poses are kept, and with which score: options of `metrics.evaluate.final_poses`.
      detection_threshold: smallest score of a detector's box.
      data_dir, batch_size, reading: of the loaders; the batch is the global one.
      mesh: devices to split a batch over.
      workdir: results, tables and pictures go to `results/` and `pictures/` in it.
      pictures: predictions to draw of each dataset.
      published_as: the papers' name of this model, to print its published figures beside ours.
    """

    predictor: Predictor
    tasks: Sequence[Task]
    selection: Mapping[str, Any]
    detection_threshold: float
    data_dir: str
    batch_size: int
    mesh: Mesh
    workdir: pathlib.Path
    reading: Reading = Reading()
    pictures: int = 0
    published_as: str = ""

    def check(self) -> None:
        """Raises ConfigError for what cannot be evaluated; see `check_tasks`."""
        check_tasks(self.tasks, self._loader)

    def best_metric(self, pattern: str) -> BestMetric | None:
        """What decides which checkpoint is the best; see `best.best_metric`. By default the heads' figures."""
        own = {task.name: evaluate.protocol_of(task.protocol).headline for task in self.tasks if task.field}
        kinds = (HEAD_MAPS, PROTOTYPE_MAPS) if self.predictor.model.embedding_dim else (HEAD_MAPS,)
        rows = {f"{name}/{kind}": figures for kind in kinds for name, figures in own.items()}
        return best_metric(pattern, rows, [f"{name}/{HEAD_MAPS}" for name in own])

    def __call__(self, weights: Mapping[str, Any], step: int) -> dict[str, Mapping[str, float]]:
        """Evaluates every prepared task.

        Returns:
          {"<task>/<heads or prototypes>": {metric: value}}, {} for a split without annotations: its results file is for
          submission. The table is printed and saved as well; under it stands what was not evaluated, with the command
          that prepares it.
        """

        def evaluate_task(task: Task, loader: EvalLoader) -> Iterator[Score]:
            began = time.perf_counter()
            predictions = self._predict(weights, task, loader)
            seconds = time.perf_counter() - began
            for kind, poses in predictions.items():
                began = time.perf_counter()
                values, errors = self._judge(task, loader, kind, poses, step)
                if kind == PROTOTYPE_MAPS and values:
                    values |= self._same_names(weights, task.head)
                row = self._row(task, loader, kind, values, seconds + time.perf_counter() - began)
                yield Score(f"{task.name}/{kind}", values, row, errors)

        folder = self.workdir / "results" / f"step_{step}"
        return evaluate_tasks(self.tasks, self._loader, evaluate_task, folder, f"step {step}, percent (EPE in pixels)")

    def _loader(self, task: Task) -> EvalLoader:
        return eval_loader(
            task.protocol,
            task.split,
            data_dir=self.data_dir,
            batch_size=self.batch_size,
            boxes=task.boxes,
            score_threshold=self.detection_threshold,
            input_size=self.predictor.input_size,
            dataset_index=task.head,
            share=Share(jax.process_index(), jax.process_count(), self.mesh.devices.size),
            reading=self.reading,
        )

    def _predict(self, weights: Mapping[str, Any], task: Task, loader: EvalLoader) -> dict[str, columns.Poses]:
        def predict(batch):
            return self.predictor(
                weights, batch["image"], batch["inverse_warp"], head=task.head, protocol=task.protocol
            )

        ids = ("image_id", "instance_id", "box_score", "area")
        found = predict_split(predict, loader, self.mesh, inputs=("image", "inverse_warp"), keep=ids)
        kept = {name: found.pop(name) for name in ids}
        category = _detected_categories(loader, kept["instance_id"])
        return {
            kind: columns.Poses(
                kept["image_id"], kept["instance_id"], keypoints, kept["box_score"], kept["area"], category
            )
            for kind, keypoints in found.items()
        }

    def _judge(
        self, task: Task, loader: EvalLoader, kind: str, predictions: columns.Poses, step: int
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Metrics, and the row of errors; writes results, pictures and analysis."""
        errors: dict[str, Any] = {}
        truth = columns.ground_truth(loader.annotations)
        if _box_by_box(task, loader):  # whoever gives no crop has no pose to be judged
            truth = truth.take(loader.source.instances.annotation)
        poses = evaluate.final_poses(task.protocol, truth, predictions, **self.selection)
        if jax.process_index() == 0:
            folder = self.workdir / "results" / f"step_{step}"
            columns.write_results(folder / f"{task.name}_{kind}.json", poses, task.protocol.keypoints)
            if self.pictures:
                path = self.workdir / "pictures" / f"{task.name}_{kind}.png"
                visualise.draw_predictions(path, loader.source, predictions, self.pictures)
            errors = write_analysis(
                self.workdir,
                f"{task.name}_{kind}",
                {"step": step, "split": task.split, "maps": kind, "boxes": shown_boxes(_boxes(loader))},
                loader.source,
                truth,
                poses,
                task.protocol,
                by_instance=loader.annotated,
                pictures=self.pictures,
            )
        return evaluate.metrics_of(task.protocol, truth, poses) if len(truth.id) else {}, errors

    def _same_names(self, weights: Mapping[str, Any], head: int) -> dict[str, float]:
        """Whether the head's keypoints lie with their namesakes of the other skeletons (`same_keypoints.retrieval`)."""
        bank = np.asarray(weights["prototypes"]["bank"].addressable_data(0))
        return retrieval(bank, [dataset.keypoints.keypoints for dataset in self.predictor.datasets], head)

    def _row(
        self, task: Task, loader: EvalLoader, kind: str, values: Mapping[str, float], seconds: float
    ) -> dict[str, Any]:
        names = evaluate.protocol_of(task.protocol).headline
        boxes = _boxes(loader)
        known = published(self.published_as, task.dataset, task.split) if kind == HEAD_MAPS else None
        notes = [f"{name}: {note}" for name, note in loader.annotations.metadata.items()]
        if not loader.annotated or _box_by_box(task, loader) and loader.source.instances.left_out:
            notes.append(loader.source.instances.account)
        if values and (missed := _without_crop(task, loader)):
            notes.append(f"{missed} labelled people give no crop (see the preparation's summary), and count as missed")
        if not values:
            notes.append(f"no annotations: {task.name}_{kind}.json is for submission")
        if parts := [f"{part} {shown([f'AP ({part})'], values)}" for part in PARTS if f"AP ({part})" in values]:
            notes.append(f"AP of {', '.join(parts)}")
        if "unmeasured" in values:
            notes.append(f"{values['unmeasured']:.0f} people without head size left out")
        if known and (difference := known.compare(task.split, boxes)):
            notes.append(difference)
        return {
            "dataset": task.dataset,
            "split": task.split,
            "maps": kind,
            "metric": " / ".join(names),
            "ours": shown(names, values),
            "boxes": shown_boxes(boxes),
            **publications.columns(known, names),
            "images": loader.annotations.num_images,
            "instances": len(loader.source),
            "seconds": round(seconds, 1),
            "notes": notes,
            "metrics": dict(values),
        }


def _box_by_box(task: Task, loader: EvalLoader) -> bool:
    """Whether each annotated person is judged by the pose in the own box, and nobody is missed or found twice."""
    return loader.annotated and not evaluate.protocol_of(task.protocol).suppress


def _without_crop(task: Task, loader: EvalLoader) -> int:
    """How many annotated people OKS judges who have no crop by the dataset's rules, as in the released code."""
    if not loader.annotated or _box_by_box(task, loader):
        return 0
    people = loader.annotations
    judged = people.labelled & ~people.crowd
    if evaluate.protocol_of(task.protocol).ignore_by_count:
        judged &= people.num_keypoints != 0
    return int(judged.sum() - judged[loader.source.instances.annotation].sum())


def _boxes(loader: EvalLoader) -> str:
    """`ANNOTATED`, or the name of the detection file."""
    return ANNOTATED if loader.annotated else pathlib.Path(loader.boxes).name


def _detected_categories(loader: EvalLoader, instance_id: np.ndarray) -> np.ndarray | None:
    """[N] the detector's category of each instance; None where boxes are annotated, as the annotation has it."""
    instances = loader.source.instances
    if instances.category is None or loader.annotated:
        return None
    order = np.argsort(instances.instance_id)
    return instances.category[order][np.searchsorted(instances.instance_id, instance_id, sorter=order)]
