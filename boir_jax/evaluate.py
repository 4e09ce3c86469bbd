"""Whole splits: predictions, suppression, metrics by the dataset's protocol, results files, pictures, one table."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from boir_jax import visualise
from boir_jax.predictor import Predictor
from boir_jax.published import published
from data_pipelines.datasets import PoseDataset
from data_pipelines.reading import Reading
from data_pipelines.sharing import Share
from data_pipelines.top_down.instances import categories_of
from data_pipelines.whole_image.loader import EvalLoader, eval_loader
from pose_common.analysis.files import write_analysis
from pose_common.evaluation import published as publications
from pose_common.evaluation.best import BestMetric, best_metric
from pose_common.evaluation.predictions import predict_split
from pose_common.evaluation.tasks import Score, check_tasks, evaluate_tasks, shown
from pose_common.metrics import columns, evaluate, nms
from pose_common.prediction.result import extent_boxes


@dataclasses.dataclass(frozen=True)
class Task:
    """One row of the table.

    Attributes:
      protocol, split: the dataset and which part of it is evaluated.
      predictor: finds the people, with this dataset's settings.
      oks_threshold: similarity beyond which the weaker of two poses is dropped.
      field: of the configuration, that names the split; "" for a further row.
    """

    protocol: PoseDataset
    split: str
    predictor: Predictor
    oks_threshold: float
    field: str = ""

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        return self.protocol.name

    @property
    def name(self) -> str:
        """Of its figures and files."""
        return f"{self.dataset}_{self.split}"


@dataclasses.dataclass
class Evaluator:
    """Evaluates weights on a list of tasks.

    Attributes:
      tasks: the rows.
      data_dir, batch_size, input_size, reading: of the loaders; the batch is the global one.
      mesh: devices to split a batch over.
      workdir: results, tables and pictures go to `results/` and `pictures/` in it.
      pictures: images to draw of each task.
      published_as: the paper's name of this model, to print its figures beside ours.
    """

    tasks: Sequence[Task]
    data_dir: str
    batch_size: int
    input_size: int
    mesh: Mesh
    workdir: pathlib.Path
    reading: Reading = Reading()
    pictures: int = 0
    published_as: str = ""

    def check(self) -> None:
        """Raises ConfigError for what cannot be evaluated, several categories included; see `check_tasks`."""
        check_tasks(self.tasks, lambda task: _category(task, self._loader(task)))

    def best_metric(self, pattern: str) -> BestMetric | None:
        """What decides which checkpoint is the best; see `best.best_metric`."""
        rows = {task.name: _figures(task) for task in self.tasks if task.field}
        return best_metric(pattern, rows, list(rows))

    def __call__(self, weights: Mapping[str, Any], step: int) -> dict[str, Mapping[str, float]]:
        """Evaluates every prepared task.

        Returns:
          {"<dataset>_<split>": {metric: value}}, {} for a split without annotations: its results file is for
          submission. The table is printed and saved as well; under it stands what was not evaluated.
        """
        folder = self.workdir / "results" / f"step_{step}"

        def evaluate_task(task: Task, loader: EvalLoader) -> Iterator[Score]:
            began = time.perf_counter()
            poses = self.find_poses(weights, task, loader)
            values, errors = self._judge(task, loader, poses, step)
            yield Score(task.name, values, self._row(task, loader, values, time.perf_counter() - began), errors)

        return evaluate_tasks(self.tasks, self._loader, evaluate_task, folder, f"step {step}, percent")

    def _loader(self, task: Task) -> EvalLoader:
        return eval_loader(
            task.dataset,
            task.split,
            data_dir=self.data_dir,
            batch_size=self.batch_size,
            input_size=self.input_size,
            share=Share(jax.process_index(), jax.process_count(), self.mesh.devices.size),
            reading=self.reading,
        )

    def find_poses(self, weights: Mapping[str, Any], task: Task, loader: EvalLoader) -> columns.Poses:
        """People of all images, duplicates suppressed; ordered by image, then best first."""

        def predict(batch):
            return task.predictor(weights, batch["image"], batch["inverse_warp"])

        category = _category(task, loader)
        rows = predict_split(predict, loader, self.mesh, inputs=("image", "inverse_warp"), keep=("image_id",))
        image, rank = np.nonzero(rows["found"])
        keypoints, score = rows["keypoints"][image, rank], rows["score"][image, rank]
        poses = columns.Poses(
            image_id=rows["image_id"][image],
            instance_id=rank,
            keypoints=keypoints,
            score=score,
            area=nms.extent_area(keypoints),
            category=np.full(len(score), category, np.int64),
        )
        sigmas = task.protocol.keypoints.oks_sigmas
        kept = nms.oks_nms(keypoints, poses.area, score, sigmas, task.oks_threshold, poses.image_id)
        return poses.take(kept)

    def _judge(
        self, task: Task, loader: EvalLoader, poses: columns.Poses, step: int
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Metrics, and the row of errors; writes results, boxes for a top-down model, pictures and analysis."""
        truth, errors = columns.ground_truth(loader.annotations), {}
        if jax.process_index() == 0:
            folder = self.workdir / "results" / f"step_{step}"
            columns.write_results(folder / f"{task.name}.json", poses, task.protocol.keypoints)
            boxes = extent_boxes(poses.keypoints)
            columns.write_detections(folder / f"{task.name}_boxes.json", poses, boxes)
            if self.pictures:
                path = self.workdir / "pictures" / f"{task.name}.png"
                visualise.draw_people(path, loader.source, poses, self.pictures)
            errors = write_analysis(
                self.workdir,
                task.name,
                {"step": step, "split": task.split},
                loader.source,
                truth,
                poses,
                task.protocol,
                by_instance=False,
                pictures=self.pictures,
            )
        return evaluate.metrics_of(task.protocol, truth, poses) if len(truth.id) else {}, errors

    def _row(self, task: Task, loader: EvalLoader, values: Mapping[str, float], seconds: float) -> dict[str, Any]:
        names = _figures(task)
        known = published(self.published_as, task.dataset, task.split)
        notes = [f"{name}: {note}" for name, note in loader.annotations.metadata.items()]
        if not values:
            notes.append(f"no annotations: {task.name}.json is for submission")
        return {
            "dataset": task.dataset,
            "split": task.split,
            "metric": " / ".join(names),
            "ours": shown(names, values),
            "boxes": publications.UNBOXED,
            **publications.columns(known, names),
            "images": loader.annotations.num_images,
            "seconds": round(seconds, 1),
            "notes": notes,
            "metrics": dict(values),
        }


def _figures(task: Task) -> tuple[str, ...]:
    """The metrics that stand in a row of the table."""
    judged = evaluate.protocol_of(task.protocol)
    return ("AP", *judged.levels) if judged.levels else judged.headline


def _category(task: Task, loader: EvalLoader) -> int:
    """The category of everybody found: the only one there is. Raises ValueError where there are several."""
    categories = categories_of(loader.annotations)
    if len(categories) != 1:
        raise ValueError(
            f"{task.name}: the annotation file has the categories {sorted(categories)}, but a single-stage method finds"
            " people without telling kinds apart"
        )
    return next(iter(categories))
