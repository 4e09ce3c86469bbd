"""What no setting may be, of either method: found before anything is loaded, and told in one line with the field.

A *leaf* of a configuration is a value with its dotted name, `losses.momentum` or `stages[0].epochs`.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from data_pipelines.datasets import PoseDataset, find_dataset, known_datasets
from data_pipelines.paths import NoPathError, as_path, is_remote
from pose_common.products import DTYPES
from pose_common.weights.hub_folders import HUB

POSITIVE = ("batch_size", "eval_batch_size", "fsdp", "learning_rate", "keep_checkpoints")
NOT_NEGATIVE = (
    "seed",
    "loader_threads",
    "loader_workers",
    "steps_per_epoch",
    "log_every",
    "checkpoint_every",
    "evaluate_every",
    "keep_checkpoints_every",
    "pictures",
    "weight_decay",
    "clip_norm",
)


class ConfigError(ValueError):
    """A setting that cannot be: one line with the field, what was given, what is possible."""


def nearest(name: str, known: Iterable[str]) -> str:
    """'; did you mean ...?' for a likely typing error, else ''."""
    close = difflib.get_close_matches(str(name), [str(word) for word in known], n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def one_of(field: str, value: Any, known: Collection[Any]) -> None:
    """Raises ConfigError unless `value` is among `known`."""
    if value not in known:
        expected = ", ".join(map(str, known))
        raise ConfigError(f"config.{field}={value!r}: expected one of {expected}{nearest(value, known)}")


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every leaf, in order of the names."""
    if isinstance(config, (ConfigDict, Mapping)):
        for name in sorted(config):
            yield from leaves(config[name], f"{prefix}.{name}" if prefix else name)
    elif isinstance(config, list):
        for index, item in enumerate(config):
            yield from leaves(item, f"{prefix}[{index}]")
    else:
        yield prefix, config


def within(field: str, value: float, low: float, high: float, *, closed: bool = False) -> None:
    """Raises ConfigError unless low <= value < high (<= high, where `closed`)."""
    if not (low <= value <= high if closed else low <= value < high):
        end = "" if high == math.inf else f" to {high:g}" if closed else f" to below {high:g}"
        raise ConfigError(f"config.{field}={value!r}: expected a number from {low:g}{end}")


def positive(field: str, value: float) -> None:
    """Raises ConfigError unless 0 < value < infinity."""
    if not 0 < value < math.inf:
        raise ConfigError(f"config.{field}={value!r}: expected a number above 0")


def odd(field: str, side: Any) -> None:
    """Raises ConfigError for a window without a middle: an even one shifts every peak by half a cell."""
    if type(side) is not int or side <= 0 or side % 2 == 0:
        raise ConfigError(f"config.{field}={side!r}: expected an odd number of cells")


def require_fields(table: str, given: Collection[str], known: Collection[str], needed: Collection[str]) -> None:
    """Raises ConfigError for a field that nothing reads, or for one that is needed and not given.

    Args:
      table: what precedes a field's name, such as "losses."; "" at the top.
    """
    for name in sorted(set(given) - set(known)):
        raise ConfigError(
            f"config.{table}{name}: there is no such field{nearest(name, known) or ', and nothing would read it'}"
        )
    for name in sorted(set(needed) - set(given)):
        raise ConfigError(f"config.{table}{name}: the configuration has no such field, and it is needed")


def require_like(config: ConfigDict, complete: ConfigDict, entries: Collection[str], table: str = "") -> None:
    """Raises ConfigError for fields of a user's file that nothing reads, such as a mistyped one, or that it lacks.

    Args:
      complete: a configuration with every field of the method.
      entries: tables whose entries have any names, such as those of datasets; only `default` is needed of these.
      table: what precedes the names of the fields, of a table within a configuration.
    """
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"config.{table[:-1]}={config!r}: expected a table")
    if table[:-1] in entries:
        require_fields(table, config, config, {"default"}.intersection(complete))
        return
    require_fields(table, config, complete, complete)
    for name, field in complete.items():
        if isinstance(field, ConfigDict):
            require_like(config[name], field, entries, f"{table}{name}.")


def known_dataset(field: str, name: str, config: ConfigDict) -> PoseDataset:
    """A dataset that is built in, defined in `config.data_dir` or kept by the run. Raises ConfigError for another."""
    try:
        return find_dataset(name, config.data_dir, config.definitions)
    except KeyError as error:
        raise ConfigError(f"config.{field}: {error.args[0]}{nearest(name, known_datasets(config.data_dir))}") from error


def require_weights(field: str, config: ConfigDict) -> None:
    """Raises ConfigError where there is nothing at the path that `field` gives."""
    expected = f"a working directory with checkpoints, one of them, a folder or file of weights, or {HUB}owner/name"
    require_path(field, config[field], expected)


def require_path(field: str, path: str, expected: str) -> None:
    """Raises ConfigError where there is nothing at `path`; what is on the Hugging Face hub is looked for later."""
    if path.startswith(HUB):
        return
    try:
        there = path and as_path(path).exists()
    except NoPathError as error:
        raise ConfigError(f"config.{field}: {error}") from error
    if not there:
        raise ConfigError(f"config.{field}={path!r}: there is no such file or folder; expected {expected}")


def package_of(method: str) -> str:
    """The package whose commands are for the runs of a method."""
    return "boir_jax" if method == "boir" else "posebh_jax"


def require_method(title: str, config: Mapping[str, Any], methods: Collection[str]) -> None:
    """Raises ConfigError for the configuration of another method than a command is for.

    Args:
      title: of what has the configuration, such as "run/base is a run".
      methods: those of the command.
    """
    method = config.get("method", "")
    if method not in methods:
        package = package_of(method)
        raise ConfigError(
            f"{title} of {method or 'no method'}, which is not {' or '.join(methods)}: use the commands of {package},"
            f" such as python -m {package}.main"
        )


def check(config: ConfigDict) -> None:
    """Raises ConfigError for what no method can do: fields of configs/common.py and those that all methods have."""
    for name, value in leaves(config):
        if isinstance(value, float) and math.isnan(value):  # every comparison with it is false
            raise ConfigError(f"config.{name}=nan: expected a number")
    one_of("mode", config.mode, ("train", "evaluate"))
    one_of("parallel", config.parallel, ("sharded", "pmap"))
    for name in ("dtype", "eval_dtype"):
        one_of(name, config[name], DTYPES)
    for name in POSITIVE:
        positive(name, config[name])
    for name in NOT_NEGATIVE:
        within(name, config[name], 0, math.inf)
    if config.mode == "train":
        for name in ("b1", "b2"):
            within(f"adam.{name}", config.adam[name], 0, 1)
        positive("adam.eps", config.adam.eps)  # what no image of a batch reaches has moments of 0
    for name in ("num_train", "num_val"):
        if (count := config.synthetic.get(name, 0)) < 0:
            raise ConfigError(f"config.synthetic.{name}={count}: expected a number of pictures, or 0 to render none")
    steps = config.profile_steps
    if steps and not (len(steps) == 2 and all(type(step) is int for step in steps) and 0 < steps[0] <= steps[1]):
        raise ConfigError(f"config.profile_steps={steps!r}: expected the first and the last step, such as 100,102")
    often, rarely = config.checkpoint_every, config.keep_checkpoints_every
    if rarely and (not often or rarely % often):
        raise ConfigError(
            f"config.keep_checkpoints_every={rarely}: expected a multiple of config.checkpoint_every={often}, as only "
            "what is written can be kept"
        )
    if is_remote(config.data_cache):
        raise ConfigError(f"config.data_cache={config.data_cache!r}: expected a folder on this machine's disk")
    if config.checkpoint and config.mode == "train":
        raise ConfigError(
            f"config.checkpoint={config.checkpoint!r} is what config.mode=evaluate evaluates; to train from these "
            "weights give config.init_from, to go on with a run its --workdir"
        )
    if config.mode == "evaluate":
        require_weights("checkpoint", config)


def check_batch(config: ConfigDict) -> None:
    """Raises ConfigError for a batch that the devices (of all processes) cannot share equally, or no memory holds."""
    width, height = np.broadcast_to(config.input_size, 2).tolist()
    needed = 3 * width * height * -(-config.batch_size // jax.process_count())
    if needed > (there := os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")):
        raise ConfigError(
            f"config.batch_size={config.batch_size}: a batch of pictures of {width}x{height} takes "
            f"{needed / 2**30:,.0f} GiB in each process, more than the {there / 2**30:,.0f} GiB of this machine"
        )
    rows, rest = divmod(config.batch_size, jax.device_count())
    if rest:
        possible = [count * jax.device_count() for count in (rows, rows + 1) if count]
        raise ConfigError(
            f"config.batch_size={config.batch_size} does not divide over {jax.device_count()} devices; expected a "
            f"multiple of {jax.device_count()}, such as {' or '.join(map(str, possible))}"
        )


def whole_eval_batch(config: ConfigDict) -> int:
    """`config.eval_batch_size`, rounded up to what the devices can share equally; rows without a crop fill it up."""
    return -(-config.eval_batch_size // jax.device_count()) * jax.device_count()
