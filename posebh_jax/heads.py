"""The heads on top of the backbone: keypoint heatmaps, and the embedding that prototypes are compared with.

Both raise the 16 x 12 feature grid to the 64 x 48 heatmap grid with two transposed convolutions (PoseBH
section 3).
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from pose_common import convolution
from pose_common.convolution import Convolution
from pose_common.layers import BatchNorm, normal
from posebh_jax import tpu_kernels

_small_normal = normal(0.001)

NECKS = ("res", "res2", "conv")
"""Between upsampling and the last convolutions of the embedding head: one residual block, two, or one convolution."""
BARE = "bare"
"""No neck and no upsampling that were learned: the backbone's features, enlarged (`posebh_jax/skeleton.py`)."""
KERNELS = (3, 1)
ACTIVATIONS = {"silu": nn.silu, "relu": nn.relu}


@jax.custom_vjp
def upsample2(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Transposed convolution with a 4x4 kernel, stride 2 and padding 1, by phases: out[2y - 1 + k] += x[y] kernel[k].

    Each of the four phases of the output (even or odd row, even or odd column) is a 2x2 convolution of the input as it
    lies there; `interleaved` puts them together. No multiplication with inserted zeros, no border that is cut away
    again, and gradients that are ordinary convolutions: XLA's dilated form of the same takes 10 to 50 times as long on
    a CPU, one convolution with the four phases as channels 1.1 to 1.5 times, and on a TPU more than that.

    Args:
      x: [B, h, w, I].
      kernel: [4, 4, I, O].

    Returns:
      [4, B, h, w, O]; phase 2p + q are the rows 2y + p and the columns 2x + q.
    """
    return _phases(x, kernel)


def _phases(x: jax.Array, kernel: jax.Array) -> jax.Array:
    phases = [
        # Output row 2u + p is x[u + p - 1] kernel[3 - p] + x[u + p] kernel[1 - p]; likewise along a row.
        jax.lax.conv_general_dilated(
            x,
            kernel[3 - p :: -2, 3 - q :: -2],
            window_strides=(1, 1),
            padding=((1 - p, p), (1 - q, q)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        for p in range(2)
        for q in range(2)
    ]
    return jnp.stack(phases)


def _upsample2_gradient(kept, slope):
    x, kernel = kept
    (of_x,) = jax.linear_transpose(lambda x: _phases(x, kernel), x)(slope)
    plain = kernel_gradient
    by_taps = kernel_gradient_by_taps if tpu_kernels.divides_batch(x) else plain
    on_tpu = by_taps if x.dtype == jnp.float32 else plain
    return of_x, jax.lax.platform_dependent(x, slope, cpu=by_taps, tpu=on_tpu, default=plain)


def kernel_gradient(x: jax.Array, slope: jax.Array) -> jax.Array:
    """Slope of `upsample2`'s kernel [4, 4, I, O] from x [B, h, w, I] and that of the result [4, B, h, w, O]."""
    kernel = jax.ShapeDtypeStruct((4, 4, x.shape[-1], slope.shape[-1]), x.dtype)
    (of_kernel,) = jax.linear_transpose(lambda kernel: _phases(x, kernel), kernel)(slope)
    return of_kernel


def kernel_gradient_by_taps(x: jax.Array, slope: jax.Array) -> jax.Array:
    """`kernel_gradient` by a product of matrices for each of the sixteen taps.

    On a CPU it takes a fifth to all of the time. The TPU compiler needs 80 s on two cores for four of the convolutions
    in float32, where these take 5; on a chip they take 4 % more of a head's time. In bfloat16 the convolutions compile
    in 20 s, and the products would take half as long again.
    """

    def local(x, slope):
        taps = [
            convolution.kernel_gradient_by_taps(x, (2, 2), slope[2 * p + q], ((1 - p, p), (1 - q, q)))
            for p in range(2)
            for q in range(2)
        ]
        channels = x.shape[-1], slope.shape[-1]
        # [p, q, a, b] is the slope of kernel[3 - p - 2a, 3 - q - 2b].
        turned = jnp.stack(taps).reshape(2, 2, 2, 2, *channels).transpose(2, 0, 3, 1, 4, 5).reshape(4, 4, *channels)
        # Devices exchange it in the kernel's dtype, as they do all gradients.
        return (turned[::-1, ::-1].astype(x.dtype),)

    return tpu_kernels.over_batch(local, (0, 1), (None,))(x, slope)[0]


upsample2.defvjp(lambda x, kernel: (_phases(x, kernel), (x, kernel)), _upsample2_gradient)


def interleaved(phases: jax.Array) -> jax.Array:
    """The map [B, 2h, 2w, C] of the phases [4, B, h, w, C] that `upsample2` yields."""
    _, batch, height, width, channels = phases.shape
    grid = phases.reshape(2, 2, batch, height, width, channels)
    return grid.transpose(2, 3, 0, 4, 1, 5).reshape(batch, 2 * height, 2 * width, channels)


def enlarged(features: jax.Array) -> jax.Array:
    """[B, h, w, C] -> float32 [B, 4h, 4w, C], bilinear."""
    batch, height, width, channels = features.shape
    return jax.image.resize(features.astype(jnp.float32), (batch, 4 * height, 4 * width, channels), "linear")


class Deconvolution(nn.Module):
    """`upsample2` with its kernel [4, 4, I, features]; no bias."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, h, w, I] -> [4, B, h, w, features]."""
        kernel = self.param("kernel", _small_normal, (4, 4, x.shape[-1], self.features))
        return upsample2(x.astype(self.dtype), kernel.astype(self.dtype))


class Upsampling(nn.Module):
    """Two transposed convolutions, each with batch norm and ReLU.

    The last one's phases are left apart: what works on each cell by itself is done before they are interleaved, which
    is then of fewer channels.
    """

    filters: tuple[int, int]
    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[B, h, w, I] -> phases [4, B, 2h, 2w, filters[1]]."""
        for i, filters in enumerate(self.filters, start=1):
            x = Deconvolution(filters, self.dtype, name=f"deconv{i}")(x)
            x = interleaved(x) if i < len(self.filters) else x
            x = BatchNorm(self.axis_name, relu=True, dtype=self.dtype, name=f"norm{i}")(x, train=train)
        return x


class Pointwise(nn.Module):
    """A 1x1 convolution, by its own parameters, of maps with any axes before the channels; its sums stay float32.

    Rounded to bfloat16, in steps of 0.004 below 1, they would move the highest cell. `nn.Conv` would merge phases and
    batch into one axis, along which devices that share a batch could not share it.
    """

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., I] -> float32 [..., features]."""
        kernel = self.param("kernel", _small_normal, (1, 1, x.shape[-1], self.features))[0, 0]
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return _pointwise(x.astype(self.dtype), kernel.astype(self.dtype)) + bias


@jax.custom_vjp
def _pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Phases [4, B, h, w, I] by a kernel [I, O] -> float32 [4, B, h, w, O]."""
    return jnp.matmul(x, kernel, preferred_element_type=jnp.float32)


def _pointwise_gradient(kept, slope):
    x, kernel = kept
    apply = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
    (of_x,) = jax.linear_transpose(lambda x: apply(x, kernel), x)(slope)

    def plain(x, slope):
        return jax.linear_transpose(lambda kernel: apply(x, kernel), kernel)(slope)[0]

    def by_rows(x, slope):
        """With one axis of rows: of several a CPU lays the slope out anew, as in `pose_common.layers.product`."""

        def local(x, slope):
            rows, slopes = (each.reshape(-1, each.shape[-1]) for each in (x, slope))
            return ((rows.T @ slopes).astype(x.dtype),)

        return tpu_kernels.over_batch(local, (1, 1), (None,))(x, slope)[0]

    on_cpu = by_rows if tpu_kernels.divides_batch(x[0]) else plain
    return of_x, jax.lax.platform_dependent(x, slope, cpu=on_cpu, default=plain)


_pointwise.defvjp(lambda x, kernel: (_pointwise(x, kernel), (x, kernel)), _pointwise_gradient)


class HeatmapHead(nn.Module):
    """Keypoint heatmaps of one skeleton.

    Attributes:
      num_keypoints: number of maps K.
      filters: channels of each of the two transposed convolutions.
      dtype: dtype of the convolutions; the result is float32.
      axis_name: mapped axis over which batch statistics are averaged, or None.
    """

    num_keypoints: int
    filters: tuple[int, int] = (256, 256)
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool) -> jax.Array:
        """[B, h, w, C] -> float32 [B, 4h, 4w, K]."""
        x = Upsampling(self.filters, self.dtype, self.axis_name, name="upsampling")(features, train=train)
        return interleaved(Pointwise(self.num_keypoints, self.dtype, name="final")(x))


class EmbeddingHead(nn.Module):
    """Per-pixel embedding, not normalised.

    Attributes:
      dim: length D of an embedding.
      channels: channels of the neck and of the convolution after it.
      filters: channels of each of the two transposed convolutions.
      neck: one of `NECKS`, or `BARE`: then there is nothing but the last convolution.
      kernel: side of the convolution after the neck, one of `KERNELS`.
      activation: one of `ACTIVATIONS`; the upsampling always has ReLU.
      dtype: dtype of the convolutions. Float32 by default whatever the backbone's: the losses on the
        embedding are so small that its gradients lie near Adam's epsilon.
      axis_name: mapped axis over which batch statistics are averaged, or None.
    """

    dim: int = 64
    channels: int = 64
    filters: tuple[int, int] = (256, 256)
    neck: str = "res"
    kernel: int = 3
    activation: str = "silu"
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool) -> jax.Array:
        """[B, h, w, C] -> float32 [B, 4h, 4w, D]."""
        if self.neck == BARE:
            return _conv(self.dim, 1, self.dtype, "final")(enlarged(features)).astype(jnp.float32)
        x = Upsampling(self.filters, self.dtype, self.axis_name, name="upsampling")(features, train=train)
        x = interleaved(x)
        if self.neck == "conv":
            x = self._conv_norm(x, 3, "neck_", train)
        for name in {"res": ("neck",), "res2": ("neck1", "neck2"), "conv": ()}[self.neck]:
            block = ResidualBlock(self.channels, self.activation, self.dtype, self.axis_name, name=name)
            x = block(x, train=train)
        x = self._conv_norm(x, self.kernel, "", train)
        return _conv(self.dim, 1, self.dtype, "final")(x).astype(jnp.float32)

    def _conv_norm(self, x: jax.Array, kernel: int, prefix: str, train: bool) -> jax.Array:
        x = _conv(self.channels, kernel, self.dtype, f"{prefix}conv")(x)
        norm = BatchNorm(self.axis_name, dtype=self.dtype, name=f"{prefix}norm")
        return ACTIVATIONS[self.activation](norm(x, train=train))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, plus the input; a 1x1 with batch norm takes that to a new width."""

    channels: int
    activation: str
    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[B, h, w, I] -> [B, h, w, channels]."""
        activation = ACTIVATIONS[self.activation]

        def norm(y, name):
            return BatchNorm(self.axis_name, dtype=self.dtype, name=name)(y, train=train)

        shortcut = x
        if x.shape[-1] != self.channels:
            projected = _conv(self.channels, 1, self.dtype, "shortcut_conv", use_bias=False)(x)
            shortcut = norm(projected, "shortcut_norm")
        y = activation(norm(_conv(self.channels, 3, self.dtype, "conv1")(x), "norm1"))
        y = norm(_conv(self.channels, 3, self.dtype, "conv2")(y), "norm2")
        return activation(y + shortcut)


def _conv(features: int, side: int, dtype: Any, name: str, use_bias: bool = True) -> nn.Module:
    if side == 1:
        # Not `Convolution`, which would make a product of matrices of it: among convolutions it lies otherwise, and
        # the TPU compiler takes 15 s longer for 7 % more time.
        return nn.Conv(features, (1, 1), use_bias=use_bias, dtype=dtype, kernel_init=_small_normal, name=name)
    bias = nn.initializers.zeros if use_bias else None
    return Convolution(features, side, dtype=dtype, kernel_init=_small_normal, bias_init=bias, name=name)
