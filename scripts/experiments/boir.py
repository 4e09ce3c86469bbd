"""Whether BoIR's box-supervised embedding keeps people of a crowd apart, and what it costs.

    python -m scripts.experiments.boir --out=workdir/boir_evidence --seeds=3
    python -m scripts.experiments.boir --out=workdir/boir_evidence --seeds=3 --start_steps=0 --steps=800

The model of `configs/boir.py:demo` first learns rendered crowds without the box-mask embedding loss (`--start_steps`;
0: not at all, every seed begins with weights of its own).
From there it goes on (`--steps`) without that loss and with each of its forms: pushed from the background of the
picture or of each box, with and without pull. Runs of one seed begin with the same weights and see the same batches.
One line a run goes to `<out>/boir.jsonl`; runs that are there are not repeated.
At the end the tables and the plot are made of all lines: `<out>/boir.md`, `<out>/boir.svg`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import pathlib
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from boir_jax import build
from boir_jax.losses import LossConfig, loss_terms
from boir_jax.method import TERMS, BoIRMethod
from configs import boir
from data_pipelines.builders.synthetic import prepare_synthetic
from data_pipelines.whole_image.loader import eval_loader
from data_pipelines.whole_image.pictures import STRIDE
from pose_common import host_memory
from pose_common.images import normalise_pixels
from pose_common.metrics import columns, evaluate
from pose_common.training import parallel
from pose_common.training.distributed import use_compilation_cache
from pose_common.training.mesh import make_mesh
from pose_common.training.state import TrainState
from pose_common.training.step import train_step
from pose_common.weights.keys import flatten, unflatten
from scripts.experiments import crowds, lines
from scripts.experiments.boir_inference import inference_cost

NAME, COST, START, GRADIENT = "boir", "inference", "start", "gradient"
BASELINE = "no embedding loss"
ARMS: dict[str, dict[str, Any]] = {
    BASELINE: {"embedding": 0.0},
    "image": {"background": "image", "pull": False},
    "image, pull": {"background": "image", "pull": True},
    "instance": {"background": "instance", "pull": False},
    "instance, pull": {"background": "instance", "pull": True},
    "instance, pull, x 10": {"background": "instance", "pull": True, "embedding": 2.5},
    "instance, pull, bias 0": {"background": "instance", "pull": True},
    "instance, pull, bias 0, x 10": {"background": "instance", "pull": True, "embedding": 2.5},
}
"""What each arm changes in `config.losses`. `image` are the released settings, `instance, pull` those of finetuning."""
WITHOUT_BIAS = ("instance, pull, bias 0", "instance, pull, bias 0, x 10")
"""Their embedding heads' last bias begins at 0. With the release's -4.6 in every channel, beside weights of 0.001, all
embeddings begin as one direction, where the loss that is to push them apart has no gradient.
"""
WARMUP = 10
ARM = "arm"
"""Field of a batch: number of the arm."""
PICTURES = {"num_train": 400, "num_val": 160}
MAPS = ("embedding", "features")
"""What silhouettes are measured of: the embedding head's map and the backbone's, which the keypoints are drawn from."""
SHARE = "share of the gradient"
"""The embedding loss's, in percent of the other losses', on one batch."""
PLACES = ("keypoints", "centres")
"""Where: at everybody's visible keypoints, and in the 3 x 3 cells around the middle of everybody's box."""
SILHOUETTES = tuple(f"silhouette, {name} at {place}" for name in MAPS for place in PLACES)


@dataclasses.dataclass(frozen=True, eq=False)
class Arms(BoIRMethod):
    """BoIR with the losses of the arm that the batch names, so that one compiled step serves all arms."""

    of_arms: tuple[LossConfig, ...] = ()

    def weigh(self, dense, maps, targets, batch, axis_name):
        terms = [functools.partial(loss_terms, config=losses, axis_name=axis_name) for losses in self.of_arms]
        return jax.lax.switch(batch[ARM][0], terms, dense, maps, targets)


def configuration(out: pathlib.Path) -> ConfigDict:
    """The demo's settings; more pictures to judge, fewer proposals, no flip test."""
    config = boir.get_config("demo")
    config.data_dir = str(out / "data")
    config.synthetic = ConfigDict(PICTURES)
    config.proposals.flip, config.proposals.maximum = False, 20
    config.pictures = 0
    return config


def make_method(config: ConfigDict, start: int, steps: int) -> Arms:
    """The method of all arms. The rate is constant up to the step `start`, then half a cosine; both warm up."""
    method = build.make_method(config, 1)

    def schedule(step):
        since = jnp.where(step < start, step, step - start)
        falling = jnp.clip((step - start) / steps, 0, 1)
        return config.learning_rate * jnp.minimum(1, (since + 1) / WARMUP) * (1 + jnp.cos(jnp.pi * falling)) / 2

    fields = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
    fields["optimizer"] = dataclasses.replace(method.optimizer, schedule=schedule)
    return Arms(**fields, of_arms=tuple(LossConfig(**{**config.losses, **arm}) for arm in ARMS.values()))


class Trainer:
    """The compiled step of all arms.

    Args:
      config: see `configuration`.
      start, steps: see `make_method`.
    """

    def __init__(self, config: ConfigDict, start: int, steps: int):
        self.method, self.start = make_method(config, start, steps), start
        self.strategy = parallel.make_strategy(config.parallel, config.fsdp, config.fsdp_min_size)
        step = functools.partial(train_step, method=self.method, stage=self.method.stages[0])
        self.step = self.strategy.compile(step, jax.eval_shape(self.method.init, jax.random.PRNGKey(0)))

    def begin(self, seed: int, start: Any, arm: str = BASELINE) -> TrainState:
        """The state before the first step, from weights (None: from nothing).

        The embedding head has the seed's own values: nothing has trained it before.
        """
        state = self.strategy.create(self.method.init, jax.random.PRNGKey(seed))
        fresh = {name: state.weights[name]["embedding_head"] for name in ("params", "batch_stats")}
        if arm in WITHOUT_BIAS:
            output = fresh["params"]["output"]
            output = {**output, "bias": jnp.zeros_like(output["bias"])}
            fresh["params"] = {**fresh["params"], "output": output}
        rest = state.weights if start is None else start
        mixed = {name: {**rest[name], "embedding_head": fresh[name]} for name in fresh}
        state = state.with_weights({**state.weights, **jax.tree.map(jnp.array, mixed)})
        return state.replace(step=jnp.full_like(state.step, self.start))

    def named(self, batch: dict, arm: str) -> dict:
        """The batch on the device, with its arm's number."""
        return self.strategy.put({**batch, ARM: np.full(len(batch["image"]), list(ARMS).index(arm), np.int32)})

    def __call__(self, seed: int, start: Any, batches: Iterable[dict], arm: str) -> tuple[Any, dict[str, float]]:
        """Trains from weights (None: from nothing) on the batches.

        Returns:
          The weights; the last loss and the seconds of all steps but the first.
        """
        state = self.begin(seed, start, arm)
        began = time.perf_counter()
        for number, batch in enumerate(batches):
            state, metrics = self.step(state, self.named(batch, arm))
            if number == 0:
                jax.block_until_ready(state)
                began = time.perf_counter()
        loss = float(metrics["loss"])
        return state.weights, {"loss": round(loss, 5), "seconds": round(time.perf_counter() - began, 1)}


def make_gradient_share(method: BoIRMethod) -> Any:
    """(state, batch) -> norm of the embedding loss's gradient over that of all other terms', at the backbone; compiled.

    The batch names its arm.
    """

    @jax.jit
    def norm(state, batch, counted):
        def part(backbone):
            _, output = method.loss({**state.params, "backbone": backbone}, state, batch, state.rng, None, None)
            return sum(counted[name] * value for name, value in output.terms.items())

        return optax.global_norm(jax.grad(part)(state.params["backbone"]))

    def share(state: TrainState, batch: dict) -> float:
        alone, others = (
            norm(state, batch, {name: float(own == (name == "embedding")) for name in TERMS}) for own in (True, False)
        )
        return float(alone / others)

    return share


class Judge:
    """Figures of weights on the pictures to judge: AP by crowd index, people lost and doubled, silhouettes.

    Args:
      config: see `configuration`.
      method: whose network.
      workdir: nothing is written to it.
    """

    def __init__(self, config: ConfigDict, method: BoIRMethod, workdir: pathlib.Path):
        self.evaluator = build.make_evaluator(config, method.model, make_mesh(), workdir)
        self.embed = make_embed(method)
        self.loader = eval_loader(
            config.dataset,
            config.eval_split,
            data_dir=config.data_dir,
            batch_size=config.eval_batch_size,
            input_size=config.input_size,
            reading=self.evaluator.reading,
        )

    def __call__(self, weights: Any) -> dict[str, float]:
        task, truth = self.evaluator.tasks[0], columns.ground_truth(self.loader.annotations)
        poses = self.evaluator.find_poses(weights, task, self.loader)
        scores = evaluate.metrics_of(task.protocol, truth, poses)
        figures = {name: 100 * value for name, value in scores.items()} | crowds.figures(task.protocol, truth, poses)
        return {name: round(value, 4) for name, value in (figures | self.silhouettes(weights)).items()}

    def silhouettes(self, weights: Any) -> dict[str, float]:
        """Mean silhouette x 100, by person, of the `MAPS` at the `PLACES` of every picture with two people or more."""
        source = self.loader.source
        samples = {sample["image_id"]: sample for sample in map(source.describe, range(len(source)))}
        found: dict[str, list[float]] = {name: [] for name in SILHOUETTES}
        for batch in self.loader:
            maps = {name: np.asarray(value) for name, value in self.embed(weights, batch["image"]).items()}
            for row in np.flatnonzero(batch["valid"]):
                sample, size = samples[int(batch["image_id"][row])], maps["features"].shape[1:3]
                points = sample["keypoints"], middles(sample["boxes"], batch["inverse_warp"][row])
                for place, where in zip(PLACES, points, strict=True):
                    cells, person = visible_cells(where, batch["inverse_warp"][row], size)
                    if len(np.unique(person)) > 1:
                        for name in MAPS:
                            values = crowds.silhouette(maps[name][row, cells[:, 1], cells[:, 0]], person)
                            found[f"silhouette, {name} at {place}"].append(float(values.mean()))
        return {name: 100 * float(np.mean(values)) for name, values in found.items()}


def middles(boxes: np.ndarray, inverse_warp: np.ndarray) -> np.ndarray:
    """Points [P, 9, 3], a cell apart, around the middle of boxes [P, 4] in image pixels, marked as visible."""
    steps = np.stack(np.meshgrid((-1, 0, 1), (-1, 0, 1)), axis=-1).reshape(1, 9, 2) * STRIDE
    points = (boxes[:, None, :2] + boxes[:, None, 2:] / 2) + steps @ inverse_warp[:, :2].T
    return np.concatenate([points, np.full((*points.shape[:2], 1), 2.0)], axis=-1)


def visible_cells(points: np.ndarray, inverse_warp: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Map cells (x, y) [n, 2] of the visible keypoints of people [P, K, 3] in image pixels, and whose they are [n].

    Args:
      inverse_warp: [2, 3], input pixels -> image pixels.
      size: (height, width) of the map, at a quarter of the input's.
    """
    person, keypoint = np.nonzero(points[..., 2] == 2)
    offset = points[person, keypoint, :2] - inverse_warp[:, 2]
    cells = np.floor(np.linalg.solve(inverse_warp[:, :2], offset.T).T / STRIDE).astype(int)
    inside = ((cells >= 0) & (cells < size[::-1])).all(1)
    return cells[inside], person[inside]


def make_embed(method: BoIRMethod) -> Any:
    """(weights, pictures uint8 [B, H, W, 3]) -> {"embedding", "features"}: maps [B, h, w, .]; compiled."""

    @jax.jit
    def embed(weights, images):
        model = method.model.bind({name: weights[name] for name in ("params", "batch_stats")})
        features = model.features(normalise_pixels(images), False)
        return {"embedding": model.dense(features, False)["embedding"], "features": features}

    return embed


def start_of(path: pathlib.Path, config: ConfigDict, trainer: Trainer) -> Any:
    """The weights that all arms go on from, trained without the embedding loss, read where they are already.

    None where they go on from nothing.
    """
    if not trainer.start:
        return None
    if not path.is_file():
        batches = itertools.islice(build.make_loader(config), trainer.start)
        weights, spent = trainer(0, None, batches, BASELINE)
        flat = {name: np.asarray(value) for name, value in flatten(weights).items()}
        np.savez(path, **flat)
        print(f"start: {trainer.start} steps, {spent['seconds']:.0f} s", flush=True)
    with np.load(path) as file:
        return unflatten(dict(file))


def _percent(share: float) -> float:
    return float(f"{100 * share:.3g}")


def run(out: pathlib.Path, seeds: int, start_steps: int, steps: int, arms: Sequence[str]) -> list[dict]:
    """Trains and judges what is not there yet; all lines."""
    config, path = configuration(out), out / f"{NAME}.jsonl"
    prepare_synthetic(config.data_dir, [config.dataset], **config.synthetic)
    use_compilation_cache(config.compilation_cache)
    trainer = Trainer(config, start_steps, steps)
    start = start_of(out / f"start_{start_steps}.npz", config, trainer)
    share = make_gradient_share(trainer.method)
    judge = Judge(config, trainer.method, out)
    if not lines.find(lines.read(path), arm=COST):
        for row in inference_cost(trainer.method, config.proposals.maximum):
            lines.append(path, {"arm": COST, "seed": 0, **row})
    key = {"start": start_steps, "steps": steps}
    if start is not None and not lines.find(lines.read(path), arm=START, start=start_steps):
        lines.append(path, {"arm": START, "seed": 0, "start": start_steps, "figures": judge(start)})
    for seed in range(1, seeds + 1):
        done = lines.read(path)
        missing = [arm for arm in arms if not lines.find(done, arm=arm, seed=seed, **key)]
        config.seed = seed
        batches = list(itertools.islice(build.make_loader(config), steps)) if missing else []
        if batches and not lines.find(done, arm=GRADIENT, start=start_steps):
            for arm in ARMS:
                before = _percent(share(trainer.begin(seed, start, arm), trainer.named(batches[0], arm)))
                row = {"seed": seed, "start": start_steps, "loss": arm, f"{SHARE} at the start, %": before}
                lines.append(path, {"arm": GRADIENT, **row})
        for arm in missing:
            weights, spent = trainer(seed, start, batches, arm)
            figures = judge(weights)
            state = trainer.begin(seed, start).with_weights(weights)
            figures[SHARE] = _percent(share(state, trainer.named(batches[0], arm)))
            lines.append(path, {"arm": arm, "seed": seed, **key, **spent, "figures": figures})
            print(f"seed {seed}, {arm}: AP {figures['AP']:.1f}, {spent['seconds']:.0f} s", flush=True)
    return [line for line in lines.read(path) if key.items() <= {**key, **line}.items()]


def tables(found: list[lines.Line]) -> str:
    """Figures of every arm, paired differences from the arm without the loss, and the cost at inference."""
    names = [*(f"AP{level}" for level in ("", "(E)", "(M)", "(H)")), "missed", "duplicates", "merged", *SILHOUETTES]
    shown = {"AP(E)": "AP easy", "AP(M)": "AP medium", "AP(H)": "AP hard"}
    head = ["loss", "seconds", *(shown.get(name, name) for name in names)]
    arms = [arm for arm in ARMS if lines.mean(found, "AP", arm).count]
    means = [
        [arm, f"{lines.mean(found, 'seconds', arm).mean:.0f}", *(lines.mean(found, name, arm) for name in names)]
        for arm in arms
    ]
    if lines.find(found, arm=START):
        means.insert(0, ["(start)", "", *(lines.mean(found, name, START) for name in names)])
    paired = [[arm, *(lines.paired(found, name, arm, BASELINE) for name in names)] for arm in arms if arm != BASELINE]
    others = [[line for line in found if line["arm"] == arm] for arm in (GRADIENT, COST)]
    return "\n".join(
        [
            lines.markdown([head, *means]),
            f"Differences from *{BASELINE}*:\n",
            lines.markdown([["loss", *head[2:]], *paired]),
            *(_table(group) for group in others if group),
        ]
    )


def _table(found: list[lines.Line]) -> str:
    names = [name for name in found[0] if name not in ("arm", "seed", "start")]
    return lines.markdown([names, *([line[name] for name in names] for line in found)])


def draw(found: list[lines.Line], path: pathlib.Path) -> None:
    """The paired differences of AP and of people; silhouettes, of another scale, are in the table alone."""
    names = ("AP", "AP(E)", "AP(M)", "AP(H)", "missed", "duplicates", "merged")
    arms = [arm for arm in ARMS if arm != BASELINE and lines.find(found, arm=arm)]
    groups = {name: {arm: lines.paired(found, name, arm, BASELINE) for arm in arms} for name in names}
    lines.plot(path, groups, ylabel=f"difference from {BASELINE}", zero=True, title="points")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--start_steps", type=int, default=400)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(ARMS))
    args = parser.parse_args(argv)
    host_memory.keep()
    found = run(args.out, args.seeds, args.start_steps, args.steps, args.arms)
    (args.out / f"{NAME}.md").write_text(tables(found), encoding="utf8")
    draw(found, args.out / f"{NAME}.svg")
    print(tables(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
