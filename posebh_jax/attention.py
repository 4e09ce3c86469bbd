"""Multi-head self-attention whose backward pass reads and writes little.

Symbols: B images, h heads, N tokens, D features of a head, C = h * D.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pose_common.layers import Dense
from pose_common.products import by_platform, product
from posebh_jax import tpu_kernels

KEPT = "kept for the backward pass"
"""Name of the values that a rematerialised block keeps (`jax.checkpoint_policies.save_only_these_names`)."""


class Attention(nn.Module):
    """Multi-head self-attention; the columns of `qkv` are ordered q, k, v, then head. `tpu_kernels`: see `ViT`."""

    num_heads: int
    dtype: Any
    kernel_init: nn.initializers.Initializer
    tpu_kernels: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, N, C] -> [B, N, C]."""
        dim = x.shape[-1]
        x = x.astype(self.dtype)
        kernel, bias = Dense(3 * dim, self.dtype, self.kernel_init, name="qkv").weights(dim)
        out = attend(product(x, kernel), bias, self.num_heads, self.tpu_kernels)
        return Dense(dim, self.dtype, self.kernel_init, name="proj")(out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def attend(qkv: jax.Array, bias: jax.Array, num_heads: int, use_kernel: bool = True) -> jax.Array:
    """softmax(q k^T / sqrt(D)) v of every head; scores are float32.

    The backward pass makes the scores again from q and k (as flash attention does, Dao et al. 2022): keeping them, and
    taking the softmax apart by plain differentiation, reads and writes [B, h, N, N] in float32 several times more,
    which takes longer than the products.

    Args:
      qkv: [B, N, 3C] before its bias is added: queries, keys and values, head after head.
      bias: [3C], of qkv's dtype.
      num_heads: h.
      use_kernel: on a TPU and in bfloat16, use the kernel that never writes the scores (`tpu_kernels`).

    Returns:
      [B, N, C], head after head.
    """
    plain = functools.partial(_attend, num_heads=num_heads)
    available = use_kernel and tpu_kernels.attention_available(qkv)
    kernel = functools.partial(tpu_kernels.attention, num_heads=num_heads) if available else None
    return by_platform(plain, qkv, bias, tpu=kernel)


def _forward(qkv, bias, num_heads, use_kernel):
    qkv = checkpoint_name(qkv, KEPT)
    return checkpoint_name(attend(qkv, bias, num_heads, use_kernel), KEPT), (qkv, bias)


def _backward(num_heads, use_kernel, kept, slope):
    plain = functools.partial(_attend_gradient, num_heads=num_heads)
    available = use_kernel and tpu_kernels.attention_available(kept[0])
    kernel = functools.partial(tpu_kernels.attention_gradient, num_heads=num_heads) if available else None
    return by_platform(plain, *kept, slope, tpu=kernel)


attend.defvjp(_forward, _backward)


def _attend(qkv, bias, *, num_heads, einsum):
    q, k, v = _apart(qkv + bias, 3, num_heads)
    return _together(einsum("bhnm,bhmd->bhnd", _weights(q, k).astype(q.dtype), v)[None])


def _attend_gradient(qkv, bias, slope, *, num_heads, einsum):
    q, k, v = _apart(qkv + bias, 3, num_heads)
    (slope,) = _apart(slope, 1, num_heads)
    weights = _weights(q, k)
    of_v = einsum("bhnm,bhnd->bhmd", weights.astype(q.dtype), slope)
    of_weights = jnp.einsum("bhnd,bhmd->bhnm", slope, v, preferred_element_type=jnp.float32)
    # The softmax takes the mean slope off, weighted by itself.
    mean = (weights * of_weights).sum(-1, keepdims=True)
    of_scores = (weights * (of_weights - mean) * q.shape[-1] ** -0.5).astype(q.dtype)
    of_q = einsum("bhnm,bhmd->bhnd", of_scores, k)
    of_k = einsum("bhnm,bhnd->bhmd", of_scores, q)
    of_qkv = _together(jnp.stack([of_q, of_k, of_v]))
    return of_qkv, of_qkv.sum((0, 1))


def _apart(x: jax.Array, parts: int, num_heads: int) -> jax.Array:
    """[B, N, parts * C] -> [parts, B, h, N, D]."""
    return jnp.moveaxis(x.reshape(*x.shape[:2], parts, num_heads, -1), (2, 3), (0, 2))


def _together(x: jax.Array) -> jax.Array:
    """[parts, B, h, N, D] -> [B, N, parts * C]."""
    x = jnp.moveaxis(x, (0, 2), (2, 3))
    return x.reshape(*x.shape[:2], -1)


def _weights(q: jax.Array, k: jax.Array) -> jax.Array:
    """Softmax of the scores, float32 [B, h, N, N]."""
    scores = jnp.einsum("bhnd,bhmd->bhnm", q, k, preferred_element_type=jnp.float32)
    return jax.nn.softmax(scores * q.shape[-1] ** -0.5)
