"""The PoseBH network: one backbone, one heatmap head a dataset, one embedding head.

Parameters have three top-level groups, `backbone`, `heads` and `embedding`, which is also how stages freeze
them. Prototypes are not parameters: they live in the train state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from posebh_jax.heads import EmbeddingHead, HeatmapHead
from posebh_jax.vit import ViT, ViTSize


class HeatmapHeads(nn.Module):
    """One heatmap head a dataset, named after it.

    Attributes:
      datasets: (name, number of keypoints) in dataset order.
      filters, dtype, axis_name: see `HeatmapHead`.
    """

    datasets: tuple[tuple[str, int], ...]
    filters: tuple[int, int]
    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool, names: Sequence[str] | None = None) -> jax.Array:
        """[B, h, w, C] -> [B, 4h, 4w, sum of K]: the maps of all datasets or those in `names`, in dataset order.

        Raises:
          ValueError: a name in `names` that no head has.
        """
        unknown = set(names or ()) - {name for name, _ in self.datasets}
        if unknown:
            raise ValueError(f"no head for {sorted(unknown)}; the heads are {[name for name, _ in self.datasets]}")
        maps = [
            HeatmapHead(num_keypoints, self.filters, self.dtype, self.axis_name, name=name)(features, train=train)
            for name, num_keypoints in self.datasets
            if names is None or name in names
        ]
        return jnp.concatenate(maps, axis=-1)


class PoseBH(nn.Module):
    """Backbone and heads. `apply(variables, ..., method="features" | "heatmaps" | "embed")`.

    Attributes:
      size: of the backbone.
      datasets: (name, number of keypoints) of every skeleton, in the order in which their maps are
        concatenated.
      num_experts: experts of the backbone, one a dataset; 0 for a plain transformer.
      embedding_dim: length D of an embedding; 0 leaves the embedding head out (the multi-head baseline).
      embedding_channels: channels inside the embedding head.
      filters: channels of each of the two transposed convolutions of every head.
      embedding_neck, embedding_kernel, embedding_activation: see `EmbeddingHead`.
      dtype: dtype of the arithmetic of backbone and heatmap heads; parameters are float32.
      embedding_dtype: that of the embedding head.
      remat: recompute the backbone's blocks in the backward pass.
      tpu_kernels: see `ViT`.
      axis_name: mapped axis over which batch statistics are averaged, or None.
    """

    size: ViTSize
    datasets: tuple[tuple[str, int], ...]
    num_experts: int = 0
    embedding_dim: int = 64
    embedding_channels: int = 64
    filters: tuple[int, int] = (256, 256)
    embedding_neck: str = "res"
    embedding_kernel: int = 3
    embedding_activation: str = "silu"
    dtype: Any = jnp.float32
    embedding_dtype: Any = jnp.float32
    remat: bool = False
    tpu_kernels: bool = True
    axis_name: str | None = None

    def setup(self) -> None:
        self.backbone = ViT(self.size, self.num_experts, self.dtype, self.remat, self.tpu_kernels)
        self.heads = HeatmapHeads(self.datasets, self.filters, self.dtype, self.axis_name)
        if self.embedding_dim:
            self.embedding = EmbeddingHead(
                self.embedding_dim,
                self.embedding_channels,
                self.filters,
                self.embedding_neck,
                self.embedding_kernel,
                self.embedding_activation,
                self.embedding_dtype,
                self.axis_name,
            )

    def __call__(self, images: jax.Array, dataset: jax.Array) -> jax.Array:
        """Everything once, in inference mode; for initialisation. Returns the heatmaps."""
        features = self.features(images, dataset)
        if self.embedding_dim:
            self.embed(features)
        return self.heatmaps(features)

    def features(self, images: jax.Array, dataset: jax.Array, drop_path: jax.Array | None = None) -> jax.Array:
        """Normalised images [B, H, W, 3], dataset [B], drop_path [depth, 2, B] or None -> [B, h, w, C]."""
        return self.backbone(images, dataset, drop_path)

    def heatmaps(self, features: jax.Array, train: bool = False, names: Sequence[str] | None = None) -> jax.Array:
        """[B, h, w, C] -> [B, 4h, 4w, T]: maps of all skeletons or those in `names`, in dataset order."""
        return self.heads(features, train=train, names=names)

    def embed(self, features: jax.Array, train: bool = False) -> jax.Array:
        """[B, h, w, C] -> embeddings [B, 4h, 4w, D], not normalised."""
        return self.embedding(features, train=train)


def layer_ids(params) -> dict:
    """Layer of every parameter, for layer-wise learning rates.

    Args:
      params: parameters of `PoseBH` (arrays or shapes).

    Returns:
      A tree like `params` of int32 arrays that broadcast against the parameters: 0 for the patch convolution
      and the position embedding, i + 1 for block i (along the leading axis of the stacked blocks), depth + 1
      for the rest.
    """
    flat = flax.traverse_util.flatten_dict(params)
    depth = next(value.shape[0] for path, value in flat.items() if path[:2] == ("backbone", "blocks"))

    def of(path, value):
        if path[:2] == ("backbone", "blocks"):
            return np.arange(1, depth + 1, dtype=np.int32).reshape((depth,) + (1,) * (value.ndim - 1))
        first = path[:2] in (("backbone", "patch_embed"), ("backbone", "pos_embed"))
        return np.int32(0 if first else depth + 1)

    return flax.traverse_util.unflatten_dict({path: of(path, value) for path, value in flat.items()})


def weight_decay_mask(params) -> dict:
    """A tree like `params` of bools: True for kernels; False for biases, norms and the position embedding."""
    flat = flax.traverse_util.flatten_dict(params)
    return flax.traverse_util.unflatten_dict({path: path[-1] == "kernel" for path in flat})
