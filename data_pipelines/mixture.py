"""Mixing datasets: one endless stream of samples from several random-access sources.

Every position of the stream is decided by the seed alone, so a stream can be read from any position, by any
number of processes. Three ways to mix:

* `concat`: all instances of all datasets in one shuffle, each once an epoch; as the PoseBH paper trains.
* `balanced`: every dataset equally often, whatever its size.
* explicit weights: proportions, one a dataset.

Under the latter two each dataset goes through epochs of its own, shuffled anew each time, and the datasets
alternate in exact proportion (to about a percent of the smallest weight), so every batch has the mixture's
composition.
"""

from __future__ import annotations

from collections.abc import Sequence

import grain
import numpy as np

CONCAT, BALANCED = "concat", "balanced"
MIXTURES = (CONCAT, BALANCED, "weighted")
"""What a configuration may ask for."""


def mix(sources: Sequence, mixture: str | Sequence[float], seed: int) -> grain.MapDataset:
    """The endless shuffled stream.

    Args:
      sources: random-access sources, one a dataset.
      mixture: 'concat', 'balanced' or positive weights in the order of `sources`.
      seed: any non-negative integer. Each epoch of each dataset has its own order.

    Raises:
      ValueError: an unknown mixture, or weights that do not fit the sources.
    """
    weights = _weights(mixture, len(sources))
    datasets = [grain.MapDataset.source(source) for source in sources]
    first, *others = derived_seeds(seed, 1 + len(sources))
    if weights is None:
        return grain.MapDataset.concatenate(datasets).shuffle(seed=first).repeat()
    endless = [dataset.shuffle(seed=own).repeat() for dataset, own in zip(datasets, others, strict=True)]
    return grain.MapDataset.mix(endless, weights)


def _weights(mixture: str | Sequence[float], count: int) -> list[float] | None:
    if mixture == CONCAT:
        return None
    if mixture == BALANCED:
        return [1.0] * count
    if isinstance(mixture, str):
        raise ValueError(f"unknown mixture {mixture!r}: not {CONCAT!r}, {BALANCED!r} or a list of weights")
    weights = [float(weight) for weight in mixture]
    if len(weights) != count or not all(np.isfinite(weight) and weight > 0 for weight in weights):
        raise ValueError(f"a mixture of {count} datasets needs {count} positive weights, got {weights}")
    return weights


def derived_seeds(seed: int, count: int) -> list[int]:
    """Independent 32-bit seeds; not neighbours, for Grain's shuffle counts its epochs up from its seed."""
    return [int(word) for word in np.random.SeedSequence(seed).generate_state(count)]
