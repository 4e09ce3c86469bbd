"""What a configuration of PoseBH may say, checked before anything is loaded; and what it says of a dataset."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.datasets import (
    CODECS,
    DATASETS,
    SPLITS,
    PoseDataset,
    custom_definitions,
    defined,
    definition_of,
    find_dataset,
)
from data_pipelines.mixture import MIXTURES
from data_pipelines.top_down.augmentation import Augmentation
from data_pipelines.top_down.instances import GROUND_TRUTH
from pose_common.heatmaps import BLURS
from pose_common.training import checks, configuration
from pose_common.training.checks import ConfigError, odd, one_of, positive, within
from pose_common.training.configuration import Override
from pose_common.training.stages import UPDATES_STATE, make_stages
from posebh_jax.clusters import numbers_to_try
from posebh_jax.heads import ACTIVATIONS, KERNELS, NECKS
from posebh_jax.vit import SIZES, size_name

METHODS = ("posebh", "multi_head")
SHIPPED = ("base", "small", "large", "huge")
"""Sizes that `configs/mdt.py` has settings of a real run for."""
KNOWN = {
    "method": METHODS,
    "size": SIZES,
    "mixture": MIXTURES,
    "suppression": ("hard", "soft", "none"),
    "embedding_neck": NECKS,
    "embedding_kernel": KERNELS,
    "embedding_activation": ACTIVATIONS,
    "dark_blur": BLURS,
}
"""Fields that take one of a few values."""

TABLES = {
    "codec": "codec",
    "padding": "padding",
    "augmentation.centre_jitter": "centre_jitter",
    "augmentation.half_body": "half_body",
    "augmentation.scale_factor": "scale_factor",
    "augmentation.rotation_factor": "rotation_factor",
}
"""Tables with an entry a dataset -> the field of `PoseDataset` that an entry stands for."""
ENTRIES = ("definitions", "synthetic", "train_splits", "eval_splits", "boxes", "mixture_weights", *TABLES)
"""All tables whose entries have names of their own."""

ALWAYS_POSITIVE = ("oks_nms", "prototypes_per_keypoint")
POSITIVE = (
    "heatmap_sigma",
    "losses.sinkhorn_epsilon",
    "losses.cross_type_sigma",
    "augmentation.half_body_padding",
)
"""Settings of training that are above 0."""
NOT_NEGATIVE = (
    "warmup_steps",
    "warmup_ratio",
    "decay_factor",
    "layer_decay",
    "clusters.rounds",
    "clusters.beta",
    "losses.sinkhorn_rounds",
    "losses.contrast_weight",
    "losses.cross_entropy_weight",
    "losses.distance_weight",
    "losses.heatmap_weight",
    "losses.cluster_weight",
    "losses.cross_type_weight",
    "augmentation.centre_jitter_extent",
)
"""Those that are 0 or more; further ranges are in `_check_ranges`."""
PROBABILITIES = ("flip", "centre_jitter_probability", "half_body_probability", "rotation_probability")
"""Those of `config.augmentation`."""

FREE = configuration.FREE | {
    "boxes",
    "dark_blur",
    "dark_kernel",
    "default_eval_split",
    "definitions",
    "detection_threshold",
    "eval_splits",
    "flip_test",
    "oks_nms",
    "rescoring_threshold",
    "suppression",
}
"""Settings that may change between the parts of a run; see `configuration.require_same_run`."""


def read(source: str, overrides: Sequence[Override] = ()) -> ConfigDict:
    """The configuration of a run from the command line.

    Raises:
      ConfigError: a setting that cannot be.
    """
    config = configuration.read(source)
    checks.require_method("the configuration is one", config, METHODS)
    checks.require_like(config, configuration.read("mdt"), ENTRIES)
    return with_overrides(config, overrides)


def with_overrides(config: ConfigDict, overrides: Sequence[Override]) -> ConfigDict:
    """A configuration with settings of the command line, checked.

    Datasets come first: an entry of a table can be set for every dataset of the run.

    Raises:
      ConfigError: a setting that cannot be.
    """
    first = ("datasets", "data_dir", "eval_also", "default_train_split", "default_eval_split")
    configuration.set_leaves(config, [override for override in overrides if override[0] in first])
    if "eval_also" not in dict(overrides):  # of the shipped rows, those that a head of these datasets can judge
        config.eval_also = tuple(row for row in config.eval_also if row[2] in config.datasets)
    fill_tables(config)
    configuration.set_leaves(config, [override for override in overrides if override[0] not in first])
    check(config)
    return config


def asked_datasets(source: str, overrides: Sequence[Override]) -> tuple[tuple[str, int], ...]:
    """(name, keypoints) of the datasets that the command line names; none where it leaves them to `source`.

    Raises:
      ConfigError: an unknown dataset.
    """
    asked = [override for override in overrides if override[0] in ("datasets", "data_dir")]
    if "datasets" not in dict(asked):
        return ()
    config = configuration.read(source)
    configuration.set_leaves(config, asked)
    return tuple((name, checks.known_dataset("datasets", name, config).num_keypoints) for name in config.datasets)


def of_run(saved: Mapping[str, Any]) -> ConfigDict:
    """The configuration saved with a checkpoint; what an older one leaves out is what it meant then."""
    from_size = {"tiny": "demo"}.get(saved["size"], saved["size"])
    defaults = configuration.read(f"mdt:{from_size}")
    if isinstance(saved["layer_decay"], bool):  # earlier it only said whether
        saved = {**saved, "layer_decay": defaults.layer_decay if saved["layer_decay"] else 1.0}
    config = configuration.completed(saved, defaults)
    fill_tables(config)
    return config


def for_manifest(
    datasets: Iterable[PoseDataset], dark_kernel: int, dark_blur: str, rescoring_threshold: float
) -> dict[str, Any]:
    """What a manifest says beside the model, for `of_weights`: how crops are taken, maps decoded and poses scored."""
    own = {dataset.name: definition_of(dataset) for dataset in datasets if dataset != DATASETS.get(dataset.name)}
    settings = {"dark_kernel": dark_kernel, "dark_blur": dark_blur, "rescoring_threshold": rescoring_threshold}
    return {"definitions": own, **settings}


def of_weights(manifest: Mapping[str, Any]) -> ConfigDict:
    """To evaluate weights that are of no run: what their manifest says, else the released settings of their method and
    size.

    Raises:
      ValueError: a definition that cannot be used.
    """
    size = size_name(manifest["backbone"]["dim"], manifest["backbone"]["depth"]) or ""
    file = "mdt" if manifest["embedding"] else "multi_head"
    config = configuration.read(f"{file}:{size if size in SHIPPED else SHIPPED[0]}")
    config.size, config.input_size = size, tuple(manifest["input_size"])
    config.datasets = tuple(name for name, _ in manifest["datasets"])
    for name in ("dark_kernel", "dark_blur", "rescoring_threshold"):
        config[name] = manifest.get(name, config[name])
    for name, fields in manifest.get("definitions", {}).items():
        own = defined(fields, f"definition of {name!r}")
        for table, field in TABLES.items():
            holder = _table(config, table)
            with holder.unlocked():
                holder[name] = getattr(own, field)
    config.eval_also = tuple(row for row in config.eval_also if row[2] in config.datasets)
    return config


def fill_tables(config: ConfigDict) -> None:
    """Gives every dataset that is trained or evaluated its entries in the tables, and custom ones their definition;
    those of other datasets go.

    Raises:
      ConfigError: an unknown dataset, a row of `eval_also` that is none.
    """
    for row in config.eval_also:
        if not isinstance(row, tuple) or len(row) not in (3, 4) or not all(isinstance(part, str) for part in row):
            raise ConfigError(f"config.eval_also: {row!r} is not (dataset, split, head[, boxes])")
    evaluated = [row[0] for row in config.eval_also]
    found = {
        name: checks.known_dataset("datasets", name, config) for name in dict.fromkeys((*config.datasets, *evaluated))
    }
    _replace(config.definitions, custom_definitions(found.values()))
    for table, field in TABLES.items():
        holder = _table(config, table)
        _replace(holder, {name: holder.get(name, getattr(own, field)) for name, own in found.items()})
    usual = config.default_train_split, config.default_eval_split
    for place, table in enumerate(("train_splits", "eval_splits")):
        splits = {name: SPLITS.get(name, usual)[place] for name in config.datasets}
        _replace(config[table], {name: config[table].get(name, split) for name, split in splits.items()})
    for table, default in (("boxes", GROUND_TRUTH), ("mixture_weights", 1.0)):
        _replace(config[table], {name: config[table].get(name, default) for name in config.datasets})


def _table(config: ConfigDict, name: str) -> Any:
    for part in name.split("."):
        config = config[part]
    return config


def _replace(table: ConfigDict, entries: Mapping[str, Any]) -> None:
    with table.unlocked():
        for name in list(table):
            del table[name]
        table.update(entries)


def check(config: ConfigDict) -> None:
    """Raises ConfigError for a setting that cannot be."""
    checks.check(config)
    for name, known in KNOWN.items():
        if name != "size" or config.mode == "train" or config.size:  # weights of no published size are evaluated, too
            one_of(name, config[name], known)
    _check_data(config)
    if len(config.head_filters) != 2 or not all(type(width) is int for width in config.head_filters):
        raise ConfigError(f"config.head_filters={config.head_filters}: expected the widths of two deconvolutions")
    if len(config.input_size) != 2 or any(
        type(side) is not int or side % 16 or side <= 0 for side in config.input_size
    ):
        raise ConfigError(f"config.input_size={config.input_size}: expected (width, height), multiples of 16")
    for name in ("dark_kernel", "losses.cross_type_kernel"):
        odd(name, _table(config, name))
    _check_ranges(config)
    if config.mode == "train":
        _check_stages(config)


def _check_data(config: ConfigDict) -> None:
    for name, codec in config.codec.items():
        one_of(f"codec.{name}", codec, CODECS)
    if not config.datasets or len(set(config.datasets)) != len(config.datasets):
        raise ConfigError(f"config.datasets={config.datasets}: expected one name or more, each once")
    if config.people_together < 1:
        raise ConfigError(f"config.people_together={config.people_together}: expected 1 (all shuffled) or more")
    if config.fold and len(config.datasets) != 1:
        raise ConfigError(f"config.fold={config.fold!r}: a transfer is to one dataset, not to {config.datasets}")
    if config.fold and config.mode == "train" and not config.init_from:
        raise ConfigError("config.init_from='': a transfer starts from weights; give a run, a checkpoint or a file")
    for row in config.eval_also:
        if row[2] not in config.datasets:
            raise ConfigError(f"config.eval_also: the head of {row} is none of {config.datasets}")
        drawn, asked = (dataset(config, name).keypoint_set for name in (row[2], row[0]))
        if drawn != asked:
            raise ConfigError(
                f"config.eval_also: the head of {row} draws {drawn!r} keypoints, {row[0]!r} has {asked!r}"
            )
    for name, boxes in config.boxes.items():
        if boxes != GROUND_TRUTH:
            checks.require_path(f"boxes.{name}", boxes, f"{GROUND_TRUTH!r} or a COCO detection file")


def _check_ranges(config: ConfigDict) -> None:
    """Numbers that would divide by zero, mirror or empty a crop, or mean nothing."""
    train = config.mode == "train"
    widths = ("embedding_width", "embedding_dim") if config.method == "posebh" else ()
    above_zero = {name: _table(config, name) for name in (*ALWAYS_POSITIVE, *((*POSITIVE, *widths) if train else ()))}
    above_zero |= {f"padding.{name}": value for name, value in config.padding.items()}
    above_zero |= {f"mixture_weights.{name}": value for name, value in config.mixture_weights.items() if train}
    above_zero |= {f"head_filters[{place}]": width for place, width in enumerate(config.head_filters)}
    for name, value in above_zero.items():
        positive(name, value)
    within("drop_path", config.drop_path, 0, 1)
    within("losses.momentum", config.losses.momentum, 0, 1, closed=True)
    if not train:  # a run that was trained otherwise is evaluated all the same
        return
    for name, weight in config.mixture_weights.items():
        if weight != 1 and config.mixture != "weighted":
            raise ConfigError(
                f"config.mixture_weights.{name}={weight!r}: a mixture that is {config.mixture!r} has no weights; set"
                " config.mixture=weighted"
            )
    for name in NOT_NEGATIVE:
        within(name, _table(config, name), 0, math.inf)
    for name in PROBABILITIES:
        within(f"augmentation.{name}", config.augmentation[name], 0, 1, closed=True)
    for name, value in config.augmentation.scale_factor.items():
        within(f"augmentation.scale_factor.{name}", value, 0, 1)
    for name, value in config.augmentation.rotation_factor.items():
        within(f"augmentation.rotation_factor.{name}", value, 0, math.inf)


def _check_stages(config: ConfigDict) -> None:
    stages = make_stages(config.stages)
    for number, stage in enumerate(stages):
        if stage.updates_state and not {"prototype", "prototype_heatmap"} & set(stage.losses):
            raise ConfigError(
                f"config.stages[{number}].{UPDATES_STATE}=True ({stage.name!r}): prototypes follow the labels of the"
                " term 'prototype'; add it to the stage's losses"
            )
    if any("cluster" in stage.losses and stage.epochs for stage in stages):
        _check_clusters(config)


def _check_clusters(config: ConfigDict) -> None:
    """Clusters must be fewer than keypoints, which nothing else would ask before the stage that makes them."""
    total = sum(dataset(config, name).num_keypoints for name in config.datasets)
    if total < 2:
        raise ConfigError(
            f"config.stages: the term 'cluster' needs two keypoints, {config.datasets[0]} has one: leave it out of the"
            " stages' losses"
        )
    if not 0 <= config.num_clusters < total:
        raise ConfigError(
            f"config.num_clusters={config.num_clusters}: expected fewer than the {total} keypoints of"
            f" {', '.join(config.datasets)}, or 0 for a choice among config.clusters.options"
        )
    try:
        numbers_to_try(total, config.clusters.options, config.num_clusters)
    except ValueError as error:
        raise ConfigError(f"config.clusters.options={config.clusters.options}: {error}") from error


def datasets(config: ConfigDict) -> tuple[PoseDataset, ...]:
    """The datasets of the mixture, in its order, as this configuration crops, draws and augments them."""
    return tuple(dataset(config, name) for name in config.datasets)


def dataset(config: ConfigDict, name: str) -> PoseDataset:
    """A dataset that is trained or evaluated; a custom one as `config.data_dir` has it, or else the run."""
    own = find_dataset(name, config.data_dir, config.definitions)
    entries = {field: _table(config, table).get(name, getattr(own, field)) for table, field in TABLES.items()}
    return dataclasses.replace(own, **entries)


def mixture(config: ConfigDict) -> str | list[float]:
    """As `data_pipelines.mixture.mix` takes it."""
    if config.mixture != "weighted":
        return config.mixture
    return [config.mixture_weights.get(name, 1.0) for name in config.datasets]


def augmentation(config: ConfigDict) -> Augmentation | None:
    """The part of the augmentation that all datasets have in common."""
    if not config.augment:
        return None
    tables = {table.partition(".")[2] for table in TABLES if table.startswith("augmentation.")}
    return Augmentation(**{name: value for name, value in config.augmentation.items() if name not in tables})
