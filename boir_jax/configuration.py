"""What a configuration of BoIR may say, checked before anything is loaded; and what it says of a dataset."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from boir_jax.method import TERMS
from boir_jax.model import VARIANTS, variant_name
from data_pipelines.datasets import PoseDataset, custom_definitions
from data_pipelines.whole_image.pictures import Rules
from pose_common.metrics.evaluate import protocol_of
from pose_common.training import checks, configuration
from pose_common.training.checks import ConfigError, odd, one_of, positive, within
from pose_common.training.configuration import Override

METHODS = ("boir",)
SHIPPED, RELEASED_SIZES = ("coco", "crowdpose"), ("w32", "w48")
"""Datasets and sizes that `configs/boir.py` has the released settings for."""
FREE = configuration.FREE | {
    "definitions",
    "eval_split",
    "fold_channels",
    "oks_nms",
    "proposals",
    "published_as",
    "smoothing",
}
"""Settings that may change between the parts of a run; see `configuration.require_same_run`."""
ENTRIES = ("definitions", "synthetic", "oks_nms", "smoothing")
"""Tables whose entries have names of their own."""
PREDICTION = ("oks_nms", "proposals", "smoothing")
"""Tables of how people are found and told apart."""
RECORDED = ("dataset", "definitions", "input_size", *PREDICTION)
"""What a manifest may say beside the model; older ones, and those of files, have none or some of it."""


def read(source: str, overrides: Sequence[Override] = ()) -> ConfigDict:
    """The configuration of a run from the command line.

    Raises:
      ConfigError: a setting that cannot be.
    """
    config = configuration.read(source)
    checks.require_method("the configuration is one", config, METHODS)
    checks.require_like(config, configuration.read("boir"), ENTRIES)
    return with_overrides(config, overrides)


def with_overrides(config: ConfigDict, overrides: Sequence[Override]) -> ConfigDict:
    """A configuration with settings of the command line, checked.

    Raises:
      ConfigError: a setting that cannot be.
    """
    configuration.set_leaves(config, overrides)
    check(config)
    names = (config.dataset, *(row[0] for row in config.eval_also))
    config.definitions = ConfigDict(custom_definitions(checks.known_dataset("dataset", name, config) for name in names))
    return config


def for_manifest(config: ConfigDict) -> dict[str, Any]:
    """What a manifest says beside the model, for `of_weights`."""
    own = {"dataset": config.dataset, "definitions": custom_definitions([dataset(config)])}
    return own | {"input_size": config.input_size} | {name: config[name].to_dict() for name in PREDICTION}


def of_weights(manifest: Mapping[str, Any]) -> ConfigDict:
    """To evaluate weights that are of no run: what their manifest says, else the released settings of their skeleton
    and size.

    Raises:
      ConfigError: they have no heads.
    """
    skeleton = manifest["keypoint_set"]
    if skeleton is None:
        raise ConfigError(f"{manifest['family']} finds no people: it has no heads, or those of an unknown skeleton")
    size = variant_name(manifest["network"]["width"]) or ""
    known = skeleton if skeleton in SHIPPED else SHIPPED[0]
    config = configuration.read(f"boir:{known}_{size if size in RELEASED_SIZES else RELEASED_SIZES[0]}")
    config.size = size
    recorded = {"dataset": skeleton} | {name: manifest[name] for name in RECORDED if name in manifest}
    config = configuration.completed(recorded, config)
    if config.dataset != known:
        config.eval_also = ()
    return config


def of_run(saved: Mapping[str, Any]) -> ConfigDict:
    """The configuration saved with a checkpoint; what an older one leaves out is what it meant then."""
    dataset, size = saved["dataset"], saved["size"]
    shipped = dataset in SHIPPED and size in RELEASED_SIZES
    config = configuration.completed(saved, configuration.read(f"boir:{dataset}_{size}" if shipped else "boir:demo"))
    if config.min_area < 0:  # earlier: the dataset's own rule
        own = checks.known_dataset("dataset", dataset, config)
        config.min_area, config.labelled_images = own.min_person_area, own.images_need_labels
    return config


def check(config: ConfigDict) -> None:
    """Raises ConfigError for a setting that cannot be."""
    checks.check(config)
    one_of("method", config.method, METHODS)
    if config.mode == "train" or config.size:  # weights of no published size are evaluated, too
        one_of("size", config.size, VARIANTS)
    one_of("losses.background", config.losses.background, ("image", "instance"))
    if config.input_size <= 0 or config.input_size % 32:
        raise ConfigError(f"config.input_size={config.input_size}: expected a multiple of 32")
    for name in ("instances", "instance_group", "instance_cap", "epochs"):
        positive(name, config[name])
    for name in ("warmup_epochs", "warmup_start", "final_learning_rate", "min_area", "norm_group"):
        within(name, config[name], 0, math.inf)
    for name in (*TERMS, "beta"):
        within(f"losses.{name}", config.losses[name], 0, math.inf)
    positive("losses.images_per_device", config.losses.images_per_device)
    _check_prediction(config)
    for name in ("rotation", "translation"):
        within(f"augmentation.{name}", config.augmentation[name], 0, math.inf)
    within("augmentation.mirror", config.augmentation.mirror, 0, 1, closed=True)
    scale = config.augmentation.scale
    if not (isinstance(scale, tuple) and len(scale) == 2 and 0 < scale[0] <= scale[1]):
        raise ConfigError(
            f"config.augmentation.scale={scale}: expected the least and the largest factor, such as 0.75,1.5"
        )
    own = dataset(config)
    _require_matched("dataset", own)
    for row in config.eval_also:
        if not isinstance(row, tuple) or len(row) != 2 or not all(isinstance(part, str) for part in row):
            raise ConfigError(f"config.eval_also: {row} is not (dataset, split)")
        further = checks.known_dataset("dataset", row[0], config)
        if further.keypoint_set != own.keypoint_set:
            raise ConfigError(f"config.eval_also: {row[0]!r} has other keypoints than {config.dataset!r}")
        _require_matched("eval_also", further)


def _check_prediction(config: ConfigDict) -> None:
    """Raises ConfigError for what no people can be found with."""
    proposals = config.proposals
    positive("proposals.maximum", proposals.maximum)
    within("proposals.threshold", proposals.threshold, 0, 1)
    for name, threshold in config.oks_nms.items():
        within(f"oks_nms.{name}", threshold, 0, 1, closed=True)
    for row in proposals.windows:
        if not isinstance(row, tuple) or len(row) != 2 or not isinstance(row[0], (int, float)):
            raise ConfigError(
                f"config.proposals.windows: {row} is not (largest mean side of the map, side of the peak window)"
            )
        odd("proposals.windows", row[1])
    odd("proposals.last_window", proposals.last_window)
    for name, side in config.smoothing.items():
        odd(f"smoothing.{name}", side)


def _require_matched(field: str, judged: PoseDataset) -> None:
    """Raises ConfigError for a metric that asks for the pose of every annotated box: BoIR's poses belong to none."""
    if not protocol_of(judged).suppress:
        raise ConfigError(
            f"config.{field}: {judged.name!r} is judged box by box (metric {judged.metric!r}), but BoIR's people are"
            " matched by OKS: use posebh_jax, or prepare data of your own with --metric=coco"
        )


def check_batch(config: ConfigDict) -> None:
    """Raises ConfigError for a batch that the devices cannot share, or groups of images that would straddle them."""
    checks.check_batch(config)
    rows = config.batch_size // jax.device_count()
    for name in ("instance_group", "norm_group"):
        if config[name] and rows % config[name]:
            in_proportion = " and config.instance_cap in proportion" if name == "instance_group" else ""
            raise ConfigError(
                f"config.{name}={config[name]}: the {rows} images of a device must be whole groups; set a divisor of "
                f"{rows}{in_proportion}"
            )


def dataset(config: ConfigDict) -> PoseDataset:
    """The dataset that is trained on; a custom one is read from `config.data_dir`, or as the run has saved it.

    Raises:
      ConfigError: there is none of this name.
    """
    return checks.known_dataset("dataset", config.dataset, config)


def rules(config: ConfigDict) -> Rules:
    """Which images and people are trained on."""
    return Rules(config.min_area, config.labelled_images)
