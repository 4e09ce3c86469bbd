"""Weights in and out: every published name, the recorded network's outputs, damage explained."""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from boir_jax.heads import clamped_sigmoid
from boir_jax.model import VARIANTS
from boir_jax.weights.convert import convert, manifest_of, model_of, read_weights, targets, to_torch
from boir_jax.proposals import ProposalConfig, predict
from pose_common.images import normalise
from pose_common.weights.keys import COUNTER, VARIANCE, PortError, flatten
from pose_common.weights.folder import load_weights
from posebh_jax.weights import convert as posebh
from scripts import convert_weights
from tests.boir_jax.golden_weights import entries, tiny
from tests.golden_files import golden, golden_config
from tests.weight_files import DAMAGES, FORMATS, as_file, assert_same, damage

KEYS = golden("boir/checkpoint_keys.json")
PREFIX = "backbone."


def published(size: str, num_keypoints: int = 17, training: bool = True) -> dict[str, tuple[int, ...]]:
    """Torch name -> shape."""
    recorded = KEYS[size]
    names = recorded["K17_train"] | (recorded["K14_differs"] if num_keypoints == 14 else {})
    absent = () if training else recorded["aux_keys_absent_at_test"]
    return {name: tuple(shape) for name, shape in names.items() if name not in absent}


def imagenet(size: str) -> dict[str, tuple[int, ...]]:
    """Torch name -> shape of the backbone."""
    return {k.removeprefix(PREFIX): v for k, v in published(size).items() if k.startswith(PREFIX)}


def state_like(shapes: dict[str, tuple[int, ...]], *, random: bool = False) -> dict[str, np.ndarray]:
    """A state dict of these shapes; by default each entry is one number, which takes no memory."""
    rng = np.random.default_rng(0)
    return {
        name: np.zeros((), np.int64)
        if name.endswith(COUNTER)
        else rng.standard_normal(shape, np.float32)
        if random
        else np.broadcast_to(np.float32(i), shape)
        for i, (name, shape) in enumerate(shapes.items())
    }


@pytest.mark.parametrize("size", ["w32", "w48"])
@pytest.mark.parametrize("num_keypoints", [17, 14])
@pytest.mark.parametrize("training", [True, False], ids=["train", "test"])
def test_published_checkpoints_convert_there_and_back(size, num_keypoints, training):
    state = state_like(
        published(size, num_keypoints, training), random=(size, num_keypoints, training) == ("w32", 17, True)
    )
    conversion = convert(dict(state))
    skeleton = {17: "coco", 14: "crowdpose"}[num_keypoints]
    assert conversion.title == f"BoIR-{size.upper()}, {num_keypoints} keypoints of {skeleton}" + (
        "" if training else ", for inference"
    )
    assert conversion.manifest["keypoint_set"] == skeleton
    assert set(conversion.ported.used) == {name for name in state if not name.endswith(COUNTER)}
    assert set(conversion.ported.dropped) == {name for name in state if name.endswith(COUNTER)}
    assert not conversion.ported.fresh
    model = model_of(conversion.manifest)
    assert {field: getattr(model, field) for field in VARIANTS[size]} == VARIANTS[size]
    assert (model.num_keypoints, model.training_heads) == (num_keypoints, training)
    assert_same(to_torch(conversion.weights, conversion.manifest), state)


CLASSIFIERS = {
    "w32": ("head.0.0.0.conv1.weight", "head.0.0.0.downsample.1.bias"),
    "w48": (
        "incre_modules.0.0.conv1.weight",
        "downsamp_modules.0.0.bias",
        "final_layer.0.weight",
        "classifier.bias",
    ),
}
"""Some entries of the classifiers in the two files that the original starts from; all are left out."""


@pytest.mark.parametrize(("size", "classifier"), CLASSIFIERS.items())
def test_imagenet_weights_convert_there_and_back(size, classifier):
    state = state_like(imagenet(size))
    conversion = convert(dict(state) | {name: np.ones(3, np.float32) for name in classifier})
    assert conversion.title == f"HRNet-{size.upper()}, ImageNet"
    assert conversion.manifest["keypoint_set"] is None
    assert {name for name in conversion.ported.dropped if not name.endswith(COUNTER)} == set(classifier)
    assert len(conversion.ported.used) + len(conversion.ported.dropped) == len(state) + len(classifier)
    assert set(conversion.weights["params"]) == {"backbone"}
    assert_same(to_torch(conversion.weights, conversion.manifest), state)


@functools.cache
def tiny_boir() -> dict[str, np.ndarray]:
    """The recorded network in its training form, with the batch counters of a real checkpoint."""
    state = entries("boir/weights.npz")
    counters = [name.replace(VARIANCE, COUNTER) for name in state if name.endswith(VARIANCE)]
    return state | {name: np.zeros((), np.int64) for name in counters}


def inference_form(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the original has at test time."""
    absent = KEYS["w32"]["aux_keys_absent_at_test"]
    return {name: value for name, value in state.items() if name not in absent}


@functools.cache
def network(dtype: str = "float32"):
    """The recorded widths as a jitted (weights, images) -> (features, centre map)."""
    model = tiny(training_heads=False, dtype=jnp.dtype(dtype))

    def run(variables, images):
        bound = model.bind(variables)
        features = bound.features(images, False)
        return features, clamped_sigmoid(bound.dense(features, False)["centre"])

    return jax.jit(run)


@functools.cache
def poses_of():
    flip_index = np.array(golden_config("boir/full_infer.npz")["FLIP_INDEX"])
    model, config = tiny(training_heads=False), ProposalConfig(smoothing=3, flip=True)

    def run(variables, image):
        return predict(model.bind(variables), normalise(image), flip_index, config)

    return jax.jit(run)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_gives_the_originals_features_and_poses(tmp_path, suffix):
    conversion = read_weights(as_file(tmp_path, inference_form(tiny_boir()), suffix))
    assert model_of(conversion.manifest) == tiny(training_heads=False, embedding_features=128)

    record = golden("boir/hrnet.npz")
    images = np.moveaxis(record["x_sq"], 1, -1)
    features, centre = network()(conversion.weights, images)
    # float32 noise of the recorded maps is 5e-5 at a scale of 10.
    np.testing.assert_allclose(features[:1], np.moveaxis(record["y_sq_eval_img0"], 1, -1), atol=2e-4)

    record, case = golden("boir/full_infer.npz"), "small:k3:flip"
    poses = poses_of()(conversion.weights, record["small:image_u8"][None])
    found = np.asarray(poses.found[0])
    expected = record[f"{case}:poses"]
    assert found.sum() == len(expected)
    keypoints = np.asarray(poses.keypoints[0])[found]
    np.testing.assert_allclose(np.asarray(poses.scores[0])[found], record[f"{case}:scores"], atol=1e-5)
    np.testing.assert_allclose(keypoints[..., 2], expected[..., 2], atol=1e-5)
    # Where two cells, or the neighbours that decide the shift, differ by rounding, the position is open.
    decided = (record[f"{case}:margin"] > 1e-4) & (record[f"{case}:shift_margin"] > 1e-4)
    np.testing.assert_array_equal(keypoints[decided][:, :2], expected[decided][:, :2])

    half, half_centre = network("bfloat16")(conversion.weights, images)
    # 8 bits an operation, some forty convolutions deep: 2.6 percent measured, 0.003 for a probability.
    difference = np.asarray(half, np.float32) - np.asarray(features)
    assert np.linalg.norm(difference) < 0.05 * np.linalg.norm(features)
    np.testing.assert_allclose(half_centre, centre, atol=0.01)


@pytest.mark.parametrize("training", [True, False], ids=["train", "test"])
def test_a_model_goes_through_the_command_and_back(tmp_path, capsys, training):
    state = tiny_boir() if training else inference_form(tiny_boir())
    folder, back = tmp_path / "weights", tmp_path / "back.safetensors"
    assert convert_weights.main([str(as_file(tmp_path, state)), f"--to={folder}"]) == 0
    printed = capsys.readouterr().out
    assert "BoIR-W4, 17 keypoints of coco" + ("" if training else ", for inference") in printed
    assert f"left out: {sum(name.endswith(COUNTER) for name in state)} counters" in printed
    assert "0 arrays left to fill" in printed

    weights, manifest = load_weights(folder)
    assert {name: value.shape for name, value in flatten(weights).items()} == {
        name: value.shape for name, value in targets(manifest).items()
    }
    assert convert_weights.main([str(folder), f"--to={back}"]) == 0
    assert_same(to_torch(read_weights(back).weights, manifest), state)


@pytest.mark.torch
def test_the_training_codes_own_checkpoint_is_read(tmp_path):
    """What it holds beside the weights, and the prefix of parallel training, are taken off."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (the `torch` extra)")
    state = {name: torch.from_numpy(value) for name, value in tiny_boir().items()}
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    saved = {
        "epoch": 140,
        "model": "boir",
        "state_dict": {f"module.{name}": value for name, value in state.items()},
        "best_state_dict": state,
        "perf": -1,
        "optimizer": optimizer.state_dict(),
        "scaler": {"scale": 65536.0, "growth_factor": 2.0},
    }
    torch.save(saved, tmp_path / "checkpoint.pth.tar")
    conversion = read_weights(tmp_path / "checkpoint.pth.tar")
    assert_same(to_torch(conversion.weights, conversion.manifest), tiny_boir())


def test_which_keypoints_can_be_said():
    assert convert(dict(tiny_boir()), "ap10k").manifest["keypoint_set"] == "ap10k"
    with pytest.raises(PortError, match="crowdpose has 14 keypoints, the head 17"):
        convert(dict(tiny_boir()), "crowdpose")


def test_a_manifest_is_json_and_describes_its_model():
    manifest = convert(dict(tiny_boir())).manifest
    assert model_of(json.loads(json.dumps(manifest))) == tiny()
    assert manifest_of(tiny(), "coco", manifest["family"]) == manifest


def test_the_methods_do_not_take_each_others_weights(tmp_path, capsys):
    folder = tmp_path / "weights"
    source = str(as_file(tmp_path, tiny_boir()))
    assert convert_weights.main([source, f"--to={folder}", "--fold=coco"]) == 1
    assert "--fold does not apply to BoIR-W4" in capsys.readouterr().err
    assert not folder.exists()
    assert convert_weights.main([source, f"--to={folder}"]) == 0
    with pytest.raises(PortError, match="another method: BoIR-W4"):
        posebh.read_weights(folder)
    assert convert({"backbone.blocks.0.norm1.weight": np.ones(3, np.float32)}) is None
    # A top-down network on the same backbone.
    other = {name: value for name, value in tiny_boir().items() if name.startswith(PREFIX)}
    assert convert(other | {"keypoint_head.final_layer.bias": np.ones(17, np.float32)}) is None


# Entries that the sizes are told by, beside any others.
TELLING = [
    "kpt_head.heatmap_conv.weight",
    "multihead.emb_head.head.1.bias",
    "backbone.conv1.weight",
    "backbone.stage2.0.branches.0.0.conv1.weight",
    "multihead.neck.0.project.0.weight",
]


@pytest.mark.parametrize("name", [*TELLING, *range(8)])
@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("training", [True, False], ids=["train", "test"])
def test_every_damaged_entry_is_named(kind, name, training):
    state = dict(tiny_boir()) if training else inference_form(tiny_boir())
    seed, name = (name, None) if isinstance(name, int) else (len(name), name if name in state else None)
    damaged = damage(state, kind, np.random.default_rng([seed, len(kind)]), name)
    with pytest.raises(PortError) as caught:
        convert(state)
    assert any(damaged in problem for problem in caught.value.problems)
    assert len(caught.value.problems) < 100


@pytest.mark.parametrize("kind", DAMAGES)
def test_every_damaged_entry_of_a_backbone_is_named(kind):
    state = {k.removeprefix(PREFIX): v for k, v in tiny_boir().items() if k.startswith(PREFIX)}
    damaged = damage(state, kind, np.random.default_rng(len(kind)))
    with pytest.raises(PortError) as caught:
        convert(state)
    assert any(damaged in problem for problem in caught.value.problems)


def test_the_command_leaves_nothing_after_an_error(tmp_path, capsys):
    state = dict(tiny_boir())
    del state["kpt_head.heatmap_conv.weight"]
    folder = tmp_path / "weights"
    assert convert_weights.main([str(as_file(tmp_path, state)), f"--to={folder}"]) == 1
    assert "missing kpt_head.heatmap_conv.weight [17, 8, 1, 1]" in capsys.readouterr().err
    assert not folder.exists()
