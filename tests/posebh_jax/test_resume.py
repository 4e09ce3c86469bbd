"""A run through the program's own entry: stopped on the way it goes on to the same losses, to the last bit."""

from __future__ import annotations

import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from configs import mdt
from data_pipelines.builders.synthetic import prepare_synthetic
from data_pipelines.records import DatasetNotPrepared
from pose_common.training.writers import read_metrics
from pose_common.weights.keys import flatten
from posebh_jax import main, sources
from posebh_jax.weights.convert import read_weights
from posebh_jax.weights.manifest import Options
from scripts import convert_weights
from tests.distribution import child_environment

pytestmark = pytest.mark.slow  # kills and restarts training processes

ROOT = pathlib.Path(__file__).resolve().parents[2]
ARGUMENTS = (
    "--config.datasets=('synthetic_coco','synthetic_ap10k')",
    "--config.batch_size=8",
    "--config.input_size=(48,64)",
    "--config.head_filters=(8,8)",
    "--config.embedding_width=8",
    "--config.embedding_dim=8",
    "--config.num_clusters=8",
    "--config.steps_per_epoch=6",
    "--config.log_every=1",
    "--config.checkpoint_every=1000",
    "--config.pictures=0",
    "--config.evaluate_stages=False",
    "--config.evaluate_every=100",
    "--config.warmup_steps=4",
    "--config.stages[0].epochs=0",
    "--config.stages[1].epochs=0",
    "--config.stages[2].epochs=1",
    "--config.stages[3].epochs=1",
    "--config.synthetic.num_train=12",
    "--config.synthetic.num_val=4",
)


def command(data_dir, workdir):
    config = ROOT / "configs" / "mdt.py"
    return [
        sys.executable,
        "-m",
        "posebh_jax.main",
        f"--config={config}:demo",
        f"--workdir={workdir}",
        f"--config.data_dir={data_dir}",
        f"--config.compilation_cache={data_dir}/cache",
        *ARGUMENTS,
    ]


def losses(workdir):
    return {row["step"]: row["loss"] for row in read_metrics(workdir / "metrics.jsonl") if row["split"] == "train"}


@pytest.mark.slow(minutes=1)
def test_killed_within_a_stage_it_goes_on_exactly(tmp_path):
    data_dir = tmp_path / "data"
    prepare_synthetic(data_dir, ["synthetic_coco", "synthetic_ap10k"], num_train=12, num_val=4)
    options = {
        "cwd": ROOT,
        "env": child_environment(devices=2),
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
    }
    whole = subprocess.run(command(data_dir, tmp_path / "whole"), timeout=600, check=False, **options)
    assert whole.returncode == 0, whole.stdout
    stop_at = 3  # in the middle of a stage
    cut = tmp_path / "cut"
    # Also read in a worker process: the same batches, and nothing of its is left behind.
    with subprocess.Popen([*command(data_dir, cut), "--config.loader_workers=1"], **options) as program:
        while program.poll() is None:
            if (cut / "metrics.jsonl").exists() and len((cut / "metrics.jsonl").read_text().splitlines()) >= stop_at:
                program.send_signal(signal.SIGTERM)
                break
            time.sleep(0.02)
        output = program.communicate(timeout=300)[0]
    assert program.returncode == 0 and "leaked" not in output, output
    again = subprocess.run(command(data_dir, cut), timeout=600, check=False, **options)
    assert again.returncode == 0, again.stdout
    assert losses(cut) == losses(tmp_path / "whole"), f"killed after step {stop_at}"
    assert len(losses(cut)) == 12
    the_original_names_hold_the_same(cut, tmp_path / "cut.safetensors")


def the_original_names_hold_the_same(workdir, file):
    """What is written for the original code is what the run holds, experts and prototypes included."""
    assert convert_weights.main([str(workdir), f"--to={file}"]) == 0
    own = sources.read(workdir)
    datasets = tuple(name for name, _ in own.manifest["datasets"])
    num_heads = own.manifest["backbone"]["num_heads"]
    back = read_weights(file, Options(datasets=datasets, num_heads=num_heads, input_size=(48, 64)))
    described = {name: own.manifest[name] for name in back.manifest}
    assert {**back.manifest, "family": ""} == {**described, "family": ""}
    expected, found = flatten(own.weights), flatten(back.weights)
    # The order of the cluster prototypes says which keypoint each is of; the original code's file does not.
    assert set(expected) - set(found) == {"prototypes/clusters/keypoint"}
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_missing_data_name_the_command_and_the_demo(tmp_path):
    config = mdt.get_config("base")
    config.data_dir, config.compilation_cache = str(tmp_path), ""
    with pytest.raises(DatasetNotPrepared, match=r"scripts.prepare_data coco .*\n?.*:demo"):
        main.run(config, tmp_path / "work")
