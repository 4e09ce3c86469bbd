"""HRNet (Sun et al., CVPR 2019): parallel branches at strides 4, 8, 16 and 32 that exchange features.

Maps are [B, h, w, C]. Branch b has `width * 2**b` channels unless said otherwise. Equal parts are scanned, so that
compile time does not grow with depth: the blocks of a branch, the modules of a stage and the bottlenecks after the
first. Their parameters and batch statistics have a leading axis for each scan, modules before blocks:
stage3/branch_0/conv1/conv/kernel is [4 modules, 4 blocks, ...].

With `HRNet.fold_channels` narrow maps are folded (`pose_common/folding.py`), between the layers and from module to
module, which changes no number but by rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from pose_common.convolution import Convolution
from pose_common.folding import FLAT, Fold, enlarge_nearest, fold_of, refold
from pose_common.layers import BatchNorm, normal

NormFactory = Callable[..., nn.Module]
"""Makes a batch norm from `relu`, `cells`, `dtype` and `name`; a partial sets the mapped axis or the statistics'
extent."""

small_normal = normal(0.001)


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
    """Convolution without bias; batch norm; optional sum and ReLU. Attributes are those of `Convolution`."""

    features: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    relu: bool = True
    source: Fold = FLAT
    target: Fold = FLAT
    norm: NormFactory = BatchNorm
    dtype: Any = jnp.float32
    kernel_init: Callable[..., jax.Array] = small_normal

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, add: jax.Array | None = None) -> jax.Array:
        """[B, h, w, C] -> [B, ceil(h / stride), ceil(w / stride), features], folded, the shape of `add`."""
        geometry = {name: getattr(self, name) for name in ("stride", "dilation", "source", "target")}
        common = {"dtype": self.dtype, "kernel_init": self.kernel_init}
        x = Convolution(self.features, self.kernel, **geometry, **common, name="conv")(x)
        norm = self.norm(relu=self.relu, cells=self.target.cells, dtype=self.dtype, name="norm")
        return norm(x, add, train=train)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected when `project`; of maps folded by `fold`."""

    features: int
    project: bool = False
    fold: Fold = FLAT
    norm: NormFactory = BatchNorm
    dtype: Any = jnp.float32
    kernel_init: Callable[..., jax.Array] = small_normal

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, h, w, C] -> [B, h, w, features]."""
        fold = {"source": self.fold, "target": self.fold}
        common = {"norm": self.norm, "dtype": self.dtype, "kernel_init": self.kernel_init, **fold}
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
    """Residual blocks within every branch, then an exchange in which each branch receives the sum of all.

    Attributes:
      widths: channels of each branch.
      size: (h, w) of the first branch, not folded.
      blocks: residual blocks of each branch.
      norm, dtype, fold_channels: see `HRNet`.
    """

    widths: tuple[int, ...]
    size: tuple[int, int]
    blocks: int = 4
    norm: NormFactory = BatchNorm
    dtype: Any = jnp.float32
    fold_channels: int = 0

    @nn.compact
    def __call__(self, branches: tuple[jax.Array, ...], train: bool) -> tuple[jax.Array, ...]:
        """Branch b: [B, h / 2**b, w / 2**b, widths[b]], folded, in and out."""
        common = {"norm": self.norm, "dtype": self.dtype}
        blocks = [
            BasicBlock(width, fold=self._fold(b, width), name=f"branch_{b}", **common)
            for b, width in enumerate(self.widths)
        ]
        branches = tuple(repeat(block, self.blocks, x, train) for block, x in zip(blocks, branches, strict=True))
        return tuple(
            nn.relu(sum(self._exchange(x, source, target, train) for source, x in enumerate(branches)))
            for target in range(len(branches))
        )

    def _exchange(self, x: jax.Array, source: int, target: int, train: bool) -> jax.Array:
        """Branch `source` at the size and width of branch `target`."""
        common = {"norm": self.norm, "dtype": self.dtype}
        fold, width = self._fold(source, self.widths[source]), self.widths[target]
        if source > target:
            x = ConvNorm(width, 1, relu=False, source=fold, name=f"up_{source}_{target}", **common)(x, train)
            return enlarge_nearest(x, 2 ** (source - target), self._fold(target, width))
        steps = target - source
        for step in range(steps):
            last = step == steps - 1
            features = width if last else self.widths[source]
            folds = {"source": fold, "target": self._fold(source + step + 1, features)}
            name = f"down_{source}_{target}_{step}"
            x = ConvNorm(features, 3, stride=2, relu=not last, name=name, **folds, **common)(x, train)
            fold = folds["target"]
        return x

    def _fold(self, branch: int, channels: int) -> Fold:
        """Of a map with so many channels at the size of a branch."""
        height, width = self.size
        return fold_of(channels, (height // 2**branch, width // 2**branch), self.fold_channels)


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
      fold_channels: maps of fewer channels are folded up to so many; 128 suits TPUs, 0 folds nothing.
    """

    width: int | tuple[int, int, int, int] = 32
    modules: tuple[int, int, int] = (1, 4, 3)
    blocks: int | tuple[int, int, int] = 4
    stem: int = 64
    norm: NormFactory = BatchNorm
    dtype: Any = jnp.float32
    remat: bool = False
    fold_channels: int = 0

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Normalised images [B, H, W, 3] -> [B, H/4, W/4, C]. H and W are multiples of 32."""
        common = {"norm": self.norm, "dtype": self.dtype}

        def fold(stride: int, channels: int) -> Fold:
            return fold_of(channels, (images.shape[1] // stride, images.shape[2] // stride), self.fold_channels)

        stem = fold(2, self.stem), fold(4, self.stem)
        # Folded so, the first convolution has stride 1.
        pixels = FLAT if stem[0] == FLAT else Fold(2 * stem[0].rows, 2 * stem[0].columns)
        x = refold(images.astype(self.dtype), FLAT, pixels)
        x = ConvNorm(self.stem, 3, stride=2, source=pixels, target=stem[0], name="stem1", **common)(x, train)
        x = ConvNorm(self.stem, 3, stride=2, source=stem[0], target=stem[1], name="stem2", **common)(x, train)
        x = refold(x, stem[1], FLAT)
        x = Bottleneck(self.stem, project=True, name="layer1_first", **common)(x, train)
        x = repeat(Bottleneck(self.stem, name="layer1_rest", **common), 3, x, train)

        widths, size = branch_widths(self.width), x.shape[1:3]
        folds = [fold(4 * 2**b, width) for b, width in enumerate(widths)]
        depths = (self.blocks,) * 3 if isinstance(self.blocks, int) else self.blocks
        first = ConvNorm(widths[0], 3, target=folds[0], name="transition1_0", **common)
        branches: tuple[Any, ...] = (first(x, train),)
        for stage, (modules, blocks) in enumerate(zip(self.modules, depths, strict=False), start=1):
            # A new branch grows from the lowest resolution; in the first transition that is layer1's output.
            source, own = (x, FLAT) if stage == 1 else (branches[-1], folds[stage - 1])
            sides = {"stride": 2, "source": own, "target": folds[stage]}
            grown = ConvNorm(widths[stage], 3, name=f"transition{stage}_{stage}", **sides, **common)
            branches = (*branches, grown(source, train))
            settings = {"blocks": blocks, "fold_channels": self.fold_channels, **common}
            module = FusionModule(widths[: stage + 1], size, name=f"stage{stage + 1}", **settings)
            branches = repeat(module, modules, branches, train, remat=self.remat)

        flat = [refold(x, own, FLAT) for x, own in zip(branches, folds, strict=False)]  # fewer stages, fewer branches
        return jnp.concatenate([flat[0], *(enlarge_bilinear(y, size) for y in flat[1:])], axis=-1)


def enlarge_bilinear(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """[B, h, w, C] -> [B, *size, C], pixel centres at half-integers (torch's align_corners=False)."""
    return jax.image.resize(x, (x.shape[0], *size, x.shape[-1]), "bilinear").astype(x.dtype)
