"""Products of matrices as the platform multiplies them fast, on maps and tokens of any number of axes."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

DTYPES = ("float32", "bfloat16")
"""What a network's products may be of."""


def by_platform(function: Callable, *arguments: jax.Array, tpu: Callable | None = None) -> Any:
    """`function(*arguments, einsum=...)` with the `jnp.einsum` of two arrays that the platform is fast at.

    The choice is around all of the function: one around each product alone would keep a TPU from making the product
    together with what follows it (9 % of a step of ViT-B).

    Args:
      function: of arrays, and `einsum(subscripts, x, y)`, whose result has the arrays' dtype.
      arguments: arrays; the first one's dtype says what to multiply.
      tpu: what a TPU shall do instead, of the same arguments.
    """
    forms = {} if tpu is None else {"tpu": tpu}
    if arguments[0].dtype == jnp.bfloat16:
        forms["cpu"] = functools.partial(function, einsum=_einsum_of_bfloat16)
    plain = functools.partial(function, einsum=jnp.einsum)
    return jax.lax.platform_dependent(*arguments, default=plain, **forms) if forms else plain(*arguments)


def _einsum_of_bfloat16(subscripts: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """For XLA to use a CPU's instructions for bfloat16, which are twice as fast as those for float32.

    It does where the result is float32 and x is summed along its last axis. If that is not so it makes all of it
    float32; and an x that is merely seen the other way round it turns back.
    """
    first, second, result = re.split(",|->", subscripts)
    if first[-1] in result:
        first = first[:-2] + first[-1] + first[-2]
        x = with_layout_constraint(x.swapaxes(-1, -2), Layout(tuple(range(x.ndim))))
    product = jnp.einsum(f"{first},{second}->{result}", x, y, preferred_element_type=jnp.float32)
    return product.astype(x.dtype)


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [..., C] @ kernel [C, D], with all rows of x as one axis.

    Where they have several, XLA's CPU compiler lays out anew what the kernel's gradient is made of, which takes as long
    as that product.
    """
    return by_platform(_product, x, kernel)


def _product(x, kernel, *, einsum):
    return einsum("nc,cd->nd", _rows(x), kernel).reshape(*x.shape[:-1], kernel.shape[-1])


def _gradient(x, kernel, slope, *, einsum):
    of_x = einsum("nd,cd->nc", _rows(slope), kernel).reshape(x.shape)
    return of_x, einsum("nc,nd->cd", _rows(x), _rows(slope))


product.defvjp(
    lambda x, kernel: (product(x, kernel), (x, kernel)),
    lambda kept, slope: by_platform(_gradient, *kept, slope),
)


def _rows(x: jax.Array) -> jax.Array:
    return x.reshape(-1, x.shape[-1])
