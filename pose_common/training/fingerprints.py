"""What a tree of arrays holds, in one number an array: to know damage when it is read, and NaN before it is saved.

A fingerprint is a sum over hashed words, so it depends neither on how an array is laid out nor on who wrote it, is made
where the array is, and costs one pass over the memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Summary(NamedTuple):
    """Of one array.

    Attributes:
      shape: of the array.
      fingerprint: 32 bits of its contents.
      finite: False with a NaN or an infinity.
    """

    shape: tuple[int, ...]
    fingerprint: int
    finite: bool


def named_leaves(tree: Any) -> dict[str, Any]:
    """{"params/head/kernel": leaf} of a tree whose leaves have shapes."""

    def part(key: Any) -> str:
        return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))

    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda leaf: hasattr(leaf, "shape"))
    return {"/".join(map(part, path)): leaf for path, leaf in leaves}


def summarise(tree: Any) -> dict[str, Summary]:
    """The summary of every array by its name; the same in every process, all of which must call this."""
    arrays = named_leaves(tree)
    found = jax.device_get({name: _summary(array) for name, array in arrays.items()})
    return {
        name: Summary(tuple(arrays[name].shape), int(fingerprint), bool(finite))
        for name, (fingerprint, finite) in found.items()
    }


def _summary(array: jax.Array) -> tuple[Any, Any]:
    """Of `_summarise`, made where the array is, but on the host compiled programs would only cost time.

    CPUs wait for each: of programs that are on their way at once, and sum over devices of several processes, they may
    begin another first in each process, and then wait for each other for ever.
    """
    on_cpu = not isinstance(array, jax.Array) or next(iter(array.devices())).platform == "cpu"
    if on_cpu and (not isinstance(array, jax.Array) or array.is_fully_addressable):
        return _summarise(np.asarray(array), np)
    found = _compiled_summary(array)
    return jax.block_until_ready(found) if on_cpu else found


def _summarise(array: Any, xp: Any = jnp) -> tuple[Any, Any]:
    """(uint32 fingerprint, whether everything is finite)."""
    array = array.reshape(array.shape or (1,))
    position, stride = xp.zeros((1,) * array.ndim, xp.uint32), 1
    for axis in reversed(range(array.ndim)):
        along = xp.arange(array.shape[axis], dtype=xp.uint32).reshape([-1] + [1] * (array.ndim - 1 - axis))
        position, stride = position + along * xp.uint32(stride % 2**32), stride * array.shape[axis]
    words = array.view(xp.dtype(f"uint{array.dtype.itemsize * 8}")).astype(xp.uint32)
    finite = xp.isfinite(array).all() if jnp.issubdtype(array.dtype, jnp.floating) else True
    return _mix(words + _mix(position, xp), xp).sum(dtype=xp.uint32), finite


_compiled_summary = jax.jit(_summarise)  # one compilation a shape, not one a tree


def _mix(word: Any, xp: Any) -> Any:
    """A one-to-one scrambling of 32 bits (the finaliser of MurmurHash3)."""
    word = (word ^ (word >> 16)) * xp.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * xp.uint32(0xC2B2AE35)
    return word ^ (word >> 16)
