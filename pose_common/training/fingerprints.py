"""What a tree of arrays holds, in one number an array: to know damage when it is read, and NaN before it is saved.

A fingerprint is a sum over hashed words, so it depends neither on how an array is laid out nor on who wrote it, is made
where the array is, and costs one pass over the memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


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


@jax.jit
def _summary(array: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(uint32 fingerprint, whether everything is finite). One compilation a shape, not one a tree."""
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    width = array.dtype.itemsize * 8
    words = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{width}")).astype(jnp.uint32)
    position, stride = jnp.zeros(array.shape, jnp.uint32), 1
    for axis in reversed(range(array.ndim)):
        along = jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
        position, stride = position + along * jnp.uint32(stride % 2**32), stride * array.shape[axis]
    mixed = _mix(words + _mix(position))
    finite = jnp.isfinite(array).all() if jnp.issubdtype(array.dtype, jnp.floating) else jnp.bool_(True)
    return mixed.sum(dtype=jnp.uint32), finite


def _mix(word: jax.Array) -> jax.Array:
    """A one-to-one scrambling of 32 bits (the finaliser of MurmurHash3)."""
    word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
    return word ^ (word >> 16)
