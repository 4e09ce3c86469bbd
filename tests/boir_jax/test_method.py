"""The method in the loop: it learns, stops and goes on, moves to another skeleton."""

from __future__ import annotations

import functools
import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from boir_jax import build, main, sources
from boir_jax.method import BoIRMethod
from boir_jax.model import VARIANTS, BoIR
from boir_jax.weights.convert import targets, to_torch
from boir_jax.weights.transfer import start_from
from configs import boir
from data_pipelines.builders.synthetic import prepare_synthetic
from data_pipelines.whole_image import pictures
from pose_common.training.nonfinite import NonFiniteError
from pose_common.training.step import train_step
from pose_common.training.writers import read_metrics
from pose_common.weights.keys import Conversion, Converted, flatten, unflatten
from pose_common.weights.torch_files import read_state
from posebh_jax import sources as posebh_sources
from scripts import convert_weights
from tests.boir_jax.step_program import TINY, global_batch, tiny_method

pytestmark = pytest.mark.slow  # trains the whole network


def test_it_learns():
    """Loss on one batch, over and over: the same people every time where the cap allows all."""
    method = tiny_method(learning_rate=3e-3)
    (stage,) = method.stages
    step = functools.partial(train_step, method=method, stage=stage)
    step, state, losses = jax.jit(step), method.init(jax.random.PRNGKey(0)), []
    for _ in range(12):
        state, metrics = step(state, global_batch())
        losses.append(float(metrics["loss"]))
    assert np.all(np.isfinite(losses))
    assert np.mean(losses[-3:]) < 0.8 * losses[0], losses
    assert state.step == 12 and state.method_state == {}


def test_values_and_shapes_come_of_one_trace(monkeypatch):
    """Tracing an HRNet takes seconds, and a run asks for its groups, its shapes and its initial values."""
    traces, whole = [], BoIR.__call__
    monkeypatch.setattr(BoIR, "__call__", lambda model, images: traces.append(images.shape) or whole(model, images))
    like = tiny_method()
    method = BoIRMethod(like.model.clone(num_keypoints=3), 1, like.optimizer, like.losses, 2, 5)  # of no other test
    shapes = method.shapes(method.stages[0], {})
    assert sorted(shapes.params) == list(method.groups)
    assert jax.eval_shape(method.init, jax.random.PRNGKey(1)) == shapes and len(traces) == 1


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    """(configuration, working directory) of a run of four steps on rendered crowds, its checkpoints at 2 and 4."""
    root = tmp_path_factory.mktemp("run")
    prepare_synthetic(root / "data", ["synthetic_crowd"], num_train=16, num_val=3)
    VARIANTS["tiny"] = TINY
    config = boir.get_config("demo")
    config.size, config.input_size, config.data_dir = "tiny", 64, str(root / "data")
    config.synthetic, config.batch_size, config.eval_batch_size = {}, 8, 8
    config.instance_group, config.instance_cap = 1, 4
    config.epochs, config.steps_per_epoch, config.warmup_epochs = 2, 2, 0.5
    config.log_every, config.checkpoint_every, config.evaluate_stages, config.pictures = 1, 2, False, 1
    config.loader_threads, config.evaluate_every = 1, 100
    assert main.train(config, root / "whole")
    yield config, root / "whole"
    del VARIANTS["tiny"]


def losses_of(workdir):
    return {row["step"]: row["loss"] for row in read_metrics(workdir / "metrics.jsonl") if row["split"] == "train"}


@pytest.mark.slow(minutes=1)
def test_resume_is_exact(tiny_run, tmp_path):
    config, whole = tiny_run
    cut = tmp_path / "cut"
    shutil.copytree(whole / "checkpoints" / "2", cut / "checkpoints" / "2")
    assert main.train(config, cut)
    again, expected = losses_of(cut), losses_of(whole)
    assert sorted(again) == [3, 4] and all(again[step] == expected[step] for step in again)


def test_labels_that_are_not_finite_stop_the_run_with_the_pictures(tiny_run, tmp_path, monkeypatch):
    config, _ = tiny_run
    make = pictures.Train.__call__

    def spoilt(self, sample, rng):
        element = make(self, sample, rng)
        if sample["image_id"] % 2:
            element["boxes"][0] = np.nan
        return element

    monkeypatch.setattr(pictures.Train, "__call__", spoilt)
    with pytest.raises(NonFiniteError) as stopped:
        main.train(config, tmp_path)
    message = str(stopped.value)
    assert "step 0: not finite: box, " in message and "gradients of " in message
    assert "labels that are not finite: synthetic_crowd/train/" in message and ": boxes" in message
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))
    batch = json.loads((tmp_path / "nonfinite_step_0.json").read_text())["batch"]
    assert len(batch) == 8 and 0 < sum(row["not finite"] == ["boxes"] for row in batch) < 8


def test_the_end_of_a_run_is_evaluated(tiny_run):
    _, whole = tiny_run
    (row,) = [row for row in read_metrics(whole / "metrics.jsonl") if row["split"] != "train"]
    assert row["split"] == "eval/synthetic_crowd_val" and row["step"] == 4 and "AP(H)" in row
    assert (whole / "results/step_4/table.md").exists() and (whole / "pictures/synthetic_crowd_val.png").exists()


def test_evaluation_of_a_checkpoint_gives_the_same(tiny_run, tmp_path):
    config, whole = tiny_run
    name = "results/step_4/synthetic_crowd_val.json"
    for source in (whole, whole / "checkpoints/best"):  # the only evaluation was the best
        config.checkpoint = str(source)
        main.evaluate(config, tmp_path)
        assert (tmp_path / name).read_text() == (whole / name).read_text()
        (tmp_path / name).unlink()
    config.checkpoint = str(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="nowhere"):
        main.evaluate(config, tmp_path)


def test_a_run_starts_from_another(tiny_run, caplog):
    config, whole = tiny_run
    config = config.copy_and_resolve_references()
    config.init_from = str(whole)
    caplog.set_level(logging.INFO)
    for dataset, initialised in (("synthetic_crowd", set()), ("synthetic_coco", {"instance_head", "keypoint_head"})):
        config.dataset = dataset
        method = build.make_method(config, 1)
        state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), method.shapes(method.stages[0], {}))
        filled = sources.make_start(config)(state)
        left = {name.split("/")[0] for name, value in flatten(filled.params).items() if not np.any(value)}
        assert left == initialised, "everything else is of the run"
    assert "newly initialised: instance_head/output, keypoint_head/output" in caplog.text


def test_a_run_can_be_written_for_the_original_code(tiny_run, tmp_path):
    _, whole = tiny_run
    file, folder, again = tmp_path / "run.safetensors", tmp_path / "weights", tmp_path / "again.safetensors"
    assert convert_weights.main([str(whole / "checkpoints" / "2"), f"--to={file}"]) == 0
    own, state = sources.read(whole / "checkpoints" / "2"), read_state(file)
    expected = to_torch(own.weights, own.manifest)
    assert set(state) == set(expected) and "multihead.emb_head.head.1.weight" in state
    for name, value in state.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    # The same by way of a folder of weights.
    assert convert_weights.main([str(whole / "checkpoints" / "2"), f"--to={folder}"]) == 0
    assert convert_weights.main([str(folder), f"--to={again}"]) == 0
    assert again.read_bytes() == file.read_bytes()
    # Of another step, other weights; and the other method does not take them for its own.
    newest = flatten(sources.read(whole).weights)
    assert any((newest[name] != value).any() for name, value in flatten(own.weights).items())
    with pytest.raises(ValueError, match="is a run of boir"):
        posebh_sources.read(whole)


def start(network, keypoint_set, wanted, **own):
    """From weights of ones for a model of zeros."""
    manifest = {"method": "boir", "network": network, "keypoint_set": keypoint_set}
    weights = unflatten({name: np.ones(shape.shape) for name, shape in targets(manifest).items()})
    conversion = Conversion("ones", weights, manifest, Converted({}, (), (), ()))
    initial = targets({**manifest, "network": {**network, "num_keypoints": 5, **own}})
    zeros = unflatten({name: np.zeros(shape.shape) for name, shape in initial.items()})
    found = start_from(conversion, zeros, wanted)
    taken = {name.split("/", 1)[1] for name, value in flatten(found.tree).items() if np.size(value) and value.all()}
    return found, taken


def test_what_another_skeleton_takes_over():
    network = {**TINY, "modules": list(TINY["modules"]), "num_keypoints": 7}
    found, taken = start(network, "coco", "crowdpose")
    assert found.initialised == ("instance_head/output", "keypoint_head/output") and not found.left_out
    assert "instance_head/fuse_kernel" in taken and "keypoint_head/block/conv1/conv/kernel" in taken
    assert not [name for name in taken if name.startswith(("keypoint_head/output", "instance_head/output"))]
    assert "centre_head/output/kernel" in taken
    # As many keypoints, but other ones.
    found, _ = start({**network, "num_keypoints": 5}, "coco", "crowdpose")
    assert found.initialised == ("instance_head/output", "keypoint_head/output")
    found, _ = start({**network, "num_keypoints": 5}, "coco", "coco")
    assert not found.initialised


def test_a_backbone_alone():
    network = {**TINY, "modules": list(TINY["modules"])}
    found, taken = start(network, None, "coco")
    assert {name.split("/")[0] for name in taken} == {"backbone"}
    assert "backbone" not in found.initialised and "neck" in found.initialised


def test_another_width_is_refused():
    network = {**TINY, "modules": list(TINY["modules"]), "num_keypoints": 5}
    with pytest.raises(ValueError, match="backbone/stage2/.*has shape.*expected"):
        start(network, "coco", "coco", width=8)
