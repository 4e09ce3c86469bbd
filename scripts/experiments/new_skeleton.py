"""A new skeleton from k annotated pictures: prototypes without training, and what else could be done with them.

    python -m scripts.experiments.new_skeleton --samples=../shared/samples --out=docs/results/new_skeleton.jsonl

The model is the one that the package carries, which knows rendered people and animals only. Skeletons: the middles of
limbs of rendered people, which no dataset annotates; DeepLabCut's open-field mouse; the 14 joints of Leeds Sports
Poses. Arms: `prototypes` (`learn_skeleton`); `plain means` of the backbone's features by the same expert, without
whitening; `linear`, a linear head on the same features, fitted by least squares; `transfer`, training of head and
backbone (`configs/transfer.py:<dataset>,tiny`); `box centre`, which has seen nothing. A run is a
line; those that are there are not run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np

import posebh_jax
from data_pipelines.annotated import Annotated, arrays_of
from data_pipelines.builders.custom import Custom
from data_pipelines.importers import ValShare
from data_pipelines.reading import Reading
from data_pipelines.records import is_prepared
from data_pipelines.synthetic_world import render_scene
from data_pipelines.top_down.crops import TopDownSource
from data_pipelines.top_down.loader import open_source, train_iterator
from pose_common import heatmaps, host_memory
from pose_common.prediction.pictures import Picture
from pose_common.training.step import train_step
from posebh_jax import build, configuration, skeleton, sources
from posebh_jax.crops import crops_of
from posebh_jax.figures import figures_of
from posebh_jax.heads import enlarged
from posebh_jax.pose_model import EMBEDDED, PoseModel
from posebh_jax.predictor import Predictor
from scripts.experiments import lines
from scripts.experiments.training import Some

PEOPLE = (1, 5, 20, 100)
JUDGED = 100
"""Held-back people, at most."""
PROTOTYPES, PLAIN, LINEAR, TRANSFER, CENTRE = ARMS = ("prototypes", "plain means", "linear", "transfer", "box centre")
RIDGE = 1e-3
LIMBS = tuple(
    (f"{side}_{limb}", f"{side}_{start}", f"{side}_{end}")
    for limb, start, end in (
        ("upper_arm", "shoulder", "elbow"),
        ("forearm", "elbow", "wrist"),
        ("thigh", "hip", "knee"),
        ("shin", "knee", "ankle"),
    )
    for side in ("left", "right")
)
"""The middle of a limb, and the joints at its ends."""


@dataclasses.dataclass(frozen=True)
class World:
    """A skeleton: who may be learned from, who judges, and the dataset whose expert `transfer` folds in."""

    name: str
    pool: TopDownSource
    held_back: Annotated
    fold: str
    data_dir: pathlib.Path


def limb_labels(folder: pathlib.Path, split: str, count: int) -> pathlib.Path:
    """Rendered people with the middles of their limbs, as a COCO file with its pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    category = {"id": 1, "name": "person", "keypoints": [name for name, _, _ in LIMBS]}
    document: dict[str, Any] = {"categories": [category], "images": [], "annotations": []}
    for number in range(count):
        scene = render_scene("people", (2027, split == "val"), number)
        name = f"{split}_{number:04d}.png"
        cv2.imwrite(str(folder / name), scene.image[..., ::-1])
        height, width = scene.image.shape[:2]
        document["images"].append({"id": number, "file_name": name, "width": width, "height": height})
        for person in scene.instances:
            where = dict(zip(person.names, person.points, strict=True))
            ends = np.array([[where[start], where[end]] for _, start, end in LIMBS])
            points = ends.mean(axis=1)
            points[:, 2] = 2 * (ends[..., 2] > 0).all(axis=1)
            entry = {"id": len(document["annotations"]) + 1, "image_id": number, "category_id": 1}
            document["annotations"].append(
                entry | {"bbox": person.box.tolist(), "area": float(person.area), "keypoints": points.ravel().tolist()}
            )
    path = folder / f"{split}.json"
    path.write_text(json.dumps(document))
    return path


def prepare(name: str, samples: pathlib.Path, work: pathlib.Path, size: tuple[int, int]) -> World:
    """The prepared dataset of a skeleton."""
    data = work / "data"
    share = ValShare(0.2) if name == "mouse" else None
    for split in ("train", "val"):
        if is_prepared(name, split, data):
            continue
        if name == "limbs":
            path = limb_labels(work / "limbs", split, 300 if split == "train" else JUDGED)
        else:
            path = samples / "openfield" if name == "mouse" else samples / f"lsp/lsp_{split}.json"
        Custom(split, dataset=name, data_dir=data, annotations=path, val_share=share, progress=False).prepare()
    pool, val = (open_source(name, split, data_dir=data, input_size=size) for split in ("train", "val"))
    fold = "synthetic_ap10k" if name == "mouse" else "synthetic_coco"
    return World(name, pool, arrays_of(val, range(min(len(val), JUDGED))), fold, data)


def errors_of(world: World, keypoints: np.ndarray) -> dict[str, float]:
    """{"median": percent of the box's longer side, "pck10": percent of keypoints within a tenth of it}."""
    truth = world.held_back.keypoints
    apart = np.linalg.norm(keypoints[..., :2] - truth[..., :2], axis=-1)
    error = 100 * (apart / world.held_back.boxes[:, None, 2:].max(axis=-1))[truth[..., 2] > 0]
    return {"median": float(np.median(error)), "pck10": 100 * float((error < 10).mean())}


def by_model(world: World, model: PoseModel) -> np.ndarray:
    """Poses [N, K, 3] of the held-back people, in their annotated boxes, with the flip test."""
    boxes = [box[None] for box in world.held_back.boxes]
    return np.concatenate([found.keypoints for found in model(world.held_back.images, boxes=boxes, batch_size=16)])


def linear_head(pose: PoseModel, world: World, given: Annotated, expert: int) -> np.ndarray:
    """Poses by a linear map from the backbone's features to the target maps, fitted by least squares with a ridge."""
    predictor = pose.predictors[True]
    context = skeleton.context_of(predictor, given.dataset)
    variables = {name: pose.weights[name] for name in ("params", "batch_stats")}
    figures = figures_of(given.images, given.keypoints, given.boxes, given.dataset, predictor.input_size)

    def rows_of(features: tuple[jax.Array, jax.Array]) -> jax.Array:
        maps = enlarged(jnp.concatenate(features))
        return jnp.concatenate([maps, jnp.ones((*maps.shape[:3], 1))], axis=-1)

    products, answers = [], []
    for part, features in skeleton.batches(context, variables, figures, expert, 16):
        rows = rows_of(features)
        wanted = skeleton.targets(context, jnp.asarray(part[1]), jnp.asarray(part[2]), (rows.shape[2], rows.shape[1]))
        products.append(np.einsum("bhwc,bhwd->cd", rows, rows, optimize=True))
        answers.append(np.einsum("bhwc,bhwk->ck", rows, wanted, optimize=True))
    product = np.float64(sum(products))
    product += RIDGE * np.trace(product) / len(product) * np.eye(len(product))
    weight = jnp.asarray(np.linalg.solve(product, sum(answers)), jnp.float32)
    crops = [
        crops_of(Picture("", image), box[None], given.dataset, predictor.input_size)[0]
        for image, box in zip(world.held_back.images, world.held_back.boxes, strict=True)
    ]
    image, warp = (np.stack([crop[name] for crop in crops]) for name in ("image", "inverse_warp"))
    unlabelled = np.zeros((len(image), given.dataset.num_keypoints, 2), np.float32)
    maps = []
    for _, features in skeleton.batches(
        context, variables, skeleton.Figures(image, unlabelled, unlabelled[..., 0]), expert, 16
    ):
        plain, mirrored = jnp.split(rows_of(features) @ weight, 2)
        maps.append(heatmaps.flip_merge(plain, mirrored, np.array(context.flip_index), False))
    kernel, blur = context.dark
    return np.asarray(
        heatmaps.decode(
            jnp.concatenate(maps), warp, udp=True, input_size=predictor.input_size, kernel=kernel, blur=blur
        )
    )


def plain_means(pose: PoseModel, given: Annotated, expert: int) -> PoseModel:
    """Means of the backbone's features at the points, as they are."""
    predictor = pose.predictors[True]
    context = skeleton.context_of(predictor, given.dataset)
    variables = {name: pose.weights[name] for name in ("params", "batch_stats")}
    figures = figures_of(given.images, given.keypoints, given.boxes, given.dataset, predictor.input_size)
    choice = skeleton.Choice(expert, skeleton.FEATURES, 1)
    seen = skeleton.observe(context, variables, figures, choice, 16)
    dim = seen.points.shape[-1]
    bank = skeleton.bank_of(seen.points, seen.labelled, 1, context.config)
    learned = skeleton.Learned(choice, jnp.zeros(dim), jnp.eye(dim), bank)
    return pose.with_skeleton(given.dataset, learned, PLAIN)


class Transfer:
    """Training of head and backbone on chosen people of a world; compiled once."""

    def __init__(self, world: World, per_epoch: int):
        overrides = [("data_dir", str(world.data_dir)), ("init_from", str(EMBEDDED)), ("fold", world.fold)]
        path = str(pathlib.Path(__file__).parents[2] / f"configs/transfer.py:{world.name},tiny")
        self.config, self.world = configuration.read(path, overrides), world
        self.method = build.make_method(self.config, per_epoch)
        self.per_epoch = per_epoch
        self.steps = per_epoch * sum(stage.epochs for stage in self.method.stages)
        self.step = functools.cache(
            lambda stage: jax.jit(functools.partial(train_step, method=self.method, stage=stage))
        )

    def __call__(self, pose: PoseModel, rows: np.ndarray, seed: int) -> PoseModel:
        batches = train_iterator(
            [Some(self.world.pool, rows)],
            batch_size=self.config.batch_size,
            input_size=tuple(self.config.input_size),
            seed=seed,
            augmentation=configuration.augmentation(self.config),
            reading=Reading(num_threads=2),
        )
        start = sources.make_start(self.config, self.method.model)
        assert start is not None, "init_from is set"
        state, stream = start(jax.jit(self.method.init)(jax.random.PRNGKey(seed))), iter(batches)
        for stage in self.method.stages:
            change, _ = self.method.enter_stage(state, stage)
            state = jax.jit(change)(state)
            for _ in range(stage.epochs * self.per_epoch):
                state, _ = self.step(stage)(state, next(stream))
        old, protocol = pose.predictors[True], self.world.pool.dataset
        predictor = Predictor(self.method.model, (protocol,), old.input_size, True, old.dark_kernel, old.dark_blur)
        weights = {"prototypes": {}, **state.weights}
        return dataclasses.replace(
            pose, predictors={True: predictor}, weights=weights, datasets={protocol.name: protocol}
        )


def runs(pose: PoseModel, world: World, args: argparse.Namespace) -> None:
    """All runs of a skeleton that are not lines yet."""
    transfer = functools.cache(lambda: Transfer(world, args.per_epoch))
    for people in args.people:
        for seed in range(args.draws):
            one_draw(pose, world, args.out, people, seed, transfer if seed < args.transfers else None)


def one_draw(
    pose: PoseModel,
    world: World,
    out: pathlib.Path,
    people: int,
    seed: int,
    transfer: Callable[[], Transfer] | None,
) -> None:
    """Every arm on the same people."""
    rows = np.random.default_rng((seed, people)).permutation(len(world.pool))[:people]
    key = {"world": world.name, "people": people, "seed": seed}
    experts = [name for name, _ in pose.predictors[True].model.datasets]
    given = functools.cache(lambda: arrays_of(world.pool, rows.tolist()))

    def missing(arm: str) -> bool:
        return lines.find(lines.read(out), arm=arm, **key) is None

    def run(arm: str, find: Callable[[], np.ndarray], steps: int = 0, **more: Any) -> None:
        given()  # reading the pictures is nobody's time
        began, cpu = time.perf_counter(), time.process_time()
        figures = errors_of(world, find())
        took = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
        line = {"arm": arm, **key, "steps": steps, **{name: round(value, 1) for name, value in took.items()}}
        lines.append(out, line | {"figures": figures} | more)
        print(line, figures, more, flush=True)

    if missing(PROTOTYPES):
        them, began = given(), time.perf_counter()
        learned = pose.learn_protocol(them.images, them.keypoints, them.dataset, boxes=them.boxes)
        choice = learned.title.partition("; ")[2].partition(": ")[2]
        learning = round(time.perf_counter() - began, 1)
        run(PROTOTYPES, lambda: by_model(world, learned), choice=choice, learning_seconds=learning)
    first = lines.find(lines.read(out), arm=PROTOTYPES, **key) or {}
    expert = next(number for number, name in enumerate(experts) if f"expert of {name}," in first["choice"])
    if missing(PLAIN):
        run(PLAIN, lambda: by_model(world, plain_means(pose, given(), expert)))
    if missing(LINEAR):
        run(LINEAR, lambda: linear_head(pose, world, given(), expert))
    if missing(CENTRE):
        boxes = world.held_back.boxes
        run(CENTRE, lambda: np.repeat((boxes[:, :2] + boxes[:, 2:] / 2)[:, None], given().keypoints.shape[1], axis=1))
    if transfer is not None and missing(TRANSFER):
        trainer = transfer()
        run(TRANSFER, lambda: by_model(world, trainer(pose, rows, seed)), trainer.steps)


def report(path: pathlib.Path, worlds: list[str]) -> str:
    """Draws the picture beside the lines and returns the tables as Markdown."""
    rows = lines.read(path)
    groups: dict[str, dict[str, lines.Interval]] = {}
    parts = []
    for world in worlds:
        for figure, title in (("median", "median error, % of the box"), ("pck10", "PCK at 10 %")):
            table: list[list[Any]] = [[f"{world}: {title}", *(f"{people}" for people in PEOPLE)]]
            for arm in ARMS:
                chosen = [
                    [line for line in rows if (line["world"], line["people"]) == (world, people)] for people in PEOPLE
                ]
                means = [lines.mean(part, figure, arm) for part in chosen]
                table.append([arm, *means])
                if figure == "median":
                    for people, mean in zip(PEOPLE, means, strict=True):
                        groups.setdefault(f"{world}\n{people}", {})[arm] = mean
            parts.append(lines.markdown(table))
    lines.plot(path.with_suffix(".svg"), groups, ylabel="median error, % of the box's longer side")
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--samples", type=pathlib.Path, default=pathlib.Path("../shared/samples"))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs/results/new_skeleton.jsonl"))
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("workdir/new_skeleton"))
    parser.add_argument("--worlds", nargs="+", default=["limbs", "mouse", "lsp"])
    parser.add_argument("--people", nargs="+", type=int, default=PEOPLE, help="pictures to learn from, one person each")
    parser.add_argument("--draws", type=int, default=3, help="of the k pictures")
    parser.add_argument("--transfers", type=int, default=1, help="draws that transfer training runs on")
    parser.add_argument("--per_epoch", type=int, default=1, help="steps an epoch of transfer training, of 60 epochs")
    args = parser.parse_args()
    host_memory.keep()
    pose = posebh_jax.load()
    for name in args.worlds:
        runs(pose, prepare(name, args.samples, args.work, pose.predictors[True].input_size), args)
    print(report(args.out, args.worlds))


if __name__ == "__main__":
    main()
