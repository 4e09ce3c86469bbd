"""Layers that both methods share. Maps are [B, h, w, C]; parameters are float32, `dtype` is that of the arithmetic."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from pose_common.products import product

full_precision = functools.partial(jax.default_matmul_precision, "float32")
"""Context in which products of float32 are such on every device: left alone, TPUs round their operands to bfloat16 and
recent GPUs to TF32, which moves the highest cell of flat maps."""


def normal(deviation: float) -> nn.initializers.Initializer:
    """Initial values of N(0, deviation^2), the same as flax's, of which each is drawn along a single axis.

    Every draw is compiled by itself, and one along several axes takes twice as long: 18 s of a new BoIR run on a CPU.
    """
    draw = nn.initializers.normal(deviation)

    def values(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return draw(key, (math.prod(shape),), dtype).reshape(shape)

    return values


class Dense(nn.Module):
    """A linear layer in `dtype`; its parameters are those of `nn.Dense`, its product is `products.product`."""

    features: int
    dtype: Any
    kernel_init: nn.initializers.Initializer

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., C] -> [..., features]."""
        kernel, bias = self.weights(x.shape[-1])
        return product(x.astype(self.dtype), kernel) + bias

    @nn.compact
    def weights(self, channels: int) -> tuple[jax.Array, jax.Array]:
        """Kernel [channels, features] and bias [features] in `dtype`, for whoever multiplies them himself."""
        kernel = self.param("kernel", self.kernel_init, (channels, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return kernel.astype(self.dtype), bias.astype(self.dtype)


class BatchNorm(nn.Module):
    """Batch normalisation with the reference's statistics, and what follows it: a sum and a ReLU, in one pass.

    Normalises with the biased batch variance but keeps the *unbiased* one in `batch_stats` (flax's own layer keeps the
    biased one, which changes converted models). Statistics are over the global batch: under `jit` on sharded arrays
    that holds by itself, under `pmap` through `axis_name`.

    Attributes:
      axis_name: mapped axis to average statistics over, or None.
      group: rows that are normalised together, as by a device of its own in codes that do not synchronise devices;
        None for the whole batch. Running statistics are the mean over all groups.
      momentum: share of the old running statistics that is kept.
      epsilon: added to the variance.
      relu: whether a ReLU ends it.
      cells: that one cell of a folded map holds (`folding.Fold.cells`): C channels are `cells` times the parameters.
      dtype: dtype of the result; statistics are always float32.
    """

    axis_name: str | None = None
    group: int | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    relu: bool = False
    cells: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, add: jax.Array | None = None, *, train: bool) -> jax.Array:
        """[B, ..., C] -> [B, ..., C]: the normalised x, plus `add` [B, ..., C] (a residual block's shortcut)."""
        channels = x.shape[-1] // self.cells
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        form = _Form(self.axis_name if self.group is None else None, self.epsilon, self.relu, self.cells, self.dtype)
        if not train:
            return _normalised(form, x, running_mean.value, running_var.value, scale, bias, add)

        normalise = functools.partial(_batch_normalised, form)
        if self.group is None:
            y, mean, var = normalise(x, scale, bias, add)
        else:
            parts = jax.tree.map(lambda rows: rows.reshape(-1, self.group, *rows.shape[1:]), (x, add))
            y, mean, var = jax.vmap(normalise, in_axes=(0, None, None, 0))(parts[0], scale, bias, parts[1])
            y, mean, var = y.reshape(x.shape), self._over_groups(mean), self._over_groups(var)
        if not self.is_initializing():
            count = x.size // channels if self.group is None else self.group * (x[0].size // channels)
            count *= 1 if form.axis_name is None else jax.lax.axis_size(form.axis_name)
            unbiased = var * (count / max(count - 1, 1))
            running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
            running_var.value = self.momentum * running_var.value + (1 - self.momentum) * unbiased
        return y

    def _over_groups(self, moment: jax.Array) -> jax.Array:
        """Mean over this device's groups and those of the others: [G, C] -> [C]."""
        moment = moment.mean(0)
        return moment if self.axis_name is None else jax.lax.pmean(moment, self.axis_name)


class _Form(NamedTuple):
    """What of a `BatchNorm` a batch's normalisation depends on."""

    axis_name: str | None
    epsilon: float
    relu: bool
    cells: int
    dtype: Any

    def spread(self, values: jax.Array) -> jax.Array:
        """Values of the channels [C] for all cells of a folded one."""
        return values if self.cells == 1 else jnp.tile(values, self.cells)


def _normalised(form: _Form, x, mean, var, scale, bias, add):
    """(x - mean) / sqrt(var + epsilon) * scale + bias, per channel; + add; ReLU.

    The mean is taken off first: folded into the offset it would cancel digits where it is large against the deviation.
    """
    factor = scale * jax.lax.rsqrt(var + form.epsilon)
    y = (x.astype(jnp.float32) - form.spread(mean)) * form.spread(factor) + form.spread(bias)
    if add is not None:
        y += add.astype(jnp.float32)
    return (nn.relu(y) if form.relu else y).astype(form.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _batch_normalised(form: _Form, x, scale, bias, add):
    """(`_normalised` by the batch's own moments, mean [C], biased variance [C]); the moments carry no gradient.

    Its gradient is written out because of what plain differentiation keeps for it: float32 copies of the map and
    the ReLU's mask. Here it is the inputs, which the layers around keep anyway: on BoIR's blocks less than half the
    memory and four fifths of the time.
    """
    return _forward(form, x, scale, bias, add)[0]


def _forward(form: _Form, x, scale, bias, add):
    mean, var = batch_moments(x, form.axis_name, form.cells)
    return (_normalised(form, x, mean, var, scale, bias, add), mean, var), (x, mean, var, scale, bias, add)


def _backward(form: _Form, kept, cotangents):
    x, mean, var, scale, bias, add = kept
    slope = cotangents[0].astype(jnp.float32)
    if form.relu:
        slope = jnp.where(_normalised(form, x, mean, var, scale, bias, add) > 0, slope, 0)
    deviation = jax.lax.rsqrt(var + form.epsilon)
    unit = (x.astype(jnp.float32) - form.spread(mean)) * form.spread(deviation)
    axes = tuple(range(x.ndim - 1))
    of_bias, of_scale = (total.sum(axes).reshape(form.cells, -1).sum(0) for total in (slope, slope * unit))
    # A map of mean 0 and variance 1 cannot follow the slope's mean, nor its part along itself: both over all devices.
    lost_mean, lost_unit = (total / (x.size // scale.size) for total in (of_bias, of_scale))
    if form.axis_name is not None:
        lost_mean, lost_unit = jax.lax.pmean((lost_mean, lost_unit), form.axis_name)
    of_x = form.spread(scale * deviation) * (slope - form.spread(lost_mean) - unit * form.spread(lost_unit))
    of_add = None if add is None else slope.astype(add.dtype)
    return of_x.astype(x.dtype), of_scale, of_bias, of_add


_batch_normalised.defvjp(_forward, _backward)


def batch_moments(x: jax.Array, axis_name: str | None, cells: int = 1) -> tuple[jax.Array, jax.Array]:
    """Mean [C] and biased variance [C] over all axes but the last, and over the cells of a folded one, in float32.

    Two passes: the one-pass form loses digits where the mean is large against the deviation.
    """
    axes = tuple(range(x.ndim - 1))
    x32 = x.astype(jnp.float32)

    def average(values):
        found = values.mean(axes).reshape(cells, -1).mean(0)
        return found if axis_name is None else jax.lax.pmean(found, axis_name)

    mean = average(x32)
    return mean, average(jnp.square(x32 - (mean if cells == 1 else jnp.tile(mean, cells))))
