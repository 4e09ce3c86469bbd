from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from posebh_jax.vit import SIZES, ViT, ViTSize, apply_experts, drop_path_rates, drop_path_scales, gelu
from posebh_jax.weights.keys import backbone_rules
from tests.golden_files import golden, golden_config
from tests.posebh_jax.golden_weights import golden_state, maps, module_variables

# The recorded float32 values lie within 2e-6 of float64; sums of a few hundred terms in another order add as
# much.
TOLERANCE = 1e-5


@functools.cache
def recorded(name: str):
    """(model, variables, images, dataset, jitted apply) of a recorded backbone."""
    config, arrays = golden_config(f"posebh/{name}.npz"), golden(f"posebh/{name}.npz")
    size = ViTSize(config["embed_dim"], config["depth"], config["num_heads"], config["part"])
    model = ViT(size, config["num_expert"] or 0)
    images, dataset = maps(arrays["image"]), jnp.asarray(arrays["dataset_idx"], jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images, dataset)
    variables = module_variables(shapes, golden_state(f"posebh/{name}.npz"), backbone_rules(), "backbone")
    return model, variables, images, dataset, jax.jit(model.apply)


@pytest.mark.parametrize("name", ["vit_moe", "vit_plain", "vit_moe_grid"])
def test_features_are_the_originals(name):
    _, variables, images, dataset, apply = recorded(name)
    expected = maps(golden(f"posebh/{name}.npz")["output"])
    np.testing.assert_allclose(apply(variables, images, dataset), expected, atol=TOLERANCE)


BLOCKS = sorted(int(key[5:-4]) for key in golden("posebh/vit_moe.npz") if key.startswith("block"))


@pytest.mark.parametrize("blocks", range(len(BLOCKS)))
def test_tokens_after_some_blocks_are_the_originals(blocks):
    """Dropping the branches of the later blocks leaves the tokens as they are, but for the final norm."""
    _, variables, images, dataset, apply = recorded("vit_moe")
    arrays = golden("posebh/vit_moe.npz")
    position = arrays["param:pos_embed"]
    embedded = arrays["patch_tokens"] + position[:, 1:] + position[:, :1]
    expected = (embedded, *(arrays[f"block{i}_out"] for i in BLOCKS))[blocks]
    mean, var = expected.mean(-1, keepdims=True), expected.var(-1, keepdims=True)
    norm = variables["params"]["last_norm"]
    normed = (expected - mean) / np.sqrt(var + 1e-6) * norm["scale"] + norm["bias"]
    scales = jnp.ones((len(BLOCKS), 2, len(images))).at[blocks:].set(0.0)
    tokens = apply(variables, images, dataset, scales).reshape(expected.shape)
    np.testing.assert_allclose(tokens, normed, atol=TOLERANCE)


def test_an_image_through_every_expert():
    _, variables, images, _, apply = recorded("vit_moe")
    expected = maps(golden("posebh/vit_moe.npz")["output_image0_all_experts"])
    repeated = jnp.broadcast_to(images[:1], (len(expected), *images.shape[1:]))
    np.testing.assert_allclose(apply(variables, repeated, jnp.arange(len(expected))), expected, atol=TOLERANCE)


def test_a_mixed_batch_equals_one_expert_at_a_time():
    _, variables, images, dataset, apply = recorded("vit_moe")
    mixed = apply(variables, images, dataset)
    for expert in range(golden_config("posebh/vit_moe.npz")["num_expert"]):
        alone = apply(variables, images, jnp.full(len(images), expert))
        np.testing.assert_allclose(mixed[dataset == expert], alone[dataset == expert], atol=1e-6)


@pytest.fixture(scope="module")
def expert_case():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(8, 5, 12)), jnp.float32)
    kernel, bias = jnp.asarray(rng.normal(size=(3, 12, 4)), jnp.float32), jnp.asarray(rng.normal(size=(3, 4)))
    return x, jnp.asarray([2, 0, 3, 1, -1, 0, 7, 2]), kernel, bias.astype(jnp.float32)


def test_a_dataset_without_expert_gives_zeros_and_no_gradient(expert_case):
    x, dataset, kernel, bias = expert_case
    without = (dataset < 0) | (dataset >= 3)
    out = apply_experts(x, dataset, kernel, bias)
    assert not out[without].any()
    assert out[~without].any(axis=(1, 2)).all()
    gradient = jax.grad(lambda x: apply_experts(x, dataset, kernel, bias).sum())(x)
    assert not gradient[without].any()


def masked_experts(x, dataset, kernel, bias):
    """Every expert on every sample, all but one masked: the plain definition."""
    everything = jnp.einsum("bnh,ehp->ebnp", x, kernel) + bias[:, None, None]
    return jnp.einsum("ebnp,be->bnp", everything, jax.nn.one_hot(dataset, len(kernel)))


def test_expert_gradients_equal_the_masked_sum(expert_case):
    x, dataset, kernel, bias = expert_case

    def gradients(function):
        return jax.grad(lambda *a: jnp.sin(function(a[0], dataset, a[1], a[2])).sum(), (0, 1, 2))(x, kernel, bias)

    for ours, plain in zip(gradients(apply_experts), gradients(masked_experts), strict=True):
        np.testing.assert_allclose(ours, plain, atol=1e-5)


def test_experts_of_a_sharded_batch_stay_on_their_devices(expert_case):
    """Neither activations nor the per-sample weights cross devices; only the weights' gradient is summed."""
    x, dataset, kernel, bias = expert_case
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    by_row, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))

    def loss(x, kernel, bias, dataset):
        return jnp.sin(apply_experts(x, dataset, kernel, bias)).sum()

    step = jax.jit(
        jax.value_and_grad(loss, (0, 1, 2)),
        in_shardings=(by_row, whole, whole, by_row),
        out_shardings=(whole, (by_row, whole, whole)),
    )
    compiled = step.lower(x, kernel, bias, dataset).compile()
    assert not {"all-gather", "all-to-all", "collective-permute"} & set(_operations(compiled.as_text()))
    single = jax.value_and_grad(loss, (0, 1, 2))(x, kernel, bias, dataset)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), compiled(x, kernel, bias, dataset), single)


def _operations(text: str) -> list[str]:
    return [word.split("(")[0] for line in text.splitlines() for word in line.split() if "(" in word]


@pytest.mark.slow  # compiles a whole backbone more than once
def test_remat_and_drop_path_of_ones_change_nothing():
    model, variables, images, dataset, _ = recorded("vit_moe")
    again = ViT(model.size, model.num_experts, remat=True)
    ones = jnp.ones((model.size.depth, 2, len(images)))

    def loss(model, scales):
        return lambda v: jnp.square(model.apply(v, images, dataset, scales)).sum()

    value, gradient = jax.jit(jax.value_and_grad(loss(model, None)))(variables)
    other_value, other_gradient = jax.jit(jax.value_and_grad(loss(again, ones)))(variables)
    np.testing.assert_allclose(value, other_value, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(a).max())),
        gradient,
        other_gradient,
    )


# Float32: two ways to write the same formula. Bfloat16: the slope is rounded to 8 bits where JAX rounds every step.
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2**-6)])
def test_gelu_and_its_slope_are_jaxs(dtype, tolerance):
    x = jnp.concatenate([jnp.linspace(-12, 12, 1001), jnp.array([-1e4, 0, 1e4])]).astype(dtype)
    upstream = jnp.linspace(-2, 3, len(x)).astype(dtype)
    found, expected = (
        (value, *pull_back(upstream))
        for value, pull_back in (jax.vjp(own, x) for own in (gelu, functools.partial(jax.nn.gelu, approximate=False)))
    )
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), rtol=tolerance, atol=tolerance)


def test_drop_path_acts_on_each_sample_by_itself():
    _, variables, images, dataset, apply = recorded("vit_moe")
    all_dropped = apply(variables, images, dataset, jnp.zeros((3, 2, 6)))
    one_dropped = apply(variables, images, dataset, jnp.ones((3, 2, 6)).at[:, :, 2].set(0.0))
    kept = np.arange(6) != 2
    np.testing.assert_allclose(one_dropped[kept], apply(variables, images, dataset)[kept], atol=1e-6)
    np.testing.assert_allclose(one_dropped[2], all_dropped[2], atol=1e-6)


def test_drop_path_scales_have_the_rates_and_mean_one():
    rates = drop_path_rates(0.55, 4)
    np.testing.assert_allclose(rates, [0, 0.55 / 3, 1.1 / 3, 0.55], rtol=1e-6)
    keys = jax.random.split(jax.random.key(1), 4000)
    scales = np.asarray(drop_path_scales(keys, rates))
    assert scales.shape == (4, 2, 4000)
    assert (scales[0] == 1).all()
    for block, rate in enumerate(rates):
        assert set(np.unique(scales[block])) <= {np.float32(0), np.float32(1) / (np.float32(1) - rate)}
        # Four standard errors of a share of 4000 draws.
        np.testing.assert_allclose((scales[block] == 0).mean(-1), rate, atol=4 * 0.5 / 4000**0.5)
    branches = scales[2] == 0
    assert abs(np.corrcoef(branches)[0, 1]) < 0.07
    # A sample's draw depends on its own key only.
    np.testing.assert_array_equal(drop_path_scales(keys[7:9], rates), scales[:, :, 7:9])


def test_bfloat16_stays_near_float32():
    model, variables, images, dataset, apply = recorded("vit_moe")
    half = ViT(model.size, model.num_experts, dtype=jnp.bfloat16)
    output = jax.jit(half.apply)(variables, images, dataset)
    assert output.dtype == jnp.float32
    # bfloat16 has 8 bits: 0.4 % an operation, on values up to 5 and over three blocks.
    np.testing.assert_allclose(output, apply(variables, images, dataset), atol=0.1)


@pytest.mark.slow  # compiles a whole backbone more than once
def test_initial_parameters_have_the_originals_spread():
    size = SIZES["tiny"]
    params = jax.jit(ViT(size, 2).init)(jax.random.key(0), jnp.zeros((1, 64, 48, 3)), jnp.zeros((1,), jnp.int32))[
        "params"
    ]
    assert params["pos_embed"].shape == (1, 13, size.dim)
    for kernel in (params["blocks"]["attn"]["qkv"]["kernel"], params["blocks"]["mlp"]["experts"]["kernel"]):
        assert kernel.shape[0] == size.depth
        assert abs(float(kernel.std()) - 0.02) < 1e-3
        assert not np.allclose(kernel[0], kernel[1])
    bound = (16 * 16 * 3) ** -0.5
    for value in params["patch_embed"].values():
        assert 0.9 * bound < float(jnp.abs(value).max()) <= bound
    assert not params["blocks"]["mlp"]["fc2"]["bias"].any()
