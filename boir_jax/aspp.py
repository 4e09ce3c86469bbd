"""Atrous spatial pyramid pooling (Chen et al., 2017): the neck between the backbone and the dense heads."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from boir_jax.hrnet import ConvNorm, NormFactory
from pose_common.layers import BatchNorm

DILATIONS = (12, 24, 36)
"""Of the published models."""


class ASPP(nn.Module):
    """A 1x1 convolution, one 3x3 convolution per dilation and the image's mean, side by side, then a
    projection.

    The mean of the whole image makes the result depend on the image's size: inputs must not be padded.

    Attributes:
      middle: channels of each of the parallel paths.
      features: channels of the result.
      dilations: of the 3x3 convolutions, in cells.
    """

    middle: int = 128
    features: int = 256
    dilations: tuple[int, ...] = DILATIONS
    norm: NormFactory = BatchNorm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, h, w, C] -> [B, h, w, features]."""
        common = {"norm": self.norm, "dtype": self.dtype}
        paths = [ConvNorm(self.middle, 1, name="point", **common)(x, train)]
        for dilation in self.dilations:
            path = ConvNorm(self.middle, 3, dilation=dilation, name=f"dilated_{dilation}", **common)
            paths.append(path(x, train))
        mean = x.astype(jnp.float32).mean((1, 2), keepdims=True).astype(self.dtype)
        pooled = ConvNorm(self.middle, 1, name="pooled", **common)(mean, train)
        paths.append(jnp.broadcast_to(pooled, paths[0].shape))
        return ConvNorm(self.features, 1, name="project", **common)(jnp.concatenate(paths, axis=-1), train)
