"""Vision transformer with one small expert a dataset (PoseBH section 3, ViTPose++ section 3.3).

Symbols: B images, N tokens (row-major over the h x w patch grid), C = dim, E experts. Maps are [B, h, w, C].

Matrix products run in `dtype`; parameters, the residual stream, norms and the softmax are float32. Depth is
one scanned block: every parameter under `blocks` has a leading axis of length depth.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from pose_common.layers import Dense, normal
from pose_common.products import by_platform
from posebh_jax import tpu_kernels
from posebh_jax.attention import KEPT, Attention

LAYER_NORM_EPSILON = 1e-6

# The reference cuts this normal at 100 standard deviations, which is never.
_normal = normal(0.02)


@dataclasses.dataclass(frozen=True)
class ViTSize:
    """Width and depth of a backbone; what a run adds to them is in its configuration.

    Attributes:
      dim: width C of a token.
      depth: number of blocks.
      num_heads: attention heads.
      part_features: features of a token that the dataset's expert yields, out of dim.
      drop_path: drop probability of the last block's branches; linear from 0 at the first block.
      mlp_ratio: hidden width of the MLP over dim.
    """

    dim: int
    depth: int
    num_heads: int
    part_features: int
    drop_path: float = 0.0
    mlp_ratio: float = 4


SIZES: dict[str, ViTSize] = {
    "tiny": ViTSize(128, 4, 4, 32),
    "small": ViTSize(384, 12, 12, 192),
    "base": ViTSize(768, 12, 12, 192),
    "large": ViTSize(1024, 24, 16, 256),
    "huge": ViTSize(1280, 32, 16, 320),
}


def size_name(dim: int, depth: int) -> str | None:
    """Name of the published size of a width and depth, or None."""
    return next((name for name, size in SIZES.items() if (size.dim, size.depth) == (dim, depth)), None)


def drop_path_rates(maximum: float, depth: int) -> np.ndarray:
    """Drop probability of each block [depth]: linear from 0 to `maximum`."""
    return np.linspace(0.0, maximum, depth, dtype=np.float32)


def drop_path_scales(sample_keys: jax.Array, rates: np.ndarray) -> jax.Array:
    """Factors of the two residual branches of every block for every sample.

    Args:
      sample_keys: PRNG keys [B], one a sample.
      rates: drop probabilities [depth].

    Returns:
      float32 [depth, 2, B]: 0 where the branch is dropped, else 1 / (1 - rate).
    """
    keep = 1.0 - jnp.asarray(rates, jnp.float32)[:, None]
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (len(rates), 2)))(sample_keys)
    return jnp.moveaxis(jnp.where(uniform < keep, 1.0 / keep, 0.0), 0, -1)


def _layer_norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, dtype=jnp.float32, name=name)


def _torch_conv_bias(fan_in: int):
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), torch's default for the bias of a convolution."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def apply_experts(
    x: jax.Array, dataset: jax.Array, kernel: jax.Array, bias: jax.Array, use_kernel: bool = True
) -> jax.Array:
    """Pushes every sample through the expert of its dataset, at the cost of one expert a sample.

    Args:
      x: [B, N, H].
      dataset: int32 [B]; an index without an expert gives zeros.
      kernel: [E, H, P], used in x's dtype.
      bias: [E, P].
      use_kernel: on a TPU and in bfloat16, use the kernel that copies no weights (`posebh_jax/tpu_kernels.py`).

    Returns:
      [B, N, P] in x's dtype.
    """
    return _expert_product(x, dataset, kernel, use_kernel) + _of_sample(bias.astype(x.dtype), dataset)[:, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _expert_product(x, dataset, kernel, use_kernel):
    available = use_kernel and tpu_kernels.experts_available(x, kernel)
    return by_platform(_gathered_experts, x, dataset, kernel, tpu=tpu_kernels.experts if available else None)


def _expert_product_forward(x, dataset, kernel, use_kernel):
    return _expert_product(x, dataset, kernel, use_kernel), (x, dataset, kernel)


def _expert_product_backward(use_kernel, kept, slope):
    x, _, kernel = kept
    available = use_kernel and tpu_kernels.experts_available(x, kernel)
    gradient = tpu_kernels.experts_gradient if available else None
    of_x, of_kernel = by_platform(_gathered_experts_gradient, *kept, slope, tpu=gradient)
    return of_x, None, of_kernel


_expert_product.defvjp(_expert_product_forward, _expert_product_backward)


def _gathered_experts(x, dataset, kernel, *, einsum):
    """Each sample gets a copy of its expert's weights, and one batched product does the rest.

    Nothing moves between the devices that share a batch, as sorting samples by expert would, and the absent experts
    cost nothing.
    """
    return einsum("bnh,bhp->bnp", x, _of_sample(kernel.astype(x.dtype), dataset))


def _gathered_experts_gradient(x, dataset, kernel, slope, *, einsum):
    of_x = einsum("bnp,bhp->bnh", slope, _of_sample(kernel.astype(x.dtype), dataset))
    of_own = einsum("bnh,bnp->bhp", x, slope)
    of_kernel = jnp.zeros_like(kernel).at[dataset].add(of_own.astype(kernel.dtype), wrap_negative_indices=False)
    return of_x, of_kernel


def _of_sample(weights: jax.Array, dataset: jax.Array) -> jax.Array:
    """[E, ...] -> [B, ...]; zeros for an index without an expert."""
    return weights.at[dataset].get(mode="fill", fill_value=0, wrap_negative_indices=False)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """x times the normal distribution's cumulative at x (exact GELU), in x's dtype, computed in float32.

    The forward pass of training keeps the value and the slope rather than x: the error function is what a TPU's vector
    unit takes longest for, and from x the backward pass would have to compute it twice more.
    """
    x32 = x.astype(jnp.float32)
    return (x32 * _normal_cumulative(x32)).astype(x.dtype)


def _normal_cumulative(x: jax.Array) -> jax.Array:
    """By erf, as PyTorch has it: less work than erfc, whose digits far to the left a product with x does not need."""
    return (1 + jax.lax.erf(x * np.float32(math.sqrt(0.5)))) / 2


def _gelu_forward(x):
    x32 = x.astype(jnp.float32)
    cumulative = _normal_cumulative(x32)
    slope = cumulative + x32 * jnp.exp(-x32 * x32 / 2) * np.float32(1 / math.sqrt(2 * math.pi))
    value, slope = (checkpoint_name(each.astype(x.dtype), KEPT) for each in (x32 * cumulative, slope))
    return value, slope


def _gelu_backward(slope, upstream):
    return (upstream * slope,)


gelu.defvjp(_gelu_forward, _gelu_backward)


class Experts(nn.Module):
    """One linear layer a dataset."""

    num_experts: int
    features: int
    dtype: Any
    tpu_kernels: bool

    @nn.compact
    def __call__(self, x: jax.Array, dataset: jax.Array) -> jax.Array:
        """x [B, N, H], dataset int32 [B] -> [B, N, features]."""
        kernel = self.param("kernel", _normal, (self.num_experts, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.num_experts, self.features))
        return apply_experts(x.astype(self.dtype), dataset, kernel, bias, self.tpu_kernels)


class Mlp(nn.Module):
    """Two layers with exact GELU; the last `part_features` outputs come from the dataset's expert, if any."""

    num_experts: int
    part_features: int
    ratio: float
    dtype: Any
    tpu_kernels: bool

    @nn.compact
    def __call__(self, x: jax.Array, dataset: jax.Array) -> jax.Array:
        """x [B, N, C], dataset int32 [B] -> [B, N, C]."""
        dim = x.shape[-1]
        hidden = gelu(Dense(int(self.ratio * dim), self.dtype, _normal, name="fc1")(x))
        if not self.num_experts:
            return Dense(dim, self.dtype, _normal, name="fc2")(hidden)
        shared = Dense(dim - self.part_features, self.dtype, _normal, name="fc2")(hidden)
        experts = Experts(self.num_experts, self.part_features, self.dtype, self.tpu_kernels, name="experts")
        own = experts(hidden, dataset)
        return jnp.concatenate([shared, own], axis=-1)


class Block(nn.Module):
    """Pre-norm transformer block, in the form that `nn.scan` wants: (carry, ...) -> (carry, None)."""

    num_heads: int
    num_experts: int
    part_features: int
    mlp_ratio: float
    dtype: Any
    tpu_kernels: bool

    @nn.compact
    def __call__(self, x: jax.Array, dataset: jax.Array, scales: jax.Array | None) -> tuple[jax.Array, None]:
        """x [B, N, C], dataset int32 [B], scales [2, B] of the two branches or None -> ([B, N, C], None)."""
        attention = Attention(self.num_heads, self.dtype, _normal, self.tpu_kernels, name="attn")
        mlp = Mlp(self.num_experts, self.part_features, self.mlp_ratio, self.dtype, self.tpu_kernels, name="mlp")
        x += _scaled(checkpoint_name(attention(_layer_norm("norm1")(x)), KEPT), scales, 0)
        x += _scaled(mlp(_layer_norm("norm2")(x), dataset), scales, 1)
        return x, None


def _scaled(branch: jax.Array, scales: jax.Array | None, index: int) -> jax.Array:
    """The branch [B, N, C] in float32, times its factor for each sample."""
    branch = branch.astype(jnp.float32)
    return branch if scales is None else branch * scales[index, :, None, None]


class ViT(nn.Module):
    """Vision transformer; without experts (`num_experts=0`) a plain one, blind to the dataset.

    Attributes:
      size: width, depth, heads, expert features and width of the MLP.
      num_experts: number of experts, one a dataset; 0 for a plain transformer.
      dtype: dtype of the matrix products.
      remat: keep nothing of a block for the backward pass but its input; without, the results of its products and GELU.
      tpu_kernels: on TPUs, for bfloat16, use the kernels of `posebh_jax/tpu_kernels.py` for attention and experts.
      patch_size: side and stride of the patch convolution, in pixels.
      patch_padding: zero pixels around the image.
    """

    size: ViTSize
    num_experts: int = 0
    dtype: Any = jnp.float32
    remat: bool = False
    tpu_kernels: bool = True
    patch_size: int = 16
    patch_padding: int = 2

    @nn.compact
    def __call__(self, images: jax.Array, dataset: jax.Array, drop_path: jax.Array | None = None) -> jax.Array:
        """Features of a batch of images.

        Args:
          images: float32 [B, H, W, 3], normalised.
          dataset: int32 [B]; which expert an image uses.
          drop_path: float32 [depth, 2, B] from `drop_path_scales`, or None for inference.

        Returns:
          float32 [B, h, w, C] with h = (H + 2 padding - patch) // patch + 1, likewise w.
        """
        x = self._patches(images)
        batch, height, width, dim = x.shape
        position = self.param("pos_embed", _normal, (1, height * width + 1, dim))
        x = x.reshape(batch, height * width, dim) + (position[:, 1:] + position[:, :1])

        # Only the results of products are worth keeping, GELU with its slope, and the sums of attention: writing down
        # norms, scores and the experts' copies costs more than computing them again.
        kept = None if self.remat else jax.checkpoint_policies.save_only_these_names(KEPT)
        blocks = nn.scan(
            nn.remat(Block, prevent_cse=False, policy=kept),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, 0 if drop_path is not None else nn.broadcast),
            length=self.size.depth,
        )(
            self.size.num_heads,
            self.num_experts,
            self.size.part_features,
            self.size.mlp_ratio,
            self.dtype,
            self.tpu_kernels,
            name="blocks",
        )
        x, _ = blocks(x, dataset, drop_path)
        return _layer_norm("last_norm")(x).reshape(batch, height, width, dim)

    def _patches(self, images: jax.Array) -> jax.Array:
        """[B, H, W, 3] -> float32 [B, h, w, C]."""
        fan_in = self.patch_size**2 * images.shape[-1]
        convolution = nn.Conv(
            self.size.dim,
            (self.patch_size,) * 2,
            (self.patch_size,) * 2,
            padding=self.patch_padding,
            dtype=self.dtype,
            kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
            bias_init=_torch_conv_bias(fan_in),
            name="patch_embed",
        )
        return convolution(images).astype(jnp.float32)
