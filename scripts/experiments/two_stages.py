"""PoseBH on the people that BoIR finds, against annotated boxes and against BoIR's own keypoints, on rendered crowds.

    python -m scripts.experiments.two_stages --out=workdir/two_stages

BoIR is the embedded model, a run of `configs/boir.py:demo`. PoseBH begins as the embedded model, whose rendered people
stand alone, and learns the crowds' skeleton on the crowds that BoIR has learned (`--steps`), with annotated boxes. Both
are then judged on pictures that neither has seen. One line a row goes to `<out>/two_stages.jsonl`; PoseBH's seeds that
are there are not repeated. At the end table and plot are made of all lines.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

import boir_jax.main
import boir_jax.pose_model
import boir_jax.predict
import posebh_jax.main
import posebh_jax.pose_model
import posebh_jax.predict
from boir_jax import sources
from configs import mdt, transfer
from data_pipelines.builders.synthetic import prepare_synthetic
from data_pipelines.datasets import find_dataset
from data_pipelines.records import load_annotations
from pose_common.metrics import columns, evaluate, nms, oks
from posebh_jax import configuration
from scripts.experiments import crowds, lines

NAME = "two_stages"
DATASET, SPLIT = "synthetic_crowd", "val"
TRUE_BOXES, WHOLE, ALONE = "PoseBH, true boxes", "PoseBH, BoIR's boxes (whole pipeline)", "BoIR alone (whole pipeline)"
ARMS = (TRUE_BOXES, WHOLE, ALONE)
GROUPS = 8
"""Parts of the pictures, over which intervals are taken: they say what other pictures would change."""
PICTURES = {"num_train": 300, "num_val": 240}
"""The training pictures are those of the embedded BoIR."""


def newest_results(workdir: pathlib.Path) -> pathlib.Path:
    """The folder of a run's last evaluation."""
    return max((workdir / "results").glob("step_*"), key=lambda folder: int(folder.name.removeprefix("step_")))


def find_people(out: pathlib.Path) -> pathlib.Path:
    """Evaluates the embedded BoIR; its results file, beside which the boxes are."""
    config = sources.read_configuration("boir:demo")
    config.checkpoint, config.data_dir, config.pictures = str(boir_jax.pose_model.EMBEDDED), str(out / "data"), 0
    boir_jax.main.evaluate(config, out / "boir")
    return newest_results(out / "boir") / f"{DATASET}_{SPLIT}.json"


def posebh_configuration(out: pathlib.Path, steps: int, seed: int, boxes: pathlib.Path) -> ConfigDict:
    """A transfer of the embedded model to the crowds: the heatmap heads first, then everything."""
    config = transfer.get_config("demo")
    config.method, config.init_from = "multi_head", str(posebh_jax.pose_model.EMBEDDED)
    config.data_dir, config.seed = str(out / "data"), seed
    config.batch_size, config.steps_per_epoch = 32, max(1, steps // 10)
    config.stages = [
        mdt.stage("head", 2, ("heads",), mdt.MULTI_HEAD_LOSSES),
        mdt.stage("all", 8, ("backbone", "heads"), mdt.MULTI_HEAD_LOSSES),
    ]
    config.learning_rate, config.decay_epochs, config.decay_factor = 1e-3, (8,), 0.3
    config.evaluate_every, config.evaluate_stages, config.pictures = 10, False, 0
    config.eval_also = ((DATASET, SPLIT, DATASET, str(boxes)),)
    configuration.fill_tables(config)
    configuration.check(config)
    return config


def read_poses(path: pathlib.Path) -> columns.Poses:
    """The poses of a results file."""
    entries = json.loads(path.read_text(encoding="utf8"))
    keypoints = np.array([entry["keypoints"] for entry in entries], np.float64).reshape(len(entries), -1, 3)
    return columns.Poses(
        np.array([entry["image_id"] for entry in entries], np.int64),
        np.arange(len(entries)),
        keypoints,
        np.array([entry["score"] for entry in entries], np.float64),
        nms.extent_area(keypoints),
        np.array([entry["category_id"] for entry in entries], np.int64),
    )


def measure(truth: columns.GroundTruth, results: pathlib.Path) -> dict[str, Any]:
    """Figures in percent of a results file: {"figures": AP by crowd index and what became of the people, "groups"}.

    `groups` are AP and people of `GROUPS` parts of the pictures, in each of which every so many-th picture is.
    """
    dataset, poses = find_dataset(DATASET), read_poses(results)
    scores = {name: 100 * value for name, value in evaluate.metrics_of(dataset, truth, poses).items()}
    matches, counted = evaluate.match_poses(dataset, truth, poses), crowds.account(dataset, truth, poses)
    groups = []
    for number in range(GROUPS):
        pictures = np.arange(len(truth.image_id)) % GROUPS == number
        precision, _ = oks.average_precision(matches, pictures)
        groups.append(_rounded({"AP": 100 * float(precision[:, 0].mean()), **counted.shares(pictures)}))
    return {"figures": _rounded(scores | crowds.figures(dataset, truth, poses)), "groups": groups}


def _rounded(figures: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in figures.items()}


def by_group(found: list[lines.Line]) -> list[lines.Line]:
    """A line for each arm and group of pictures, the mean of the arm's seeds; its `seed` is the group, to pair arms.

    Seeds see the same pictures: one by one, they would count as further pictures.
    """
    result = []
    for arm in dict.fromkeys(line["arm"] for line in found):
        of_seeds = [line["groups"] for line in found if line["arm"] == arm]
        for group, same in enumerate(zip(*of_seeds, strict=True)):
            figures = {name: float(np.mean([of_seed[name] for of_seed in same])) for name in same[0]}
            result.append({"arm": arm, "seed": group, "figures": figures})
    return result


def run(out: pathlib.Path, seeds: int, steps: int) -> list[dict]:
    """Makes the rows that are not there yet; all lines."""
    path = out / f"{NAME}.jsonl"
    prepare_synthetic(out / "data", [DATASET], **PICTURES)
    truth = columns.ground_truth(load_annotations(DATASET, SPLIT, out / "data"))
    if not lines.find(lines.read(path), arm=ALONE):
        lines.append(path, {"arm": ALONE, "seed": 0, "steps": 0, **measure(truth, find_people(out))})
    boxes = newest_results(out / "boir") / f"{DATASET}_{SPLIT}_boxes.json"
    for seed in range(seeds):
        if lines.find(lines.read(path), arm=WHOLE, seed=seed, steps=steps):
            continue
        workdir = out / f"posebh_{seed}"
        began = time.perf_counter()
        posebh_jax.main.train(posebh_configuration(out, steps, seed, boxes), workdir)
        seconds = round(time.perf_counter() - began, 1)
        folder = newest_results(workdir)
        for arm, name in ((TRUE_BOXES, DATASET), (WHOLE, f"{DATASET}_{SPLIT}_{boxes.stem}")):
            measured = measure(truth, folder / f"{name}_heads.json")
            lines.append(path, {"arm": arm, "seed": seed, "steps": steps, "seconds": seconds, **measured})
    return lines.read(path)


def tables(found: list[lines.Line]) -> str:
    """Figures of every row, and what the whole pipelines lose against the true boxes."""
    names = ("AP", "AP(E)", "AP(M)", "AP(H)", "missed", "duplicates", "merged")
    head = ["AP", "AP easy", "AP medium", "AP hard", *names[4:]]
    rows = [[arm, *(lines.mean(found, name, arm) for name in names)] for arm in ARMS]
    groups = by_group(found)
    compared = ("AP", *names[4:])
    paired = [[arm, *(lines.paired(groups, name, arm, TRUE_BOXES) for name in compared)] for arm in ARMS[1:]]
    return "\n".join(
        [
            lines.markdown([["", *head], *rows]),
            f"Differences from *{TRUE_BOXES}* over {GROUPS} groups of pictures, means of the seeds in each:\n",
            lines.markdown([["", *compared], *paired]),
        ]
    )


def draw(found: list[lines.Line], path: pathlib.Path) -> None:
    """AP of the rows by crowd index."""
    levels = {"all": "AP", "easy": "AP(E)", "medium": "AP(M)", "hard": "AP(H)"}
    groups = {level: {arm: lines.mean(found, name, arm) for arm in ARMS} for level, name in levels.items()}
    lines.plot(path, groups, ylabel="AP", title="by crowd index")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=80)
    args = parser.parse_args(argv)
    found = run(args.out, args.seeds, args.steps)
    (args.out / f"{NAME}.md").write_text(tables(found), encoding="utf8")
    draw(found, args.out / f"{NAME}.svg")
    print(tables(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
