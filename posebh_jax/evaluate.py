"""Every dataset, one table: predictions of a whole split, metrics by the dataset's protocol, results files, pictures."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from data_pipelines.keypoint_sets import PoseDataset, get_dataset
from data_pipelines.loader import EvalLoader, Reading, eval_loader
from data_pipelines.records import DatasetNotPrepared
from pose_common import tables
from pose_common.evaluation import predict_split
from pose_common.metrics import columns, evaluate
from posebh_jax import pictures
from posebh_jax.predict import Predictor

HEADLINE = {"coco": ("AP", "AR"), "wholebody": ("AP", "AR"), "crowdpose": ("AP", "AR"), "mpii": ("PCKh", "PCKh@0.1"),
            "hand": ("PCK", "AUC")}
"""The two figures of a dataset's metric that stand in the table."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One row of the table: `dataset`'s `split`, judged by the head of the mixture's dataset number `head`.

    `boxes` are 'ground_truth' or the path of a COCO detection file.
    """

    dataset: str
    split: str
    head: int
    boxes: str = "ground_truth"

    @property
    def protocol(self) -> PoseDataset:
        """The dataset's protocol."""
        return get_dataset(self.dataset)


@dataclasses.dataclass
class Evaluator:
    """Evaluates weights on a list of tasks; what it opens and compiles is kept for the next time.

    Attributes:
      predictor: compiled predictions.
      tasks: the rows.
      data_dir, batch_size, reading: of the loaders; the batch is the global one.
      mesh: devices to split a batch over.
      workdir: results, tables and pictures go to `results/` and `pictures/` in it.
      pictures: predictions to draw of each dataset.
    """

    predictor: Predictor
    tasks: Sequence[Task]
    data_dir: str
    batch_size: int
    mesh: Mesh
    workdir: pathlib.Path
    reading: Reading = Reading()
    pictures: int = 0

    def __call__(self, weights: Mapping[str, Any], step: int) -> dict[str, dict[str, float]]:
        """Evaluates every prepared task.

        Returns:
          {"<dataset>/<heads or prototypes>": {metric: value}}. The table is printed and saved as well; tasks whose
          data are not there are logged with the command that prepares them.
        """
        rows, figures = [], {}
        for task in self.tasks:
            try:
                loader = self._loader(task)
            except DatasetNotPrepared as error:
                logging.warning("%s", error)
                continue
            began = time.perf_counter()
            predictions = self._predict(weights, task, loader)
            for kind, poses in predictions.items():
                values = self._judge(task, loader, kind, poses, step)
                figures[f"{task.dataset}/{kind}"] = values
                rows.append(_row(task, loader, kind, values, time.perf_counter() - began))
        if jax.process_index() == 0 and rows:
            tables.show(rows, title=f"step {step}")
            tables.save(rows, self.workdir / "results" / f"step_{step}" / "table")
        return figures

    def _loader(self, task: Task) -> EvalLoader:
        return eval_loader(
            task.dataset, task.split, data_dir=self.data_dir, batch_size=self.batch_size, boxes=task.boxes,
            input_size=self.predictor.input_size, dataset_index=task.head, process_index=jax.process_index(),
            process_count=jax.process_count(), reading=self.reading,
        )  # fmt: skip

    def _predict(self, weights: Mapping[str, Any], task: Task, loader: EvalLoader) -> dict[str, columns.Poses]:
        def predict(batch):
            return self.predictor(weights, batch["image"], batch["inverse_warp"], head=task.head, protocol=task.protocol)

        ids = ("image_id", "instance_id", "box_score", "area")
        found = predict_split(predict, loader, self.mesh, inputs=("image", "inverse_warp"), keep=ids)
        kept = {name: found.pop(name) for name in ids}
        return {
            kind: columns.Poses(kept["image_id"], kept["instance_id"], keypoints, kept["box_score"], kept["area"])
            for kind, keypoints in found.items()
        }

    def _judge(
        self, task: Task, loader: EvalLoader, kind: str, predictions: columns.Poses, step: int
    ) -> dict[str, float]:
        truth = loader.annotations.to_coco()
        poses = evaluate.final_poses(task.protocol, truth, predictions)
        if jax.process_index() == 0:
            folder = self.workdir / "results" / f"step_{step}"
            columns.write_results(folder / f"{task.dataset}_{kind}.json", poses, task.protocol.keypoints)
            if self.pictures:
                path = self.workdir / "pictures" / f"{task.dataset}_{kind}.png"
                pictures.draw_predictions(path, loader.source, predictions, self.pictures)
        if not truth["annotations"]:
            return {}
        return evaluate.metrics_of(task.protocol, truth, poses)


def _row(task: Task, loader: EvalLoader, kind: str, values: Mapping[str, float], seconds: float) -> dict[str, Any]:
    notes = dict(loader.annotations.metadata)
    boxes = "ground truth" if loader.boxes == "ground_truth" else pathlib.Path(loader.boxes).name
    headline = HEADLINE[task.protocol.metric]
    figures = {f"figure {i}": f"{name} {values[name]:.4f}" if name in values else "-" for i, name in enumerate(headline)}
    return {
        "dataset": task.dataset, "split": task.split, "maps": kind, **figures, "boxes": boxes,
        "images": loader.annotations.num_images, "instances": len(loader.source), "seconds": round(seconds, 1),
        "notes": "; ".join(f"{name}: {note}" for name, note in notes.items()), "metrics": dict(values),
    }  # fmt: skip
