"""Inputs rebuilt from public bug reports, each a program that says PASS or FAIL of the checkout that it is pointed at.

They are in the folder `shared` beside the checkout, and use the commands and names that scripts of users do.
"""

from __future__ import annotations

import importlib
import pathlib
import subprocess
import sys

import pytest

from configs import boir
from data_pipelines.datasets import find_dataset
from data_pipelines.whole_image import Augmentation, Rules, Train
from tests.distribution import child_environment
from tests.golden_files import SHARED, shared_path

ROOT = pathlib.Path(__file__).resolve().parents[1]
CASES = sorted(path.name for path in (SHARED / "cases").glob("c*.py"))


@pytest.mark.slow(minutes=0.15)  # programs of their own, that prepare and train: 10 seconds each
@pytest.mark.parametrize("case", CASES or ["c*.py"])
def test_a_reported_case(case):
    program = shared_path(f"cases/{case}")
    environment = child_environment(devices=1) | {"POSE_REPO": str(ROOT), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "PASS" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "names"),
    {
        "data_pipelines.loader": ("eval_loader", "train_loader"),
        "data_pipelines.definitions": ("find_dataset",),
        "data_pipelines.records": ("open_records", "load_annotations"),
        "data_pipelines.top_down": ("decode",),
        "data_pipelines.whole_image": ("Rules", "Train", "WholeImageSource"),
        "pose_common.safetensors_files": ("read_safetensors", "write_safetensors"),
    }.items(),
)
def test_names_that_scripts_of_users_import(module, names):
    """They stay, wherever what they name lies."""
    assert all(callable(getattr(importlib.import_module(module), name)) for name in names)


def test_whole_images_are_augmented_as_in_the_configuration_where_nothing_is_said():
    config = boir.get_config("coco_w32")
    train = Train(find_dataset("coco"), 128, Rules())
    assert train.rules == Rules(config.min_area, config.labelled_images)
    assert train.augmentation == Augmentation(**config.augmentation)
    assert train.instances == config.instances
