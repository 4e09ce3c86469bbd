"""Prepares a few pictures of public datasets and lets the smallest model overfit them, through every stage.

    python -m scripts.fit_samples --samples=../shared/samples --workdir=workdir/fit_samples

A check of the whole way on real annotations: raw files, records, crops, training from nothing through the multi-head
stage and the paper's three, evaluation on the crops that it was trained on. `--samples` holds `coco_mini/` (COCO's
public layout), `coco/`, `aic/`, `mpii/` and `ap10k/` (annotation file and pictures in one folder). About a quarter of
an hour on two cores; the exit status is 1 if AP on the coco_mini training crops stays below `--goal`.
"""

from __future__ import annotations

import argparse
import logging
import pathlib
import sys

from ml_collections import ConfigDict

from configs import mdt
from pose_common.training import logs
from pose_common.training.writers import read_metrics
from posebh_jax import main as posebh
from scripts import prepare_data

# dataset -> (split, annotation file, pictures), below --samples
SOURCES = {
    "coco": ("train", "coco_mini/annotations/person_keypoints_train2017.json", "coco_mini/train2017"),
    "aic": ("val", "aic/test_aic.json", "aic"),
    "mpii": ("val", "mpii/test_mpii.json", "mpii"),
    "ap10k": ("val-split1", "ap10k/test_ap10k.json", "ap10k"),
    "coco_wholebody": ("val", "coco/test_coco_wholebody.json", "coco"),
}


def prepare(samples: pathlib.Path, data_dir: pathlib.Path) -> None:
    """Records of every sample, through the command that a user would type."""
    for dataset, (split, labels, images) in SOURCES.items():
        arguments = [dataset, f"--split={split}", f"--annotations={samples / labels}"]
        arguments += [f"--images={samples / images}", f"--data_dir={data_dir}"]
        if prepare_data.main(arguments):
            raise SystemExit(f"{dataset} could not be prepared from {samples}")


def configuration(data_dir: pathlib.Path) -> ConfigDict:
    """The demo's model on the samples: no augmentation, no decay, evaluated on what it is trained on."""
    config = mdt.get_config("demo")
    config.data_dir, config.synthetic = str(data_dir), ConfigDict()
    config.datasets = tuple(SOURCES)
    config.train_splits = ConfigDict({dataset: split for dataset, (split, *_) in SOURCES.items()})
    config.eval_splits = config.train_splits
    config.augment = False
    config.input_size, config.head_filters = (144, 192), (48, 48)
    config.batch_size = config.eval_batch_size = 35
    config.steps_per_epoch = 3  # 104 instances
    config.weight_decay = 0.0
    for stage, epochs in zip(config.stages, (110, 30, 6, 20), strict=True):
        stage.epochs = epochs
    config.learning_rate, config.decay_epochs = 1e-3, (140, 146)
    config.log_every, config.checkpoint_every = 30, 90
    return config


def run(samples: pathlib.Path, workdir: pathlib.Path) -> float:
    """Prepares, trains, evaluates; AP (in [0, 1]) of the heatmap heads on the coco_mini training crops."""
    prepare(samples, workdir / "data")
    posebh.run(configuration(workdir / "data"), workdir)
    rows = [row for row in read_metrics(workdir / "metrics.jsonl") if row["split"] == "eval/coco/heads"]
    return rows[-1]["AP"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--samples", type=pathlib.Path, required=True)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("workdir/fit_samples"))
    parser.add_argument("--goal", type=float, default=0.9)
    args = parser.parse_args()
    logs.start_logging()
    reached = run(args.samples, args.workdir)
    logging.info("AP on the coco_mini training crops: %.3f (goal %.2f)", reached, args.goal)
    return int(reached < args.goal)


if __name__ == "__main__":
    sys.exit(main())
