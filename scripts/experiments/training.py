"""What PoseBH's experiments share: training in memory, stage by stage, and heads that are judged on any skeleton.

No checkpoints and no reports: a run takes a minute, several start from the same state, and what is kept of it is its
line of figures. The steps are those of `posebh_jax.main`.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from data_pipelines.datasets import PoseDataset
from data_pipelines.reading import Reading
from data_pipelines.top_down.crops import TopDownSource
from data_pipelines.top_down.loader import EvalLoader, train_iterator
from pose_common import heatmaps
from pose_common.images import normalise_pixels
from pose_common.training.stages import Stage
from pose_common.training.state import TrainState
from pose_common.training.step import FINITE, train_step
from posebh_jax import build, configuration
from posebh_jax.comparison import best_similarities
from posebh_jax.method import BANK, PoseBHMethod
from posebh_jax.prototypes import prototype_heatmaps


@dataclasses.dataclass
class Clock:
    """Time spent in steps: on the wall, and of processors, which other work on the machine does not lengthen."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def rounded(self) -> dict[str, float]:
        """The fields, as a line of results has them."""
        return {name: round(value, 1) for name, value in dataclasses.asdict(self).items()}


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Steps of a method, each stage compiled once for all runs.

    Attributes:
      config: of the run; only its model, data, losses and optimizer count here, not its stages.
      first: the stage that an initial state is made for.
    """

    config: ConfigDict
    first: Stage
    methods: dict[Any, PoseBHMethod] = dataclasses.field(default_factory=dict)
    compiled: dict[Any, Callable] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def see(self) -> Seer:
        """Predictions, compiled once for all runs."""
        return Seer(self.method())

    def method(self, kind: type[PoseBHMethod] = PoseBHMethod, **losses: float) -> PoseBHMethod:
        """The method with `first` as its only stage, as a (sub)class, and with other settings of `config.losses`."""
        key = (kind, *losses.items())
        if key not in self.methods:
            made = build.make_method(self.config, 1)
            fields = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
            changed = {"stages": (self.first,), "losses": dataclasses.replace(made.losses, **losses)}
            self.methods[key] = kind(**(fields | changed))
        return self.methods[key]

    def init(self, method: PoseBHMethod, seed: int) -> TrainState:
        """A newly initialised state."""
        if "init" not in self.compiled:
            self.compiled["init"] = jax.jit(method.init)
        return self.compiled["init"](jax.random.PRNGKey(seed))

    def train(
        self, method: PoseBHMethod, state: TrainState, stage: Stage, batches: Iterable, steps: int, clock: Clock
    ) -> tuple[TrainState, dict[str, float]]:
        """`steps` steps of a stage: the new state, the means of the last ten steps' metrics. `state` stays usable."""
        change, _ = method.enter_stage(state, stage)
        state = jax.jit(change)(state)
        batches = iter(batches)
        step = self._compiled(method, stage, state, next(batches))
        seen = []
        began, cpu = time.perf_counter(), time.process_time()
        for number in range(steps):
            state, metrics = step(state, next(batches))
            if number >= steps - 10:
                seen.append({name: value for name, value in metrics.items() if name != FINITE})
        jax.block_until_ready(state)
        clock.seconds += time.perf_counter() - began
        clock.cpu_seconds += time.process_time() - cpu
        return state, {name: float(np.mean([row[name] for row in seen])) for name in (seen[0] if seen else {})}

    def _compiled(self, method: PoseBHMethod, stage: Stage, state: TrainState, batch: Mapping[str, Any]) -> Callable:
        shapes = str(jax.tree.map(jnp.shape, state.weights["prototypes"]))
        name = (type(method), method.losses, stage, shapes)
        if name not in self.compiled:
            self.compiled[name] = (
                jax.jit(functools.partial(train_step, method=method, stage=stage)).lower(state, batch).compile()
            )
        return self.compiled[name]


class Some:
    """Some of a source's people (`TopDownSource` as far as training asks)."""

    def __init__(self, source: TopDownSource, rows: np.ndarray):
        self._source, self._rows = source, rows
        self.dataset, self.dataset_index = source.dataset, source.dataset_index

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int):
        return self._source[int(self._rows[index])]


def batches(config: ConfigDict, sources: Sequence[TopDownSource], seed: int) -> Iterable:
    """Endless training batches of the sources, with the configuration's augmentation."""
    return train_iterator(
        sources,
        batch_size=config.batch_size,
        input_size=tuple(config.input_size),
        seed=seed,
        mixture=configuration.mixture(config),
        augmentation=configuration.augmentation(config),
        reading=Reading(num_threads=config.loader_threads),
    )


@dataclasses.dataclass(frozen=True)
class Judged:
    """Crops of one dataset, all in memory.

    Attributes:
      image: uint8 [N, H, W, 3].
      inverse_warp: float32 [N, 2, 3].
      instance_id: int64 [N].
      size: float32 [N], the longer side of the annotated box, in image pixels.
    """

    image: np.ndarray
    inverse_warp: np.ndarray
    instance_id: np.ndarray
    size: np.ndarray


def judged(config: ConfigDict, source: TopDownSource) -> Judged:
    """The crops of a validation split."""
    size = tuple(config.input_size)
    loader = EvalLoader(source, len(source), size)
    (batch,) = [loader[0]]
    columns = source.annotations
    order = np.argsort(columns.id)
    row = order[np.searchsorted(columns.id, batch["instance_id"], sorter=order)]
    return Judged(batch["image"], batch["inverse_warp"], batch["instance_id"], columns.box[row, 2:].max(axis=1))


@dataclasses.dataclass(frozen=True, eq=False)
class Seer:
    """All heads, and all prototypes, on crops that go through any dataset's expert.

    Every skeleton is drawn and decoded by the UDP codec here: one crop, all heads.
    """

    method: PoseBHMethod
    kernel: int = 11

    def __call__(self, state: TrainState, crops: Judged, expert: int, batch: int = 64) -> dict[str, np.ndarray]:
        """{"heads", "prototypes": float [N, T, 3]}: x, y in image pixels, the peak; prototypes where it has some."""
        found: dict[str, list] = {}
        count = len(crops.image)
        for start in range(0, count, batch):
            rows = np.minimum(np.arange(start, start + batch), count - 1)
            seen = self._see(state.weights, crops.image[rows], crops.inverse_warp[rows], jnp.int32(expert))
            for name, value in seen.items():
                found.setdefault(name, []).append(np.asarray(value)[: count - start])
        return {name: np.concatenate(values) for name, values in found.items()}

    @functools.partial(jax.jit, static_argnums=0)
    def _see(self, weights, image, inverse_warp, expert):
        variables = {"params": weights["params"], "batch_stats": weights["batch_stats"]}
        run = functools.partial(self.method.model.apply, variables)
        features = run(normalise_pixels(image), jnp.full(len(image), expert), method="features")
        maps = {"heads": run(features, method="heatmaps")}
        if weights["prototypes"]:
            embedding = run(features, method="embed")
            maps["prototypes"] = prototype_heatmaps(best_similarities(embedding, weights["prototypes"][BANK]))
        fields = {"udp": True, "input_size": self.method.input_size, "kernel": self.kernel}
        return {name: heatmaps.decode(value, inverse_warp, **fields) for name, value in maps.items()}


def pck(
    found: np.ndarray, truth: np.ndarray, size: np.ndarray, threshold: float = 0.1
) -> tuple[np.ndarray, np.ndarray]:
    """Hits and labels [N, K]: whether a labelled keypoint is found within `threshold` x the box's longer side.

    Args:
      found, truth: [N, K, 3]; the truth's third column is its visibility, 0 where it is not known.
      size: [N], image pixels.
    """
    labelled = truth[..., 2] > 0
    apart = np.linalg.norm(found[..., :2] - truth[..., :2], axis=-1)
    return labelled & (apart < threshold * size[:, None]), labelled


def percent(hits: np.ndarray, labelled: np.ndarray, keypoints: Sequence[int] | None = None) -> float:
    """Mean over keypoints of their share of hits, percent; NaN where none is labelled."""
    if keypoints is not None:
        hits, labelled = hits[:, list(keypoints)], labelled[:, list(keypoints)]
    count = labelled.sum(axis=0)
    share = hits.sum(axis=0)[count > 0] / count[count > 0]
    return 100 * float(share.mean()) if len(share) else float("nan")


def truth_of(columns: Any, instance_id: np.ndarray) -> np.ndarray:
    """Annotated keypoints [N, K, 3] of instances, in their order; zeros for those that the table does not have."""
    place = {number: row for row, number in enumerate(columns.id)}
    empty = np.zeros(columns.keypoints.shape[1:], np.float32)
    return np.stack([columns.keypoints[place[i]] if i in place else empty for i in instance_id])


def starts(datasets: Sequence[PoseDataset]) -> Mapping[str, slice]:
    """{dataset: its keypoints' places among all}."""
    ends = np.cumsum([dataset.num_keypoints for dataset in datasets])
    return {d.name: slice(int(end) - d.num_keypoints, int(end)) for d, end in zip(datasets, ends, strict=True)}
