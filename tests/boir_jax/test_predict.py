"""People of a picture from what the network found; sizes of pictures."""

from __future__ import annotations

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import boir_jax
import boir_jax.predict
import posebh_jax
from boir_jax import build, configuration, export, sources
from boir_jax.pose_model import PoseModel
from configs import boir
from data_pipelines.datasets import PoseDataset, save_definition
from data_pipelines.skeletons import KeypointSet
from data_pipelines.synthetic_world.scene import render_scene
from pose_common.prediction.pictures import Picture
from pose_common.training.checkpoints import Checkpoints
from pose_common.weights.folder import load_weights, save_weights
from scripts import convert_weights

PICTURE = Picture("street.jpg", np.zeros((64, 64, 3), np.uint8))


def test_a_skeleton_without_sigmas_is_suppressed_by_the_default_one():
    """Two of one person, the worse goes; another stays."""
    skeleton = KeypointSet("three", ("a", "b", "c"))
    person = np.array([[0, 0, 0.9], [10, 0, 0.9], [0, 10, 0.9]], np.float32)
    row = {
        "keypoints": np.stack([person, person + (0.1, 0, 0), person + (40, 40, 0)]),
        "score": np.array([0.5, 0.9, 0.7], np.float32),
        "found": np.ones(3, bool),
    }
    found = PoseModel("", None, {}, skeleton, "three", 64, 0.8)._result(PICTURE, row, 0.0)
    np.testing.assert_allclose(found.scores, [0.9, 0.7])


@pytest.mark.parametrize("size", [0, -5, -64])
def test_pictures_of_no_size_are_refused(size):
    with pytest.raises(ValueError, match=f"^input_size={size}: expected the short side"):
        boir_jax.load(input_size=size)


def test_a_model_in_words_is_a_line():
    """Weights and arrays flood a notebook."""
    for model in (boir_jax.load(), posebh_jax.load()):
        assert repr(model).startswith(f"<PoseModel: {model.title}; draws ") and len(repr(model)) < 300


@pytest.mark.parametrize("size", [0, "4", 2.0])
def test_a_batch_size_is_a_number_of_rows(size):
    pose, find, picture = posebh_jax.load(), boir_jax.load(), PICTURE.image
    for call in (pose, find, lambda source, **options: pose.learn_skeleton(source, [[[1, 2, 2]]], **options)):
        with pytest.raises(ValueError, match=f"^batch_size={size!r}: expected a whole number, 1 or more"):
            call([picture], batch_size=size)


@pytest.mark.parametrize("value", ["0.3", None, float("nan"), [0.3], True])
def test_a_threshold_is_a_number(value):
    for call, name in (
        (posebh_jax.load(), "threshold"),
        (posebh_jax.load(), "box_threshold"),
        (boir_jax.load(), "threshold"),
    ):
        with pytest.raises(ValueError, match=re.escape(f"{name}={value!r}: expected a number")):
            call(PICTURE.image, **{name: value})
    with pytest.raises(ValueError, match="flip='no': expected True or False"):
        posebh_jax.load()(PICTURE.image, flip="no")


def test_products_of_bfloat16_find_the_same_people():
    """The embedded models' PoseBH has keypoints where float32 has them; BoIR's lie on a grid of five pixels here."""
    picture = render_scene("crowd", (2026,), 0).image
    whole = boir_jax.load()(picture)
    poses = {dtype: posebh_jax.load(dtype=dtype)(picture, boxes=whole.boxes) for dtype in ("float32", "bfloat16")}
    half = boir_jax.load(dtype="bfloat16")(picture)
    for exact, found, median in ((whole, half, 1e-3), (poses["float32"], poses["bfloat16"], 0.1)):
        assert len(exact.keypoints) == len(found.keypoints) > 2
        moved = np.linalg.norm(exact.keypoints[..., :2] - found.keypoints[..., :2], axis=-1)
        assert np.median(moved) < median and not np.array_equal(exact.keypoints, found.keypoints)


def test_an_unknown_dtype_is_named(tmp_path):
    for load in (posebh_jax.load, boir_jax.load):
        with pytest.raises(ValueError, match="^dtype='float16': expected float32 or bfloat16"):
            load(dtype="float16")
    assert boir_jax.predict.main(["--demo", "--dtype=half", f"--out={tmp_path / 'poses'}"]) == 1


def test_a_model_between_two_sizes_is_exported_for_the_larger():
    """As its pictures are resized; configurations may have any multiple of 32."""
    model = dataclasses.replace(boir_jax.load(), input_size=96)
    assert export.program(model).size == (128, 128)
    with pytest.raises(ValueError, match="size 96,96: sides must be multiples of 64"):
        export.program(model, (96, 96))


@pytest.fixture
def run(tmp_path):
    """A run on a dataset of its own that finds people otherwise than released."""
    kites = KeypointSet("kites", ("tip", "left_wing", "right_wing"), ((1, 2),), sigmas=(0.1,) * 3)
    save_definition(PoseDataset("kites", "kites", skeleton=kites), tmp_path / "data")
    given = {
        "data_dir": str(tmp_path / "data"),
        "instance_group": "1",  # divides the images of any device
        "smoothing.default": "5",
        "oks_nms.default": "0.6",
        "proposals.maximum": "7",
        "proposals.windows": "((100, 3), (200, 7))",
    }
    config = configuration.with_overrides(boir.get_config("kites,small"), list(given.items()))
    weights = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(build.make_method(config, 1).init, jax.random.key(0)).weights,
    )
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    checkpoints.save_weights(3, weights, {"notes": {}, "config": json.loads(config.to_json())})
    checkpoints.close()
    return tmp_path / "run"


def test_a_run_and_its_folder_find_people_alike(run, tmp_path):
    """Also where the data is not, whose definition was read."""
    expected = boir_jax.load(run)
    folder = tmp_path / "folder"
    assert convert_weights.main([str(run), f"--to={folder}"]) == 0
    (tmp_path / "data").rename(tmp_path / "moved")
    found = boir_jax.load(folder)
    proposals = found.predictor.proposals
    assert proposals == expected.predictor.proposals
    assert (proposals.smoothing, proposals.maximum, proposals.windows) == (5, 7, ((100, 3), (200, 7)))
    assert (found.skeleton, found.dataset, found.input_size, found.oks_nms) == (
        expected.skeleton,
        "kites",
        128,
        expected.oks_nms,
    )
    assert found.oks_nms == 0.6
    evaluated = [("mode", "evaluate"), ("checkpoint", str(folder))]
    config = sources.read_configuration("", evaluated)
    assert (config.dataset, config.smoothing.default, config.oks_nms.default) == ("kites", 5, 0.6), "likewise"
    assert configuration.dataset(config).keypoints == expected.skeleton


def test_an_older_folder_says_the_skeleton_alone(run, tmp_path, monkeypatch):
    """Of one that is published nothing else is needed; the definition of another is where the data is."""
    monkeypatch.chdir(tmp_path)
    assert convert_weights.main([str(run), f"--to={tmp_path / 'new'}"]) == 0
    weights, manifest = load_weights(tmp_path / "new")
    older = {name: value for name, value in manifest.items() if name not in configuration.RECORDED}
    save_weights(tmp_path / "old", weights, older)
    assert boir_jax.load(tmp_path / "old").skeleton.name == "kites"
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"old: .*unknown dataset 'kites'"):
        boir_jax.load(tmp_path / "old")
    save_weights(tmp_path / "published", weights, older | {"keypoint_set": "coco"})
    found = boir_jax.load(tmp_path / "published")
    assert (found.dataset, found.predictor.proposals.smoothing, found.oks_nms) == ("coco", 3, 0.8)
    save_weights(tmp_path / "headless", weights, older | {"keypoint_set": None})
    with pytest.raises(ValueError, match="headless: .* finds no people: it has no heads"):
        boir_jax.load(tmp_path / "headless")
