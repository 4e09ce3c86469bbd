from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from configs import boir, mdt
from pose_common.training import configuration
from pose_common.training.checks import leaves
from pose_common.training.usage import comments, usage

CONFIGS = pathlib.Path(mdt.__file__).parent


def test_comments_beside_and_above(tmp_path):
    file = tmp_path / "settings.py"
    lines = ["# Data.", "config.seed = 0", "# How many;", "# 0: none.", "config.count, config.size = 3, 4  # both"]
    file.write_text("\n".join([*lines, '    "momentum": 0.9,  # of the bank']) + "\n")
    said = "How many; 0: none. both"
    assert comments([file]) == {"count": said, "size": said, "momentum": "of the bank"}


def test_settings_are_explained():
    for config, names in ((mdt.get_config(), ("mdt", "common")), (boir.get_config(), ("boir", "common"))):
        said = comments(configuration.own_files(*names))
        top = [name for name, _ in leaves(config) if "." not in name and "[" not in name]
        assert sum(name in said for name in top) > len(top) / 2


def test_a_table_is_explained_at_its_first_entry(tmp_path):
    file = tmp_path / "settings.py"
    file.write_text("config.boxes = table()  # whose they are\n# What follows.\nconfig.stages = [\n")
    config = ConfigDict(
        {"boxes": {"aic": 1, "coco": 2}, "stages": [ConfigDict({"epochs": 3}), ConfigDict({"epochs": 4})]}
    )
    lines = usage("", "", config, [file]).splitlines()[-4:]
    assert lines[:2] == ["boxes.aic = 1  # whose they are", "boxes.coco = 2"]
    assert lines[2:] == ["stages[0].epochs = 3  # What follows.", "stages[1].epochs = 4"]


@pytest.mark.parametrize(
    "name, setting, said",
    [
        ("mdt", "fsdp", "devices that share one copy"),  # not why `huge_v5e` sets it
        ("mdt", "remat", "True: blocks are computed again"),
        ("mdt", "oks_nms", "similarity (OKS)"),  # not what `suppression` may be
        ("mdt", "flip_test", "average the maps"),
        ("boir", "remat", "True: HRNet's modules are computed again"),
        ("boir", "eval_batch_size", "over all devices"),  # not why the small model's is small
        ("boir", "last_window", "side of the window where"),  # not what `windows` are
    ],
)
def test_a_setting_is_explained_by_what_it_means_and_not_by_why_it_is_changed(name, setting, said):
    assert comments([CONFIGS / f"{name}.py", CONFIGS / "common.py"])[setting].startswith(said)


@pytest.mark.parametrize("program", ["posebh_jax.main", "boir_jax.main"])
def test_help_shows_every_setting(program):
    command = [sys.executable, "-m", program, "--help", "--config.seed=41"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    config = mdt.get_config() if program.startswith("posebh") else boir.get_config()
    for name, _ in leaves(config):
        assert f"\n{name} = " in shown, name
    assert "\nseed = 41" in shown and "--workdir: " in shown and "--config.mode=evaluate" in shown
