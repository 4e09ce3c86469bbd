from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.mdt import REGULARISATION
from pose_common.weights.keys import expected_sources, flatten
from posebh_jax.model import PoseBH, layer_ids, weight_decay_mask
from posebh_jax.vit import SIZES, ViTSize
from posebh_jax.weights.keys import posebh_rules
from posebh_jax.weights.manifest import model_of
from tests.golden_files import golden
from tests.posebh_jax.conversion_cases import KEYS, published

pytestmark = pytest.mark.slow  # compiles networks of several forms

MIXTURE = (("coco", 17), ("aic", 14), ("mpii", 16), ("ap10k", 17), ("apt36k", 17), ("coco_wholebody", 133))


@functools.cache
def published_shapes(size: str, embedding_dim: int) -> dict:
    """Variables of a published size, as shapes."""
    model = PoseBH(SIZES[size], MIXTURE, num_experts=6, embedding_dim=embedding_dim)
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 256, 192, 3)), jnp.zeros((1,), jnp.int32))


@pytest.mark.parametrize("name", golden(KEYS))
def test_published_sizes_have_the_originals_number_of_parameters(name):
    recorded = golden(KEYS)[name]
    _, _, manifest, _ = published(name)
    width, height = manifest["input_size"]
    model, image = model_of(manifest), jnp.zeros((1, height, width, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), image, jnp.zeros((1,), jnp.int32))
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))
    prototypes = sum(np.prod(shape) for key, shape in recorded["state_dict"].items() if key.endswith("prototypes"))
    assert count + prototypes == recorded["n_parameters"]


def torch_values(params, tree, datasets) -> dict:
    """Torch name -> the entry of `tree` for it, where `tree` broadcasts against `params`."""
    flat = {f"params/{path}": leaf for path, leaf in flatten(params).items()}
    values = {f"params/{path}": value for path, value in flatten(tree).items()}
    slots = expected_sources(posebh_rules(datasets), flat)
    return {
        name: np.broadcast_to(values[slot.rule.target], flat[slot.rule.target].shape)[slot.index].ravel()[0]
        for name, slot in slots.items()
    }


def test_layers_and_decay_are_the_originals():
    recorded = golden("posebh/optimizer_groups.json")
    depth = 1 + max(int(name.split(".")[2]) for name in recorded["params"] if name.startswith("backbone.blocks."))
    size = next(name for name, s in SIZES.items() if s.depth == depth and name != "small")
    _, rate = REGULARISATION[size]
    params = published_shapes(size, 64)["params"]
    names = [name for name, _ in MIXTURE]
    layers = torch_values(params, layer_ids(params), names)
    decay = torch_values(params, weight_decay_mask(params), names)
    # The recorded model is narrower, so that its shortcut is the identity.
    assert {name for name in layers if "downsample" not in name} == set(recorded["params"])
    for name, group in recorded["params"].items():
        assert rate ** (depth + 1 - layers[name]) == pytest.approx(group["lr_scale"], rel=1e-12), name
        assert decay[name] == (group["weight_decay"] > 0), name


def test_layer_ids_broadcast_along_the_stacked_axis():
    params = published_shapes("base", 64)["params"]
    for layer, leaf in zip(jax.tree.leaves(layer_ids(params)), jax.tree.leaves(params), strict=True):
        assert np.broadcast_shapes(layer.shape, leaf.shape) == leaf.shape


@pytest.fixture(scope="module")
def small_model():
    model = PoseBH(ViTSize(24, 2, 2, 8), (("a", 3), ("b", 2)), num_experts=2, embedding_dim=5, filters=(8, 8))
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 64, 48, 3)), jnp.zeros((1,), jnp.int32))
    images = jax.random.normal(jax.random.key(1), (4, 64, 48, 3))
    return model, variables, images, jnp.asarray([0, 1, 1, 0])


def test_parameters_come_in_three_groups(small_model):
    _, variables, _, _ = small_model
    assert set(variables["params"]) == {"backbone", "heads", "embedding"}
    assert set(variables["params"]["heads"]) == {"a", "b"}
    assert set(variables["batch_stats"]) == {"heads", "embedding"}


def test_maps_of_all_skeletons_are_concatenated_in_order(small_model):
    model, variables, images, dataset = small_model
    features = model.apply(variables, images, dataset, method="features")
    everything = model.apply(variables, features, method="heatmaps")
    assert features.shape == (4, 4, 3, 24) and everything.shape == (4, 16, 12, 5)
    for name, part in (("a", slice(0, 3)), ("b", slice(3, 5))):
        own = model.apply(variables, features, names=(name,), method="heatmaps")
        np.testing.assert_array_equal(own, everything[..., part])
    assert model.apply(variables, features, method="embed").shape == (4, 16, 12, 5)


def test_an_unknown_head_is_named(small_model):
    model, variables, images, dataset = small_model
    features = model.apply(variables, images, dataset, method="features")
    with pytest.raises(ValueError, match=re.escape("no head for ['c']; the heads are ['a', 'b']")):
        model.apply(variables, features, names=("c",), method="heatmaps")


def test_without_embedding_there_is_no_embedding_group(small_model):
    model = PoseBH(ViTSize(24, 2, 2, 8), (("a", 3),), embedding_dim=0, filters=(8, 8))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 48, 3)), jnp.zeros((1,), jnp.int32))
    assert set(shapes["params"]) == {"backbone", "heads"}
    assert "experts" not in shapes["params"]["backbone"]["blocks"]["mlp"]


def test_bfloat16_backbone_hands_float32_to_the_embedding(small_model):
    model, variables, images, dataset = small_model
    half = model.clone(dtype=jnp.bfloat16)
    features = half.apply(variables, images, dataset, method="features")
    assert features.dtype == jnp.float32
    assert half.apply(variables, features, method="heatmaps").dtype == jnp.float32
    # The embedding head does not notice the backbone's dtype.
    np.testing.assert_array_equal(
        half.apply(variables, features, method="embed"), model.apply(variables, features, method="embed")
    )
