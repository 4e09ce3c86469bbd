"""Operations counted from a program, against sums by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pose_common.training.flops import peak_flops, step_flops


def counted(function, *shapes):
    return step_flops(jax.jit(function), *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))


def convolution(x, kernel, stride=1, groups=1):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


def test_products_loops_branches_and_what_is_computed_again():
    product = 2 * 3 * 4 * 4
    assert counted(lambda a, w: jnp.tanh(a @ w), (3, 4), (4, 4)) == product
    assert counted(lambda a, b: jnp.einsum("bij,bkj->bik", a, b), (5, 3, 4), (5, 2, 4)) == 2 * 5 * 3 * 2 * 4

    def loop(a, w):
        return jax.lax.scan(lambda a, _: (jnp.sin(a @ w), None), a, length=7)[0].sum()

    assert counted(loop, (3, 4), (4, 4)) == 7 * product
    # The gradient has two products for each: one to either side; recomputed, the first is there once more.
    assert counted(jax.grad(loop, argnums=(0, 1)), (3, 4), (4, 4)) == 3 * 7 * product

    def again(a, w):
        return jax.checkpoint(lambda a, w: jnp.sin(jnp.sin(a @ w) @ w))(a, w).sum()

    twice = counted(jax.grad(lambda a, w: jnp.sin(jnp.sin(a @ w) @ w).sum(), argnums=(0, 1)), (3, 4), (4, 4))
    assert twice == 6 * product and counted(jax.grad(again, argnums=(0, 1)), (3, 4), (4, 4)) > twice
    branch = counted(lambda a, w: jax.lax.cond(a[0, 0] > 0, lambda: a @ w @ w, lambda: a @ w), (3, 4), (4, 4))
    assert branch == 2 * product

    def in_its_own_way(a, w):
        return jax.lax.platform_dependent(a, w, tpu=lambda a, w: a @ w @ w, default=jnp.matmul)

    assert counted(in_its_own_way, (3, 4), (4, 4)) == product


def test_convolutions_and_their_gradients():
    """Of stride 2 and a kernel of 2, where every pixel is used once: the three have the same products."""
    forward = 2 * 5 * 4 * 4 * 7 * (2 * 2 * 3)
    shapes = (5, 8, 8, 3), (2, 2, 3, 7)
    assert counted(lambda x, k: convolution(x, k, 2), *shapes) == forward
    gradient = counted(jax.grad(lambda x, k: jnp.square(convolution(x, k, 2)).sum(), argnums=(0, 1)), *shapes)
    assert gradient == 3 * forward
    assert counted(lambda x, k: convolution(x, k, groups=6), (5, 8, 8, 6), (1, 1, 1, 6)) == 2 * 5 * 64 * 6


def test_devices_whose_peak_is_known():
    assert peak_flops("TPU v5 lite") == 197e12 and peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12 and peak_flops("Tesla V100-SXM2-16GB") == 125e12
    for unknown in ("cpu", "NVIDIA GeForce RTX 4090", "TPU v9", "TPU v5x"):
        assert peak_flops(unknown) is None
    assert step_flops(lambda x: x, jnp.ones(2)) is None
