"""Configurations: every leaf can be set, what cannot be is refused in a line, and resumed runs are compared."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import subprocess
import sys
from unittest import mock

import jax
import pytest
from ml_collections import ConfigDict

from boir_jax import configuration as boir_configuration
from boir_jax import sources as boir_sources
from configs import boir, embedded, mdt, multi_head, transfer
from data_pipelines.builders import BUILDERS
from data_pipelines.datasets import OKS_METRICS, PoseDataset, find_dataset, save_definition
from data_pipelines.skeletons import KeypointSet
from pose_common.training import checks, cli, configuration, parallel
from pose_common.training.checkpoints import Checkpoints
from pose_common.training.checks import ConfigError
from pose_common.training.restore import Run
from posebh_jax import configuration as posebh_configuration
from posebh_jax import sources as posebh_sources
from posebh_jax.pose_model import EMBEDDED
from tests.distribution import ROOT, child_environment
from tests.pose_common.training.toy import ToyMethod

SHIPPED = {
    "mdt": (mdt, ["base", "huge", "large", "small", "demo"]),
    "multi_head": (multi_head, ["base", "demo"]),
    "transfer": (transfer, ["interhand2d", "3dpw", "demo"]),
    "boir": (boir, ["coco_w32", "coco_w48", "crowdpose_w32", "crowdpose_w48_finetune", "demo"]),
    "embedded": (embedded, [""]),
}
FIGURES = {"toy": {"AP": 1.0}}
ALL = [f"{name}:{argument}".strip(":") for name, (_, arguments) in SHIPPED.items() for argument in arguments]


def program(source):
    """The module that reads the configurations of a method."""
    return boir_configuration if "boir" in source else posebh_configuration


def read(source, *arguments):
    """As the program reads its command line."""
    own = program(source)
    given, overrides, others = configuration.split_arguments([f"--config={source}", *arguments])
    assert not others
    return own.read(given, overrides)


def save_checkpoint(workdir, config):
    """As a run of this configuration leaves one."""
    checkpoints = Checkpoints(workdir / "checkpoints")
    state = parallel.make_strategy("sharded").create(ToyMethod().init, jax.random.PRNGKey(1))
    checkpoints.save(1, state, {"notes": {}, "config": json.loads(config.to_json())})
    checkpoints.close()


def other(value):
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return value[:-1] if len(value) > 1 else value * 2
    return f"{value}_" if isinstance(value, str) else value + 1


def test_a_negative_number_is_a_value():
    given = ["--config.seed", "-1", "--config.learning_rate", "-.5", "--config.remat", "--config.mode", "train"]
    overrides = [("seed", "-1"), ("learning_rate", "-.5"), ("remat", "True"), ("mode", "train")]
    assert configuration.split_arguments(given) == ("", overrides, [])


def test_a_file_below_a_folder_with_a_colon(tmp_path):
    folder = tmp_path / "2024-01-05T12:30:00"
    folder.mkdir()
    (folder / "mine.py").write_text("from configs import mdt\n\nget_config = mdt.get_config\n")
    for argument in ("", ":small"):
        assert read(f"{folder}/mine.py{argument}").size == (argument[1:] or "base")


@pytest.mark.parametrize("source", ALL)
def test_every_leaf_can_be_set(source):
    name, _, argument = source.partition(":")
    config = SHIPPED[name][0].get_config(*filter(None, [argument]))
    for leaf, value in checks.leaves(config):
        wanted = other(value)
        _, overrides, others = configuration.split_arguments([f"--config.{leaf}={wanted}"])
        assert not others
        configuration.set_leaves(config, overrides)
        found = dict(checks.leaves(config))[leaf]
        assert found == wanted and type(found) is type(value), leaf


@pytest.mark.parametrize("source", ALL)
def test_what_is_saved_rebuilds_the_configuration(source):
    given = [] if not source.startswith("transfer") else [f"--config.init_from={ROOT}"]
    config = read(source, *given)
    again = program(source).of_run(json.loads(config.to_json()))
    assert configuration.shown(again) == configuration.shown(config)
    assert configuration.require_same_run(json.loads(config.to_json()), config, ()) == []


@pytest.mark.parametrize(
    "arguments, leaf, value",
    [
        (["--config.datasets=coco"], "datasets", ("coco",)),
        (["--config.datasets=coco,mpii"], "datasets", ("coco", "mpii")),
        (["--config.datasets=('coco', 'mpii')"], "datasets", ("coco", "mpii")),
        (["--config.datasets", "coco,mpii"], "datasets", ("coco", "mpii")),
        (["--config.input_size=384,288"], "input_size", (384, 288)),
        (["--config.remat"], "remat", True),
        (["--noconfig.augment"], "augment", False),
        (["--config.datasets=crowdpose", "--config.codec.crowdpose=udp"], "codec.crowdpose", "udp"),
        (["--config.mixture=weighted", "--config.mixture_weights.coco=2"], "mixture_weights.coco", 2.0),
        (["--config.stages[1].epochs=3"], "stages[1].epochs", 3),
    ],
)
def test_ways_to_write_a_value(arguments, leaf, value):
    assert dict(checks.leaves(read("mdt", *arguments)))[leaf] == value


def test_default_splits_are_of_all_datasets_that_have_none_of_their_own():
    given = ["--config.default_train_split=trainval", "--config.default_eval_split=test"]
    config = read("mdt", "--config.datasets=coco,crowdpose", *given, "--config.eval_splits.coco=val")
    assert config.train_splits.to_dict() == {"coco": "train", "crowdpose": "trainval"}, "coco's is in the file"
    assert config.eval_splits.to_dict() == {"coco": "val", "crowdpose": "test"}


@pytest.mark.parametrize("name", sorted(set(BUILDERS) - {"custom", "ochuman"}))  # OCHuman is none to train on
def test_a_dataset_is_trained_and_evaluated_on_splits_that_it_has(name):
    there = set(BUILDERS[name].splits)
    mixture = read("mdt", f"--config.datasets=coco,{name}" if name != "coco" else "--config.datasets=coco")
    assert {mixture.train_splits[name], mixture.eval_splits[name]} <= there
    transfer = read("transfer:interhand2d", f"--config.datasets={name}", "--config.init_from=README.md")
    assert {transfer.train_splits[name], transfer.eval_splits[name]} <= there
    if find_dataset(name).metric in OKS_METRICS:  # BoIR refuses the others
        single = read(f"boir:{name}")
        assert {single.train_split, single.eval_split} <= there


def test_weights_of_a_mixture_come_in_its_order():
    config = read("mdt", "--config.datasets=mpii,coco", "--config.mixture=weighted", "--config.mixture_weights.coco=3")
    assert posebh_configuration.mixture(config) == [1.0, 3.0]


def test_tables_hold_the_datasets_of_the_run_and_no_others():
    config = read("mdt", "--config.datasets=coco,crowdpose")
    assert set(config.boxes) == set(config.train_splits) == {"coco", "crowdpose"}
    assert set(config.codec) == {"coco", "crowdpose", "ochuman"}


@pytest.mark.parametrize(
    "source, argument, message",
    [
        ("mdt:bas", "", r"--config=mdt:bas: .*expected one of base, huge.*did you mean 'base'"),
        ("mtd", "", r"--config=mtd: there is no such file; shipped are boir, embedded, mdt.*did you mean 'mdt'"),
        ("mdt", "size=basee", r"config.size='basee': expected one of tiny, small.*did you mean 'base'"),
        ("mdt", "mode=eval", r"config.mode='eval': expected one of train, evaluate"),
        ("mdt", "batchsize=2", r"--config.batchsize: there is no such field; did you mean 'batch_size'"),
        ("mdt", "losses.momentun=0.9", r"losses.momentun: expected one of .*did you mean 'losses.momentum'"),
        ("mdt", "losses=3", r"--config.losses is a table; set one of its fields"),
        ("mdt", "stages[7].epochs=3", r"--config.stages\[7\].epochs"),
        ("mdt", "batch_size=many", r"--config.batch_size='many': expected a whole number, such as 512"),
        ("mdt", "batch_size=2.5", r"expected a whole number"),
        ("mdt", "batch_size=0", r"config.batch_size=0: expected a number above 0"),
        ("mdt", "learning_rate=inf", r"config.learning_rate=inf: expected a number above 0"),
        ("mdt", "weight_decay=nan", r"config.weight_decay=nan: expected a number$"),
        ("mdt", "keep_checkpoints=0", r"config.keep_checkpoints=0: expected a number above 0"),
        ("mdt", "remat=perhaps", r"expected true or false"),
        ("mdt", "datasets=cocoo", r"config.datasets: unknown dataset 'cocoo'.*did you mean 'coco'"),
        ("mdt", "datasets=coco,coco", r"each once"),
        ("mdt", "datasets=()", r"expected one name or more"),
        ("mdt", "codec.coco=dark", r"config.codec.coco='dark': expected one of udp, msra"),
        ("mdt", "mixture=heavy", r"config.mixture='heavy': expected one of concat, balanced, weighted"),
        ("mdt", "boxes.coco=absent.json", r"config.boxes.coco='absent.json': there is no such file"),
        ("mdt", "input_size=190,256", r"config.input_size=\(190, 256\): expected .*multiples of 16"),
        ("mdt", "input_size=192.0,256.0", r"config.input_size=\(192.0, 256.0\): expected .*multiples of 16"),
        ("mdt", "dark_kernel=10", r"config.dark_kernel=10: expected an odd number"),
        ("mdt", "losses.cross_type_kernel=12", r"config.losses.cross_type_kernel=12: expected an odd number"),
        ("mdt", "losses.momentum=2", r"config.losses.momentum=2.0: expected a number from 0 to 1"),
        ("mdt", "warmup_steps=-5", r"config.warmup_steps=-5: expected a number from 0"),
        ("mdt", "decay_factor=nan", r"config.decay_factor=nan: expected a number$"),
        ("mdt", "drop_path=1.0", r"config.drop_path=1.0: expected a number from 0 to below 1"),
        ("mdt", "padding.coco=0", r"config.padding.coco=0.0: expected a number above 0"),
        ("mdt", "padding.coco=-1", r"config.padding.coco=-1.0: expected a number above 0"),
        ("mdt", "heatmap_sigma=0", r"config.heatmap_sigma=0.0: expected a number above 0"),
        ("mdt", "losses.sinkhorn_epsilon=0", r"config.losses.sinkhorn_epsilon=0.0: expected a number above 0"),
        ("mdt", "losses.cross_type_sigma=0", r"config.losses.cross_type_sigma=0.0: expected a number above 0"),
        ("mdt", "embedding_width=0", r"config.embedding_width=0: expected a number above 0"),
        ("mdt", "head_filters=256,0", r"config.head_filters\[1\]=0: expected a number above 0"),
        ("mdt", "head_filters=25.5,256", r"config.head_filters=\(25.5, 256\): expected the widths"),
        ("mdt", "rescoring_threshold=nan", r"config.rescoring_threshold=nan: expected a number$"),
        ("mdt", "adam.b1=1.5", r"config.adam.b1=1.5: expected a number from 0 to below 1"),
        ("mdt", "adam.eps=0", r"config.adam.eps=0.0: expected a number above 0"),
        ("mdt", "layer_decay=-1", r"config.layer_decay=-1.0: expected a number from 0"),
        ("mdt", "clusters.rounds=-1", r"config.clusters.rounds=-1: expected a number from 0"),
        ("mdt", "losses.cluster_weight=-1", r"config.losses.cluster_weight=-1.0: expected a number from 0"),
        ("mdt:demo", "synthetic.num_train=-1", r"config.synthetic.num_train=-1: expected a number of pictures, or 0"),
        ("mdt", "oks_nms=0", r"config.oks_nms=0.0: expected a number above 0"),
        ("mdt", "augmentation.flip=50", r"config.augmentation.flip=50.0: expected a number from 0 to 1$"),
        ("mdt", "augmentation.scale_factor.coco=1", r"scale_factor.coco=1.0: expected a number from 0 to below 1$"),
        ("mdt", "augmentation.rotation_factor.coco=-4", r"rotation_factor.coco=-4.0: expected a number from 0"),
        ("mdt", "mixture_weights.coco=5", r"config.mixture_weights.coco=5.0: .*set config.mixture=weighted"),
        ("mdt", "mixture_weights.coco=-5", r"config.mixture_weights.coco=-5.0: expected a number above 0"),
        ("mdt", "num_clusters=500", r"config.num_clusters=500: expected fewer than the 214 keypoints"),
        ("mdt", "clusters.options=256,300", r"config.clusters.options=\(256, 300\): no number .* below the 214"),
        ("mdt", "clusters.options=0,64", r"config.clusters.options=\(0, 64\): expected whole numbers .* from 1"),
        ("mdt", "clusters.options=()", r"config.clusters.options=\(\): expected whole numbers"),
        ("mdt", "clusters.options=1.5,64", r"config.clusters.options=\(1.5, 64\): expected whole numbers"),
        ("multi_head", "stages[0].prototypes=true", r"config.stages\[0\].prototypes=True.*'prototype'"),
        ("mdt:demo", "eval_also=('coco','val','coco')", r"config.eval_also: 'coco' is not \(dataset, split, head"),
        ("mdt", "eval_also=(('coco','val','aic2'),)", r"config.eval_also: the head of .* is none of"),
        ("mdt", "eval_also=(('coco','val','mpii'),)", r"the head of .* draws 'mpii' keypoints, 'coco' has 'coco'"),
        ("mdt", "eval_also=((1,2,3),)", r"config.eval_also: \(1, 2, 3\) is not \(dataset, split, head"),
        ("boir:coco_w3", "", r"--config=boir:coco_w3: .*expected"),
        ("boir", "size=w18", r"config.size='w18': expected one of .*w32"),
        ("boir", "losses.background=none", r"config.losses.background='none'"),
        ("boir", "dataset=crowdpos", r"config.dataset: unknown dataset 'crowdpos'.*did you mean 'crowdpose'"),
        ("boir", "dataset=interhand2d", r"config.dataset: 'interhand2d' is judged box by box \(metric 'hand'\)"),
        ("boir:mpii", "", r"config.dataset: 'mpii' is judged .*use posebh_jax"),
        ("boir", "warmup_epochs=-3", r"config.warmup_epochs=-3.0: expected a number from 0"),
        ("boir", "smoothing.default=4", r"config.smoothing.default=4: expected an odd number"),
        ("boir", "smoothing.ochuman=-1", r"config.smoothing.ochuman=-1: expected an odd number"),
        ("boir", "proposals.windows=((200,4),)", r"config.proposals.windows=4: expected an odd number"),
        ("boir", "proposals.windows=((200,),)", r"config.proposals.windows: \(200,\) is not \(largest mean side"),
        ("boir", "proposals.windows=(('a',3),)", r"config.proposals.windows: \('a', 3\) is not \(largest mean side"),
        ("boir", "eval_also=((1,2),)", r"config.eval_also: \(1, 2\) is not \(dataset, split\)"),
        ("boir", "warmup_start=-1", r"config.warmup_start=-1.0: expected a number from 0"),
        ("boir", "proposals.last_window=4", r"config.proposals.last_window=4: expected an odd number"),
        ("boir", "proposals.maximum=0", r"config.proposals.maximum=0: expected a number above 0"),
        ("boir", "proposals.threshold=-0.1", r"config.proposals.threshold=-0.1: expected a number from 0 to below 1"),
        ("boir", "oks_nms.default=-1", r"config.oks_nms.default=-1.0: expected a number from 0 to 1"),
        ("boir", "augmentation.mirror=7", r"config.augmentation.mirror=7.0: expected a number from 0 to 1"),
        ("boir", "augmentation.translation=-1", r"config.augmentation.translation=-1.0: expected a number from 0"),
        ("boir", "norm_group=-2", r"config.norm_group=-2: expected a number from 0"),
        ("boir", "min_area=nan", r"config.min_area=nan: expected a number$"),
        ("boir", "losses.beta=nan", r"config.losses.beta=nan: expected a number$"),
        ("boir", "losses.images_per_device=0", r"config.losses.images_per_device=0: expected a number above 0"),
        ("boir", "augmentation.scale=1.5,0.75", r"config.augmentation.scale=\(1.5, 0.75\): expected the least"),
        ("transfer", "mode=train", r"config.init_from='': a transfer starts from weights"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(source, argument, message):
    with pytest.raises(ConfigError, match=message) as refused:
        read(source, *[f"--config.{argument}"] * bool(argument))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "source, own, commands", [("boir", posebh_sources, "boir_jax"), ("mdt", boir_sources, "posebh_jax")]
)
def test_a_configuration_of_the_other_method(source, own, commands):
    with pytest.raises(ConfigError, match=f"the configuration is one of .*: use the commands of {commands}"):
        own.read_configuration(source)


def test_clusters_of_small_mixtures(tmp_path):
    for count in (1, 2):
        skeleton = KeypointSet("dots", tuple("ab"[:count]), sigmas=(0.05,) * count)
        save_definition(PoseDataset("dots", "dots", skeleton=skeleton), tmp_path)
        asked = ("mdt", f"--config.data_dir={tmp_path}", "--config.datasets=dots")
        if count == 1:
            with pytest.raises(
                ConfigError, match="config.stages: the term 'cluster' needs two keypoints, dots has one"
            ):
                read(*asked)
    assert read(*asked).num_clusters == 0


def test_evaluation_needs_a_checkpoint_that_is_there(tmp_path):
    with pytest.raises(ConfigError, match=f"config.checkpoint='{tmp_path}/absent'"):
        read("mdt", "--config.mode=evaluate", f"--config.checkpoint={tmp_path}/absent")


def test_batches_and_devices():
    """Of eight devices, which the tests have."""
    for given, possible in ((12, "8 or 16"), (3, "8"), (17, "16 or 24")):
        config = read("mdt:demo", f"--config.batch_size={given}")
        message = (
            rf"config.batch_size={given} does not divide over 8 devices; expected a multiple of 8, such as {possible}$"
        )
        with pytest.raises(ConfigError, match=message):
            checks.check_batch(config)
    assert checks.check_batch(read("mdt:demo", "--config.batch_size=24")) is None
    for source, size in (("mdt:demo", "96x128"), ("boir:demo", "128x128")):
        config = read(source, "--config.batch_size=1000000000000")
        with pytest.raises(ConfigError, match=f"config.batch_size=1000000000000: a batch of pictures of {size} takes"):
            checks.check_batch(config)
    sizes = [checks.whole_eval_batch(read("mdt:demo", f"--config.eval_batch_size={n}")) for n in (1, 8, 9, 64)]
    assert sizes == [8, 8, 16, 64]


def test_steps_to_trace():
    assert read("mdt:demo", "--config.profile_steps=100,102").profile_steps == (100, 102)
    for wrong in ("3", "3,1", "0,1", "1,2,3", "a,b"):
        with pytest.raises(ConfigError, match="config.profile_steps=.* the first and the last step, such as 100,102"):
            read("mdt:demo", f"--config.profile_steps={wrong}")


def test_settings_that_would_do_nothing():
    with pytest.raises(
        ConfigError, match="config.checkpoint='a.pth' is what config.mode=evaluate evaluates; .*init_from"
    ):
        read("mdt:demo", "--config.checkpoint=a.pth")
    for every, kept in ((2, 3), (0, 1000)):
        with pytest.raises(
            ConfigError, match=f"config.keep_checkpoints_every={kept}: expected a multiple of .*={every},"
        ):
            read("mdt:demo", f"--config.checkpoint_every={every}", f"--config.keep_checkpoints_every={kept}")
    read("mdt:demo", "--config.checkpoint_every=2", "--config.keep_checkpoints_every=4")


def refused(folder, *arguments):
    """The last line of the program, started in a folder, which ends with an error."""
    command = [sys.executable, "-m", "posebh_jax.main", *arguments]
    environment = child_environment(devices=1) | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_the_program_says_it_without_a_traceback(tmp_path):
    assert refused(tmp_path, "--config=mdt:bas", "--workdir=run").startswith("error: --config=mdt:bas")
    assert not (tmp_path / "run").exists(), "refused before anything is made"


def test_the_program_says_in_a_line_that_another_renders_its_data(tmp_path):
    save_checkpoint(tmp_path / "run", read("mdt:demo"))
    lock = tmp_path / "data" / "synthetic_coco" / "train" / ".lock"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        said = refused(tmp_path, "--config=mdt:demo", "--workdir=run", "--config.data_dir=data")
    assert said.startswith("error: data/synthetic_coco/train is being prepared by another process")
    log = (tmp_path / "run/logs/host_0.log").read_text()
    assert "changed since the run was started: config.data_dir: 'workdir/demo_data' -> 'data'" in log


def test_the_program_goes_on_by_the_settings_of_the_run(tmp_path):
    save_checkpoint(tmp_path / "run", read("mdt:demo", "--config.seed=5"))
    said = refused(tmp_path, "--workdir=run", "--config.seed=6")
    assert "config.seed: 5 -> 6. Start another run" in said and said.count(" -> ") == 1


def test_the_program_evaluates_in_a_folder_of_its_own(tmp_path):
    said = refused(tmp_path, "--config.mode=evaluate", f"--config.checkpoint={EMBEDDED}")
    assert "nothing was evaluated, for the reasons above" in said
    (folder,) = (tmp_path / "workdir").glob("*/*")
    assert folder.parent.name == "evaluated" and folder.name.endswith("posebh_jax_embedded.safetensors")


def test_resuming_with_other_settings():
    saved = json.loads(read("mdt:demo").to_json())
    changed = read(
        "mdt:demo", "--config.log_every=5", "--config.boxes.synthetic_coco=ground_truth", "--config.pictures=0"
    )
    notes = configuration.require_same_run(saved, changed, posebh_configuration.FREE)
    assert notes == ["config.log_every: 30 -> 5", "config.pictures: 12 -> 0"]
    for leaf, value in (
        ("batch_size", 8),
        ("seed", 1),
        ("mixture", "balanced"),
        ("stages[0].epochs", 3),
        ("losses.momentum", 0.9),
        ("datasets", "synthetic_coco"),
        ("size", "small"),
    ):
        other_run = read("mdt:demo", f"--config.{leaf}={value}")
        with pytest.raises(ConfigError) as refused:
            configuration.require_same_run(saved, other_run, posebh_configuration.FREE)
        assert f"config.{leaf}" in str(refused.value) and "--accept_changes" in str(refused.value)
        assert configuration.require_same_run(saved, other_run, posebh_configuration.FREE, accept=True)


def test_what_is_only_evaluated_may_change():
    """With its entries in the tables: nothing of the training is another."""
    saved = json.loads(read("mdt:base").to_json())
    for rows in ("()", "(('synthetic_coco','val','coco'),)"):
        notes = configuration.require_same_run(
            saved, read("mdt:base", f"--config.eval_also={rows}"), posebh_configuration.FREE
        )
        assert any("codec.ochuman" in note for note in notes)
    with pytest.raises(ConfigError, match="codec.coco"):
        changed = read("mdt:base", "--config.eval_also=()", "--config.codec.coco=msra")
        configuration.require_same_run(saved, changed, posebh_configuration.FREE)


def test_an_evaluation_is_recorded_where_no_training_run_is(tmp_path, capsys):
    config = read("mdt:demo", "--config.seed=5")
    config.mode = "evaluate"
    cli.conclude_evaluation(config, tmp_path, FIGURES, step=7)
    assert capsys.readouterr().out == f"results: {tmp_path}/results/step_7\n"
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 5
    (tmp_path / "checkpoints").mkdir()
    config.seed = 6
    cli.conclude_evaluation(config, tmp_path, FIGURES, step=7)
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 5, "the training run's own"


@pytest.mark.parametrize("source", ["transfer:demo", "boir:demo"])
def test_a_run_goes_on_without_the_weights_it_started_from(source, tmp_path):
    config = read(source, "--config.init_from=/nonexistent.pth")
    with pytest.raises(ConfigError, match="config.init_from='/nonexistent.pth': there is no such file or folder"):
        cli.follow_run(config, tmp_path, program(source).METHODS, program(source).FREE, accept_changes=False)
    save_checkpoint(tmp_path, config)
    cli.follow_run(config, tmp_path, program(source).METHODS, program(source).FREE, accept_changes=False)
    start = boir_sources.make_start(config) if "boir" in source else posebh_sources.make_start(config, model=None)
    assert callable(start), "it reads nothing before it is called"


def test_a_run_keeps_what_it_started_from(tmp_path, caplog):
    save_checkpoint(tmp_path, read("mdt:demo", "--config.init_from=first.pth"))
    for given in ("first.pth", "second.pth", ""):
        config = read("mdt:demo", f"--config.init_from={given}")
        cli.follow_run(config, tmp_path, posebh_configuration.METHODS, posebh_configuration.FREE, False)
        assert config.init_from == "first.pth"
    assert caplog.text.count("config.init_from") == 1
    assert "config.init_from=second.pth: ignored, the run started from 'first.pth'" in caplog.text


@pytest.mark.parametrize("source", ["mdt:demo", "multi_head:demo", "boir:demo"])
def test_without_a_configuration_a_run_goes_on_by_its_own(source, tmp_path):
    config, sources = read(source, "--config.seed=5"), (boir_sources if "boir" in source else posebh_sources)
    config.synthetic = ConfigDict()  # unlike that of any small model that is shipped
    save_checkpoint(tmp_path, config)
    again = sources.read_configuration("", [("log_every", "7")], str(tmp_path))
    config.log_every = 7
    assert configuration.shown(again) == configuration.shown(config)
    cli.follow_run(again, tmp_path, program(source).METHODS, program(source).FREE, accept_changes=False)
    assert sources.read_configuration("", (), str(tmp_path / "empty")).seed == 0, "there is no run"


def test_a_run_of_the_other_method_is_told_with_the_command_for_it(tmp_path):
    save_checkpoint(tmp_path, read("mdt:demo"))
    message = f"{tmp_path} is a run of posebh, which is not boir: .*python -m posebh_jax.main$"
    with pytest.raises(ValueError, match=message):
        boir_sources.read_configuration("", (), str(tmp_path))
    own = boir_configuration
    with pytest.raises(ValueError, match=message):
        cli.follow_run(read("boir:demo"), tmp_path, own.METHODS, own.FREE, accept_changes=True)


def test_a_file_that_is_no_configuration_says_what_is(tmp_path):
    (tmp_path / "mdt.json").write_text("{}")
    for source in (tmp_path / "mdt.json", tmp_path):
        with pytest.raises(ConfigError, match=f"--config={source}: expected a Python file .* --config left out$"):
            read(str(source))


def test_an_older_runs_configuration_is_completed():
    """As it was saved when defaults of the code stood for what a configuration left out."""
    config = json.loads(read("mdt:huge").to_json())
    for name in (
        "adam",
        "clusters",
        "codec",
        "padding",
        "augmentation",
        "warmup_ratio",
        "drop_path",
        "mixture_weights",
    ):
        del config[name]
    config |= {"losses": {}, "layer_decay": True}
    again = posebh_configuration.of_run(config)
    assert configuration.shown(again) == configuration.shown(read("mdt:huge"))


@pytest.mark.parametrize(("source", "setting"), [("mdt", "datasets"), ("boir", "dataset")])
def test_a_custom_dataset_may_be_what_was_meant(source, setting, tmp_path):
    skeleton = KeypointSet("puppets", ("a", "b"), sigmas=(0.05,) * 2)
    save_definition(PoseDataset("puppets", "puppets", skeleton=skeleton), tmp_path)
    with pytest.raises(ConfigError, match=f"config.{setting}: unknown dataset 'puppet'.* did you mean 'puppets'"):
        read(source, f"--config.data_dir={tmp_path}", f"--config.{setting}=puppet")


@pytest.mark.parametrize("source", ["mdt:base", "boir:mine"])
def test_a_run_knows_its_custom_datasets_without_their_data(source, tmp_path):
    given, moved = tmp_path / "given", tmp_path / "moved"
    skeleton = KeypointSet("mine", ("a", "b", "c"), ((0, 1),), limbs=((0, 2),), sigmas=(0.05,) * 3)
    mine = PoseDataset("mine", "mine", skeleton=skeleton)
    save_definition(mine, given)
    own, sources = program(source), (boir_sources if "boir" in source else posebh_sources)
    settings = ["--config.datasets=mine"] * (source == "mdt:base")
    config = read(source, f"--config.data_dir={given}", *settings)
    saved = json.loads(config.to_json())
    assert configuration.require_same_run(saved, config, own.FREE) == []
    given.rename(moved)
    again = own.of_run(saved)
    assert (own.dataset(again, "mine") if "mdt" in source else own.dataset(again)) == mine

    # An older run has no definition: the data says it, where it is now.
    del saved["definitions"]
    with pytest.raises(ConfigError, match="unknown dataset 'mine'"):
        own.dataset(own.of_run(saved))
    overrides = [("mode", "evaluate"), ("checkpoint", str(tmp_path)), ("data_dir", str(moved))]
    with mock.patch("pose_common.training.restore.find_run", return_value=Run(saved, None)):
        assert list(sources.read_configuration("", overrides).definitions) == ["mine"]


def test_a_file_of_ones_own(tmp_path, monkeypatch):
    file = tmp_path / "mine.py"
    file.write_text("from configs import mdt\ndef get_config():\n  c = mdt.get_config()\n  c.seed = 7\n  return c\n")
    assert read(str(file), "--config.batch_size=64").seed == 7
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read("~/mine.py").seed == 7


@pytest.mark.parametrize(
    "source, change, message",
    [
        ("mdt", "c.lerning_rate = 0.1", "config.lerning_rate: there is no such field; did you mean 'learning_rate'"),
        ("mdt", "c.xyz = 'mine'", "config.xyz: there is no such field, and nothing would read it"),
        ("mdt", "c.losses.momentun = 1", "config.losses.momentun: there is no such field; did you mean 'momentum'"),
        ("mdt", "del c.losses", "config.losses: the configuration has no such field, and it is needed"),
        ("mdt", "del c.adam.b1", "config.adam.b1: the configuration has no such field"),
        ("mdt", "del c.losses; c.losses = 3", "config.losses=3: expected a table"),
        ("mdt", "del c.stages[1].losses", r"config.stages\[1\].losses: the configuration has no such field"),
        ("mdt", "c.stages[0].epoch = 3", r"config.stages\[0\].epoch: there is no such field; did you mean 'epochs'"),
        ("boir", "c.proposals.flipp = True", "config.proposals.flipp: there is no such field; did you mean 'flip'"),
        ("boir", "del c.dataset", "config.dataset: the configuration has no such field"),
        ("boir", "del c.smoothing['default']", "config.smoothing.default: the configuration has no such field"),
    ],
)
def test_fields_of_ones_own_file_are_those_that_are_read(tmp_path, source, change, message):
    file = tmp_path / "mine_boir.py" if source == "boir" else tmp_path / "mine.py"
    lines = (f"c = {source}.get_config()", change, "return c")
    file.write_text(f"from configs import {source}\ndef get_config():\n  " + "\n  ".join(lines) + "\n")
    with pytest.raises(ConfigError, match=message) as refused:
        read(str(file))
    assert "\n" not in str(refused.value)


def test_entries_of_datasets_in_ones_own_file_have_any_name(tmp_path):
    file = tmp_path / "mine.py"
    lines = ("c = mdt.get_config()", "c.codec.crowdpose = 'udp'", "c.datasets = ('crowdpose',)", "return c")
    file.write_text("from configs import mdt\ndef get_config():\n  " + "\n  ".join(lines) + "\n")
    assert read(str(file)).codec.to_dict() == {"crowdpose": "udp"}


@pytest.mark.parametrize(
    "text, message",
    [
        ("from . import common", "ImportError"),
        ("seed = 7", r"expected a Python file with get_config\(\)"),
        ("def get_config(): pass", r"get_config\(\) returns a NoneType, not a ConfigDict"),
        ("def get_config(): return 1 + 'a'", "TypeError: unsupported operand"),
    ],
)
def test_a_file_that_makes_no_configuration_is_named(tmp_path, text, message):
    (tmp_path / "mine.py").write_text(text + "\n")
    with pytest.raises(ConfigError, match=f"mine.py: {message}"):
        read(str(tmp_path / "mine.py"))


def test_configs_of_another_project_are_not_ours(tmp_path, monkeypatch):
    """A package `configs` that comes first on the path, as where the program is started."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/__init__.py").touch()
    monkeypatch.delitem(sys.modules, "configs")
    monkeypatch.syspath_prepend(tmp_path)
    found = importlib.util.find_spec("configs")
    assert list(found.submodule_search_locations) == [str(tmp_path / "configs")]
    assert tmp_path / "configs" not in configuration._own_folders()
