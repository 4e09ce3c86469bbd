"""Transfer: the released schedules, and whole runs on a rendered skeleton and on real hands."""

from __future__ import annotations

import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from configs import mdt, multi_head, transfer
from data_pipelines.builders.interhand2d import InterHand2d
from data_pipelines.builders.synthetic import prepare_synthetic
from data_pipelines.datasets import PoseDataset, save_definition
from data_pipelines.skeletons import KeypointSet
from pose_common.training.configuration import ConfigError
from pose_common.training.mesh import make_mesh
from pose_common.training.stages import make_stages, stage_index
from pose_common.weights.embedded import read_embedded
from pose_common.weights.folder import load_weights, save_weights
from pose_common.weights.keys import flatten
from posebh_jax import build, configuration, main, sources
from posebh_jax.pose_model import EMBEDDED
from posebh_jax.weights.manifest import manifest_of
from scripts import convert_weights
from tests.golden_files import shared_path

pytestmark = pytest.mark.slow  # trains through two configurations

ALWAYS = {"heads"}
THAWED = {"heads", "backbone"}
PW3D_RATES = {0: 1e-4, 9: 1e-4, 10: 1e-5, 15: 1e-6, 29: 1e-6}


@pytest.mark.parametrize(
    "arg, dataset, batch, epochs, thawed, prototypes_until, rates",
    [
        ("interhand2d", "interhand2d", 384, 60, range(30, 60), 30, {0: 5e-4, 34: 5e-4, 35: 5e-5, 55: 5e-6}),
        ("3dpw", "pw3d", 256, 30, range(15, 16), 15, PW3D_RATES),
        ("pw3d", "pw3d", 256, 30, range(15, 16), 15, PW3D_RATES),
        ("my_hands", "my_hands", 384, 60, range(30, 60), 30, {0: 5e-4}),
    ],
)
def test_released_schedules(arg, dataset, batch, epochs, thawed, prototypes_until, rates):
    config = transfer.get_config(arg)
    assert config.datasets == (dataset,) and config.batch_size == batch and config.fold == "coco"
    stages = make_stages(config.stages)
    assert sum(stage.epochs for stage in stages) == epochs
    for epoch in range(epochs):
        stage = stages[stage_index(stages, epoch)]
        assert set(stage.train) == (THAWED if epoch in thawed else ALWAYS)
        assert stage.updates_state == (epoch < prototypes_until)
        assert set(stage.losses) == {"heatmap", "prototype", "prototype_heatmap"}
    if dataset == "my_hands":
        return
    optimizer = build.make_method(config, steps_per_epoch=1000).optimizer
    assert (optimizer.weight_decay, optimizer.clip_norm) == (0, None)
    assert {float(factor) for factor in map(np.max, jax.tree.leaves(optimizer.factors))} == {1.0}
    for epoch, rate in rates.items():
        assert optimizer.schedule(epoch * 1000 + 500, np) == pytest.approx(rate)
    assert optimizer.schedule(0, np) == pytest.approx(rates[0] / 1000)


@pytest.mark.parametrize(
    "dataset, batch, epochs, rates",
    [
        ("interhand2d", 512, 60, {0: 5e-4, 34: 5e-4, 35: 5e-5, 55: 5e-6}),
        ("pw3d", 256, 30, PW3D_RATES),
        ("my_hands", 512, 60, {0: 5e-4}),
    ],
)
def test_released_schedules_of_the_baseline(dataset, batch, epochs, rates):
    """ViTPose_base_interhand2d_all_256x192.py, ViTPose_base_pw3d_2d_256x192.py: all learns, by heatmaps alone."""
    config, of_posebh = transfer.get_config(f"{dataset},multi_head"), transfer.get_config(dataset)
    (stage,) = make_stages(config.stages)
    assert (stage.epochs, set(stage.train), set(stage.losses), stage.updates_state) == (
        *(epochs, THAWED, {"heatmap"}, False),
    )
    assert config.method == "multi_head" and config.batch_size == batch
    same = config.to_dict().keys() - {"method", "stages", "batch_size", "eval_batch_size"}
    assert all(config[name] == of_posebh[name] for name in same)
    if dataset == "my_hands":
        return
    method = build.make_method(config, steps_per_epoch=1000)
    assert not method.model.embedding_dim
    for epoch, rate in rates.items():
        assert method.optimizer.schedule(epoch * 1000 + 500, np) == pytest.approx(rate)


def test_evaluations_and_the_best_of_the_release():
    """Every 5 epochs; the best by AUC (vitb_posebh_interhand2d_256x192.py) and AP (vitb_posebh_pw3d_2d_256x192.py)."""
    figures = {}
    for arg in ("interhand2d", "pw3d"):
        config = transfer.get_config(arg)
        evaluator = build.make_evaluator(config, build.make_model(config), make_mesh(), "")
        figures[arg] = evaluator.best_metric(config.best_metric).figures
        assert config.evaluate_every == 5
    assert figures == {"interhand2d": (("interhand2d/heads", "AUC"),), "pw3d": (("pw3d/heads", "AP"),)}
    assert transfer.get_config("demo").evaluate_every == transfer.get_config("mine").evaluate_every == 0


@pytest.mark.parametrize("wrong", ["mine,base", "interhand2d,tiny", ",tiny", "mine,", ",multi_head"])
def test_sizes_that_are_not_there(wrong):
    with pytest.raises(ValueError, match=f"configs/transfer.py:{wrong}: expected"):
        transfer.get_config(wrong)


def test_the_small_model_starts_from_the_embedded_one(tmp_path):
    """Backbone and deconvolutions are taken over, the rendered animals' expert folded in; the last layer is new."""
    skeleton = KeypointSet("mine", ("a", "b", "c"), ((1, 2),), (), sigmas=(0.05,) * 3)
    save_definition(PoseDataset("mine", "mine", codec="udp", skeleton=skeleton), tmp_path)
    overrides = [("data_dir", str(tmp_path)), ("init_from", str(EMBEDDED))]
    config = configuration.read("transfer:mine,tiny", overrides)
    assert config.datasets == ("mine",) and config.codec.mine == "udp" and config.method == "multi_head"
    model = build.make_model(config)
    method = build.make_method(config, 10)
    state = sources.make_start(config, model)(method.init(jax.random.PRNGKey(0)))
    given, found = flatten(read_embedded(EMBEDDED).weights), flatten({"params": state.params})
    for name in ("deconv1/kernel", "deconv2/kernel"):
        own, other = (found[f"params/heads/mine/upsampling/{name}"], f"params/heads/synthetic_ap10k/upsampling/{name}")
        np.testing.assert_array_equal(own, given[other])
    backbone = [name for name in given if "/backbone/" in name and "expert" not in name and "fc2" not in name]
    assert backbone
    for name in backbone:
        np.testing.assert_array_equal(found[name], given[name], err_msg=name)
    (last,) = [value for name, value in found.items() if name.endswith("heads/mine/final/kernel")]
    assert last.shape[-1] == 3


def small(config, dataset, data_dir):
    """A tiny model, one step a stage."""
    config.datasets, config.eval_splits, config.data_dir = (dataset,), {}, str(data_dir)
    config.size, config.dtype, config.input_size = "tiny", "float32", (48, 64)
    config.head_filters, config.embedding_width, config.embedding_dim = (8, 8), 8, 8
    config.batch_size = config.eval_batch_size = 8
    config.steps_per_epoch = config.checkpoint_every = config.log_every = 1
    config.warmup_steps, config.pictures, config.evaluate_stages, config.evaluate_every = 0, 2, False, 100
    for stage in config.stages:
        stage.epochs = 1
    return config


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """(folder of random weights of a mixture of two, their flat arrays)."""
    config = small(mdt.get_config("demo"), "synthetic_coco", "")
    config.datasets = ("synthetic_mpii", "synthetic_coco")
    method = build.make_method(config, 1)
    weights = jax.device_get(jax.jit(method.init)(jax.random.key(5)).weights)
    model = method.model
    manifest = {
        "method": "posebh",
        "family": "PoseBH",
        "backbone": dataclasses.asdict(model.size),
        "num_experts": 2,
        "input_size": [48, 64],
        "datasets": [list(pair) for pair in model.datasets],
        "filters": 8,
        "embedding": [8, 8],
    }
    folder = tmp_path_factory.mktemp("mixture") / "weights"
    save_weights(folder, weights, manifest)
    return folder, flatten(weights)


def transfer_to(dataset, data_dir, mixture, workdir, num_stages):
    """Runs it, one step a stage; the configuration and the flat weights after each."""
    config = small(transfer.get_config("demo"), dataset, data_dir)
    config.init_from, config.stages = str(mixture[0]), config.stages[:num_stages]
    assert main.train(config, workdir)
    steps = []
    for step in range(1, num_stages + 1):
        config.checkpoint = str(workdir / "checkpoints" / str(step))
        _, weights, found = sources.load(config, make_mesh())
        assert found == step
        steps.append(flatten(jax.device_get(weights)))
    return config, steps


def changed(before, after, part):
    names = [name for name in after if name.startswith(part)]
    assert names
    return any((before[name] != after[name]).any() for name in names)


def test_a_rendered_skeleton_end_to_end(mixture, tmp_path):
    prepare_synthetic(tmp_path, ["synthetic_crowd"], num_train=3, num_val=2)
    config, (first, second) = transfer_to("synthetic_crowd", tmp_path, mixture, tmp_path / "run", 2)
    before = mixture[1]

    fc2 = "params/backbone/blocks/mlp/fc2/kernel"
    own = before["params/backbone/blocks/mlp/experts/kernel"][:, 1]
    np.testing.assert_array_equal(first[fc2], np.concatenate([before[fc2], own], axis=-1))
    assert not any("experts" in name for name in first)
    assert not changed(before, first, "params/backbone/patch_embed")
    assert not changed(before, second, "params/embedding") and not changed(before, second, "batch_stats/embedding")
    assert changed(first, second, "params/backbone")
    # The head starts from that of synthetic_coco: after one step it is still within the step of its rate.
    renamed = {name.replace("/synthetic_coco/", "/synthetic_crowd/"): value for name, value in before.items()}
    upsampling = "params/heads/synthetic_crowd/upsampling/deconv1/kernel"
    np.testing.assert_allclose(first[upsampling], renamed[upsampling], atol=1.01 * config.learning_rate)
    assert first["params/heads/synthetic_crowd/final/kernel"].shape[-1] == 14
    assert first["prototypes/bank"].shape == (14, 3, 8)
    np.testing.assert_array_equal(first["prototypes/bank"], second["prototypes/bank"])

    rows = json.loads((tmp_path / "run/results/step_2/table.json").read_text())["rows"]
    assert [(row["maps"], row["instances"] > 0) for row in rows] == [("heads", True), ("prototypes", True)]
    again = main.evaluate(config, tmp_path / "again")
    assert again["synthetic_crowd/heads"] == rows[0]["metrics"]


def test_the_baseline_is_transferred_and_is_no_start_for_prototypes(mixture, tmp_path, caplog):
    """ViTPose++ has no embedding head, and a transfer of PoseBH does not learn one."""
    weights, manifest = load_weights(mixture[0])
    for collection in ("params", "batch_stats"):
        del weights[collection]["embedding"]
    del weights["prototypes"]
    save_weights(tmp_path / "heads", weights, manifest | {"embedding": None})
    warned = {}
    for argument in ("demo,multi_head", "demo"):
        config = small(transfer.get_config(argument), "synthetic_crowd", tmp_path)
        config.init_from = str(tmp_path / "heads")
        configuration.check(config)
        method = build.make_method(config, 1)
        caplog.clear()
        state = sources.make_start(config, method.model)(method.init(jax.random.key(0)))
        warned[argument] = [record.message for record in caplog.records if record.levelname == "WARNING"]
        found = flatten({"params": state.params})
        np.testing.assert_array_equal(
            found["params/heads/synthetic_crowd/upsampling/deconv1/kernel"],
            mixture[1]["params/heads/synthetic_coco/upsampling/deconv1/kernel"],
        )
    assert not warned["demo,multi_head"]
    (told,) = warned["demo"]
    assert "has no embedding head, and no stage learns" in told and "transfer:<dataset>,multi_head" in told


def test_real_hands_end_to_end(mixture, tmp_path):
    sample = shared_path("samples/interhand2.6m")
    for split in ("train", "val"):
        for kind in ("data", "camera", "joint_3d"):
            text = (sample / f"test_interhand2.6m_{kind}.json").read_text()
            (tmp_path / f"InterHand2.6M_{split}_{kind}.json").write_text(text)
        annotations = tmp_path / f"InterHand2.6M_{split}_data.json"
        InterHand2d(split, annotations=annotations, images=sample, data_dir=tmp_path, progress=False).prepare()
    transfer_to("interhand2d", tmp_path, mixture, tmp_path / "run", 1)
    rows = json.loads((tmp_path / "run/results/step_1/table.json").read_text())["rows"]
    assert rows[0]["metric"] == "PCK / AUC / EPE" and rows[0]["instances"] == 4
    assert rows[0]["metrics"]["EPE"] > 0


def test_weights_of_another_size_are_one_sentence():
    """Without a list of every array that has another shape."""
    config = configuration.read("mdt:demo", [("init_from", str(EMBEDDED)), ("size", "small")])
    start = sources.make_start(config, build.make_model(config))
    with pytest.raises(ConfigError, match="config.init_from=.* is tiny; the configuration is small: give weights"):
        start(types.SimpleNamespace(weights={}))


def test_what_a_transfer_needs_is_said(mixture, tmp_path):
    config = small(transfer.get_config("demo"), "synthetic_crowd", tmp_path)
    model = build.make_model(config)
    with pytest.raises(ValueError, match="init_from"):
        configuration.check(config)
    config.init_from = str(tmp_path / "absent.pth")
    with pytest.raises((ValueError, OSError), match="absent.pth"):
        sources.make_start(config, model)(types.SimpleNamespace(weights={}))
    config.datasets = ("synthetic_crowd", "synthetic_coco")
    config.init_from = str(mixture[0])
    with pytest.raises(ValueError, match="to one dataset"):
        configuration.check(config)


def test_weights_say_what_is_evaluated(mixture, tmp_path):
    weights, manifest = load_weights(mixture[0])
    config = small(mdt.get_config("demo"), "synthetic_crowd", tmp_path)
    config.checkpoint = str(mixture[0])
    with pytest.raises(ValueError, match="has the heads synthetic_mpii.*you asked for synthetic_crowd"):
        sources.load(config, make_mesh())
    config.size = "base"
    with pytest.raises(ValueError, match="is tiny; the configuration is base: leave --config out and let"):
        sources.load(config, make_mesh())
    config.size, config.input_size = "tiny", (96, 128)
    with pytest.raises(ValueError, match="takes crops of 48x64"):
        sources.load(config, make_mesh())
    config.input_size, config.datasets = (48, 64), tuple(name for name, _ in manifest["datasets"])
    whole = sources.load(config, make_mesh())
    assert whole.step == 0 and whole.model.embedding_dim == 8
    # One of the heads: its expert and its prototypes come along, the others stay behind.
    name, count = manifest["datasets"][1]
    config.datasets = (name,)
    one = sources.load(config, make_mesh())
    assert one.model.datasets == ((name, count),) and one.model.num_experts == 1
    np.testing.assert_array_equal(one.weights["prototypes"]["bank"], whole.weights["prototypes"]["bank"][-count:])
    experts = [flatten(loaded.weights)["params/backbone/blocks/mlp/experts/kernel"] for loaded in (one, whole)]
    np.testing.assert_array_equal(experts[0], experts[1][:, 1:])
    # Without prototypes it is the multi-head baseline, whatever the configuration says.
    for collection in ("params", "batch_stats"):
        del weights[collection]["embedding"]
    del weights["prototypes"]
    save_weights(tmp_path / "heads", weights, manifest | {"embedding": None})
    config.checkpoint = str(tmp_path / "heads")
    heads = sources.load(config, make_mesh())
    assert not heads.model.embedding_dim and not heads.weights["prototypes"]


@pytest.mark.parametrize("datasets", [("synthetic_coco", "synthetic_mpii"), ("synthetic_coco",)])
def test_the_baseline_is_evaluated_from_a_file_of_the_original_names(datasets, tmp_path):
    """A file that does not name its heads, with as many keypoints as the configuration's datasets have."""
    prepare_synthetic(tmp_path, ["synthetic_coco"], num_train=1, num_val=2)
    config = small(multi_head.get_config("demo"), "synthetic_coco", tmp_path)
    config.datasets = datasets
    method = build.make_method(config, 1)
    weights = jax.device_get(jax.jit(method.init)(jax.random.key(5)).weights)
    manifest = manifest_of(method.model, (48, 64), "baseline")
    save_weights(tmp_path / "folder", weights, manifest)
    assert convert_weights.main([str(tmp_path / "folder"), f"--to={tmp_path / 'file.safetensors'}"]) == 0
    for checkpoint in ("folder", "file.safetensors"):
        config.checkpoint = str(tmp_path / checkpoint)
        metrics = main.evaluate(config, tmp_path / "out")
        assert set(metrics) == {"synthetic_coco/heads"}
    config.init_from, config.checkpoint = config.checkpoint, ""
    loaded = sources.make_start(config, method.model)(jax.jit(method.init)(jax.random.key(6)))
    expected = flatten(weights)
    for name, value in flatten(jax.device_get(loaded.weights)).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_evaluation_without_a_configuration(mixture, tmp_path):
    """A run, a folder and a file say themselves what they are; a flag chooses among their heads."""
    weights, manifest = load_weights(mixture[0])
    names = [name for name, _ in manifest["datasets"]]
    prepare_synthetic(tmp_path / "data", names, num_train=1, num_val=2)
    folder = mixture[0]
    asked = [("mode", "evaluate"), ("checkpoint", str(folder)), ("data_dir", str(tmp_path / "data"))]
    config = sources.read_configuration("", asked)
    assert (config.size, config.input_size, list(config.datasets)) == ("tiny", (48, 64), names)
    config = sources.read_configuration("", [*asked, ("datasets", names[1]), (f"boxes.{names[1]}", "ground_truth")])
    config.pictures = 0
    assert set(main.evaluate(config, tmp_path / "out")) == {f"{names[1]}/heads", f"{names[1]}/prototypes"}
    # A file of the original names, whose heads nothing names.
    file = tmp_path / "file.safetensors"
    assert convert_weights.main([str(folder), f"--to={file}"]) == 0
    asked[1] = ("checkpoint", str(file))
    config = sources.read_configuration("", [*asked, ("datasets", ",".join(names))])
    assert config.method == "posebh" and list(config.datasets) == names
