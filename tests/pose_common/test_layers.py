"""Batch norm over groups of rows, as devices that do not synchronise have it."""

from __future__ import annotations

import functools

import jax
import numpy as np

from pose_common.layers import BatchNorm

GROUP = 2


def run(layer, variables, x):
    return layer.apply(variables, x, train=True, mutable=["batch_stats"])


def test_groups_are_normalised_on_their_own():
    x = jax.random.normal(jax.random.key(0), (6, 4, 5, 3)) * np.array([1, 5, 0.1]) + np.array([0, -3, 7])
    variables = BatchNorm().init(jax.random.key(1), x, train=False)
    y, updated = run(BatchNorm(group=GROUP), variables, x)
    parts = [run(BatchNorm(), variables, x[first : first + GROUP]) for first in range(0, 6, GROUP)]
    # The same float32 sums.
    np.testing.assert_allclose(y, np.concatenate([part for part, _ in parts]), rtol=1e-5, atol=1e-6)
    for name in ("mean", "var"):
        mean = np.mean([stats["batch_stats"][name] for _, stats in parts], axis=0)
        np.testing.assert_allclose(updated["batch_stats"][name], mean, rtol=1e-5)


def test_groups_do_not_depend_on_devices():
    x = jax.random.normal(jax.random.key(0), (16, 4, 4, 3))
    variables = BatchNorm().init(jax.random.key(1), x, train=False)
    y, updated = run(BatchNorm(group=GROUP), variables, x)
    layer = BatchNorm(axis_name="devices", group=GROUP)
    mapped = jax.pmap(functools.partial(run, layer, variables), axis_name="devices")
    rows, stats = mapped(x.reshape(8, 2, *x.shape[1:]))
    np.testing.assert_allclose(rows.reshape(x.shape), y, rtol=1e-5, atol=1e-6)
    for found, expected in zip(jax.tree.leaves(stats), jax.tree.leaves(updated), strict=True):
        np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), rtol=1e-5)
