"""Where each dataset's keypoints lie among the keypoints of a mixture.

Symbols used throughout the method: n datasets with K_d keypoints each, K the largest K_d, T their sum. A
*global* id is start(d) + local id, datasets in mixture order. Arrays over all skeletons have T entries;
arrays over the keypoints of an image's own dataset have K, padded with zeros behind the dataset's K_d.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class KeypointIndex:
    """Static description of a mixture; hashable, so it may be closed over or passed as a static argument.

    Attributes:
      counts: keypoints of each dataset, in mixture order.
    """

    counts: tuple[int, ...]

    def __post_init__(self):
        if not self.counts or min(self.counts) < 1:
            raise ValueError(f"every dataset needs at least one keypoint, got counts {self.counts}")

    @property
    def num_datasets(self) -> int:
        return len(self.counts)

    @property
    def total(self) -> int:
        """T, keypoints of all datasets together."""
        return sum(self.counts)

    @property
    def longest(self) -> int:
        """K, keypoints of the largest skeleton."""
        return max(self.counts)

    @functools.cached_property
    def starts(self) -> np.ndarray:
        """int32 [n]: global id of each dataset's first keypoint."""
        return np.concatenate([[0], np.cumsum(self.counts)[:-1]]).astype(np.int32)

    @functools.cached_property
    def dataset_of(self) -> np.ndarray:
        """int32 [T]: dataset of each keypoint."""
        return np.repeat(np.arange(self.num_datasets, dtype=np.int32), self.counts)

    @functools.cached_property
    def one_hot(self) -> np.ndarray:
        """float32 [T, n]: 1 where the keypoint belongs to the dataset."""
        return np.eye(self.num_datasets, dtype=np.float32)[self.dataset_of]

    def own(self, dataset: jax.Array) -> jax.Array:
        """bool [..., T]: whether a keypoint belongs to the dataset(s) [...]."""
        return dataset[..., None] == self.dataset_of

    def to_global(self, values: jax.Array, dataset: jax.Array, axis: int = -1) -> jax.Array:
        """Moves each sample's own keypoints to their global places; the other datasets' places become zero.

        Doing this to keypoints [B, K, 2] before heatmaps are drawn is far cheaper than moving the maps.

        Args:
          values: [B, ..., K, ...].
          dataset: int32 [B].
          axis: the axis of length K.

        Returns:
          `values` with T entries along `axis`.
        """
        moved = jnp.take(values, np.arange(self.total) - self.starts[self.dataset_of], axis=axis)
        shape = [1] * values.ndim
        shape[0], shape[axis] = values.shape[0], self.total
        return jnp.where(self.own(dataset).reshape(shape), moved, 0)

    def sum_by_dataset(self, values: jax.Array) -> jax.Array:
        """[..., T] -> [..., n]: sums over the keypoints of each dataset."""
        return jnp.matmul(values, self.one_hot, precision=jax.lax.Precision.HIGHEST)
