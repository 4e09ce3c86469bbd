"""Configurations: the paper's settings, and stages that say what learns when."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from configs import mdt, multi_head
from pose_common.training.configuration import FREE, require_same_run
from pose_common.training.mesh import make_mesh
from pose_common.training.stages import make_stages, stage_index
from posebh_jax import build
from posebh_jax.configuration import SHIPPED, of_weights
from posebh_jax.model import PoseBH
from posebh_jax.vit import SIZES


@pytest.mark.parametrize("size, drop_path, decay", [("small", 0.1, 0.8), ("base", 0.3, 0.75), ("huge", 0.55, 0.8)])
def test_paper_settings(size, drop_path, decay):
    method = build.make_method(mdt.get_config(size), steps_per_epoch=100)
    assert method.model.size.drop_path == drop_path
    assert method.keypoint_index.counts == (17, 14, 16, 17, 17, 133)
    # Layer-wise rates: the last block learns at `decay` times the rate of norm and heads.
    blocks = method.optimizer.factors["backbone"]["blocks"]["attn"]["qkv"]["kernel"].ravel()
    assert blocks[-1] == pytest.approx(decay) and blocks[0] == pytest.approx(decay ** len(blocks), rel=1e-5)
    assert method.losses.contrast_weight == 1.25e-5 and method.losses.heatmap_weight == 3.33e-6


@pytest.mark.parametrize("size, settings_of", [*((size, size) for size in SHIPPED), ("tiny", "base")])
def test_settings_for_weights_of_no_run(size, settings_of):
    """Those of their size, or of the base where no real run has that size."""
    manifest = {
        "backbone": dataclasses.asdict(SIZES[size]),
        "embedding": {"dim": 64},
        "input_size": [192, 256],
        "datasets": [["coco", 17]],
    }
    config = of_weights(manifest)
    assert (config.drop_path, config.layer_decay) == mdt.REGULARISATION[settings_of]
    assert (config.method, config.size, config.datasets) == ("posebh", size, ("coco",))
    assert of_weights(manifest | {"embedding": None}).method == "multi_head"


def test_schedule_of_the_release():
    stages = make_stages(mdt.get_config("huge").stages)
    trains = {epoch: stages[stage_index(stages, epoch)].train for epoch in (0, 49, 50, 89, 90, 99)}
    assert trains[0] == trains[49] == ("embedding",)
    assert trains[50] == trains[89] == ("heads", "embedding")
    assert trains[90] == trains[99] == ("backbone", "heads", "embedding")
    assert [stage.updates_state for stage in stages] == [True, False, False]
    # The released base run keeps its backbone frozen to the end.
    assert "backbone" not in make_stages(mdt.get_config("base").stages)[-1].train


def test_the_huge_run_on_small_chips_is_the_same_run():
    for configuration in (mdt, multi_head):
        changes = require_same_run(
            json.loads(configuration.get_config("huge").to_json()), configuration.get_config("huge_v5e"), FREE
        )
        assert changes == ["config.fsdp: 1 -> 4", "config.remat: False -> True"]


def test_evaluation_is_in_float32_whatever_the_training(tmp_path):
    config = mdt.get_config("base")
    model = build.make_model(config)

    def evaluated():
        return build.make_evaluator(config, model, make_mesh(), tmp_path).predictor.model

    assert model.dtype == jnp.bfloat16 and evaluated() == model.clone(dtype=jnp.dtype(jnp.float32))
    config.eval_dtype = "bfloat16"
    assert evaluated().dtype == jnp.bfloat16


def test_the_baseline_has_no_prototype_parts():
    method = build.make_method(multi_head.get_config("base"), steps_per_epoch=1)
    state = jax.eval_shape(method.init, jax.random.PRNGKey(0))
    assert set(state.params) == {"backbone", "heads"} and state.method_state == {}


def test_values_and_shapes_come_of_one_trace(monkeypatch):
    """A run asks for the layers' shapes, for a state's and for its initial values."""
    traces, whole = [], PoseBH.__call__
    monkeypatch.setattr(PoseBH, "__call__", lambda model, *batch: traces.append(model) or whole(model, *batch))
    config = mdt.get_config("demo")
    config.head_filters = (5, 5)  # of no other test
    method = build.make_method(config, 1)
    shapes = method.shapes(method.stages[0], {})
    assert jax.eval_shape(method.init, jax.random.PRNGKey(1)) == shapes and len(traces) == 1


def test_mistakes_are_named():
    config = mdt.get_config("demo")
    config.stages[1].losses = ("prototype", "protoype_heatmap")
    given = r"config.stages\[1\].losses \('prototypes'\): there is no 'protoype_heatmap'"
    with pytest.raises(ValueError, match=rf"{given}; .*did you mean 'prototype_heatmap'"):
        build.make_method(config, 1)
    config = mdt.get_config("demo")
    config.stages[3].train = ("backbone", "head")
    with pytest.raises(ValueError, match=r"config.stages\[3\].train \('all'\): there is no 'head'.*mean 'heads'"):
        build.make_method(config, 1)
    for stage in config.stages:
        stage.epochs = 0
    with pytest.raises(ValueError, match="config.stages has no stage with an epoch"):
        build.make_method(config, 1)
    with pytest.raises(ValueError, match=r"config.stages\[0\].epoch: there is no such field"):
        make_stages([{"name": "all", "epoch": 3, "train": ("heads",), "losses": ("heatmap",)}])
    config = mdt.get_config("demo")
    config.method = "multi_head"
    with pytest.raises(ValueError, match="configs/multi_head.py"):
        build.make_method(config, 1)
    with pytest.raises(ValueError, match="medium.*expected"):
        mdt.get_config("medium")
