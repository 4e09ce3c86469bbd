"""The few places where a step's arithmetic must know about devices.

A step is a plain function of arrays. Under `jit` on sharded arrays every sum is global by itself; under `pmap` each
device sees its own rows and `axis_name` names the mapped axis. These helpers make both give the same numbers.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def global_sum(x, axis_name: str | None):
    """Sum of a pytree over the devices of the mapped axis; `x` itself when there is none."""
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def global_batch_size(local_batch: int, axis_name: str | None) -> int:
    """Rows of the global batch."""
    return local_batch if axis_name is None else local_batch * jax.lax.axis_size(axis_name)


def sample_keys(key: jax.Array, local_batch: int, axis_name: str | None) -> jax.Array:
    """One key [B] a sample, from its index in the global batch: the same on any number of devices."""
    index = jnp.arange(local_batch)
    if axis_name is not None:
        index += jax.lax.axis_index(axis_name) * local_batch
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
