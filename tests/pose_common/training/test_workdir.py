"""The working directory is found unusable before the first step, and a disk that fills leaves the last checkpoint."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import os
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from etils import epath

from data_pipelines.paths import absolute, as_path
from pose_common.training import loop, parallel, workdir
from pose_common.training.checkpoints import Checkpoints
from pose_common.training.checks import ConfigError, require_path
from pose_common.weights.folder import load_weights, save_weights
from tests.pose_common.training.test_loop import SETTINGS
from tests.pose_common.training.toy import ToyData, ToyMethod

pytestmark = pytest.mark.slow  # compiles a training step

Usage = collections.namedtuple("Usage", "total used free")


@contextlib.contextmanager
def mounted(folder, *options):
    """A file system of its own at `folder`; skips where the tests may not mount."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mount {' '.join(options)}: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def train(folder, data=None, settings=SETTINGS):
    strategy = parallel.make_strategy("sharded")
    return loop.train(ToyMethod(), data or ToyData(), strategy, settings, folder, key=jax.random.PRNGKey(0))


def test_a_second_start_leaves_the_first_ones_files_alone(tmp_path, monkeypatch):
    """Both would end at a checkpoint that the other one writes."""
    monkeypatch.setattr(loop, "alone", functools.partial(workdir.alone, patience=0.2))
    with workdir.alone(tmp_path):
        (tmp_path / "metrics.jsonl").write_text("")
        before = sorted(tmp_path.iterdir())
        with pytest.raises(ConfigError, match=rf"a run is going on here \(process {os.getpid()} on "):
            train(tmp_path)
        assert sorted(tmp_path.iterdir()) == before


def test_a_run_that_was_killed_holds_no_folder(tmp_path):
    program = "import sys, time; from pose_common.training.workdir import *\n"
    program += "with alone(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    first = subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True)
    assert first.stdout and first.stdout.readline() == "held\n"
    with pytest.raises(ConfigError, match=f"process {first.pid} on "), workdir.alone(tmp_path, patience=0):
        pass
    first.kill()
    first.wait()
    with workdir.alone(tmp_path, patience=0):
        assert (tmp_path / workdir.LOCK).read_text().startswith(f"process {os.getpid()} on ")


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    workdir.make_workdir(tmp_path / "new" / "folder")
    assert not list((tmp_path / "new" / "folder").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"^--workdir=.*/file/run cannot be written: Not a directory$"):
        workdir.make_workdir(tmp_path / "file" / "run")
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs") as disk:
        with pytest.raises(ConfigError, match=r"^--workdir=.*/disk/run cannot be written: Read-only file system$"):
            workdir.make_workdir(disk / "run")
        with pytest.raises(ConfigError, match=r"^--workdir=.*/disk cannot be written: Read-only file system$"):
            workdir.make_workdir(disk)


def test_room_for_the_checkpoints(tmp_path, monkeypatch, caplog):
    state = ToyMethod().init(jax.random.PRNGKey(0))
    one = workdir.checkpoint_bytes(state)
    # Two layers, as parameters and as two moments; a mean and a bank of sixteen.
    assert one == 4 * (3 * (8 * 16 + 16 * 4) + 2 * 16)

    def free(count: float) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, int(count * one)))

    free(4)
    workdir.require_space(tmp_path, state, keep=3, there=0)
    free(1)
    workdir.require_space(tmp_path, state, keep=3, there=3)
    assert not caplog.records
    workdir.require_space(tmp_path, state, keep=3, there=1)
    assert "0.0 MiB are free, the run's checkpoints take up to 0.0 MiB more (3 and one" in caplog.text
    free(3.5)
    workdir.require_space(tmp_path, state, keep=3, there=0)
    assert len(caplog.records) == 2, "the oldest is there until the fourth is written"
    free(0.9)
    with pytest.raises(OSError, match=r"free, a checkpoint takes up to .*config.keep_checkpoints"):
        train(tmp_path)


def test_a_disk_that_fills_stops_the_run_and_leaves_the_last_checkpoint(tmp_path):
    """Real, of 4 MiB, filled to the last block after the checkpoint at step 4; with room again it goes on exactly."""

    class Filling(ToyData):
        def __next__(self):
            if self.position == 5:
                while not (disk / "checkpoints" / "4").is_dir():  # it is written beside the training
                    time.sleep(0.01)
                with contextlib.suppress(OSError), (disk / "others").open("wb", buffering=0) as file:
                    while True:
                        file.write(bytes(4096))
            return super().__next__()

    settings = dataclasses.replace(SETTINGS, log_every=3)
    expected, _ = train(tmp_path / "whole", settings=settings)
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=4m", "tmpfs") as disk:
        with pytest.raises(OSError, match="No space left on (the )?device") as stopped:
            train(disk, Filling(), settings)
        assert "\n" not in str(stopped.value) and str(disk) in str(stopped.value)
        assert Checkpoints(disk / "checkpoints", read_only=True).latest_step == 4
        (disk / "others").unlink()
        state, complete = train(disk, settings=settings)
        assert complete
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(expected))
        assert not list((disk / "checkpoints").glob("*tmp*")), "what was half written is cleared away"


@pytest.mark.parametrize("name", ["run [1]", "run*", "run?"])
def test_what_orbax_takes_for_a_pattern_is_refused_before_anything_is_written(tmp_path, name):
    """It would leave arrays in parts that it cannot read again."""
    where = tmp_path / name / "there"
    for write in (Checkpoints, lambda folder: save_weights(folder, {"params": {"a": np.ones(2)}}, {})):
        with pytest.raises(ValueError, match=r"cannot be written below a folder with \[, \* or \? in its name"):
            write(where)
    assert not where.exists()
    (tmp_path / "moved").mkdir()
    save_weights(tmp_path / "moved" / "there", {"params": {"a": np.ones(2)}}, {})
    (tmp_path / "moved").rename(tmp_path / name)
    np.testing.assert_array_equal(load_weights(where)[0]["params"]["a"], 1)


def test_a_path_from_home(monkeypatch, tmp_path):
    """A shell leaves the ~ of --workdir=~/run as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert as_path("~/run") == tmp_path / "run" and absolute("~/run") == epath.Path(tmp_path / "run")
    (tmp_path / "weights").mkdir()
    require_path("checkpoint", "~/weights", "a folder")


@pytest.mark.parametrize("address", ["file:///weights.pth", "https://host/weights.pth", "s3://bucket/weights.pth"])
def test_an_address_of_weights_is_named_with_its_field(address):
    with pytest.raises(ConfigError, match=f"config.init_from: {address} is no path: "):
        require_path("init_from", address, "a file")
