"""The whole network in training mode against recorded losses and the gradient norms of all parameters."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from boir_jax.losses import LossConfig, Targets, loss_terms
from boir_jax.targets import choose_instances
from pose_common.images import normalise_pixels
from pose_common.weights.keys import flatten
from tests.boir_jax.golden_weights import slots, tiny, weights
from tests.golden_files import golden, golden_config

pytestmark = pytest.mark.slow  # compiles the gradient of the whole network

RECORD = golden("boir/full_train.npz")
GRADIENT_NORM_BOUNDS = {0.5: 4e-4, 0.7: 3e-3, 1.0: 0.15}
"""Share of the parameters -> bound on the relative error of their gradients' norms.

Moving recorded weights and inputs by an ulp moves the median by up to 1.1e-4, the share of 0.7 by up to 6e-4 and the
largest by up to 4e-2: it turns some ReLUs of this untrained network over.
"""
CONFIG = golden_config("boir/full_train.npz")
ROWS = max(map(max, CONFIG["counts"].values())) + 1  # people per image in the padded batch
CASES = [
    key.removeprefix("fixed:main:list:").removesuffix(":total")
    for key in RECORD
    if key.startswith("fixed:main:list:") and key.endswith(":total")
]
TERMS = {
    "heatmap": "multi_heatmap_loss",
    "instance": "single_heatmap_loss",
    "embedding": "bbox_mask_loss",
    "box": "bbox_loss",
}


def last(maps: np.ndarray) -> np.ndarray:
    """[B, C, h, w] -> [B, h, w, C]."""
    return np.moveaxis(maps, 1, -1)


def padded(batch: str) -> dict[str, np.ndarray]:
    """The recorded batch with a padded instance axis; dummy rows of images without people are left out."""
    counts, rows = RECORD[f"{batch}:num_inst"], RECORD[f"{batch}:rows_per_image"]
    valid = np.arange(ROWS) < counts[:, None]
    real = np.repeat(counts > 0, rows)

    def pad(array):
        out = np.zeros((len(counts), ROWS, *array.shape[1:]), array.dtype)
        out[valid] = array[real]
        return out

    return {
        "valid": valid,
        "cells": pad(RECORD[f"{batch}:instance_coord"][:, ::-1].astype(np.int32)),
        "boxes": pad(RECORD[f"{batch}:bbox"].astype(np.float32)),
        "maps": pad(last(RECORD[f"{batch}:instance_heatmap"])),
        "masks": pad(last(RECORD[f"{batch}:instance_mask"])),
    }


def selection(batch: str, permutation: np.ndarray | None = None):
    """Targets, and image and cell of every chosen person; `permutation` ranks the people."""
    rows = padded(batch)
    priority = np.zeros(rows["valid"].shape, np.float32)
    if permutation is not None:
        rank = np.empty(len(permutation))
        rank[permutation] = np.arange(len(permutation))
        priority[rows["valid"]] = 1 - rank / len(rank)
    cap = CONFIG["cap"] if permutation is not None else priority.size
    picked = choose_instances(jnp.asarray(priority), jnp.asarray(rows["valid"]), len(priority), cap)
    # Padded to one shape for all cases: compiling takes most of this file's time.
    image, row, chosen = (np.pad(array[0], (0, priority.size - array.shape[1])) for array in map(np.asarray, picked))
    at = image, row
    targets = Targets(
        dense=last(RECORD[f"{batch}:multi_heatmap"]),
        dense_mask=last(RECORD[f"{batch}:multi_mask"]),
        instance=rows["maps"][at][None],
        instance_mask=(rows["masks"][at] * chosen[:, None, None, None])[None],
        boxes=rows["boxes"],
        cells=rows["cells"],
        valid=rows["valid"],
    )
    return targets, image[None], rows["cells"][at][None]


@functools.cache
def model():
    network = tiny()
    return network, weights(network)


@jax.jit
def dense_forward(params, images):
    network, variables = model()

    def run(module, images):
        features = module.features(normalise_pixels(images), True)
        return features, module.dense(features, True)

    variables = {**variables, "params": params}
    return network.apply(variables, images, method=run, mutable=["batch_stats"])[0]


@jax.jit
def instance_forward(params, features, image, cells):
    network, variables = model()
    variables = {**variables, "params": params}
    return network.apply(variables, features[None], image, cells, method="instance_maps")


@functools.partial(jax.jit, static_argnums=6)
@functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
def loss(params, features, maps, image, cells, targets, level):
    weights = CONFIG["LOSS"]
    config = LossConfig(
        heatmap=weights["MULTI_HEATMAP_LOSS_WEIGHT"],
        instance=weights["SINGLE_HEATMAP_LOSS_WEIGHT"],
        embedding=weights["BBOX_MASK_LOSS_WEIGHT"],
        box=weights["BBOX_LOSS_WEIGHT"],
        beta=weights["AE_BETA"],
        background="image" if level == "level1" else "instance",
        pull=level == "level0",
        images_per_device=len(targets.boxes),
    )
    values = loss_terms(maps, instance_forward(params, features, image, cells), targets, config)
    return sum(values.values()), values


def check_terms(values, case, images):
    for name, recorded in TERMS.items():
        # The recorded terms are weighted, but not yet divided by the images of the batch.
        expected = RECORD[f"{case}:{recorded}"]
        np.testing.assert_allclose(values[name] * images, expected, rtol=6e-5, err_msg=name)
    np.testing.assert_allclose(sum(values.values()), RECORD[f"{case}:total"], rtol=6e-5)


@functools.cache
def main_forward():
    """Maps of the main batch and the pullback of everything before the instance head, compiled once."""
    params = model()[1]["params"]
    return params, jax.vjp(lambda p: dense_forward(p, RECORD["main:image_u8"]), params)


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients(case):
    """A change of the weights by one unit in the last place turns some ReLUs over in this untrained network.

    It moves the median norm by 1e-5, some by 1e-3 and a few by 4e-2 (measured), and so may other arithmetic.
    """
    name = f"fixed:main:list:{case}"
    targets, image, cells = selection("main", RECORD.get(f"{name}:perm"))
    params, ((features, maps), pull_back) = main_forward()
    (_, values), (direct, *by_maps) = loss(params, features, maps, image, cells, targets, case[:6])
    check_terms(values, name, len(CONFIG["counts"]["main"]))

    total = jax.tree.map(jnp.add, direct, pull_back(tuple(by_maps))[0])
    tree = flatten({"params": jax.device_get(total)})
    places = slots(tree, tiny().dilations)
    assert set(places) == set(RECORD["grad_names"])
    norms = [np.linalg.norm(places[key].view(tree[places[key].rule.target])) for key in RECORD["grad_names"]]
    expected = RECORD[f"{name}:grad_norms"]
    # Biases before an instance norm have gradients of pure rounding noise: hence an absolute part.
    error = np.abs(norms - expected) / (expected + 1e-2)
    for share, bound in GRADIENT_NORM_BOUNDS.items():
        np.testing.assert_allclose(np.quantile(error, share), 0, atol=bound, err_msg=f"quantile {share}")
    for key in (key for key in RECORD if key.startswith(f"{name}:grad:")):
        place = places[key.removeprefix(f"{name}:grad:")]
        expected, actual = RECORD[key], place.view(tree[place.rule.target])
        # One ReLU of a channel that turns over changes that channel's kernel and no other: one of eight here.
        error = np.abs(actual - expected)
        np.testing.assert_allclose(np.quantile(error, 0.7), 0, atol=6e-3 * np.abs(expected).max(), err_msg=key)
        np.testing.assert_allclose(np.linalg.norm(error), 0, atol=0.3 * np.linalg.norm(expected) + 1e-5, err_msg=key)


def test_image_without_people():
    """Divisors count real people only: the reference's 'dict' path, whose list path counts a dummy row."""
    targets, image, cells = selection("empty")
    params = model()[1]["params"]
    features, maps = dense_forward(params, RECORD["empty:image_u8"])
    (_, values), _ = loss(params, features, maps, image, cells, targets, "level1")
    check_terms(values, "fixed:empty:dict:level1", len(CONFIG["counts"]["empty"]))
