"""PoseBH against the multi-head baseline, from the same multi-head model, on rendered people and animals.

    python -m scripts.experiments.posebh --out=docs/results --seeds=5
    python -m scripts.experiments.posebh --out=docs/results --seeds=5 --base=3000 --poor 100
    python -m scripts.experiments.posebh --out=docs/results --seeds=3 --prototypes=slow --poor 100

Every seed renders pictures of its own, trains one multi-head model from nothing, and goes on from it with every arm for
the same number of steps. The rendered figures' truth is known in every skeleton, so that each head is judged on the
figures of the other datasets too, on keypoints that their labels never had.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from configs import mdt
from data_pipelines.builders.synthetic import prepare_synthetic
from data_pipelines.records import load_annotations
from data_pipelines.top_down.loader import open_source
from pose_common import host_memory
from pose_common.training import logs
from pose_common.training.stages import Stage
from pose_common.training.state import TrainState
from posebh_jax import configuration as posebh_configuration
from posebh_jax.method import BANK, PoseBHMethod
from posebh_jax.same_keypoints import retrieval, same_name
from scripts.experiments import lines, posebh_report, prototype_map
from scripts.experiments.training import (
    Clock,
    Judged,
    Seer,
    Trainer,
    batches,
    judged,
    pck,
    percent,
    starts,
    truth_of,
)

NAME = "posebh"
PEOPLE, ANIMALS = ("synthetic_coco", "synthetic_mpii"), ("synthetic_ap10k", "synthetic_apt36k")
POOR = "synthetic_apt36k"
PROTOTYPES = ("prototype", "prototype_heatmap")


@dataclasses.dataclass(frozen=True)
class Arm:
    """What an arm adds to heatmaps and prototype terms in the last stage: terms, weights, a slip of the release."""

    terms: tuple[str, ...] = ()
    losses: tuple[tuple[str, float], ...] = ()
    slip: bool = False


ARMS: Mapping[str, Arm] = {
    "prototypes": Arm(),
    "+ cluster": Arm(("cluster",)),
    "+ cross-type": Arm(("cross_type",)),
    "all": Arm(("cluster", "cross_type")),
    "all, later prototypes fixed": Arm(("cluster", "cross_type"), slip=True),
}


@dataclasses.dataclass(frozen=True)
class Size:
    """How long and how large.

    Attributes:
      base: steps of the multi-head model that all arms start from.
      first, rest: steps of PoseBH's first stage (embedding and prototypes alone) and of the rest, where all is trained.
      train, val: pictures of each dataset; but of `POOR`, `poor` to train on.
    """

    base: int = 300
    first: int = 150
    rest: int = 100
    train: int = 200
    val: int = 60
    poor: int = 100


# As many steps of backbone and heads as PoseBH takes; as many steps altogether; more, for the time that it takes.
BASELINES: Mapping[str, Callable[[Size], int]] = {
    "multi-head short": lambda size: size.rest,
    "multi-head": lambda size: size.first + size.rest,
    "multi-head x1.7": lambda size: round(1.7 * (size.first + size.rest)),
}
EVERYTHING = ("backbone", "heads", "embedding")
MULTI_HEAD = Stage("multi-head", 1, ("backbone", "heads"), ("heatmap",))
FIRST_STAGE, FIRST_LOSSES = "first stage", {"contrast_weight": 1e-2}
FAST, SLOW = "fast", "slow"
LOSSES: Mapping[str, Mapping[str, float]] = {
    FAST: {"momentum": 0.95, "contrast_weight": 1e-3, "heatmap_weight": 0.1},
    SLOW: {"momentum": 0.999, "contrast_weight": 1e-2, "heatmap_weight": 1.0},
}
"""How prototypes follow the embeddings, and weights that suit it (`configuration`)."""
FIRST = Stage("prototypes", 1, ("embedding",), PROTOTYPES, updates_state=True)


class FirstDatasetOnly(PoseBHMethod):
    """The release's slip (docs/fidelity.md, 2): only the first dataset's prototypes follow the embeddings."""

    def update(self, method_state, observed, axis_name):
        new, seen = super().update(method_state, observed, axis_name)
        first = (self.keypoint_index.dataset_of == 0)[:, None, None]
        return {**new, BANK: jnp.where(first, new[BANK], method_state[BANK])}, seen


def configuration(prototypes: str = FAST) -> ConfigDict:
    """The demo's model on crops of 64x96. One codec: every head can judge a crop.

    Fast prototypes follow with momentum 0.95, so that the first stage lasts several of its time constants, as the
    paper's does of 0.999. Weights are the demo's, but prototype maps count a tenth, and the contrast so in the last
    stage (`FIRST_LOSSES`), whose prototype terms are then as large as the heads'. Slow ones have the demo's settings:
    they hardly move from where they were drawn, and the embeddings come to them.
    """
    config = mdt.get_config("demo")
    config.input_size = (64, 96)
    config.losses.update(LOSSES[prototypes])
    config.clusters.options = (20,)  # of 67 keypoints, as the paper's 64 are of 214
    config.batch_size = 16
    config.learning_rate, config.warmup_steps, config.decay_epochs = 1e-3, 30, (10**6,)
    for name in config.datasets:
        config.codec[name] = "udp"
    return config


def prepare(folder: pathlib.Path, seed: int, size: Size) -> None:
    """Renders a seed's pictures, and the people's and animals' truth in every other skeleton of their kind."""
    for kind in (PEOPLE, ANIMALS):
        for place, dataset in enumerate(kind):
            number = 1000 * (seed + 1) + place
            prepare_synthetic(folder / "own", [dataset], 0 if dataset == POOR else size.train, size.val, seed=number)
            prepare_synthetic(folder / f"truth_{dataset}", kind, 0, size.val, seed=number)
            if dataset == POOR:
                prepare_synthetic(folder / f"poor_{size.poor}", [dataset], size.poor, 0, seed=number)


def open_all(config: ConfigDict, folder: pathlib.Path, split: str, poor: int) -> list:
    """The sources of all datasets."""
    size, few = tuple(config.input_size), f"poor_{poor}"
    return [
        open_source(
            protocol,
            split,
            data_dir=folder / (few if protocol.name == POOR and split == "train" else "own"),
            input_size=size,
            dataset_index=index,
        )
        for index, protocol in enumerate(posebh_configuration.datasets(config))
    ]


@dataclasses.dataclass(frozen=True)
class Pictures:
    """One dataset's validation crops, and their truth [N, K, 3] in the skeletons of its kind."""

    crops: Judged
    truth: Mapping[str, np.ndarray]


def validation(config: ConfigDict, folder: pathlib.Path) -> dict[str, Pictures]:
    """{dataset: its crops and all their truths}."""
    found = {}
    for source in open_all(config, folder, "val", 0):
        crops, name = judged(config, source), source.dataset.name
        truth = {
            head: truth_of(load_annotations(head, "val", folder / f"truth_{name}"), crops.instance_id)
            for head in (PEOPLE if name in PEOPLE else ANIMALS)
        }
        found[name] = Pictures(crops, truth)
    return found


def figures(see: Seer, state: TrainState, pictures: Mapping[str, Pictures]) -> dict[str, float]:
    """PCK@0.1 in percent.

    `own/<d>`: dataset d's head on d's figures; `other/...`: heads on the figures of the other dataset of their kind, as
    of the expert of the picture's dataset (`picture expert`) or of the head's (`head expert`): all keypoints, and
    `unseen`, those without a namesake in the labels of the picture's dataset. `.../prototypes`: by prototype maps.
    """
    datasets = see.method.datasets
    place, names = starts(datasets), {d.name: [same_name(n) for n in d.keypoints.keypoints] for d in datasets}
    out: dict[str, list[float]] = {}
    for number, dataset in enumerate(datasets):
        own = pictures[dataset.name]
        for expert, through in enumerate(datasets):
            heads = [head for head in own.truth if expert == number or through.name == head]
            found = see(state, own.crops, expert) if heads else {}
            for head in heads:
                unseen = [k for k, name in enumerate(names[head]) if name not in names[dataset.name]]
                kind = "people" if dataset.name in PEOPLE else "animals"
                for maps, keypoints in found.items():
                    hits = pck(keypoints[:, place[head]], own.truth[head], own.crops.size)
                    tail = "" if maps == "heads" else "/prototypes"
                    if head == dataset.name:
                        out.setdefault(f"own/{head}{tail}", []).append(percent(*hits))
                        continue
                    whose = "picture expert" if expert == number else "head expert"
                    out.setdefault(f"other/{kind}/{whose}{tail}", []).append(percent(*hits))
                    if unseen:
                        out.setdefault(f"unseen/{kind}/{whose}{tail}", []).append(percent(*hits, unseen))
    return {name: float(np.mean(values)) for name, values in out.items()}


def bank_figures(method: PoseBHMethod, state: TrainState) -> dict[str, float]:
    """Retrieval of namesakes (`posebh_jax.same_keypoints`); {} for the baseline."""
    if not state.method_state:
        return {}
    skeletons = [dataset.keypoints.keypoints for dataset in method.datasets]
    return retrieval(np.asarray(state.method_state[BANK]), skeletons)


class Seed:
    """One seed: its pictures, its multi-head model, and the arms that go on from it, each a line."""

    def __init__(
        self,
        path: pathlib.Path,
        size: Size,
        trainer: Trainer,
        seed: int,
        data: pathlib.Path,
        first_losses: Mapping[str, float] = FIRST_LOSSES,
    ):
        self.path, self.size, self.trainer, self.seed = path, size, trainer, seed
        self.first_losses = first_losses
        self.key = {"seed": seed, "poor": size.poor}
        folder = data / f"{NAME}_{seed}"
        prepare(folder, seed, size)
        self.sources = open_all(trainer.config, folder, "train", size.poor)
        self.pictures = validation(trainer.config, folder)
        self.method = trainer.method()
        self.see = trainer.see

    def data(self, stream: int):
        return batches(self.trainer.config, self.sources, 1000 * self.seed + stream)

    def write(self, arm: str, steps: int, clock: Clock, state: TrainState, seen: Mapping[str, float]) -> None:
        """Judges a state; its line, unless there is one."""
        if self.done(arm):
            return
        bare = state if arm not in ("base", *BASELINES) else state.replace(method_state={})
        found = figures(self.see, bare, self.pictures) | bank_figures(self.method, bare)
        row: dict[str, Any] = {"arm": arm, **self.key, "steps": steps, **clock.rounded()}
        rounded = {name: round(value, 4) for name, value in found.items()}
        losses = {name: round(value, 6) for name, value in seen.items()}
        lines.append(self.path, row | {"figures": rounded, "training": losses})
        logging.info("seed %d, %s, %d steps: %s", self.seed, arm, steps, rounded)

    def done(self, *arms: str) -> bool:
        rows = lines.read(self.path)
        return all(lines.find(rows, arm=arm, **self.key) for arm in arms)

    def run(self, baselines: Mapping[str, Callable[[Size], int]], arms: Mapping[str, Arm]) -> None:
        """Base, baselines and arms, those that are not lines yet."""
        trainer, method, size = self.trainer, self.method, self.size
        clock = Clock()
        base = trainer.init(method, self.seed)
        base, seen = trainer.train(method, base, MULTI_HEAD, self.data(0), size.base, clock)
        self.write("base", size.base, clock, base, seen)
        if not self.done(*baselines):
            state, clock, stream, taken = base, Clock(), self.data(1), 0
            for arm, steps in baselines.items():
                state, seen = trainer.train(method, state, MULTI_HEAD, stream, steps(size) - taken, clock)
                taken = steps(size)
                self.write(arm, taken, clock, state, seen)
        for kind, slip in ((PoseBHMethod, False), (FirstDatasetOnly, True)):
            chosen = {name: arm for name, arm in arms.items() if arm.slip == slip and not self.done(name)}
            if chosen:
                self._posebh(kind, base, chosen)

    def _longer(self, first: TrainState, base: TrainState, clock: Clock) -> None:
        """The first stage goes on to four times its length: what prototypes come to; and a picture of them."""
        steps, clock = 3 * self.size.first, dataclasses.replace(clock)
        method = self.trainer.method(**self.first_losses)
        longer, seen = self.trainer.train(method, first, FIRST, self.data(2), steps, clock)
        self.write(f"{FIRST_STAGE} x4", 4 * self.size.first, clock, longer, seen)
        states = {"untrained": base, FIRST_STAGE: first, f"{FIRST_STAGE} x4": longer}
        banks = {name: np.asarray(state.method_state[BANK]) for name, state in states.items()}
        skeletons = {dataset.name: dataset.keypoints.keypoints for dataset in self.method.datasets}
        prototype_map.draw(self.path.with_name("prototype_map.png"), banks, skeletons)

    def _posebh(self, kind: type[PoseBHMethod], base: TrainState, arms: Mapping[str, Arm]) -> None:
        size, shared, stream = self.size, Clock(), self.data(1)
        method = self.trainer.method(kind, **self.first_losses)
        first, seen = self.trainer.train(method, base, FIRST, stream, size.first, shared)
        if kind is PoseBHMethod and not self.done(FIRST_STAGE):
            self.write(FIRST_STAGE, size.first, shared, first, seen)
            if self.seed == 0 and size == Size() and self.path.stem == NAME:
                self._longer(first, base, shared)
        position = stream.get_state()
        for name, arm in arms.items():
            stage = Stage("all", 1, EVERYTHING, ("heatmap", *PROTOTYPES, *arm.terms))
            clock = dataclasses.replace(shared)
            stream.set_state(position)
            method = self.trainer.method(**dict(arm.losses))  # prototypes do not move any more
            state, seen = self.trainer.train(method, first, stage, stream, size.rest, clock)
            self.write(name, size.first + size.rest, clock, state, seen)


def of_size(size: Size, prototypes: str) -> tuple[Mapping[str, Callable[[Size], int]], Mapping[str, Arm]]:
    """Baselines and arms: all of them at the usual size, some to compare at another, or with slow prototypes."""
    if size == Size():
        return BASELINES, {name: arm for name, arm in ARMS.items() if prototypes == FAST or not arm.slip}
    if size.poor == Size.poor:
        return BASELINES, {name: ARMS[name] for name in ("prototypes", "all")}
    return {"multi-head": BASELINES["multi-head"]}, {"all": ARMS["all"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="lines, tables and plots")
    parser.add_argument(
        "--data", type=pathlib.Path, default=pathlib.Path("workdir/experiments"), help="rendered pictures"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--poor", type=int, nargs="+", default=[100, 25, 400], help=f"pictures of {POOR} to train on")
    parser.add_argument(
        "--base",
        type=int,
        default=Size.base,
        help="steps of the multi-head model that all start from; another number is an experiment of its own",
    )
    parser.add_argument(
        "--prototypes",
        choices=list(LOSSES),
        default=FAST,
        help="how they follow the embeddings; 'slow', the demo's settings, is an experiment of its own",
    )
    args = parser.parse_args()
    host_memory.keep()
    logs.start_logging()
    began = time.perf_counter()
    trainer = Trainer(configuration(args.prototypes), MULTI_HEAD)
    first_losses = FIRST_LOSSES if args.prototypes == FAST else {}
    own = [SLOW] * (args.prototypes == SLOW) + [str(args.base)] * (args.base != Size.base)
    path = args.out / f"{'_'.join([NAME, *own])}.jsonl"
    for poor in args.poor:
        size = Size(base=args.base, poor=poor)
        chosen = of_size(size, args.prototypes)
        for seed in range(args.seeds):
            rows = lines.read(path)
            if not all(lines.find(rows, arm=arm, seed=seed, poor=poor) for arm in ("base", *chosen[0], *chosen[1])):
                Seed(path, size, trainer, seed, args.data, first_losses).run(*chosen)
    arms = of_size(Size(base=args.base), args.prototypes)[1]
    posebh_report.posebh(path, list(arms), list(BASELINES), Size.poor)
    logging.info("%.0f s", time.perf_counter() - began)


if __name__ == "__main__":
    main()
