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
from pose_common.convolution import Convolution
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
    """A residual block with projected shortcut, then a 3x3 convolution whose bias is added in float32.

    A bias of -4.6 beside the signals of a new head would round them away in bfloat16: 29 % error instead of 0.2 %.

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
        output = Convolution(
            self.outputs,
            3,
            dtype=self.dtype,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
            name="output",
        )
        return output(block(x, train))


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
    gate is applied to its weights and the mask to its result: no map per person is made before the fused one.

    Biases start at -4.6 beside signals of 0.01 and less, which bfloat16 cannot tell apart from nothing. Only
    the large products therefore run in `dtype`, and on signals without biases; these are added in float32, to
    which also the gates and the mask keep.

    Attributes:
      num_keypoints: maps per person.
      features: channels of the reduced map.
      unit: cells that make a relative coordinate of 1.
    """

    num_keypoints: int
    features: int = 64
    dtype: Any = jnp.float32
    unit: float = 32

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
        reduced = self._pointwise(features, self.features, "reduce")
        offset = self._bias("reduce", self.features)
        vectors = jax.vmap(lambda maps, i, cell: maps[i, cell[:, 1], cell[:, 0]])(features, image, cells)
        # One image per group needs no copy of its map for every person; broadcasting serves.
        maps = reduced if features.shape[1] == 1 else jax.vmap(lambda maps, i: maps[i])(reduced, image)

        channel_gate = self._gate("channel", vectors)
        mask = self._spatial_mask(maps, offset, self._gate("spatial", vectors), cells)
        fused = nn.relu(self._fuse(maps, offset, channel_gate, mask))
        output = self._pointwise(fused, self.num_keypoints, "output")
        return output + self._bias("output", self.num_keypoints)

    def _pointwise(self, maps: jax.Array, features: int, name: str) -> jax.Array:
        """A 1x1 convolution without bias of maps [G, N, h, w, C]."""
        convolution = Convolution(features, 1, dtype=self.dtype, kernel_init=small_normal, name=name)
        return convolution(maps.reshape(-1, *maps.shape[2:])).reshape(*maps.shape[:-1], features)

    def _bias(self, name: str, size: int) -> jax.Array:
        return self.param(f"{name}_bias", prior_bias, (size,))

    def _gate(self, name: str, vectors: jax.Array) -> jax.Array:
        """float32 [G, M, features] from backbone vectors [G, M, C]."""
        dense = nn.Dense(self.features, kernel_init=small_normal, name=f"{name}_dense")
        norm = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name=f"{name}_norm")
        return norm(dense(vectors.astype(jnp.float32)))

    def _spatial_mask(self, maps: jax.Array, offset: jax.Array, gate: jax.Array, cells: jax.Array) -> jax.Array:
        """[G, M, h, w, 1] from maps [G, M or 1, h, w, C] + offset [C], gate [G, M, C] and cells [G, M, 2]."""
        height, width = maps.shape[2:4]
        match = _product(maps, gate.astype(self.dtype), "gmc->gmhw") + (gate @ offset)[..., None, None]
        grid = jnp.stack(jnp.meshgrid(jnp.arange(width), jnp.arange(height)), axis=-1)
        relative = (cells[:, :, None, None, :] - grid) / self.unit
        evidence = jnp.concatenate([match[..., None], relative], axis=-1)
        groups, people = match.shape[:2]
        evidence = evidence.reshape(groups * people, height, width, 3)
        mask = nn.Conv(1, (5, 5), padding=2, use_bias=False, kernel_init=small_normal, name="mask")(evidence)
        return instance_norm(mask.reshape(groups, people, height, width, 1) + self._bias("mask", 1))

    def _fuse(self, maps: jax.Array, offset: jax.Array, gate: jax.Array, mask: jax.Array) -> jax.Array:
        """Instance norm of the 1x1 convolution of [gate * (maps + offset), mask * (maps + offset)]."""
        kernel = self.param("fuse_kernel", small_normal, (1, 1, 2 * self.features, self.features))[0, 0]
        for_gate, for_mask = kernel[: self.features], kernel[self.features :]
        by_channel = _product(maps, (gate[..., None] * for_gate).astype(self.dtype), "gmcd->gmhwd")
        by_place = mask * (maps @ for_mask.astype(self.dtype) + offset @ for_mask)
        constant = (gate * offset) @ for_gate + self._bias("fuse", self.features)
        return instance_norm(by_channel + by_place + constant[:, :, None, None, :])


def _product(maps: jax.Array, values: jax.Array, subscripts: str) -> jax.Array:
    """Contracts the channels of maps [G, M, h, w, C] with values [G, M, C, ...]; one map may serve all M."""
    if maps.shape[1] == 1:
        return jnp.einsum(f"ghwc,{subscripts}", maps[:, 0], values)
    return jnp.einsum(f"gmhwc,{subscripts}", maps, values)


def instance_norm(x: jax.Array, epsilon: float = 1e-5) -> jax.Array:
    """Zero mean and unit variance over the map [..., h, w, C] of every sample and channel, in float32."""
    x = x.astype(jnp.float32)
    centred = x - x.mean((-3, -2), keepdims=True)
    variance = jnp.square(centred).mean((-3, -2), keepdims=True)
    return centred * jax.lax.rsqrt(variance + epsilon)
