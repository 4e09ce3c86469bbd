"""Weights in and out: every published name, the recorded network's outputs, damage explained."""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from boir_jax import sources
from boir_jax.heads import clamped_sigmoid
from boir_jax.hrnet import branch_widths
from boir_jax.model import VARIANTS, BoIR
from boir_jax.proposals import predict
from boir_jax.weights.convert import SKELETONS, convert, manifest_of, model_of, read_weights, targets, to_torch
from data_pipelines.datasets import DATASETS, PoseDataset, save_definition
from data_pipelines.skeletons import KeypointSet
from pose_common.images import normalise_pixels
from pose_common.training.checks import ConfigError
from pose_common.training.mesh import make_mesh
from pose_common.weights.folder import load_weights
from pose_common.weights.keys import COUNTER, VARIANCE, ConversionError, flatten, unflatten
from posebh_jax.weights import convert as posebh
from scripts import convert_weights
from tests.boir_jax.golden_weights import KEYS, PUBLISHED, entries, published, recorded_settings, tiny
from tests.golden_files import golden, golden_config
from tests.weight_files import DAMAGES, FORMATS, as_file, assert_same, damage

pytestmark = pytest.mark.slow  # compiles the whole backbone

PREFIX = "backbone."


def imagenet(size: str) -> dict[str, tuple[int, ...]]:
    """Torch name -> shape of the backbone."""
    names = published(*next(item for item in PUBLISHED if item[0] == size))
    return {k.removeprefix(PREFIX): v for k, v in names.items() if k.startswith(PREFIX)}


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


@pytest.mark.parametrize("size, num_keypoints", PUBLISHED)
@pytest.mark.parametrize("training", [True, False], ids=["train", "test"])
def test_published_checkpoints_convert_there_and_back(size, num_keypoints, training):
    state = state_like(
        published(size, num_keypoints, training), random=(size, num_keypoints, training) == (*PUBLISHED[0], True)
    )
    conversion = convert(dict(state))
    skeleton = SKELETONS.get(num_keypoints)
    assert conversion.title == title(size, num_keypoints, training)
    assert conversion.manifest["keypoint_set"] == skeleton
    assert set(conversion.converted.used) == {name for name in state if not name.endswith(COUNTER)}
    assert set(conversion.converted.dropped) == {name for name in state if name.endswith(COUNTER)}
    assert not conversion.converted.initialised
    model = model_of(conversion.manifest)
    known = VARIANTS.get(size, {})
    assert {field: getattr(model, field) for field in known} == known
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


@pytest.mark.parametrize("size, classifier", [item for item in CLASSIFIERS.items() if item[0] in KEYS])
def test_imagenet_weights_convert_there_and_back(size, classifier):
    state = state_like(imagenet(size))
    conversion = convert(dict(state) | {name: np.ones(3, np.float32) for name in classifier})
    assert conversion.title == f"HRNet-{size.upper()}, ImageNet"
    assert conversion.manifest["keypoint_set"] is None
    assert {name for name in conversion.converted.dropped if not name.endswith(COUNTER)} == set(classifier)
    assert len(conversion.converted.used) + len(conversion.converted.dropped) == len(state) + len(classifier)
    assert set(conversion.weights["params"]) == {"backbone"}
    assert_same(to_torch(conversion.weights, conversion.manifest), state)


@functools.cache
def tiny_boir() -> dict[str, np.ndarray]:
    """The recorded network in its training form, with the batch counters of a real checkpoint."""
    state = entries("boir/weights.npz")
    counters = [name.replace(VARIANCE, COUNTER) for name in state if name.endswith(VARIANCE)]
    return state | {name: np.zeros((), np.int64) for name in counters}


def inference_form(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the original has at test time; the names are the same for every size."""
    absent = KEYS[PUBLISHED[0][0]]["aux_keys_absent_at_test"]
    return {name: value for name, value in state.items() if name not in absent}


def title(size: str, num_keypoints: int, training: bool = True) -> str:
    """What a conversion calls a whole network."""
    skeleton = SKELETONS.get(num_keypoints)
    return (
        f"BoIR-{size.upper()}, {num_keypoints} keypoints"
        + (f" of {skeleton}" if skeleton else "")
        + ("" if training else ", for inference")
    )


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
def poses_of(kernel: int, flip: bool):
    settings = golden_config("boir/full_infer.npz")
    flip_index = np.array(settings["FLIP_INDEX"])
    config = recorded_settings(settings, smoothing=kernel, flip=flip, maximum=settings["MAX_PROPOSALS"])
    model = tiny(training_heads=False)

    def run(variables, image):
        return predict(model.bind(variables), normalise_pixels(image), flip_index, config)

    return jax.jit(run)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_gives_the_originals_features_and_poses(tmp_path, suffix):
    conversion = read_weights(as_file(tmp_path, inference_form(tiny_boir()), suffix), dilations=tiny().dilations)
    assert model_of(conversion.manifest) == tiny(training_heads=False, embedding_features=128)

    record = golden("boir/hrnet.npz")
    images = np.moveaxis(record["x_sq"], 1, -1)
    features, centre = network()(conversion.weights, images)
    # float32 noise of the recorded maps is 5e-5 at a scale of 10.
    np.testing.assert_allclose(features[:1], np.moveaxis(record["y_sq_eval_img0"], 1, -1), atol=6e-4)

    record, case = golden("boir/full_infer.npz"), golden_config("boir/full_infer.npz")["cases"][0]
    size, kernel, flip = case.split(":")
    poses = poses_of(int(kernel[1:]), flip == "flip")(conversion.weights, record[f"{size}:image_u8"][None])
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
    model = tiny()
    assert title(f"w{branch_widths(model.width)[0]}", model.num_keypoints, training) in printed
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


def test_extras_of_training_codes_are_left_out():
    names = ("data_preprocessor.std", "ema_backbone_bn1_weight", "n_averaged")
    extras = {name: np.ones(3, np.float32) for name in names}
    conversion = convert(tiny_boir() | extras)
    assert {name for name in conversion.converted.dropped if not name.endswith(COUNTER)} == set(extras)
    assert_same(to_torch(conversion.weights, conversion.manifest), tiny_boir())


def test_other_weights_are_described(tmp_path):
    path = as_file(tmp_path, {"backbone.stage2.0.branches.0.0.conv1.weight": np.ones((2, 2), np.float32)})
    with pytest.raises(ConversionError, match="which look like an HRNet with a head that is not BoIR's"):
        read_weights(path)


def test_which_keypoints_can_be_said():
    count = tiny().num_keypoints
    for name, dataset in DATASETS.items():
        if dataset.num_keypoints == count:
            assert convert(dict(tiny_boir()), name).manifest["keypoint_set"] == dataset.keypoint_set
    other = next(name for name, dataset in DATASETS.items() if dataset.num_keypoints != count)
    match = f"{other} has {DATASETS[other].num_keypoints} keypoints, the head {count}"
    with pytest.raises(ConversionError, match=match):
        convert(dict(tiny_boir()), other)


def test_the_evaluated_dataset_says_whose_keypoints_a_file_has(tmp_path):
    """Of a file that does not say it; a folder of weights does."""
    path, data_dir = as_file(tmp_path, tiny_boir()), str(tmp_path)
    for name, count in (("mine", tiny().num_keypoints), ("fewer", 3)):
        skeleton = KeypointSet(name, tuple("abcdefghijklmnopq"[:count]), sigmas=(0.05,) * count)
        save_definition(PoseDataset(name, name, skeleton=skeleton), data_dir)

    def load(checkpoint, dataset, **more):
        given = {"mode": "evaluate", "checkpoint": str(checkpoint), "dataset": dataset, "data_dir": data_dir, **more}
        return sources.load(sources.read_configuration("", list(given.items())), make_mesh()).model

    model = load(path, "mine")
    assert (model.num_keypoints, model.fold_channels) == (tiny().num_keypoints, 0), "folded on no CPU"
    with pytest.raises(
        ConfigError, match=r"draws 17 keypoints; config.dataset='fewer' has 3: give a dataset of as many"
    ):
        load(path, "fewer")
    assert convert_weights.main([str(path), f"--to={tmp_path / 'folder'}"]) == 0
    with pytest.raises(ConfigError, match="draws the keypoints of coco; config.dataset='mine' has those of mine"):
        load(tmp_path / "folder", "mine", eval_also="()")


def test_a_manifest_is_json_and_describes_its_model():
    model = tiny()
    manifest = convert(dict(tiny_boir()), dilations=model.dilations).manifest
    assert model_of(json.loads(json.dumps(manifest))) == model
    assert manifest_of(model, SKELETONS.get(model.num_keypoints), manifest["family"]) == manifest


def test_networks_that_nobody_published():
    """Branches of any width, stages of any depth, a neck of other dilations."""
    sizes = {"neck_middle": 4, "neck_features": 8, "head_features": 8, "embedding_features": 8, "instance_features": 8}
    model = BoIR(
        num_keypoints=5, width=(4, 6, 8, 12), modules=(1, 1, 2), blocks=(1, 2, 2), stem=8, dilations=(3, 6), **sizes
    )
    manifest = json.loads(json.dumps(manifest_of(model, None, "BoIR-W4, 5 keypoints")))
    assert model_of(manifest) == model
    weights = unflatten({name: np.ones(shape.shape, np.float32) for name, shape in targets(manifest).items()})
    state = to_torch(weights, manifest)
    assert state["multihead.neck.0.convs.3.1.weight"].shape[:2] == (4, 30)
    conversion = convert(dict(state), dilations=(3, 6))
    assert conversion.manifest == manifest
    assert_same(to_torch(conversion.weights, conversion.manifest), state)


def test_the_methods_do_not_take_each_others_weights(tmp_path, capsys):
    folder = tmp_path / "weights"
    source = str(as_file(tmp_path, tiny_boir()))
    assert convert_weights.main([source, f"--to={folder}", "--fold=coco"]) == 1
    assert f"--fold does not apply to BoIR-W{branch_widths(tiny().width)[0]}" in capsys.readouterr().err
    assert not folder.exists()
    assert convert_weights.main([source, f"--to={folder}"]) == 0
    with pytest.raises(ConversionError, match="another method: BoIR-W"):
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
    with pytest.raises(ConversionError) as caught:
        convert(state)
    assert any(damaged in problem for problem in caught.value.problems)
    assert len(caught.value.problems) < 100


@pytest.mark.parametrize("kind", DAMAGES)
def test_every_damaged_entry_of_a_backbone_is_named(kind):
    state = {k.removeprefix(PREFIX): v for k, v in tiny_boir().items() if k.startswith(PREFIX)}
    damaged = damage(state, kind, np.random.default_rng(len(kind)))
    with pytest.raises(ConversionError) as caught:
        convert(state)
    assert any(damaged in problem for problem in caught.value.problems)


def test_the_command_leaves_nothing_after_an_error(tmp_path, capsys):
    state = dict(tiny_boir())
    shape = list(state.pop("kpt_head.heatmap_conv.weight").shape)
    folder = tmp_path / "weights"
    assert convert_weights.main([str(as_file(tmp_path, state)), f"--to={folder}"]) == 1
    assert f"missing kpt_head.heatmap_conv.weight {shape}" in capsys.readouterr().err
    assert not folder.exists()
