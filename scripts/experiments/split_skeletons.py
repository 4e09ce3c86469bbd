"""Split skeletons, of real and of rendered people: does one half of the labels teach the other half's pictures?

    python -m scripts.experiments.split_skeletons --samples=../shared/samples/lsp --out=docs/results --seeds=3
    python -m scripts.experiments.split_skeletons --world=rendered --out=docs/results --seeds=3

Half of the training pictures keep some of the joints, the other half the rest: two datasets, two heads, two experts,
and no joint is labelled in both. Every head is judged on all validation pictures, as they pass through its own expert
and through the other's, with which its joints were never labelled. The upper bound sees all labels with both.

Pictures: Leeds Sports Pose Extended (Johnson and Everingham, CVPR 2011), http://sam.johnson.io/research/lspet.html, in
COCO's format, a file each for training and validation, `lsp_train.json` and `lsp_val.json`, beside `images/`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import math
import pathlib
import time
from collections.abc import Mapping, Sequence

import cv2
import jax
import numpy as np
from ml_collections import ConfigDict

from configs import mdt
from data_pipelines.builders.custom import Custom
from data_pipelines.datasets import find_dataset
from data_pipelines.records import is_prepared, load_annotations
from data_pipelines.skeletons import KEYPOINT_SETS
from data_pipelines.synthetic_world import render_scene, skeleton_keypoints
from data_pipelines.top_down.loader import open_source
from pose_common import host_memory
from pose_common.training import logs
from pose_common.training.stages import Stage
from pose_common.training.state import TrainState
from pose_common.weights.embedded import read_embedded
from posebh_jax import configuration as posebh_configuration
from posebh_jax.method import PoseBHMethod
from posebh_jax.pose_model import EMBEDDED
from posebh_jax.weights.transfer import start_from
from scripts.experiments import lines, posebh_report
from scripts.experiments.posebh import (
    EVERYTHING,
    FAST,
    FIRST,
    FIRST_LOSSES,
    FIRST_STAGE,
    LOSSES,
    MULTI_HEAD,
    PROTOTYPES,
    Arm,
    Size,
)
from scripts.experiments.pseudo_labels import hits_of, percent_of, see_all
from scripts.experiments.training import Clock, Judged, Seer, Some, Trainer, batches, judged, pck, percent, truth_of

NAME = "split_skeletons"
FULL = "split_full"
ARMS: Mapping[str, Arm] = {
    "prototypes": Arm(),
    "+ cross-type": Arm(("cross_type",)),
    "+ cross-type x10": Arm(("cross_type",), (("cross_type_weight", 1.0),)),
}
BASELINES: Mapping[str, int] = {"multi-head short": 120, "multi-head": 270}
BOUND = "all labels"
SIZE = Size(base=1500, first=150, rest=120)


def halves(names: Sequence[str], split: str) -> tuple[list[str], list[str]]:
    """The joints that each half of the pictures keeps.

    Args:
      names: all joints.
      split: 'hips': those above the hips, and the rest; 'alternate': every other joint.
    """
    if split == "alternate":
        return list(names[::2]), list(names[1::2])
    lower = [name for name in names if name.split("_")[-1] in ("hip", "knee", "ankle")]
    return [name for name in names if name not in lower], lower


def datasets_of(split: str) -> tuple[str, str]:
    """The names of the datasets of the two halves."""
    return (f"split_{split}_a", f"split_{split}_b")


def render(folder: pathlib.Path, train: int = 400, val: int = 100) -> None:
    """Pictures of rendered people with the same 14 joints, in the layout of the real ones, unless they are there."""
    skeleton = KEYPOINT_SETS["aic"]
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number, (part, count) in enumerate((("train", train), ("val", val))):
        file = folder / f"lsp_{part}.json"
        if file.is_file():
            continue
        document: dict = {"images": [], "annotations": []}
        document["categories"] = [{"id": 1, "name": "person", "keypoints": list(skeleton.keypoints)}]
        for index in range(count):
            scene, name = render_scene("people", (9000, number), index), f"{part}_{index:05d}.jpg"
            cv2.imwrite(str(folder / "images" / name), scene.image[..., ::-1])
            height, width = scene.image.shape[:2]
            document["images"].append({"id": index + 1, "file_name": name, "width": width, "height": height})
            for person in (person for person in scene.instances if person.labelled):
                points = skeleton_keypoints(person, skeleton)
                document["annotations"].append(
                    {
                        "id": len(document["annotations"]) + 1,
                        "image_id": index + 1,
                        "category_id": 1,
                        "iscrowd": 0,
                        "bbox": [round(float(value), 1) for value in person.box],
                        "area": float(person.area),
                        "num_keypoints": int((points[:, 2] > 0).sum()),
                        "keypoints": [round(float(value), 1) for value in points.reshape(-1)],
                    }
                )
        file.write_text(json.dumps(document), encoding="utf8")


def prepare(samples: pathlib.Path, data: pathlib.Path, split: str) -> None:
    """Records of all pictures with all joints, and with those of each half."""
    for part in ("train", "val"):
        file = samples / f"lsp_{part}.json"
        if not file.is_file():
            raise SystemExit(f"{file} is not there; see the head of scripts/experiments/{NAME}.py for where to get it")
        document = json.loads(file.read_text(encoding="utf8"))
        names = document["categories"][0]["keypoints"]
        for dataset, kept in zip((FULL, *datasets_of(split)), (names, *halves(names, split)), strict=True):
            if is_prepared(dataset, part, data):
                continue
            labels = data / f"{dataset}_{part}.json"
            labels.parent.mkdir(parents=True, exist_ok=True)
            labels.write_text(json.dumps(only(document, kept)), encoding="utf8")
            where = {"annotations": labels, "images": samples / "images"}
            Custom(part, dataset=dataset, data_dir=data, progress=False, **where).prepare()


def only(document: dict, kept: Sequence[str]) -> dict:
    """The document with these joints alone."""
    (category,) = document["categories"]
    rows = [category["keypoints"].index(name) for name in kept]
    annotations = []
    for entry in document["annotations"]:
        points = np.reshape(entry["keypoints"], (-1, 3))[rows]
        labelled = int((points[:, 2] > 0).sum())
        annotations.append(entry | {"keypoints": points.reshape(-1).tolist(), "num_keypoints": labelled})
    plain = {name: value for name, value in category.items() if name != "skeleton"}
    return document | {"annotations": annotations, "categories": [plain | {"keypoints": list(kept)}]}


def configuration(data: pathlib.Path, split: str) -> ConfigDict:
    """The demo's model and crops, as `scripts.experiments.posebh` weighs losses."""
    config = mdt.get_config("demo")
    config.data_dir = str(data)
    config.datasets = datasets_of(split)
    posebh_configuration.fill_tables(config)
    for name in config.datasets:
        config.codec[name] = "udp"
        config.augmentation.scale_factor[name], config.augmentation.rotation_factor[name] = 0.25, 30.0
    if split == "alternate":
        config.augmentation.flip = 0.0  # a joint and its mirror image are in different halves
    config.losses.update(LOSSES[FAST])
    config.learning_rate, config.warmup_steps, config.decay_epochs = 5e-4, 30, (10**6,)
    return config


def figures(see: Seer, state: TrainState, crops: Judged, truth: np.ndarray) -> dict[str, float]:
    """PCK@0.1, percent, of all joints: by heads and by prototypes, through the head's own expert and the other's.

    Args:
      truth: [N, T, 3], joints in the order of the two heads.
    """
    first = see.method.keypoint_index.counts[0]
    total = truth.shape[1]
    parts = {"a": range(first), "b": range(first, total)}
    out: dict[str, float] = {}
    seen = [see(state, crops, expert) for expert in (0, 1)]
    for maps in seen[0]:
        for whose, experts in (("own expert", (0, 1)), ("other expert", (1, 0))):
            found = np.concatenate([seen[experts[0]][maps][:, :first], seen[experts[1]][maps][:, first:]], axis=1)
            hits = pck(found, truth, crops.size)
            tail = "" if maps == "heads" else "/prototypes"
            out[f"{whose}{tail}"] = percent(*hits)
            out |= {f"{whose}/{part}{tail}": percent(*hits, rows) for part, rows in parts.items()}
    return out


def labels(method: PoseBHMethod, state: TrainState, crops: Judged, truth: np.ndarray) -> dict[str, float]:
    """Pseudo labels on crops as each half's pictures: percent of the other half's joints that are given one
    (`labels/chosen`), and of those the share that head, prototypes and label have right (PCK@0.1).

    Args:
      truth: [N, T, 3], joints in the order of the two heads.
    """
    found: dict[str, list[np.ndarray]] = {}
    for number in (0, 1):
        others = ~np.asarray(method.keypoint_index.own(np.array([number])))[0]
        hits = hits_of(see_all(method, state, crops, number), others, truth[:, others], crops.size)
        for name, values in hits.items():
            found.setdefault(name, []).append(values)
    return {f"labels/{name}": percent_of(values) for name, values in found.items()}


class Runs:
    """All runs of one split; each is a line."""

    def __init__(self, out: pathlib.Path, data: pathlib.Path, world: str, split: str, size: Size):
        self.path, self.size = out / f"{NAME}.jsonl", size
        self.key = {"world": world, "split": split}
        self.trainer = Trainer(configuration(data, split), MULTI_HEAD)
        self.method = self.trainer.method()
        shape = tuple(self.trainer.config.input_size)
        self.sources = [
            open_source(protocol, "train", data_dir=data, input_size=shape, dataset_index=index)
            for index, protocol in enumerate(self.method.datasets)
        ]
        udp = dataclasses.replace(find_dataset(FULL, data), codec="udp")
        self.crops = judged(self.trainer.config, open_source(udp, "val", data_dir=data, input_size=shape))
        order = [udp.keypoints.keypoints.index(k) for d in self.method.datasets for k in d.keypoints.keypoints]
        self.truth = truth_of(load_annotations(FULL, "val", data), self.crops.instance_id)[:, order]
        self.see = self.trainer.see

    def stream(self, seed: int, number: int, every_label: bool = False):
        rows = np.random.default_rng(seed).permutation(len(self.sources[0]))
        middle = len(rows) // 2
        halved = [Some(source, part) for source, part in zip(self.sources, (rows[:middle], rows[middle:]), strict=True)]
        return batches(self.trainer.config, self.sources if every_label else halved, 1000 * seed + number)

    def start(self, seed: int) -> TrainState:
        """Newly initialised heads on the embedded model's backbone, which knows rendered figures."""
        state = self.trainer.init(self.method, seed)
        known = start_from(read_embedded(EMBEDDED), jax.device_get(state.weights), self.method.model)
        return state.with_weights(known.tree)

    def done(self, seed: int, *arms: str) -> bool:
        rows = lines.read(self.path)
        return all(lines.find(rows, arm=arm, seed=seed, **self.key) for arm in arms)

    def write(
        self, arm: str, seed: int, steps: int, clock: Clock, state: TrainState, seen: Mapping[str, float]
    ) -> None:
        """Judges a state; its line, unless there is one."""
        if self.done(seed, arm):
            return
        with_bank = arm in (*ARMS, FIRST_STAGE)
        bare = state if with_bank else state.replace(method_state={})
        values = figures(self.see, bare, self.crops, self.truth)
        if with_bank:
            values |= labels(self.method, state, self.crops, self.truth)
        found = {name: round(value, 3) for name, value in values.items() if not math.isnan(value)}
        losses = {name: round(value, 6) for name, value in seen.items()}
        row = {"arm": arm, "seed": seed, **self.key, "steps": steps, **clock.rounded()}
        lines.append(self.path, row | {"figures": found, "training": losses})
        logging.info("%s, seed %d, %s: %s", self.key, seed, arm, found)

    def run(self, seed: int) -> None:
        if self.done(seed, "base", *BASELINES, *ARMS, BOUND):
            return
        train, size, method = self.trainer.train, self.size, self.method
        start, clock, more = self.start(seed), Clock(), self.size.first + self.size.rest
        base, seen = train(method, start, MULTI_HEAD, self.stream(seed, 0), size.base, clock)
        self.write("base", seed, size.base, clock, base, seen)
        if not self.done(seed, *BASELINES):
            state, clock, stream, taken = base, Clock(), self.stream(seed, 1), 0
            for arm, steps in BASELINES.items():
                state, seen = train(method, state, MULTI_HEAD, stream, steps - taken, clock)
                taken = steps
                self.write(arm, seed, taken, clock, state, seen)
        if not self.done(seed, *ARMS):
            self._posebh(base, seed)
        if not self.done(seed, BOUND):
            clock = Clock()
            state, seen = train(method, start, MULTI_HEAD, self.stream(seed, 2, True), size.base + more, clock)
            self.write(BOUND, seed, size.base + more, clock, state, seen)

    def _posebh(self, base: TrainState, seed: int) -> None:
        stream, shared, size = self.stream(seed, 1), Clock(), self.size
        first, seen = self.trainer.train(self.trainer.method(**FIRST_LOSSES), base, FIRST, stream, size.first, shared)
        self.write(FIRST_STAGE, seed, size.first, shared, first, seen)
        position = stream.get_state()
        for name, arm in ARMS.items():
            if self.done(seed, name):
                continue
            clock = dataclasses.replace(shared)
            stream.set_state(position)
            stage = Stage("all", 1, EVERYTHING, ("heatmap", *PROTOTYPES, *arm.terms))
            method = self.trainer.method(**dict(arm.losses))
            state, seen = self.trainer.train(method, first, stage, stream, size.rest, clock)
            self.write(name, seed, size.first + size.rest, clock, state, seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--world", choices=["lsp", "rendered"], default="lsp", help="real or rendered people")
    parser.add_argument("--samples", type=pathlib.Path, default=pathlib.Path("../shared/samples/lsp"))
    parser.add_argument("--out", type=pathlib.Path, required=True, help="lines, tables and plots")
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path("workdir/experiments/split"), help="records")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--splits", nargs="+", default=["hips", "alternate"])
    args = parser.parse_args()
    host_memory.keep()
    logs.start_logging()
    began = time.perf_counter()
    for split in args.splits:
        rows = lines.read(args.out / f"{NAME}.jsonl")
        wanted = [(arm, seed) for arm in ("base", *BASELINES, *ARMS, BOUND) for seed in range(args.seeds)]
        if all(lines.find(rows, arm=arm, seed=seed, world=args.world, split=split) for arm, seed in wanted):
            continue
        data, samples = args.data / args.world, args.samples
        if args.world == "rendered":
            samples = data / "pictures"
            render(samples)
        prepare(samples, data, split)
        runs = Runs(args.out, data, args.world, split, SIZE)
        for seed in range(args.seeds):
            runs.run(seed)
    posebh_report.split_skeletons(args.out, ["multi-head short", *ARMS, BOUND], "multi-head")
    logging.info("%.0f s", time.perf_counter() - began)


if __name__ == "__main__":
    main()
