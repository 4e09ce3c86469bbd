"""BoIR (BMVC 2023): one backbone, dense heads on a neck, and a head that draws each person's keypoints."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from boir_jax.aspp import ASPP, DILATIONS
from boir_jax.heads import DenseHead, InstanceKeypointHead, box_head, prior_bias
from boir_jax.hrnet import HRNet, NormFactory
from pose_common.layers import BatchNorm

VARIANTS: dict[str, dict[str, Any]] = {
    "w32": {"width": 32, "instance_features": 64},
    "w48": {"width": 48, "instance_features": 96},
    # For the demo and tests: the same parts, few and narrow.
    "small": {
        "width": 16,
        "modules": (1, 1, 1),
        "blocks": 2,
        "stem": 16,
        "neck_middle": 16,
        "neck_features": 64,
        "head_features": 32,
        "embedding_features": 32,
        "instance_features": 32,
    },
}
"""Sizes by name: `BoIR(num_keypoints=17, **VARIANTS["w32"])`."""


def variant_name(width: Any) -> str | None:
    """Name of a size by its backbone's width, or None."""
    return next((name for name, own in VARIANTS.items() if own["width"] == width), None)


class BoIR(nn.Module):
    """The network; top-level parameter groups are backbone, neck, *_head.

    Attributes:
      num_keypoints: keypoints of the skeleton.
      width, modules, blocks, stem: of the backbone, see `HRNet`.
      neck_middle, neck_features, dilations: of the neck, see `ASPP`.
      head_features: channels of the dense heads' residual blocks.
      embedding_features: channels of the instance embedding.
      embedding_prior: whether the last bias of the embedding head begins at -4.6, as the scores' does, which is how
        it was released; otherwise at 0. All embeddings of a new head with it point the same way.
      instance_features: channels of the instance head.
      training_heads: whether the auxiliary heads (keypoint, embedding, box) exist. They only shape the
        features; a model for inference has neither them nor their parameters.
      norm, dtype, remat, fold_channels: see `HRNet`. Heads end in float32 whatever the dtype.
    """

    num_keypoints: int
    width: int | tuple[int, int, int, int] = 32
    modules: tuple[int, int, int] = (1, 4, 3)
    blocks: int | tuple[int, int, int] = 4
    stem: int = 64
    neck_middle: int = 128
    neck_features: int = 256
    dilations: tuple[int, ...] = DILATIONS
    head_features: int = 128
    embedding_features: int = 128
    embedding_prior: bool = True
    instance_features: int = 64
    training_heads: bool = True
    norm: NormFactory = BatchNorm
    dtype: Any = jnp.float32
    remat: bool = False
    fold_channels: int = 0

    def setup(self) -> None:
        common = {"norm": self.norm, "dtype": self.dtype}
        memory = {"remat": self.remat, "fold_channels": self.fold_channels}
        self.backbone = HRNet(self.width, self.modules, self.blocks, self.stem, **memory, **common)
        self.neck = ASPP(self.neck_middle, self.neck_features, self.dilations, **common)
        self.centre_head = DenseHead(1, self.head_features, **common)
        if self.training_heads:
            self.keypoint_head = DenseHead(self.num_keypoints, self.head_features, **common)
            bias = prior_bias if self.embedding_prior else nn.initializers.zeros
            self.embedding_head = DenseHead(self.embedding_features, self.head_features, bias_init=bias, **common)
            self.box_head = box_head(self.head_features, **common)
        self.instance_head = InstanceKeypointHead(self.num_keypoints, self.instance_features, self.dtype)

    def features(self, images: jax.Array, train: bool) -> jax.Array:
        """Normalised images [B, H, W, 3] -> backbone maps [B, H/4, W/4, C]."""
        return self.backbone(images, train)

    def dense(self, features: jax.Array, train: bool) -> dict[str, jax.Array]:
        """Backbone maps -> raw maps [B, h, w, .]: `centre`, with training heads also `keypoints`,
        `embedding`, `box`.
        """
        neck = self.neck(features, train)
        maps = {"centre": self.centre_head(neck, train)}
        if self.training_heads:
            maps["keypoints"] = self.keypoint_head(neck, train)
            maps["embedding"] = self.embedding_head(neck, train)
            maps["box"] = self.box_head(neck, train)
        return maps

    def instance_maps(self, features: jax.Array, image: jax.Array, cells: jax.Array) -> jax.Array:
        """Raw keypoint maps of the people at `cells`; shapes as in `InstanceKeypointHead`."""
        return self.instance_head(features, image, cells)

    def __call__(self, images: jax.Array, train: bool = False) -> tuple[dict[str, jax.Array], jax.Array]:
        """Runs every part once, with one person per image at cell (0, 0): for initialisation and parameter
        tables.
        """
        features = self.features(images, train)
        rows = jnp.zeros((images.shape[0], 1), jnp.int32)
        cells = jnp.stack([rows, rows], axis=-1)
        return self.dense(features, train), self.instance_maps(features[:, None], rows, cells)
