"""The conversion table against the names and shapes of the published checkpoints."""

from __future__ import annotations

import numpy as np
import pytest

from boir_jax.model import VARIANTS, BoIR
from boir_jax.weights.convert import TRAINING_WIDTHS, model_of, network_sizes
from boir_jax.weights.keys import SKELETON, backbone_rules, boir_rules
from pose_common.weights.keys import COUNTER, ConversionError, expected_sources, to_flax, to_torch
from tests.boir_jax.golden_weights import KEYS, PUBLISHED, published, shapes

pytestmark = pytest.mark.slow  # makes every published model's shapes


def checkpoint(variant: str, num_keypoints: int, training_heads: bool) -> dict[str, tuple[int, ...]]:
    """Torch name -> shape, without the norms' counters."""
    names = published(variant, num_keypoints, training_heads)
    return {name: shape for name, shape in names.items() if not name.endswith(COUNTER)}


def targets(variant: str, num_keypoints: int, training_heads: bool = True):
    sizes = VARIANTS.get(variant) or network_sizes(checkpoint(variant, num_keypoints, True), TRAINING_WIDTHS)
    return shapes(model_of({"network": {**sizes, "num_keypoints": num_keypoints, "training_heads": training_heads}}))


@pytest.mark.parametrize("variant, num_keypoints", PUBLISHED)
@pytest.mark.parametrize("training_heads", [True, False], ids=["train", "test"])
def test_published_checkpoints_fit(variant, num_keypoints, training_heads):
    """Every name has a place of its shape, and every parameter a name."""
    tree = targets(variant, num_keypoints, training_heads)
    slots = expected_sources(boir_rules(), tree)
    hollow = {path: np.broadcast_to(np.float32(0), value.shape) for path, value in tree.items()}
    ours = {name: tuple(slot.view(hollow[slot.rule.target]).shape) for name, slot in slots.items()}
    assert ours == checkpoint(variant, num_keypoints, training_heads)
    assert {slot.rule.target for slot in slots.values()} == set(tree)


def test_round_trip():
    """Weights come back under their own names, bit by bit."""
    rng = np.random.default_rng(0)
    tree = shapes(BoIR(num_keypoints=14, **{**VARIANTS["small"], "modules": (1, 2, 1)}))
    state = {
        name: rng.normal(size=slot.view(np.empty(tree[slot.rule.target].shape)).shape).astype(np.float32)
        for name, slot in expected_sources(boir_rules(), tree).items()
    }
    back = to_torch(to_flax(dict(state), boir_rules(), tree).tree, boir_rules())
    assert set(back) == set(state)
    assert all(np.array_equal(back[name], state[name]) for name in state)


def test_transfer_to_another_skeleton():
    """A COCO model fills a CrowdPose model but for the layers that end in keypoint maps."""
    small = {**VARIANTS["small"], "modules": (1, 1, 1)}
    coco, crowdpose = (shapes(BoIR(num_keypoints=count, **small)) for count in (17, 14))
    state = to_torch({path: np.zeros(value.shape, np.float32) for path, value in coco.items()}, boir_rules())
    kept = {name: value for name, value in state.items() if name not in KEYS["transfer_dataset_drops"]}
    converted = to_flax(kept, boir_rules(), crowdpose, initialised=[SKELETON])
    assert len(converted.initialised) == 4
    assert {path.split("/")[1] for path in converted.initialised} == {"keypoint_head", "instance_head"}
    with pytest.raises(ConversionError, match="shape"):
        to_flax(dict(state), boir_rules(), crowdpose)


def test_imagenet_names():
    """The ImageNet weights are the backbone's entries without prefix."""
    prefix = "backbone."
    names = {name[len(prefix) :] for name in checkpoint(*PUBLISHED[0], True) if name.startswith(prefix)}
    tree = {path: value for path, value in targets(*PUBLISHED[0]).items() if path.split("/")[1] == "backbone"}
    assert set(expected_sources(backbone_rules(), tree)) == names
