"""Working directories as an evaluation leaves them, for the tests of reports."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np

from pose_common.analysis.files import write_analysis
from pose_common.evaluation import result_table
from pose_common.evaluation.tasks import shown
from pose_common.metrics import evaluate
from pose_common.training.writers import MetricWriter
from tests.pose_common.analysis.cases import COCO, Gradient, crowded, inside

REMARK = "mpii <val> is not prepared"
NOTE = "a note & more"


def make_run(workdir: pathlib.Path, seed: int = 0, step: int = 40, **settings) -> pathlib.Path:
    """A trained and evaluated run: two results of COCO's skeleton, curves of two stages, settings."""
    truth, poses = crowded(seed)
    truth = inside(truth)
    poses = dataclasses.replace(poses, instance_id=np.where(np.arange(len(poses)) < 2, -1, poses.instance_id))
    rows = []
    for maps in ("heads", "prototypes"):
        values = evaluate.metrics_of(COCO, truth, poses)
        write_analysis(
            workdir,
            f"coco_{maps}",
            {"step": step, "split": "val", "maps": maps},
            Gradient(truth),
            truth,
            poses,
            COCO,
            by_instance=True,
            pictures=6,
        )
        rows.append(
            {
                "dataset": "coco",
                "split": "val",
                "maps": maps,
                "metric": "AP / AR",
                "ours": shown(("AP", "AR"), values),
                "published": "77.3 / 82.4",
                "boxes": "ground truth",
                "images": 20,
                "instances": len(poses),
                "seconds": 1.0,
                "notes": [NOTE],
                "metrics": values,
            }
        )
        poses = poses.take(np.arange(len(poses) - 1))  # the second result finds one person less
    result_table.save(rows, workdir / "results" / f"step_{step}" / "table", [REMARK])
    writer = MetricWriter(workdir)
    for at, stage in ((10, 0), (20, 0), (30, 1), (40, 1)):
        writer.write(
            at, "train", {"loss": (seed + 1) / at, "accuracy/coco": at / 100, "learning_rate": 1e-3, "stage": stage}
        )
    for at in (20, 40):
        writer.write(at, "eval/coco/heads", {"AP": at / 100, "AP (M)": -1.0})
    writer.close()
    config = {"method": "posebh", "seed": seed, "losses": {"momentum": 0.999}, "stages": [{"name": "a"}, {"name": "b"}]}
    (workdir / "config.json").write_text(json.dumps(config | settings))
    return workdir
