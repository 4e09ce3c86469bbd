from __future__ import annotations

import subprocess
import sys

import pytest

from configs import boir, mdt
from pose_common.training import configuration
from pose_common.training.configuration import leaves
from pose_common.training.usage import comments


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


@pytest.mark.parametrize("program", ["posebh_jax.main", "boir_jax.main"])
def test_help_shows_every_setting(program):
    command = [sys.executable, "-m", program, "--help", "--config.seed=41"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    config = mdt.get_config() if program.startswith("posebh") else boir.get_config()
    for name, _ in leaves(config):
        assert f"\n{name} = " in shown, name
    assert "\nseed = 41" in shown and "--workdir: " in shown and "--config.mode=evaluate" in shown
