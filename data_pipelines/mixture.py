"""Mixing datasets: one endless stream of samples from several random-access sources.

Every position of the stream is decided by the seed alone, so a stream can be read from any position, by any
number of processes. Three ways to mix:

* `concat`: all instances of all datasets in one shuffle, each once an epoch; as the PoseBH paper trains.
* `balanced`: every dataset equally often, whatever its size.
* explicit weights: proportions, one a dataset.

Under the latter two each dataset goes through epochs of its own, shuffled anew each time, and the datasets
alternate in exact proportion (to about a percent of the smallest weight), so every batch has the mixture's
composition.

Order within an epoch is random in all of them. With `together` above 1 up to so many people of one picture follow each
other, so that whoever reads them decodes it once; batches are then less varied.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

import grain
import numpy as np

CONCAT, BALANCED = "concat", "balanced"
MIXTURES = (CONCAT, BALANCED, "weighted")
"""What a configuration may ask for."""


def mix(sources: Sequence, mixture: str | Sequence[float], seed: int, together: int = 1) -> grain.MapDataset:
    """The endless shuffled stream.

    Args:
      sources: random-access sources, one a dataset; for `together` above 1 with `pictures`, an int array [len] that
        says which picture of the source an element is of.
      mixture: 'concat', 'balanced' or positive weights in the order of `sources`.
      seed: any non-negative integer. Each epoch of each dataset has its own order.
      together: how many people of one picture may follow each other.

    Raises:
      ValueError: an unknown mixture, weights that do not fit the sources, or nobody `together`.
    """
    if together < 1:
        raise ValueError(f"{together} people of a picture together: 1 or more")
    weights = _weights(mixture, len(sources))
    first, *others = derived_seeds(seed, 1 + len(sources))
    if weights is None:
        return _endless(sources, first, together)
    endless = [_endless([source], own, together) for source, own in zip(sources, others, strict=True)]
    return grain.MapDataset.mix(endless, weights)


def _endless(sources: Sequence, seed: int, together: int) -> grain.MapDataset:
    """Epochs of all sources, each in an order of its own."""
    everything = grain.MapDataset.concatenate([grain.MapDataset.source(source) for source in sources])
    if together == 1:
        return everything.shuffle(seed=seed).repeat()
    starts = np.cumsum([0, *(1 + source.pictures.max(initial=-1) for source in sources)])
    pictures = np.concatenate([source.pictures + start for source, start in zip(sources, starts[:-1], strict=True)])
    return grain.MapDataset.source(Together(everything, pictures, together, seed))


@dataclasses.dataclass(frozen=True, eq=False)
class Together:
    """Endless epochs in random order, but that runs of elements are of one picture.

    Attributes:
      elements: random access over one epoch.
      pictures: int [len(elements)], which picture an element is of.
      count: the longest run. A picture with more elements has several runs, each somewhere else.
      seed: decides every epoch's order.
    """

    elements: Sequence
    pictures: np.ndarray
    count: int
    seed: int
    orders: dict[int, np.ndarray] = dataclasses.field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int):
        epoch, place = divmod(index, len(self.pictures))
        return self.elements[int(self._order(epoch)[place])]

    def _order(self, epoch: int) -> np.ndarray:
        """Indices of one epoch. Threads that read ahead are in two of them at most."""
        order = self.orders.get(epoch)
        if order is None:
            order = self.orders[epoch] = order_of_runs(self.pictures, self.count, (self.seed, epoch))
            for old in set(self.orders) - {epoch - 1, epoch, epoch + 1}:
                self.orders.pop(old, None)
        return order


def order_of_runs(pictures: np.ndarray, count: int, seed: int | Sequence[int]) -> np.ndarray:
    """All indices of `pictures` [N] in random order, by runs of at most `count` of one picture."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(pictures))
    order = order[np.argsort(pictures[order], kind="stable")]
    _, first, people = np.unique(pictures[order], return_index=True, return_counts=True)
    within = np.arange(len(order)) - np.repeat(first, people)
    run = np.cumsum(within % count == 0) - 1
    return order[np.argsort(rng.permutation(run[-1] + 1)[run], kind="stable")]


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
