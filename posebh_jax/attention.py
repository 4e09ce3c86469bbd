"""Multi-head self-attention whose backward pass reads and writes little.

Symbols: B images, h heads, N tokens, D features of a head, C = h * D.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

KEPT = "kept for the backward pass"
"""Name of the values that a rematerialised block keeps (`jax.checkpoint_policies.save_only_these_names`)."""


class Attention(nn.Module):
    """Multi-head self-attention; the columns of `qkv` are ordered q, k, v, then head."""

    num_heads: int
    dtype: Any
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, N, C] -> [B, N, C]."""
        dim = x.shape[-1]
        x, heads = x.astype(self.dtype), (self.num_heads, dim // self.num_heads)
        kernel, bias = _Weights(dim, 3 * dim, self.dtype, self.kernel_init, name="qkv")()
        kernel, bias = kernel.reshape(dim, 3, *heads), bias.reshape(3, *heads)
        # Products that yield the heads apart: taking them apart afterwards costs a copy, forward and backward.
        q, k, v = (jnp.einsum("bnc,chd->bhnd", x, kernel[:, i]) + bias[i][:, None] for i in range(3))
        out = attend(q, k, v)
        kernel, bias = _Weights(dim, dim, self.dtype, self.kernel_init, name="proj")()
        return jnp.einsum("bhnd,hdc->bnc", out, kernel.reshape(*heads, dim)) + bias


class _Weights(nn.Module):
    """Kernel [C, features] and bias [features] of a dense layer, in `dtype`, for whoever multiplies them himself."""

    dim: int
    features: int
    dtype: Any
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        kernel = self.param("kernel", self.kernel_init, (self.dim, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return kernel.astype(self.dtype), bias.astype(self.dtype)


@jax.custom_vjp
def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(D)) v, for q, k, v and the result [B, h, N, D]; scores are float32.

    The backward pass makes the scores again from q, k and the logarithm of their sum (as flash attention does,
    Dao et al. 2022): keeping them, and taking the softmax apart by plain differentiation, reads and writes
    [B, h, N, N] in float32 several times more, which on a TPU takes longer than the products.
    """
    return _softmax_product(q, k, v)[0]


def _scores(q: jax.Array, k: jax.Array) -> jax.Array:
    scores = jnp.einsum("bhnd,bhmd->bhnm", q, k, preferred_element_type=jnp.float32)
    return scores * q.shape[-1] ** -0.5


def _softmax_product(q, k, v):
    """(the result, logarithm of the sum of exp(scores) [B, h, N, 1])."""
    scores = _scores(q, k)
    largest = scores.max(-1, keepdims=True)
    weights = jnp.exp(scores - largest)
    total = weights.sum(-1, keepdims=True)
    out = jnp.einsum("bhnm,bhmd->bhnd", (weights / total).astype(q.dtype), v)
    return out, largest + jnp.log(total)


def _forward(q, k, v):
    q, k, v = (checkpoint_name(each, KEPT) for each in (q, k, v))
    out, log_total = (checkpoint_name(each, KEPT) for each in _softmax_product(q, k, v))
    return out, (q, k, v, out, log_total)


def _backward(kept, slope):
    q, k, v, out, log_total = kept
    weights = jnp.exp(_scores(q, k) - log_total)
    of_v = jnp.einsum("bhnm,bhnd->bhmd", weights.astype(q.dtype), slope)
    # The softmax takes the mean slope off, weighted by itself; that mean is slope . out.
    mean = (slope.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1, keepdims=True)
    of_weights = jnp.einsum("bhnd,bhmd->bhnm", slope, v, preferred_element_type=jnp.float32)
    of_scores = (weights * (of_weights - mean) * q.shape[-1] ** -0.5).astype(q.dtype)
    of_q = jnp.einsum("bhnm,bhmd->bhnd", of_scores, k)
    of_k = jnp.einsum("bhnm,bhnd->bhmd", of_scores, q)
    return of_q, of_k, of_v


attend.defvjp(_forward, _backward)
