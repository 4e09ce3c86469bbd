"""Heads of BoIR: dense ones on the neck, and the head that draws one person's keypoints on the backbone's
map.

Maps are [B, h, w, C] at stride 4; cells are (x, y) on that map. Heads return raw values; `clamped_sigmoid`
makes scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from boir_jax.hrnet import BasicBlock, NormFactory, small_normal
from pose_common.layers import BatchNorm

# Scores start at 0.01, so that the many empty cells do not swamp the focal loss (Lin et al., 2017).
prior_bias = nn.initializers.constant(-math.log(99.0))

# torch's default for convolutions, U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
fan_in_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def clamped_sigmoid(logits: jax.Array) -> jax.Array:
    """Sigmoid in float32, limited to [1e-4, 1 - 1e-4]; no gradient beyond the limits."""
    score = jax.nn.sigmoid(logits.astype(jnp.float32))
    # Not jnp.clip, which halves the gradient on the limits themselves.
    return jnp.where(score < 1e-4, 1e-4, jnp.where(score > 1 - 1e-4, 1 - 1e-4, score))


class DenseHead(nn.Module):
    """A residual block with projected shortcut, then a 3x3 convolution with bias, to float32.

    Attributes:
      outputs: channels of the result.
      features: channels of the residual block.
      block_init, kernel_init, bias_init: initial values of the block's convolutions and of the last one.
    """

    outputs: int
    features: int = 128
    block_init: Callable[..., jax.Array] = small_normal
    kernel_init: Callable[..., jax.Array] = small_normal
    bias_init: Callable[..., jax.Array] = prior_bias
    norm: NormFactory = BatchNorm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, h, w, C] -> [B, h, w, outputs] raw values."""
        common = {"norm": self.norm, "dtype": self.dtype}
        block = BasicBlock(self.features, project=True, kernel_init=self.block_init, name="block", **common)
        x = nn.Conv(
            self.outputs,
            (3, 3),
            padding=1,
            dtype=self.dtype,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
            name="output",
        )(block(x, train))
        return x.astype(jnp.float32)


def box_head(features: int, **common: Any) -> DenseHead:
    """Distances (left, top, right, bottom) to a person's box.

    Only the last convolution starts at zero (every box then reaches one cell to each side). The release
    zeroes all of them, and a head that is zero in every layer passes no gradient.
    """
    return DenseHead(
        4,
        features,
        block_init=fan_in_uniform,
        kernel_init=nn.initializers.zeros,
        bias_init=nn.initializers.ones,
        **common,
    )


class InstanceKeypointHead(nn.Module):
    """Draws the keypoints of the person at a cell (paper, section 3.3).

    The backbone's vector at the cell makes two gates: one multiplies the channels of the (reduced) map; the
    other, as a dot product with the map and together with the coordinates relative to the cell, makes a
    spatial mask. Both products are fused by a 1x1 convolution. That convolution is linear, so the channel
    gate is applied to its weights and the
    mask to its result: no map per person is made before the fused one.

    Attributes:
      num_keypoints: maps per person.
      features: channels of the reduced map.
    """

    num_keypoints: int
    features: int = 64
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, image: jax.Array, cells: jax.Array) -> jax.Array:
        """Raw keypoint maps of people.

        Args:
          features: [G, g, h, w, C] backbone maps, in groups of g images.
          image: int32 [G, M], each person's image within the group.
          cells: int32 [G, M, 2] (x, y) of each person's sampling cell.

        Returns:
          [G, M, h, w, num_keypoints] float32.
        """
        reduced = self._conv(self.features, 1, name="reduce")(features)
        vectors = jax.vmap(lambda maps, i, cell: maps[i, cell[:, 1], cell[:, 0]])(features, image, cells)
        # One image per group needs no copy of its map for every person; broadcasting serves.
        maps = reduced if features.shape[1] == 1 else jax.vmap(lambda maps, i: maps[i])(reduced, image)

        channel_gate = self._gate("channel")(vectors)
        mask = self._spatial_mask(maps, self._gate("spatial")(vectors), cells)
        return self._fuse(maps, channel_gate, mask)

    def _conv(self, features: int, kernel: int, name: str) -> nn.Conv:
        return nn.Conv(
            features,
            (kernel, kernel),
            padding=kernel // 2,
            dtype=self.dtype,
            kernel_init=small_normal,
            bias_init=prior_bias,
            name=name,
        )

    def _gate(self, name: str) -> Callable[[jax.Array], jax.Array]:
        dense = nn.Dense(self.features, dtype=self.dtype, kernel_init=small_normal, name=f"{name}_dense")
        norm = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, dtype=self.dtype, name=f"{name}_norm")
        return lambda vectors: norm(dense(vectors))

    def _spatial_mask(self, maps: jax.Array, gate: jax.Array, cells: jax.Array) -> jax.Array:
        """[G, M, h, w, 1] from maps [G, M or 1, h, w, C], gate [G, M, C] and cells [G, M, 2]."""
        height, width = maps.shape[2:4]
        match = _product(maps, gate, "gmc->gmhw")
        grid = jnp.stack(jnp.meshgrid(jnp.arange(width), jnp.arange(height)), axis=-1)
        relative = (cells[:, :, None, None, :] - grid).astype(self.dtype) / 32
        evidence = jnp.concatenate([match[..., None], relative], axis=-1)
        groups, people = match.shape[:2]
        mask = self._conv(1, 5, name="mask")(evidence.reshape(groups * people, height, width, 3))
        return instance_norm(mask.reshape(groups, people, height, width, 1))

    def _fuse(self, maps: jax.Array, gate: jax.Array, mask: jax.Array) -> jax.Array:
        """1x1 convolution of [gate * maps, mask * maps], norm, ReLU, 1x1 convolution to keypoints."""
        channels = self.features
        kernel = self.param("fuse_kernel", small_normal, (1, 1, 2 * channels, channels))
        bias = self.param("fuse_bias", prior_bias, (channels,)).astype(self.dtype)
        kernel = kernel[0, 0].astype(self.dtype)
        gated = gate[..., None] * kernel[:channels]
        by_channel = _product(maps, gated, "gmcd->gmhwd")
        fused = instance_norm(by_channel + mask * (maps @ kernel[channels:]) + bias)
        return self._conv(self.num_keypoints, 1, name="output")(nn.relu(fused)).astype(jnp.float32)


def _product(maps: jax.Array, values: jax.Array, subscripts: str) -> jax.Array:
    """Contracts the channels of maps [G, M, h, w, C] with values [G, M, C, ...]; one map may serve all M."""
    if maps.shape[1] == 1:
        return jnp.einsum(f"ghwc,{subscripts}", maps[:, 0], values)
    return jnp.einsum(f"gmhwc,{subscripts}", maps, values)


def instance_norm(x: jax.Array, epsilon: float = 1e-5) -> jax.Array:
    """Zero mean and unit variance over the map [..., h, w, C] of every sample and channel; statistics in
    float32.
    """
    x32 = x.astype(jnp.float32)
    mean = x32.mean((-3, -2), keepdims=True)
    centred = x32 - mean
    variance = jnp.square(centred).mean((-3, -2), keepdims=True)
    return (centred * jax.lax.rsqrt(variance + epsilon)).astype(x.dtype)
