"""PoseBH as a method for the training loop: initial state, loss of a stage, what happens when a stage begins."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.datasets import PoseDataset
from pose_common import heatmaps
from pose_common.collectives import global_sum, sample_keys
from pose_common.images import normalise_pixels
from pose_common.training.optimizers import GroupedAdamW
from pose_common.training.stages import Stage, check_stages
from pose_common.training.state import METHOD_STATE, STATE_TRAINED, TrainState
from pose_common.training.step import ABSENT, LossOutput
from posebh_jax import prototypes
from posebh_jax.clusters import ClusterBank, ClusterConfig, choose_clusters
from posebh_jax.comparison import Slots, compare_each
from posebh_jax.keypoint_index import KeypointIndex
from posebh_jax.losses.cluster import cluster_slots, cluster_terms
from posebh_jax.losses.cross_type import cross_type_terms
from posebh_jax.losses.heatmap import head_terms, keypoint_accuracy
from posebh_jax.losses.prototype import prototype_terms
from posebh_jax.model import PoseBH
from posebh_jax.prototypes import PrototypeConfig
from posebh_jax.vit import drop_path_rates, drop_path_scales

PROTOTYPE_TERMS = ("prototype", "prototype_heatmap")
GROUPS = ("backbone", "heads", "embedding")
TERMS = ("heatmap", *PROTOTYPE_TERMS, "cluster", "cross_type")
BANK, CLUSTERS = "bank", "clusters"


class Inputs(NamedTuple):
    """One batch on the device, ready for network and losses.

    Attributes:
      image: float32 [B, H, W, 3], normalised.
      dataset: int32 [B].
      targets, keypoint_weights: [B, h, w, T] and [B, T] of each image's own keypoints; zero for other skeletons.
      drop_path: factors [depth, 2, B] of the backbone's branches, or None where it is frozen.
      noise: Gumbel(0, 1) [B, h, w, M] for the prototypes' update, or None where they are frozen.
    """

    image: jax.Array
    dataset: jax.Array
    targets: jax.Array
    keypoint_weights: jax.Array
    drop_path: jax.Array | None
    noise: jax.Array | None


@dataclasses.dataclass(frozen=True, eq=False)
class PoseBHMethod:
    """PoseBH, or its multi-head baseline where no stage asks for a prototype term (`pose_common.training.loop.Method`).

    Attributes:
      model: the network; its `axis_name` is set here.
      datasets: protocols of the mixture, in the order of the model's heads and experts.
      input_size: (width, height) of a crop.
      stages, optimizer: see the loop.
      losses: settings of the prototype losses.
      clusters: how the cluster bank is made.
      heatmap_sigma: of the targets' Gaussians, in cells.
      num_clusters: size of the cluster bank, 0 for the choice among `clusters.options`.
      prototypes_per_keypoint: M.
    """

    model: PoseBH
    datasets: tuple[PoseDataset, ...]
    input_size: tuple[int, int]
    stages: tuple[Stage, ...]
    optimizer: GroupedAdamW
    losses: PrototypeConfig
    clusters: ClusterConfig
    heatmap_sigma: float
    num_clusters: int = 0
    prototypes_per_keypoint: int = 3

    def __post_init__(self):
        check_stages(self.stages, GROUPS, TERMS)
        for stage in self.stages:
            needs_embedding = set(stage.losses) - {"heatmap"} or "embedding" in stage.train or stage.updates_state
            if needs_embedding and not self.model.embedding_dim:
                raise ValueError(
                    f"stage {stage.name!r} needs the embedding head, which the multi-head baseline has not; its stages "
                    "are those of configs/multi_head.py"
                )

    @functools.cached_property
    def keypoint_index(self) -> KeypointIndex:
        """Where each dataset's keypoints lie among all."""
        return KeypointIndex(tuple(d.num_keypoints for d in self.datasets))

    @property
    def heatmap_size(self) -> tuple[int, int]:
        """(width, height) of a heatmap: a quarter of the crop."""
        return self.input_size[0] // 4, self.input_size[1] // 4

    def init(self, key: jax.Array) -> TrainState:
        """A newly initialised state for the first stage."""
        params_key, bank_key, run_key = jax.random.split(key, 3)
        weights = init_weights(params_key, bank_key, self.model, self.input_size, self.prototypes_per_keypoint)
        opt_state = self.optimizer.init(weights["params"], self.stages[0].train)
        empty = TrainState(jnp.zeros((), jnp.int32), {}, {}, opt_state, {}, run_key)
        return empty.with_weights(weights)

    def enter_stage(self, state: TrainState, stage: Stage) -> tuple[Callable[[TrainState], TrainState], dict[str, Any]]:
        """Moments for what thaws; the cluster bank where it is first asked for."""
        added, notes = {}, {}
        if "cluster" in stage.losses and CLUSTERS not in state.method_state:
            bank = np.asarray(state.method_state[BANK].addressable_data(0))
            choice = choose_clusters(bank, **vars(self.clusters), fixed=self.num_clusters or None)
            logging.info("stage %s: %s", stage.name, choice.summary())
            added, notes = {CLUSTERS: choice.bank._asdict()}, {"num_clusters": len(choice.bank.keypoint)}

        if stage.updates_state or "embedding" in stage.train:
            notes[STATE_TRAINED] = True

        def change(state: TrainState) -> TrainState:
            opt_state = self.optimizer.init(state.params, stage.train, old=state.opt_state)
            return state.replace(opt_state=opt_state, method_state={**state.method_state, **added})

        return change, notes

    def shapes(self, stage: Stage, notes: dict[str, Any]) -> TrainState:
        """Shapes of a state inside `stage`."""
        state = jax.eval_shape(self.init, jax.random.PRNGKey(0))
        weights = weight_shapes(self.model, self.input_size, self.prototypes_per_keypoint, notes.get("num_clusters", 0))
        opt_state = jax.eval_shape(lambda params: self.optimizer.init(params, stage.train), state.params)
        return state.with_weights(weights).replace(opt_state=opt_state)

    def loss(self, params, state: TrainState, batch, key, stage: Stage, axis_name: str | None):
        """The stage's per-device loss and its `LossOutput`; see `pose_common.training.step`.

        Args:
          params: of all groups, those that train and those that are frozen.
          state: for its running statistics and prototypes; its own parameters are not used.
          batch: of the top-down batch contract, B rows (this device's, if an axis is mapped): `image` uint8
            [B, H, W, 3], `keypoints` float32 [B, K, 2] in crop pixels, `visible` float32 [B, K], `dataset` int32 [B].
          key: uint32 [2], the step's; each row has its own keys by its place in the global batch.
          stage: says which groups train and which terms are asked for.
          axis_name: the mapped axis of devices, or None.

        Returns:
          (scalar float32, `LossOutput`): the sum of the stage's terms, and what `terms` says.
        """
        keys = sample_keys(key, batch["dataset"].shape[0], axis_name)
        return self.terms(params, state, self._inputs(batch, keys, stage), stage, axis_name)

    def _inputs(self, batch: dict[str, jax.Array], keys: jax.Array, stage: Stage) -> Inputs:
        """What the host sent, made into what the network and the losses take."""
        dataset = batch["dataset"]
        keypoints = self.keypoint_index.to_global(batch["keypoints"], dataset, axis=1)
        visible = self.keypoint_index.to_global(batch["visible"], dataset)
        udp = jnp.asarray([d.codec == "udp" for d in self.datasets])[dataset]
        size = {"input_size": self.input_size, "heatmap_size": self.heatmap_size}
        targets, weights = heatmaps.encode(keypoints, visible, udp, **size, sigma=self.heatmap_sigma)
        drop_path = self._drop_path(keys) if "backbone" in stage.train and self.model.size.drop_path else None
        noise = self._gumbel(keys) if stage.updates_state else None
        return Inputs(normalise_pixels(batch["image"]), dataset, targets, weights, drop_path, noise)

    def terms(self, params, state: TrainState, inputs: Inputs, stage: Stage, axis_name: str | None):
        """`loss` from finished inputs: every random number is an argument.

        Args:
          params, state, stage, axis_name: see `loss`.
          inputs: see `Inputs`.

        Returns:
          (scalar float32, `LossOutput`). Its terms are scalars, and so are its metrics. Its `observed` is the pair of
          the labelled pixels and the noise [B, h, w, M] that `update` takes, or None where the prototypes are frozen.
        """
        run = functools.partial(_run, self.model.clone(axis_name=axis_name), params, state.batch_stats, stage.train)
        labels = (inputs.targets, inputs.keypoint_weights)
        bank, asked = state.method_state, set(stage.losses)
        shared: dict[str, Any] = {"keypoint_index": self.keypoint_index, "config": self.losses, "axis_name": axis_name}
        values, metrics, stats, observed = {}, {}, {}, None

        features = self.model.apply(
            _variables(params, state.batch_stats), inputs.image, inputs.dataset, inputs.drop_path, method="features"
        )
        if asked & {"heatmap", "cross_type"}:
            maps, stats["heads"] = run("heads", "heatmaps", features)
        if "heatmap" in asked:
            per_dataset = head_terms(maps, *labels, keypoint_index=self.keypoint_index, axis_name=axis_name)
            values["heatmap"] = per_dataset.sum()
            metrics |= self._head_metrics(per_dataset, maps, *labels, axis_name)
        if asked - {"heatmap"}:
            embedding, stats["embedding"] = run("embedding", "embed", features)
            banks = [(bank[BANK], self.keypoint_index)]
            own = prototypes.own_slots(inputs.targets, inputs.dataset, self.losses.label_threshold, self.keypoint_index)
            slots: list[Slots | None] = [own if asked & set(PROTOTYPE_TERMS) else None]
            if "cluster" in asked:
                clusters = ClusterBank(**bank[CLUSTERS])
                banks.append((clusters.prototypes, clusters.keypoint_index))
                slots.append(cluster_slots(inputs.targets, clusters, self.losses))
            (compared, *with_clusters), (similarity, *of_clusters) = compare_each(embedding, banks, slots)
        if asked & set(PROTOTYPE_TERMS):
            found, seen, labelled = prototype_terms(
                embedding, compared, *labels, inputs.dataset, bank[BANK], similarity=similarity, **shared
            )
            values |= {name: found[name] for name in PROTOTYPE_TERMS if name in asked}
            metrics |= _named("prototype", seen, ("cross_entropy", "distance", "correct"))
            observed = (labelled, inputs.noise) if stage.updates_state else None
        if "cluster" in asked:
            known: dict[str, Any] = {"compared": with_clusters[0], "similarity": of_clusters[0]}
            found, seen = cluster_terms(embedding, *labels, clusters, config=self.losses, axis_name=axis_name, **known)
            values |= found
            metrics |= _named("cluster", seen, ("cross_entropy", "distance"))
        if "cross_type" in asked:
            found, seen = cross_type_terms(embedding, maps, compared, inputs.dataset, bank[BANK], **shared)
            values |= found
            metrics["cross_type/pseudo_labels"] = seen["selected"].sum()
        total = sum(values[name] for name in stage.losses)
        trained = {group: new for group, new in stats.items() if new is not None}
        return total, LossOutput(values, jax.lax.stop_gradient(metrics), trained, observed)

    def update(self, method_state: dict[str, Any], observed, axis_name: str | None):
        """Momentum update of the prototypes (section 3.2), in stages where they follow the embeddings.

        Args:
          method_state: with the prototypes `bank` float32 [T, M, D]; what else is in it stays.
          observed: that of `terms`, or None: nothing changes.
          axis_name: the mapped axis of devices, or None.

        Returns:
          (the new method state, {"prototype/moved": scalar, the share of prototypes that moved} or {}).
        """
        if observed is None:
            return method_state, {}
        labelled, noise = observed
        bank, mass = prototypes.update_prototypes(
            method_state[BANK], labelled, noise, momentum=self.losses.momentum, axis_name=axis_name
        )
        return {**method_state, BANK: bank}, {"prototype/moved": (mass > 0).mean()}

    def _drop_path(self, keys: jax.Array) -> jax.Array:
        rates = drop_path_rates(self.model.size.drop_path, self.model.size.depth)
        return drop_path_scales(_fold(keys, 0), rates)

    def _gumbel(self, keys: jax.Array) -> jax.Array:
        width, height = self.heatmap_size
        return prototypes.gumbel_noise(_fold(keys, 1), height, width, self.prototypes_per_keypoint)

    def _head_metrics(self, per_dataset, maps, targets, weights, axis_name) -> dict[str, jax.Array]:
        maps, per_dataset = jax.lax.stop_gradient((maps, per_dataset))
        index = self.keypoint_index
        accuracy, counted = keypoint_accuracy(maps, targets, weights, keypoint_index=index, axis_name=axis_name)
        accuracy = jnp.where(counted > 0, accuracy, ABSENT)  # of a dataset that is not in the batch
        whole = global_sum(per_dataset, axis_name)
        names = [d.name for d in self.datasets]
        return {f"heatmap/{n}": whole[i] for i, n in enumerate(names)} | {
            f"accuracy/{n}": accuracy[i] for i, n in enumerate(names)
        }


# A run asks for values and, twice, for shapes: traced once for all.
@functools.partial(jax.jit, static_argnames=("model", "input_size", "per_keypoint"))
def init_weights(
    params_key: jax.Array, bank_key: jax.Array, model: PoseBH, input_size: tuple[int, int], per_keypoint: int
) -> dict[str, Any]:
    """Newly initialised `TrainState.weights`: the network's, and random prototypes where it has an embedding."""
    image = jnp.zeros((1, input_size[1], input_size[0], 3))
    variables = model.init(params_key, image, jnp.zeros(1, jnp.int32))
    bank = {}
    if model.embedding_dim:
        total = sum(count for _, count in model.datasets)
        bank = {BANK: prototypes.init_prototypes(bank_key, total, per_keypoint, model.embedding_dim)}
    return {"params": variables["params"], "batch_stats": variables["batch_stats"], METHOD_STATE: bank}


def weight_shapes(model: PoseBH, input_size: tuple[int, int], per_keypoint: int, num_clusters: int) -> dict[str, Any]:
    """Shapes of the weights; with `num_clusters`, those of a run that has chosen its cluster bank."""
    key = jax.random.PRNGKey(0)
    weights = jax.eval_shape(lambda key: init_weights(key, key, model, input_size, per_keypoint), key)
    if num_clusters:
        bank = jax.ShapeDtypeStruct((num_clusters, per_keypoint, model.embedding_dim), jnp.float32)
        keypoint = jax.ShapeDtypeStruct((num_clusters,), jnp.int32)
        weights[METHOD_STATE][CLUSTERS] = {"prototypes": bank, "keypoint": keypoint}
    return weights


def _fold(keys: jax.Array, use: int) -> jax.Array:
    """An independent key a sample for each use of randomness."""
    return jax.vmap(lambda key: jax.random.fold_in(key, use))(keys)


def _named(prefix: str, values: dict[str, jax.Array], names: tuple[str, ...]) -> dict[str, jax.Array]:
    return {f"{prefix}/{name}": values[name] for name in names if name in values}


def _variables(params, batch_stats) -> dict[str, Any]:
    return {"params": params, "batch_stats": batch_stats}


def _run(model: PoseBH, params, batch_stats, training: tuple[str, ...], group: str, method: str, features: jax.Array):
    """(output of a group's head, its new running statistics); None for a frozen one, which runs in inference mode."""
    variables = _variables(params, batch_stats)
    if group not in training:
        return model.apply(variables, features, False, method=method), None
    out, updated = model.apply(variables, features, True, method=method, mutable=["batch_stats"])
    return out, updated["batch_stats"][group]
