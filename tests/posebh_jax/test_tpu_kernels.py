"""Kernels for TPUs against the plain forms, by Pallas's interpreter; and that programs for a TPU contain them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from posebh_jax import tpu_kernels, vit
from posebh_jax.attention import attend

# Both sides round operands and results to the 8 bits of bfloat16, at other places: two roundings of the largest value.
TWO_ROUNDINGS = 2**-7
# Width, heads and tokens: two heads in a vector of 128; heads of 80 as in ViT-H, of which some straddle two vectors;
# four heads in a vector.
ATTENTION = [(256, 4, 48), (640, 8, 32), (128, 4, 16)]


def close(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        a, b = (np.asarray(each, np.float32) for each in (a, b))
        np.testing.assert_allclose(a, b, atol=TWO_ROUNDINGS * np.abs(b).max())


def rows_over_eight_devices(*arrays):
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    return [jax.device_put(x, NamedSharding(mesh, PartitionSpec(("data", "fsdp")))) for x in arrays]


def attention_case(dim, tokens, batch=2):
    keys = jax.random.split(jax.random.key(0), 3)
    qkv = (2 * jax.random.normal(keys[0], (batch, tokens, 3 * dim))).astype(jnp.bfloat16)
    bias = jax.random.normal(keys[1], (3 * dim,), jnp.bfloat16)
    return qkv, bias, jax.random.normal(keys[2], (batch, tokens, dim), jnp.bfloat16)


def value_and_slopes(function, slope, *arguments):
    value, back = jax.vjp(function, *arguments)
    return value, *back(slope)


@pytest.mark.parametrize(("dim", "heads", "tokens"), ATTENTION)
def test_attention_and_its_gradient_are_the_plain_ones(dim, heads, tokens):
    qkv, bias, slope = attention_case(dim, tokens)
    assert tpu_kernels.attention_available(qkv)
    found = (
        tpu_kernels.attention(qkv, bias, heads, interpret=True),
        *tpu_kernels.attention_gradient(qkv, bias, slope, heads, interpret=True),
    )
    close(found, value_and_slopes(lambda *x: attend(*x, heads, use_kernel=False), slope, qkv, bias))


def expert_case(dtype=jnp.bfloat16):
    """Eight images of four experts: one has none of them, and two images (-1, 7) are without an expert."""
    keys = jax.random.split(jax.random.key(1), 4)
    x = jax.random.normal(keys[0], (8, 16, 256), dtype)
    kernel, bias = jax.random.normal(keys[1], (4, 256, 32)), jnp.zeros((4, 32))
    slope = jax.random.normal(keys[2], (8, 16, 32), dtype)
    return x, jnp.array([3, 0, -1, 1, 3, 0, 7, 0]), kernel, bias, slope


def test_experts_and_their_gradient_are_the_plain_ones(monkeypatch):
    monkeypatch.setattr(tpu_kernels, "_MOST_FEATURES", 128)  # two parts of an expert's features
    x, dataset, kernel, bias, slope = expert_case()
    assert tpu_kernels.experts_available(x, kernel)
    found = (
        tpu_kernels.experts(x, dataset, kernel, interpret=True),
        *tpu_kernels.experts_gradient(x, dataset, kernel, slope, interpret=True),
    )

    def plain(x, kernel):
        return vit.apply_experts(x, dataset, kernel, bias, use_kernel=False)

    close(found, value_and_slopes(plain, slope, x, kernel))
    assert not found[0][2].any() and not found[2][2].any()


def test_on_a_mesh_every_device_takes_its_own_images():
    """The same numbers as on one device, and slopes of what images share are summed over all."""
    heads = 4
    qkv, bias, slope = attention_case(128, 16, batch=8)
    gradient = jax.jit(functools.partial(tpu_kernels.attention_gradient, num_heads=heads, interpret=True))
    alone = gradient(qkv, bias, slope)
    many, slopes = rows_over_eight_devices(qkv, slope)
    close(gradient(many, bias, slopes), alone)
    assert gradient(many, bias, slopes)[0].sharding.is_equivalent_to(many.sharding, 3)

    x, dataset, kernel, _, slope = expert_case()
    gradient = jax.jit(functools.partial(tpu_kernels.experts_gradient, interpret=True))
    alone = gradient(x, dataset, kernel, slope)
    x, dataset, slope = rows_over_eight_devices(x, dataset, slope)
    close(gradient(x, dataset, kernel, slope), alone)


def test_inside_pmap():
    qkv, bias, _ = attention_case(128, 16, batch=8)
    each = jax.pmap(lambda qkv: tpu_kernels.attention(qkv, bias, 4, interpret=True))
    found = each(qkv[:, None])
    close(found[:, 0], tpu_kernels.attention(qkv, bias, 4, interpret=True))


@pytest.mark.parametrize(
    ("shape", "dtype", "available"),
    [
        ((2, 192, 3 * 768), jnp.bfloat16, True),
        ((2, 192, 3 * 1280), jnp.bfloat16, True),
        ((2, 192, 3 * 768), jnp.float32, False),  # the plain form's digits are better
        ((2, 50, 3 * 768), jnp.bfloat16, False),  # tokens fill no tiles
        ((2, 192, 3 * 64), jnp.bfloat16, False),  # features fill no vector
        ((2, 4096, 3 * 768), jnp.bfloat16, False),  # scores do not fit fast memory
    ],
)
def test_which_attention_a_kernel_takes(shape, dtype, available):
    assert tpu_kernels.attention_available(jnp.zeros(shape, dtype)) is available


def test_rows_that_do_not_divide_over_a_mesh_take_the_plain_form():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    whole = jax.device_put(jnp.zeros((2, 16, 3 * 128), jnp.bfloat16), NamedSharding(mesh, PartitionSpec()))
    assert not tpu_kernels.attention_available(whole)


@pytest.mark.parametrize("topology", ["v5e:2x2", "v4:2x2x1"])
@pytest.mark.parametrize("size", ["base", "large", "huge"])
def test_the_compiler_takes_them(topology, size, monkeypatch):
    """Of each size, in the fast memory of each TPU; a v4 has least."""
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed (the package's extra 'tpu')")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    device = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    shape = vit.SIZES[size]
    hidden = int(shape.mlp_ratio * shape.dim)

    def array(*sizes, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=SingleDeviceSharding(device))

    def loss(qkv, bias, x, dataset, kernel):
        experts = vit.apply_experts(x, dataset, kernel, jnp.zeros(kernel.shape[::2]))
        return sum(jnp.square(each).sum() for each in (attend(qkv, bias, shape.num_heads), experts))

    lowered = jax.jit(jax.grad(loss, (0, 1, 2, 4))).lower(
        array(2, 192, 3 * shape.dim),
        array(3 * shape.dim),
        array(2, 192, hidden),
        array(2, dtype=jnp.int32),
        array(6, hidden, shape.part_features, dtype=jnp.float32),
    )
    assert lowered.compile().as_text().count("tpu_custom_call") == 4


@pytest.mark.parametrize(
    ("platform", "use_kernel", "contained"), [("tpu", True, 4), ("tpu", False, 0), ("cpu", True, 0)]
)
def test_programs_for_a_tpu_contain_the_kernels(platform, use_kernel, contained):
    """Forward and backward, of attention and experts; by Pallas's lowering, for which no TPU is needed."""
    qkv, bias, _ = attention_case(128, 16)
    x, dataset, kernel, expert_bias, _ = expert_case()

    def loss(qkv, x, kernel):
        found = attend(qkv, bias, 4, use_kernel), vit.apply_experts(x, dataset, kernel, expert_bias, use_kernel)
        return sum(jnp.square(each.astype(jnp.float32)).sum() for each in found)

    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(qkv, x, kernel)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("tpu_custom_call") == contained
