"""HRNet (Sun et al., CVPR 2019): parallel branches at strides 4, 8, 16 and 32 that exchange features.

Maps are [B, h, w, C]. Branch b has `width * 2**b` channels unless said otherwise. Equal parts are scanned, so that
compile time does not grow with depth: the blocks of a branch, the modules of a stage and the bottlenecks after the
first.
Their parameters and batch statistics carry a leading axis, module first: stage3/branch_0/conv1/conv/kernel is
[4 modules, 4 blocks, ...].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from pose_common.convolution import conv_general_dilated
from pose_common.layers import BatchNorm

NormFactory = Callable[..., nn.Module]
"""Makes a batch norm from `relu`, `dtype` and `name`; a partial sets the mapped axis or the statistics' extent."""

small_normal = nn.initializers.normal(0.001)


def repeat(block: nn.Module, length: int, x: Any, train: bool, *, remat: bool = False) -> Any:
    """Applies `length` copies of `block` one after another: one compiled body, parameters stacked on axis 0."""

    def body(block, x, _):
        return block(x, train), None

    if remat:
        body = nn.remat(body, prevent_cse=False)
    stacked = {"params": 0, "batch_stats": 0}
    scan = nn.scan(body, variable_axes=stacked, split_rngs={"params": True}, length=length)
    return scan(block, x, None)[0]


class ConvNorm(nn.Module):
    """Convolution without bias, zero padded to keep the size over the stride; batch norm; optional sum and ReLU."""

    features: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    relu: bool = True
    norm: NormFactory = BatchNorm
    dtype: Any = jnp.float32
    kernel_init: Callable[..., jax.Array] = small_normal

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, add: jax.Array | None = None) -> jax.Array:
        """[B, h, w, C] -> [B, ceil(h / stride), ceil(w / stride), features], the shape of `add`."""
        # Written out: "SAME" pads a strided convolution on the right only, the published weights expect both
        # sides.
        padding = self.dilation * (self.kernel // 2)
        x = nn.Conv(
            self.features,
            (self.kernel, self.kernel),
            strides=self.stride,
            kernel_dilation=self.dilation,
            padding=((padding, padding), (padding, padding)),
            use_bias=False,
            dtype=self.dtype,
            kernel_init=self.kernel_init,
            conv_general_dilated=conv_general_dilated,
            name="conv",
        )(x)
        return self.norm(relu=self.relu, dtype=self.dtype, name="norm")(x, add, train=train)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected when `project`."""

    features: int
    project: bool = False
    norm: NormFactory = BatchNorm
    dtype: Any = jnp.float32
    kernel_init: Callable[..., jax.Array] = small_normal

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, h, w, C] -> [B, h, w, features]."""
        common = {"norm": self.norm, "dtype": self.dtype, "kernel_init": self.kernel_init}
        y = ConvNorm(self.features, 3, name="conv1", **common)(x, train)
        if self.project:
            x = ConvNorm(self.features, 1, relu=False, name="shortcut", **common)(x, train)
        return ConvNorm(self.features, 3, name="conv2", **common)(y, train, add=x)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions to 4 * `features` channels and a shortcut, projected when `project`."""

    features: int
    project: bool = False
    norm: NormFactory = BatchNorm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, h, w, C] -> [B, h, w, 4 * features]."""
        common = {"norm": self.norm, "dtype": self.dtype}
        y = ConvNorm(self.features, 1, name="conv1", **common)(x, train)
        y = ConvNorm(self.features, 3, name="conv2", **common)(y, train)
        if self.project:
            x = ConvNorm(4 * self.features, 1, relu=False, name="shortcut", **common)(x, train)
        return ConvNorm(4 * self.features, 1, name="conv3", **common)(y, train, add=x)


class FusionModule(nn.Module):
    """Residual blocks within every branch, then an exchange in which each branch receives the sum of all."""

    widths: tuple[int, ...]
    blocks: int = 4
    norm: NormFactory = BatchNorm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, branches: tuple[jax.Array, ...], train: bool) -> tuple[jax.Array, ...]:
        """Branch b: [B, h / 2**b, w / 2**b, widths[b]], in and out."""
        common = {"norm": self.norm, "dtype": self.dtype}
        branches = tuple(
            repeat(BasicBlock(width, name=f"branch_{b}", **common), self.blocks, x, train)
            for b, (width, x) in enumerate(zip(self.widths, branches, strict=True))
        )
        return tuple(
            nn.relu(sum(self._exchange(x, source, target, train) for source, x in enumerate(branches)))
            for target in range(len(branches))
        )

    def _exchange(self, x: jax.Array, source: int, target: int, train: bool) -> jax.Array:
        """Branch `source` at the size and width of branch `target`."""
        common = {"norm": self.norm, "dtype": self.dtype}
        if source > target:
            x = ConvNorm(self.widths[target], 1, relu=False, name=f"up_{source}_{target}", **common)(x, train)
            return enlarge_nearest(x, 2 ** (source - target))
        steps = target - source
        for step in range(steps):
            last = step == steps - 1
            width = self.widths[target if last else source]
            name = f"down_{source}_{target}_{step}"
            x = ConvNorm(width, 3, stride=2, relu=not last, name=name, **common)(x, train)
        return x


def branch_widths(width: int | tuple[int, ...]) -> tuple[int, ...]:
    """Channels of the four branches; one number doubles from branch to branch."""
    return tuple(width * 2**b for b in range(4)) if isinstance(width, int) else tuple(width)


class HRNet(nn.Module):
    """The backbone: all four branches of the last stage at stride 4, concatenated to C channels.

    Attributes:
      width: channels of the stride-4 branch (32, 48), or of all four; C is 15 * `width`, or their sum.
      modules: exchange modules in the stages with 2, 3 and 4 branches.
      blocks: residual blocks per branch and module, in every stage or of each stage.
      stem: channels of the stem; layer1 has 4 * stem.
      norm: see `NormFactory`.
      dtype: dtype of the arithmetic.
      remat: recompute each exchange module in the backward pass instead of keeping its activations.
    """

    width: int | tuple[int, int, int, int] = 32
    modules: tuple[int, int, int] = (1, 4, 3)
    blocks: int | tuple[int, int, int] = 4
    stem: int = 64
    norm: NormFactory = BatchNorm
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Normalised images [B, H, W, 3] -> [B, H/4, W/4, C]. H and W are multiples of 32."""
        common = {"norm": self.norm, "dtype": self.dtype}
        x = images.astype(self.dtype)
        x = ConvNorm(self.stem, 3, stride=2, name="stem1", **common)(x, train)
        x = ConvNorm(self.stem, 3, stride=2, name="stem2", **common)(x, train)
        x = Bottleneck(self.stem, project=True, name="layer1_first", **common)(x, train)
        x = repeat(Bottleneck(self.stem, name="layer1_rest", **common), 3, x, train)

        widths = branch_widths(self.width)
        depths = (self.blocks,) * 3 if isinstance(self.blocks, int) else self.blocks
        branches: tuple[Any, ...] = (ConvNorm(widths[0], 3, name="transition1_0", **common)(x, train),)
        for stage, (modules, blocks) in enumerate(zip(self.modules, depths, strict=False), start=1):
            # A new branch grows from the lowest resolution; in the first transition that is layer1's output.
            source = x if stage == 1 else branches[-1]
            grown = ConvNorm(widths[stage], 3, stride=2, name=f"transition{stage}_{stage}", **common)
            branches = (*branches, grown(source, train))
            module = FusionModule(widths[: stage + 1], blocks, name=f"stage{stage + 1}", **common)
            branches = repeat(module, modules, branches, train, remat=self.remat)

        size = branches[0].shape[1:3]
        return jnp.concatenate([branches[0], *(enlarge_bilinear(y, size) for y in branches[1:])], axis=-1)


def enlarge_nearest(x: jax.Array, factor: int) -> jax.Array:
    """[B, h, w, C] -> [B, factor * h, factor * w, C]."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, factor, width, factor, channels))
    return x.reshape(batch, height * factor, width * factor, channels)


def enlarge_bilinear(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """[B, h, w, C] -> [B, *size, C], pixel centres at half-integers (torch's align_corners=False)."""
    return jax.image.resize(x, (x.shape[0], *size, x.shape[-1]), "bilinear").astype(x.dtype)
