"""The backbone with its narrow maps folded, against the same without."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from boir_jax.hrnet import HRNet

pytestmark = pytest.mark.slow  # compiles whole backbones


@pytest.mark.parametrize("modules, size", [((1, 1, 1), (64, 96)), ((1,), (96, 32))])
def test_folding_changes_no_number(modules, size):
    """Maps and running statistics of a training step, oblong, with four branches and with two."""
    keys = jax.random.split(jax.random.key(0))
    images = jax.random.normal(keys[0], (2, *size, 3))
    nets = [HRNet(16, modules, 1, 16, fold_channels=channels) for channels in (0, 128)]
    variables = jax.jit(lambda key, images: nets[0].init(key, images, False))(keys[1], images)
    # Of the size of 1: new kernels are 0.001, which batch norm blows up to noise.
    variables = jax.tree.map(lambda x: 50 * x if x.ndim >= 4 else x, variables)

    def run(net):
        return jax.jit(lambda images: net.apply(variables, images, True, mutable=["batch_stats"]))(images)

    (flat, after), (folded, after_folded) = map(run, nets)
    # Float32 sums of hundreds of terms in another order, through some thirty layers.
    np.testing.assert_allclose(folded, flat, atol=1e-4 * np.abs(flat).max())
    for actual, wanted in zip(jax.tree.leaves(after_folded), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-5)
