"""Lets BoIR's smallest model overfit a handful of COCO pictures, from nothing.

    python -m scripts.fit_samples_boir --samples=../shared/samples --workdir=workdir/fit_samples_boir

A check of the whole way on real annotations: raw files, records, whole pictures, training, evaluation on the pictures
that it was trained on. `--samples` holds `coco_mini/` in COCO's public layout. Taken are the first `--images` of its
training pictures in which nobody is too small to be drawn at half of the published resolution. About half an hour on
two cores; the exit status is 1 if AP on them stays below `--goal`.
"""

from __future__ import annotations

import argparse
import collections
import json
import logging
import pathlib
import sys

from ml_collections import ConfigDict

from boir_jax import main as boir_main
from configs import boir
from pose_common.training import logs
from pose_common.training.writers import read_metrics
from scripts import prepare_data

ANNOTATIONS, PICTURES = "coco_mini/annotations/person_keypoints_train2017.json", "coco_mini/train2017"
SMALLEST = 1 / 6
"""Of a person: root of the area over the picture's short side; ten cells of the heatmap."""


def choose(content: dict, count: int) -> set[int]:
    """Ids of the first `count` pictures with labelled people, none of them smaller than `SMALLEST`."""
    short_side = {image["id"]: min(image["width"], image["height"]) for image in content["images"]}
    sizes = collections.defaultdict(list)
    for annotation in content["annotations"]:
        if annotation["num_keypoints"]:
            sizes[annotation["image_id"]].append(annotation["area"] ** 0.5 / short_side[annotation["image_id"]])
    return set(sorted(image for image, found in sizes.items() if min(found) >= SMALLEST)[:count])


def prepare(samples: pathlib.Path, workdir: pathlib.Path, count: int) -> None:
    """Records of `count` pictures."""
    content = json.loads((samples / ANNOTATIONS).read_text(encoding="utf8"))
    kept = choose(content, count)
    content["images"] = [image for image in content["images"] if image["id"] in kept]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    workdir.mkdir(parents=True, exist_ok=True)
    annotations = workdir / "annotations.json"
    annotations.write_text(json.dumps(content), encoding="utf8")
    arguments = ["coco", "--split=train", f"--annotations={annotations}", f"--images={samples / PICTURES}"]
    if prepare_data.main([*arguments, f"--data_dir={workdir / 'data'}"]):
        raise SystemExit(f"the pictures could not be prepared from {samples}")


def configuration(data_dir: pathlib.Path, count: int) -> ConfigDict:
    """The demo's model on the pictures: half of the published resolution, hardly any augmentation, no decay."""
    config = boir.get_config("demo")
    config.data_dir, config.synthetic = str(data_dir), ConfigDict()
    config.dataset, config.train_split, config.eval_split = "coco", "train", "train"
    config.input_size, config.instances, config.min_area = 256, 12, 16.0**2
    config.augmentation = ConfigDict({"scale": (1.0, 1.2), "rotation": 0.0, "translation": 0.2, "mirror": 0.5})
    config.batch_size, config.instance_group, config.instance_cap = count, 1, 8
    config.epochs, config.steps_per_epoch, config.warmup_epochs = 18, 50, 0.5
    config.learning_rate, config.weight_decay = 2e-3, 0.0
    config.log_every, config.checkpoint_every = 25, 100
    config.pictures = count
    return config


def run(samples: pathlib.Path, workdir: pathlib.Path, count: int) -> float:
    """Prepares, trains, evaluates; AP (in [0, 1]) on the training pictures."""
    prepare(samples, workdir, count)
    boir_main.run(configuration(workdir / "data", count), workdir)
    rows = [row for row in read_metrics(workdir / "metrics.jsonl") if row["split"] == "eval/coco_train"]
    return rows[-1]["AP"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--samples", type=pathlib.Path, required=True)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("workdir/fit_samples_boir"))
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--goal", type=float, default=0.8)
    args = parser.parse_args()
    logs.start_logging()
    reached = run(args.samples, args.workdir, args.images)
    logging.info("AP on the training pictures: %.3f (goal %.2f)", reached, args.goal)
    return int(reached < args.goal)


if __name__ == "__main__":
    sys.exit(main())
