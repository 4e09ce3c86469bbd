"""Kernels for TPUs of two parts for which XLA moves too many bytes: attention over a few hundred tokens, and experts.

Symbols: B images, N tokens, C features of which D belong to a head, E experts with H features in and P out. Each kernel
computes what the plain form beside its caller does, in bfloat16 with float32 sums; `*_available` says where it can. It
runs on one device's images; on a mesh `jax.shard_map` spreads it over the batch. `interpret` runs it anywhere, slowly.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, PartitionSpec

LANES = 128
"""Width of a TPU's vectors."""
_SUBLANES = 16
"""Height of a tile of bfloat16."""
_FAST_MEMORY = 15 * 2**20
"""Bytes that the gradient of attention may fill; a kernel is given 16 MiB, on a v4 all that there is."""
_MOST_FEATURES = 2048
"""Of an expert's input at once in the backward pass, to the same end."""

_AB, _ABT, _ATB = ((1,), (0,)), ((1,), (1,)), ((0,), (0,))  # the axes that a b, a b^T and a^T b sum over


def attention_available(qkv: jax.Array) -> bool:
    """Whether `attention` takes qkv [B, N, 3C]."""
    _, tokens, features = qkv.shape
    block = tokens * features * qkv.dtype.itemsize
    blocks = 2 * (block + block + block // 3)  # qkv, its slope and that of the result: one in use, one on its way
    scores = 4 * tokens**2 * 4  # of one head, four such arrays of float32
    return _available(qkv) and features % (3 * LANES) == 0 and blocks + scores <= _FAST_MEMORY


def experts_available(x: jax.Array, kernel: jax.Array) -> bool:
    """Whether `experts` takes x [B, N, H] and kernel [E, H, P]."""
    return _available(x) and x.shape[-1] % LANES == 0 and kernel.shape[-1] % _SUBLANES == 0


def _available(x: jax.Array) -> bool:
    return x.dtype == jnp.bfloat16 and x.shape[1] % _SUBLANES == 0 and divides_batch(x)


def attention(qkv: jax.Array, bias: jax.Array, num_heads: int, interpret: bool = False) -> jax.Array:
    """softmax(q k^T / sqrt(D)) v of every head.

    Args:
      qkv: [B, N, 3C] before its bias is added: queries, keys and values, head after head.
      bias: [3C], of qkv's dtype.

    Returns:
      [B, N, C].
    """

    def local(qkv, bias):
        batch, tokens, features = qkv.shape
        return _call(
            functools.partial(_softmax_product, num_heads=num_heads),
            grid=(batch,),
            inputs=[(qkv, _of_image(tokens, features)), (bias, _whole(1, features))],
            outputs=[((batch, tokens, features // 3), qkv.dtype, _of_image(tokens, features // 3))],
            interpret=interpret,
        )

    (out,) = over_batch(local, (0, None), (0,))(qkv, bias[None])
    return out


def attention_gradient(
    qkv: jax.Array, bias: jax.Array, slope: jax.Array, num_heads: int, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Slopes of qkv [B, N, 3C] and of its bias [3C] from that of `attention`'s result [B, N, C]."""

    def local(qkv, bias, slope):
        batch, tokens, features = qkv.shape
        of_qkv, of_bias = _call(
            functools.partial(_softmax_product_gradient, num_heads=num_heads),
            grid=(batch,),
            inputs=[
                (qkv, _of_image(tokens, features)),
                (bias, _whole(1, features)),
                (slope, _of_image(tokens, features // 3)),
            ],
            outputs=[
                (qkv.shape, qkv.dtype, _of_image(tokens, features)),
                ((batch, 1, features), jnp.float32, _of_image(1, features)),
            ],
            interpret=interpret,
        )
        return of_qkv, of_bias.sum((0, 1))

    of_qkv, of_bias = over_batch(local, (0, None, 0), (0, None))(qkv, bias[None], slope)
    return of_qkv, of_bias.astype(bias.dtype)


def _softmax_product(qkv_ref, bias_ref, out_ref, *, num_heads):
    features, sums = out_ref.shape[-1], {}
    for low, high, end, own in _heads(features, num_heads):
        q, k, v = (qkv_ref[0, :, x + low : x + high] + bias_ref[:, x + low : x + high] for x in _thirds(features))
        scores = _dot(q * own, k, _ABT) * _scale(features, num_heads)
        weights = jnp.exp2(scores - scores.max(1, keepdims=True))
        _add(sums, low, _dot(weights.astype(q.dtype), v * own, _AB) / weights.sum(1, keepdims=True))
        for at, out in _finished(sums, end):
            out_ref[0, :, at : at + LANES] = out.astype(q.dtype)


def _softmax_product_gradient(qkv_ref, bias_ref, slope_ref, of_qkv_ref, of_bias_ref, *, num_heads):
    """With scores [keys, queries]: two of the three last products then take them as they are."""
    features, sums = slope_ref.shape[-1], ({}, {}, {})
    for low, high, end, own in _heads(features, num_heads):
        q, k, v = (qkv_ref[0, :, x + low : x + high] + bias_ref[:, x + low : x + high] for x in _thirds(features))
        slope = slope_ref[0, :, low:high]
        scores = _dot(k * own, q, _ABT) * _scale(features, num_heads)
        weights = jnp.exp2(scores - scores.max(0, keepdims=True))
        weights = weights * (1 / weights.sum(0, keepdims=True))
        of_weights = _dot(v * own, slope, _ABT)
        # The softmax takes the mean slope off, weighted by itself.
        of_scores = weights * (of_weights - (weights * of_weights).sum(0, keepdims=True))
        of_scores = (of_scores * (features // num_heads) ** -0.5).astype(q.dtype)
        _add(sums[0], low, _dot(of_scores, k * own, _ATB))
        _add(sums[1], low, _dot(of_scores, q * own, _AB))
        _add(sums[2], low, _dot(weights.astype(q.dtype), slope * own, _AB))
        for start, third in zip(_thirds(features), sums, strict=True):
            for at, found in _finished(third, end):
                where = slice(start + at, start + at + LANES)
                of_qkv_ref[0, :, where] = found.astype(q.dtype)
                of_bias_ref[0, :, where] = found.sum(0, keepdims=True)


def _heads(features: int, num_heads: int) -> Iterator[tuple[int, int, int, jax.Array]]:
    """For each head: the whole vectors that hold it [low, high), which other heads may share; its end; and its mask.

    The mask [1, high - low] is 1 at the head's own features and 0 elsewhere: a product that sums over features with one
    side masked is of this head alone, and so is a product that yields features, each at its place.
    """
    width = features // num_heads
    for start in range(0, features, width):
        low, end = start // LANES * LANES, start + width
        high = -(-end // LANES) * LANES
        feature = low + jax.lax.broadcasted_iota(jnp.int32, (1, high - low), 1)
        yield low, high, end, jnp.where((feature >= start) & (feature < end), 1.0, 0.0).astype(jnp.bfloat16)


def _thirds(features: int) -> tuple[int, int, int]:
    """Where queries, keys and values begin."""
    return 0, features, 2 * features


def _scale(features: int, num_heads: int) -> float:
    """What products of queries and keys are multiplied by, for a softmax by powers of 2."""
    return (features // num_heads) ** -0.5 * math.log2(math.e)


def _add(sums: dict[int, jax.Array], low: int, found: jax.Array) -> None:
    """Adds `found`, features from `low` on, to sums of one vector's width each, by where it begins."""
    for at in range(0, found.shape[-1], LANES):
        sums[low + at] = sums.get(low + at, 0.0) + found[:, at : at + LANES]


def _finished(sums: dict[int, jax.Array], end: int) -> list[tuple[int, jax.Array]]:
    """Takes out those sums to which no head after `end` adds."""
    return [(at, sums.pop(at)) for at in list(sums) if at + LANES <= end]


def experts(x: jax.Array, dataset: jax.Array, kernel: jax.Array, interpret: bool = False) -> jax.Array:
    """x times the kernel of its dataset: [B, N, H], int32 [B], [E, H, P] -> [B, N, P]; zeros without an expert.

    Images are taken expert after expert, so that each expert's kernel is read once.
    """

    def local(x, dataset, turned):
        (batch, tokens, features), (count, outputs, _) = x.shape, turned.shape
        (out,) = _call(
            _expert_product,
            grid=(1, batch),
            scalars=_expert_after_expert(dataset, count),
            inputs=[(x, _part_of_image(tokens, features)), (turned, _part_of_expert(outputs, features))],
            outputs=[((batch, tokens, outputs), x.dtype, _part_of_image(tokens, outputs))],
            interpret=interpret,
        )
        return (_of_known(out, dataset, count),)

    (out,) = over_batch(local, (0, 0, None), (0,))(x, dataset, _turned(kernel, x.dtype))
    return out


def experts_gradient(
    x: jax.Array, dataset: jax.Array, kernel: jax.Array, slope: jax.Array, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Slopes of x [B, N, H] and of the kernel [E, H, P] from that of `experts`' result [B, N, P]."""

    def local(x, dataset, turned, slope):
        (batch, tokens, features), (count, outputs, _) = x.shape, turned.shape
        order, whose = _expert_after_expert(dataset, count)
        width = max(w for w in range(LANES, _MOST_FEATURES + 1, LANES) if features % w == 0)
        image, expert = _part_of_image(tokens, width), _part_of_expert(outputs, width)
        whole = pl.BlockSpec((1, tokens, outputs), lambda part, index, order, whose: (order[index], 0, 0))
        of_x, of_turned = _call(
            _expert_product_gradient,
            grid=(features // width, batch),
            scalars=(order, whose),
            inputs=[(x, image), (turned, expert), (_of_known(slope, dataset, count), whole)],
            outputs=[(x.shape, x.dtype, image), (turned.shape, jnp.float32, expert)],
            interpret=interpret,
        )
        present = (whose == jnp.arange(count)[:, None]).any(axis=1)
        of_turned = jnp.where(present[:, None, None], of_turned, 0.0)  # nothing is written of an absent expert
        return of_x, of_turned.astype(x.dtype)  # devices exchange gradients of all products in this dtype

    of_x, of_turned = over_batch(local, (0, 0, None, 0), (0, None))(x, dataset, _turned(kernel, x.dtype), slope)
    return of_x, of_turned.swapaxes(1, 2).astype(kernel.dtype)


def _expert_product(order, whose, x_ref, turned_ref, out_ref):
    out_ref[0] = _dot(x_ref[0], turned_ref[0], _ABT).astype(out_ref.dtype)


def _expert_product_gradient(order, whose, x_ref, turned_ref, slope_ref, of_x_ref, of_turned_ref):
    of_x_ref[0] = _dot(slope_ref[0], turned_ref[0], _AB).astype(of_x_ref.dtype)
    index = pl.program_id(1)

    @pl.when((index == 0) | (whose[index] != whose[jnp.maximum(index - 1, 0)]))
    def _first_image_of_its_expert():
        of_turned_ref[...] = jnp.zeros_like(of_turned_ref)

    of_turned_ref[0] += _dot(slope_ref[0], x_ref[0], _ATB)


def _turned(kernel: jax.Array, dtype: Any) -> jax.Array:
    """[E, H, P] -> [E, P, H], as a TPU lays it out anyway: the longer axis along the vectors."""
    return kernel.astype(dtype).swapaxes(1, 2)


def _expert_after_expert(dataset: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """(images by expert, each one's expert), int32 [B]; any expert for an index without one."""
    dataset = jnp.clip(dataset, 0, count - 1)
    order = jnp.argsort(dataset).astype(jnp.int32)
    return order, dataset[order]


def _of_known(x: jax.Array, dataset: jax.Array, count: int) -> jax.Array:
    """x [B, N, P], zero for images without an expert."""
    return jnp.where(((dataset >= 0) & (dataset < count))[:, None, None], x, 0)


def _of_image(rows: int, columns: int) -> pl.BlockSpec:
    return pl.BlockSpec((1, rows, columns), lambda image: (image, 0, 0))


def _part_of_image(rows: int, columns: int) -> pl.BlockSpec:
    """Of grids of (parts of the features, images): some of an image's features, images expert after expert."""
    return pl.BlockSpec((1, rows, columns), lambda part, index, order, whose: (order[index], 0, part))


def _part_of_expert(rows: int, columns: int) -> pl.BlockSpec:
    return pl.BlockSpec((1, rows, columns), lambda part, index, order, whose: (whose[index], 0, part))


def _whole(rows: int, columns: int) -> pl.BlockSpec:
    return pl.BlockSpec((rows, columns), lambda image: (0, 0))


def _dot(a: jax.Array, b: jax.Array, axes: tuple) -> jax.Array:
    # Products of bfloat16 are exact in float32; asked for more, as a default precision may, the compiler refuses.
    precision = jax.lax.Precision.DEFAULT
    return jax.lax.dot_general(a, b, (axes, ((), ())), precision, preferred_element_type=jnp.float32)


def _call(
    kernel: Callable,
    *,
    grid: tuple[int, ...],
    inputs: Sequence[tuple[jax.Array, pl.BlockSpec]],
    outputs: Sequence[tuple[tuple[int, ...], Any, pl.BlockSpec]],
    scalars: tuple[jax.Array, ...] = (),
    interpret: bool,
) -> tuple[jax.Array, ...]:
    """Runs `kernel` on block after block.

    Args:
      grid: numbers of runs, of nested loops; the innermost is the last.
      inputs: arrays and their blocks.
      outputs: shapes, dtypes and blocks.
      scalars: int32 arrays that blocks are chosen by.
    """
    return tuple(
        pl.pallas_call(
            kernel,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=len(scalars),
                grid=grid,
                in_specs=[block for _, block in inputs],
                out_specs=[block for _, _, block in outputs],
            ),
            out_shape=[jax.ShapeDtypeStruct(shape, dtype) for shape, dtype, _ in outputs],
            compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",) * len(grid)),
            interpret=interpret,
            name=getattr(kernel, "func", kernel).__name__.strip("_"),
        )(*scalars, *[array for array, _ in inputs])
    )


def over_batch(local: Callable, split: Sequence[int | None], outputs: Sequence[int | None]) -> Callable:
    """`local` on each device's images, where the compiler may spread arrays over devices.

    Args:
      local: function of arrays to a tuple of arrays.
      split: axis of each argument along which its images lie; None: every device gets all of it.
      outputs: the same of what `local` returns; None: the sum over devices.
    """

    def call(*arguments):
        mesh = jax.typeof(arguments[0]).sharding.mesh
        if not _devices(mesh):
            return local(*arguments)

        def summed(*arguments):
            found = zip(outputs, local(*arguments), strict=True)
            return tuple(jax.lax.psum(x, mesh.axis_names) if axis is None else x for axis, x in found)

        def specs(axes):
            return tuple(
                PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, mesh.axis_names) for axis in axes
            )

        spread = jax.shard_map(summed, mesh=mesh, in_specs=specs(split), out_specs=specs(outputs), check_vma=False)
        return spread(*arguments)

    return call


def divides_batch(x: jax.Array) -> bool:
    """Whether `over_batch` can spread x [B, ...]: every device has as many of its images."""
    return x.shape[0] % max(_devices(jax.typeof(x).sharding.mesh), 1) == 0


def _devices(mesh: Any) -> int:
    """Over how many devices the compiler may spread an array; 0 where it lies on one already."""
    return mesh.size if not mesh.empty and all(kind == AxisType.Auto for kind in mesh.axis_types) else 0
