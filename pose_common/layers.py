"""Layers that both methods share. Maps are [B, h, w, C]; parameters are float32, `dtype` is that of the arithmetic."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class BatchNorm(nn.Module):
    """Batch normalisation with the reference's statistics.

    Normalises with the biased batch variance but keeps the *unbiased* one in `batch_stats` (flax's own layer keeps the
    biased one, which changes converted models). Statistics are over the global batch: under `jit` on sharded arrays
    that holds by itself, under `pmap` through `axis_name`.

    Attributes:
      axis_name: mapped axis to average statistics over, or None.
      group: rows that are normalised together, as by a device of its own in codes that do not synchronise devices;
        None for the whole batch. Running statistics are the mean over all groups.
      momentum: share of the old running statistics that is kept.
      epsilon: added to the variance.
      dtype: dtype of the result; statistics are always float32.
    """

    axis_name: str | None = None
    group: int | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[B, ..., C] -> [B, ..., C]."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        if not train:
            return normalise(x, running_mean.value, running_var.value, scale, bias, self.epsilon, self.dtype)

        mean, var, count = self._moments(x)
        if not self.is_initializing():
            unbiased = var * (count / max(count - 1, 1))
            running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * self._over_groups(mean)
            running_var.value = self.momentum * running_var.value + (1 - self.momentum) * self._over_groups(unbiased)
        if self.group is None:
            return normalise(x, mean, var, scale, bias, self.epsilon, self.dtype)
        parts = x.reshape(-1, self.group, *x.shape[1:])
        wide = (len(parts), *(1 for _ in x.shape[:-1]), channels)
        y = normalise(parts, mean.reshape(wide), var.reshape(wide), scale, bias, self.epsilon, self.dtype)
        return y.reshape(x.shape)

    def _moments(self, x: jax.Array) -> tuple[jax.Array, jax.Array, int]:
        """Mean and biased variance, [C] or of every group [G, C], and the number of values behind each."""
        if self.group is None:
            return batch_moments(x, self.axis_name)
        parts = x.reshape(-1, self.group, *x.shape[1:])
        mean, var = jax.vmap(lambda part: batch_moments(part, None)[:2])(parts)
        return mean, var, parts[0].size // x.shape[-1]

    def _over_groups(self, moment: jax.Array) -> jax.Array:
        """Mean over this device's groups and those of the others."""
        if self.group is None:
            return moment
        moment = moment.mean(0)
        return moment if self.axis_name is None else jax.lax.pmean(moment, self.axis_name)


def batch_moments(x: jax.Array, axis_name: str | None) -> tuple[jax.Array, jax.Array, int]:
    """Mean [C] and biased variance [C] over all axes but the last, in float32, and the number of values per channel.

    Two passes: the one-pass form loses digits where the mean is large against the deviation.
    """
    axes = tuple(range(x.ndim - 1))
    x32 = x.astype(jnp.float32)
    count = x.size // x.shape[-1]
    mean = x32.mean(axes)
    if axis_name is not None:
        mean = jax.lax.pmean(mean, axis_name)
        count *= jax.lax.axis_size(axis_name)
    var = jnp.square(x32 - mean).mean(axes)
    if axis_name is not None:
        var = jax.lax.pmean(var, axis_name)
    return mean, var, count


def normalise(x, mean, var, scale, bias, epsilon, dtype):
    """(x - mean) / sqrt(var + epsilon) * scale + bias, per channel.

    The mean is taken off first: folded into the offset it would cancel digits where it is large against the deviation.
    """
    factor = scale * jax.lax.rsqrt(var + epsilon)
    return ((x.astype(jnp.float32) - mean) * factor + bias).astype(dtype)
