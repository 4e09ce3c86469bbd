"""What the training programs of both methods have in common."""

from __future__ import annotations

import asyncio
import pathlib
import sys
import types

import pytest
from ml_collections import ConfigDict

from pose_common.training import cli, logs


def test_evaluations_of_different_weights_have_folders_of_their_own():
    checkpoints = [
        "workdir/transfer",
        "w1/checkpoints/best",
        "w1/checkpoints/1",
        "base.pth",
        "../base.pth",
        "hf://owner/base",
    ]
    folders = [cli.evaluation_workdir(checkpoint) for checkpoint in checkpoints]
    assert folders[0] == "workdir/evaluated/workdir_transfer" and len(set(folders)) == len(folders)
    assert all(folder.count("/") == 2 for folder in folders)
    assert cli.evaluation_workdir(".") == f"workdir/evaluated/{pathlib.Path.cwd().name}"
    assert ".." not in cli.evaluation_workdir("..")


@pytest.mark.parametrize(("examples", "configured", "steps"), [(96, 0, 3), (97, 0, 4), (5, 0, 1), (97, 7, 7)])
def test_an_epoch_counts_its_last_batch(examples, configured, steps):
    config = ConfigDict({"batch_size": 32, "steps_per_epoch": configured})
    assert cli.steps_per_epoch(config, types.SimpleNamespace(num_examples=examples)) == steps


def test_tasks_that_orbax_abandons_are_not_told(monkeypatch):
    """Pages of specifications, behind the line that names the damaged checkpoint; other errors are told."""
    told = []
    hook = logs._without_abandoned_tasks(lambda unraisable: told.append(str(unraisable.exc_value)))
    monkeypatch.setattr(sys, "unraisablehook", hook)

    async def read():
        try:
            await asyncio.sleep(0)
        finally:
            raise ValueError("the specification of the array")

    class Other:
        def __init__(self, error):
            self.error = error

        def __del__(self):
            raise RuntimeError(self.error)

    task = read()
    task.send(None)
    del task
    for error in ("Event loop is closed", "another"):
        Other(error)
    assert told == ["another"]
