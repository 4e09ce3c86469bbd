"""Configurations: the released settings, and mistakes named."""

from __future__ import annotations

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from boir_jax import build, configuration, sources
from boir_jax.pose_model import EMBEDDED
from configs import boir
from data_pipelines.datasets import PoseDataset, save_definition
from data_pipelines.skeletons import KeypointSet
from pose_common.training.checks import ConfigError
from pose_common.training.configuration import FREE, require_same_run
from pose_common.training.mesh import make_mesh

pytestmark = pytest.mark.slow  # makes every published model's shapes

COCO = ("coco", "train", "val", ["coco", "ochuman"])
CROWDPOSE = ("crowdpose", "trainval", "test", ["crowdpose"])


@pytest.mark.parametrize(
    "arg, size, data, input_size, epochs, warmup, box_weight, level",
    [
        ("coco_w32", 32, COCO, 512, 140, 10, 0.25, 1),
        ("coco_w48", 48, COCO, 640, 140, 10, 0.25, 1),
        ("crowdpose_w32", 32, CROWDPOSE, 512, 310, 10, 0.25, 1),
        ("crowdpose_w48", 48, CROWDPOSE, 640, 310, 10, 0.25, 1),
        ("crowdpose_w32_finetune", 32, CROWDPOSE, 512, 100, 1, 1.0, 0),
        ("crowdpose_w48_finetune", 48, CROWDPOSE, 640, 100, 10, 1.0, 0),
    ],
)
def test_released_settings(arg, size, data, input_size, epochs, warmup, box_weight, level):
    config = boir.get_config(arg)
    evaluated = [task.dataset for task in build.make_tasks(config, build.make_model(config))]
    assert (config.dataset, config.train_split, config.eval_split, evaluated) == data
    assert (config.input_size, config.batch_size) == (input_size, 80)
    method = build.make_method(config, steps_per_epoch=100)
    assert method.model.width == size and method.model.instance_features == 2 * size
    assert method.model.num_keypoints == (17 if data is COCO else 14)
    losses = method.losses
    assert (losses.heatmap, losses.instance, losses.embedding, losses.box) == (1, 4, 0.25, box_weight)
    assert (losses.background, losses.pull) == (("instance", True) if level == 0 else ("image", False))
    optimizer, (stage,) = method.optimizer, method.stages
    assert (optimizer.weight_decay, optimizer.clip_norm, stage.epochs) == (0.025, 10, epochs)
    assert len(stage.train) == 7 and optimizer.decayed == {}
    # Linear from 1e-12 to the base rate over the warm-up, both ends included; then half a cosine.
    rates = optimizer.schedule(np.arange(100 * epochs), np)
    np.testing.assert_allclose(rates[[0, 100 * warmup - 1, 100 * warmup]], [1e-12, 1e-3, 1e-3], rtol=1e-9)
    middle = 50 * (epochs + warmup)
    np.testing.assert_allclose(rates[middle], 0.5 * (1e-3 + 1e-6), rtol=1e-9)
    assert 1e-6 < rates[-1] < 1.01e-6


@pytest.mark.parametrize(
    "words, published",
    [("crowdpose", "crowdpose_w32"), ("crowdpose,w48,finetune", "crowdpose_w48_finetune"), ("coco,w48", "coco_w48")],
)
def test_a_published_run_by_its_dataset_and_size_is_the_same_run(words, published):
    """CrowdPose trains on trainval and on people of any size (experiments/boir/crowdpose_w32.yaml), unlike COCO."""
    assert boir.get_config(words).to_json() == boir.get_config(published).to_json()


def test_a_published_run_on_small_chips_is_the_same_run():
    for arg in boir.PUBLISHED:
        released, small = boir.get_config(arg), boir.get_config(f"{arg}_v5e")
        changes = require_same_run(json.loads(released.to_json()), small, FREE)
        assert changes == ["config.remat: False -> True"] * ("w48" in arg)


def test_evaluation_is_in_float32_whatever_the_training():
    config = boir.get_config("coco_w32")
    model = build.make_model(config)
    (own, *_) = build.make_tasks(config, model)
    assert model.dtype == jnp.bfloat16 and own.predictor.model == model.clone(dtype=jnp.dtype(jnp.float32))


def test_statistics_of_batch_norm_are_global_or_of_groups():
    config = boir.get_config("coco_w32")
    assert build.make_model(config).norm().group is None
    config.norm_group = 5
    assert build.make_model(config).norm().group == 5


@pytest.mark.parametrize(
    "words, size, input_size, box_weight",
    [
        ("", "w32", 512, 0.25),
        (",w48", "w48", 640, 0.25),
        (",w32,finetune", "w32", 512, 1.0),
        (",small", "small", 128, 0.25),
    ],
)
def test_any_dataset_has_a_configuration(words, size, input_size, box_weight, tmp_path):
    """Of its own name, keypoints and splits; no other dataset's rows are evaluated."""
    with pytest.raises(ConfigError, match=r"unknown dataset 'mine'.*scripts.prepare_data custom --name=mine"):
        configuration.read(f"boir:mine{words}", [("data_dir", str(tmp_path))])
    skeleton = KeypointSet("mine", ("a", "b", "c"), ((1, 2),), (), sigmas=(0.05,) * 3)
    save_definition(PoseDataset("mine", "mine", skeleton=skeleton), tmp_path)
    config = configuration.read(f"boir:mine{words}", [("data_dir", str(tmp_path))])
    assert (config.size, config.input_size, config.losses.box) == (size, input_size, box_weight)
    assert [(task.dataset, task.split) for task in build.make_tasks(config, build.make_model(config))] == [
        ("mine", "val")
    ]
    assert build.make_model(config).num_keypoints == 3 and not config.published_as


def test_published_figures_are_of_the_own_size(tmp_path):
    mesh = make_mesh()

    def compared(*overrides):
        config = configuration.read("boir:coco_w32", overrides)
        return build.make_evaluator(config, build.make_model(config), mesh, tmp_path).published_as

    assert compared() == "W32" and compared(("size", "w48")) == "" and compared(("size", "small")) == ""


def test_mistakes_are_named():
    for wrong in ("mpii_w32", "coco_w32_finetune", "crowdpose_w18", "mine,w18", "mine,w32,w48", ",w32"):
        with pytest.raises(ValueError, match=f"configs/boir.py:{wrong}"):
            boir.get_config(wrong)
    config = boir.get_config("demo")
    config.batch_size = 16
    assert jax.device_count() == 8
    with pytest.raises(ValueError, match="config.instance_group=4: the 2 images of a device"):
        build.make_method(config, 1)
    config.instance_group, config.norm_group = 2, 16
    with pytest.raises(ValueError, match="config.norm_group=16"):
        build.make_method(config, 1)
    config.batch_size = 20
    with pytest.raises(ValueError, match="config.batch_size=20 does not divide over 8 devices"):
        build.make_method(config, 1)


def test_weights_of_another_size_are_one_sentence():
    """Without a list of every array that has another shape."""
    config = configuration.read("boir:demo", [("init_from", str(EMBEDDED)), ("size", "w32")])
    with pytest.raises(ConfigError, match="config.init_from=.* is small; the configuration is w32: give weights"):
        sources.make_start(config)(types.SimpleNamespace(weights={}))
