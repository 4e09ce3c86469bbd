"""A function as a straight line of simple primitives, for formats that know no loops and no nested calls.

Traced once; then calls are put in place of their names, what only depends on weights is computed, and what jax2onnx
(0.17) has no translation for, or none for a batch of open size, is written by other primitives.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
from jax import lax

SMALL = 4096
"""Elements that a constant may have even if what it was computed from has fewer."""


def straight_line(function: Callable[[jax.Array], tuple[jax.Array, ...]], spec: jax.ShapeDtypeStruct) -> Callable:
    """`function` of one array of `spec`'s shape, in primitives alone.

    Shapes of `spec` may be symbolic (`jax.export.symbolic_shape`).
    """

    def unrolled(x):
        with jax.disable_jit():  # a scan then is a Python loop
            return function(x)

    traced = jax.make_jaxpr(unrolled)(spec)
    return jax.extend.core.jaxpr_as_fun(jax.make_jaxpr(functools.partial(_evaluate, traced))(spec))


def _evaluate(closed: Any, *arguments: Any) -> list[Any]:
    """The outputs of a jaxpr, equation by equation."""
    values = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    values.update(zip(closed.jaxpr.invars, arguments, strict=True))

    def read(atom):
        return atom.val if isinstance(atom, jax.extend.core.Literal) else values[atom]

    for equation in closed.jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        if _is_constant(equation, inputs):
            with jax.ensure_compile_time_eval():
                outputs = _apply(equation, inputs)
        else:
            outputs = _apply(equation, inputs)
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in closed.jaxpr.outvars]


def _is_constant(equation: Any, inputs: Sequence[Any]) -> bool:
    """Whether the equation's outputs are known now, and are not much larger than what they are made of."""
    if not inputs or any(isinstance(value, jax.core.Tracer) for value in inputs):
        return False
    shapes = [atom.aval.shape for atom in equation.outvars]
    if not all(isinstance(side, int) for shape in shapes for side in shape):
        return False
    return sum(map(math.prod, shapes)) <= max(SMALL, sum(math.prod(jnp.shape(value)) for value in inputs))


def _apply(equation: Any, inputs: Sequence[Any]) -> Sequence[Any]:
    name, parameters = equation.primitive.name, equation.params
    if name == "platform_index":
        return [parameters["platforms"].index(None)]  # the file is for no platform that has a way of its own
    if name == "cond" and not isinstance(inputs[0], jax.core.Tracer):
        return _evaluate(parameters["branches"][int(inputs[0])], *inputs[1:])
    inner = parameters.get("call_jaxpr", parameters.get("jaxpr"))
    if inner is not None:
        closed = inner if hasattr(inner, "consts") else jax.extend.core.ClosedJaxpr(inner, ())
        return _evaluate(closed, *inputs)
    found = REWRITES.get(name, equation.primitive.bind)(*inputs, **parameters)
    return found if isinstance(found, (list, tuple)) else [found]


def _remainder(x, y):
    """Of integers, with the sign of x."""
    return lax.sub(x, lax.mul(y, lax.div(x, y)))


def _pad(x, value, *, padding_config):
    """Outside only, and not cut off."""
    if any(low < 0 or high < 0 or between for low, high, between in padding_config):
        raise NotImplementedError(f"padding {padding_config}")
    for axis, (low, high, _) in enumerate(padding_config):
        edges = [lax.broadcast(value, (*x.shape[:axis], count, *x.shape[axis + 1 :])) for count in (low, high)]
        if low or high:
            x = lax.concatenate([*edges[:1][: bool(low)], x, *edges[1:][: bool(high)]], axis)
    return x


def _split(x, *, sizes, axis):
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    return [lax.slice_in_dim(x, end - size, end, axis=axis) for end, size in zip(ends, sizes, strict=True)]


def _window_maximum(x, *, window_dimensions, window_strides, padding, base_dilation, window_dilation):
    """Axis by axis as the maximum of shifted copies; MaxPool knows no windows over [B, h, w, C]."""
    if any(step != 1 for steps in (window_strides, base_dilation, window_dilation) for step in steps):
        raise NotImplementedError(f"strides {window_strides}, dilations {base_dilation}, {window_dilation}")
    for axis, side in enumerate(window_dimensions):
        around = [padding[axis] if a == axis else (0, 0) for a in range(x.ndim)]
        x = _pad(x, jnp.asarray(-jnp.inf, x.dtype), padding_config=[(*pair, 0) for pair in around])
        size = x.shape[axis] - side + 1
        x = functools.reduce(lax.max, [lax.slice_in_dim(x, at, at + size, axis=axis) for at in range(side)])
    return x


REWRITES: dict[str, Callable] = {
    "rem": _remainder,
    "pad": _pad,
    "split": _split,
    "reduce_window_max": _window_maximum,
}
"""Primitive -> the same of other primitives."""
