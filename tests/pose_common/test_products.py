"""Products of matrices in bfloat16: a CPU's own form of them, on one device and several."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pose_common.products import by_platform, product


def half_products(x, kernel, slope):
    """A product, both of its gradients, and one product a picture."""
    result, gradient = jax.vjp(product, x, kernel)
    return result, gradient(slope), by_platform(lambda x, y, *, einsum: einsum("bhn,bhp->bnp", x, y), x, slope)


@pytest.mark.parametrize("devices", [1, 8])
def test_products_of_bfloat16_on_several_devices(devices):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (8, 6, 12), (12, 16), (8, 6, 16)
    given = [jax.random.normal(key, shape, jnp.bfloat16) for key, shape in zip(keys, shapes, strict=True)]
    mesh = jax.sharding.Mesh(jax.devices()[:devices], ("data",))
    by_image, whole = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in (("data",), ()))
    x, kernel, slope = given
    found = jax.jit(half_products)(*map(jax.device_put, given, (by_image, whole, by_image)))
    x, kernel, slope = map(np.float64, given)
    expected = (
        x @ kernel,
        (slope @ kernel.T, np.einsum("bnc,bnd->cd", x, slope)),
        np.einsum("bhn,bhp->bnp", x, slope),
    )

    def close(ours, exact):
        """Rounded to 8 bits; a gradient of the kernel once more on each of eight devices before they are added."""
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float64(ours), exact, rtol=2**-8, atol=2**-8 * np.abs(exact).max())

    jax.tree.map(close, found, expected)


def test_a_cpu_can_multiply_bfloat16_as_such():
    """XLA takes its instructions for that where the result is float32 and the first factor's last axis is summed."""
    given = (jnp.ones(shape, jnp.bfloat16) for shape in ((8, 6, 12), (12, 16), (8, 6, 16)))
    program = jax.jit(half_products).lower(*given).as_text()
    found = re.findall(
        r"dot_general .*contracting_dims = \[(\d)\] x.* : \(tensor<(.*)xbf16>, .*bf16>\) -> .*f32>", program
    )
    assert len(found) == program.count("dot_general ") == 4
    assert all(int(axis) == shape.count("x") for axis, shape in found)
