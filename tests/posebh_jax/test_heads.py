from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from posebh_jax import heads
from posebh_jax.heads import (
    EmbeddingHead,
    HeatmapHead,
    interleaved,
    kernel_gradient,
    kernel_gradient_by_taps,
    upsample2,
)
from posebh_jax.weights.keys import embedding_rules, head_rules
from tests.golden_files import golden, golden_config
from tests.posebh_jax.golden_weights import golden_state, maps, module_variables

HEATMAP, EMBEDDING = "posebh/simple_head.npz", "posebh/proto_head_embed.npz"
# Recorded float32 outputs lie within 3e-6 of float64, buffers within 2e-7.
OUTPUT_TOLERANCE, BUFFER_TOLERANCE = 3e-5, 1e-6


def build(name: str, axis_name: str | None = None):
    config = golden_config(name)
    filters = tuple(config["num_deconv_filters"])
    if name == HEATMAP:
        return HeatmapHead(config["out_channels"], filters, axis_name=axis_name), head_rules("", "head")
    extra = config["extra"]
    head = EmbeddingHead(
        config["out_channels"],
        extra["channels"],
        filters,
        extra["neck_type"],
        extra["head_kernel"],
        extra["activation"],
        axis_name=axis_name,
    )
    return head, embedding_rules("", "head")


@functools.cache
def recorded(name: str):
    """(variables, input, jitted eval, jitted train, rules, shapes) of a recorded head."""
    head, rules = build(name)
    x = maps(golden(name)["x"])
    shapes = jax.eval_shape(functools.partial(head.init, train=False), jax.random.key(0), x)
    variables = module_variables(shapes, golden_state(name), rules, "head")
    evaluate = jax.jit(functools.partial(head.apply, train=False))
    train = jax.jit(functools.partial(head.apply, train=True, mutable=["batch_stats"]))
    return variables, x, evaluate, train, rules, shapes


@pytest.mark.parametrize("name", [HEATMAP, EMBEDDING])
def test_outputs_and_buffers_are_the_originals(name):
    variables, x, evaluate, train, rules, shapes = recorded(name)
    arrays = golden(name)
    np.testing.assert_allclose(evaluate(variables, x), maps(arrays["out_eval"]), atol=OUTPUT_TOLERANCE)

    output, updated = train(variables, x)
    np.testing.assert_allclose(output, maps(arrays["out_train"]), atol=OUTPUT_TOLERANCE)
    after = {k.removeprefix("after_train:"): v for k, v in arrays.items() if k.startswith("after_train:")}
    expected = module_variables(shapes, golden_state(name) | after, rules, "head")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=BUFFER_TOLERANCE),
        updated["batch_stats"],
        expected["batch_stats"],
    )

    moved = evaluate({"params": variables["params"], **updated}, x)
    np.testing.assert_allclose(moved, maps(arrays["out_eval_after_bn_update"]), atol=OUTPUT_TOLERANCE)


def test_pmap_over_the_batch_equals_one_device():
    variables, x, _, train, _, _ = recorded(EMBEDDING)
    head, _ = build(EMBEDDING, axis_name="batch")
    count = max(n for n in range(1, 1 + min(len(x), jax.device_count())) if len(x) % n == 0)
    devices, split = jax.devices()[:count], x.reshape(count, -1, *x.shape[1:])

    @functools.partial(jax.pmap, axis_name="batch", in_axes=(None, 0), devices=devices)
    def step(variables, x):
        return head.apply(variables, x, train=True, mutable=["batch_stats"])

    output, updated = step(variables, split)
    expected, expected_stats = train(variables, x)
    np.testing.assert_allclose(output.reshape(expected.shape), expected, atol=OUTPUT_TOLERANCE)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, atol=BUFFER_TOLERANCE), updated, expected_stats)


def test_upsampling_follows_its_definition():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 3, 5, 4)), rng.normal(size=(4, 4, 4, 3))
    expected = np.zeros((2, 2 * 3 + 2, 2 * 5 + 2, 3))
    for y in range(3):
        for z in range(5):
            expected[:, 2 * y : 2 * y + 4, 2 * z : 2 * z + 4] += np.einsum("bi,klio->bklo", x[:, y, z], kernel)
    np.testing.assert_allclose(
        interleaved(upsample2(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32))),
        expected[:, 1:-1, 1:-1],
        atol=1e-5,
    )


def test_the_shortcut_is_the_identity_when_widths_agree():
    x = jnp.zeros((1, 2, 2, 4))

    def neck(filters):
        init = functools.partial(EmbeddingHead(3, 8, (4, filters)).init, train=False)
        return jax.eval_shape(init, jax.random.key(0), x)["params"]["neck"]

    assert set(neck(8)) == set(neck(16)) - {"shortcut_conv", "shortcut_norm"}


def test_the_embedding_head_keeps_float32_when_asked():
    """bfloat16 arithmetic would show: the float32 result differs from it, and equals the reference."""
    variables, x, evaluate, _, _, _ = recorded(EMBEDDING)
    half = build(EMBEDDING)[0].clone(dtype=jnp.bfloat16)
    output = jax.jit(functools.partial(half.apply, train=False))(variables, x)
    assert output.dtype == jnp.float32
    difference = jnp.abs(output - evaluate(variables, x)).max()
    assert 1e-4 < difference < 0.1


def test_initial_values_are_the_originals():
    head = EmbeddingHead(16, 20, (32, 32))
    init = jax.jit(functools.partial(head.init, train=False))
    params = init(jax.random.key(0), jnp.zeros((1, 2, 2, 24)))["params"]
    for path, value in jax.tree_util.tree_leaves_with_path(params):
        kind = path[-1].key
        if kind == "kernel":
            assert abs(float(value.std()) - 1e-3) < 2e-4
        else:
            assert (value == (1.0 if kind == "scale" else 0.0)).all()


@pytest.mark.parametrize("spread", ["one device", "eight devices", "pmap"])
def test_gradient_of_a_kernel_by_taps_is_that_of_the_convolutions(spread):
    """What CPUs and TPUs run instead, on every device's own images."""
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (8, 5, 3, 6))
    slope = jax.random.normal(keys[1], (4, 8, 5, 3, 7))
    expected = jax.jit(kernel_gradient)(x, slope)
    if spread == "pmap":
        one = jax.pmap(lambda x, slope: jax.lax.psum(kernel_gradient_by_taps(x, slope), "rows"), "rows", in_axes=(0, 1))
        found = one(x[:, None], slope[:, :, None])[0]
    else:
        if spread == "eight devices":
            mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
            rows = ("data", "fsdp")
            x = jax.device_put(x, NamedSharding(mesh, PartitionSpec(rows)))
            slope = jax.device_put(slope, NamedSharding(mesh, PartitionSpec(None, rows)))
        found = jax.jit(kernel_gradient_by_taps)(x, slope)
    # Sums of 120 products of about 1 in another order.
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_of_the_last_convolution(dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    x, slope = (jax.random.normal(key, (4, 2, 3, 2, size)) for key, size in zip(keys[:2], (6, 5), strict=True))
    x, kernel = x.astype(dtype), jax.random.normal(keys[2], (6, 5), dtype)
    found = jax.jit(lambda x, kernel, slope: jax.vjp(heads._pointwise, x, kernel)[1](slope))(x, kernel, slope)
    expected = jnp.einsum("pbhwo,io->pbhwi", slope, kernel), jnp.einsum("pbhwi,pbhwo->io", x, slope)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == dtype
        # One rounding to the dtype, of sums below 30; float32 sums are of at most 48 products in another order.
        np.testing.assert_allclose(ours.astype(jnp.float32), theirs, rtol=float(jnp.finfo(dtype).eps), atol=1e-5)
