"""Weights to evaluate or to start from: of the newest checkpoint that can be read, and never with NaN."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from pose_common.training import parallel, restore
from pose_common.training.checkpoints import Checkpoints, DamagedCheckpointError, Found
from pose_common.training.mesh import make_mesh
from pose_common.training.processes import Disagreement
from pose_common.weights.keys import ConversionError
from tests.pose_common.training.toy import ToyMethod

METHOD = ToyMethod()
SHAPES = METHOD.shapes(METHOD.stages[0], {})
CONFIG = {"method": "toy"}


def state_at(step: int):
    return parallel.make_strategy("sharded").create(METHOD.init, jax.random.PRNGKey(step))


@pytest.fixture
def workdir(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (1, 2):
        checkpoints.save(step, state_at(step), {"notes": {}, "config": CONFIG})
    checkpoints.close()
    return tmp_path


def weights_at(path):
    return restore.read_run(restore.find_run(path))


def damage(workdir, step: int) -> None:
    (workdir / "checkpoints" / str(step) / "weights" / "_METADATA").write_text("{")


def test_the_newest_that_can_be_read(workdir, caplog):
    for newest in (2, 1):
        weights, step = weights_at(workdir)
        assert step == newest
        jax.tree.map(np.testing.assert_array_equal, weights, state_at(newest).weights)
        assert restore.find_run(workdir, ["toy"]) == restore.Run(CONFIG, Found(workdir / "checkpoints", (2, 1)))
        damage(workdir, newest)
    assert f"{workdir}/checkpoints/2 is damaged: " in caplog.text
    with pytest.raises(DamagedCheckpointError, match="none of the 2 checkpoints can be read"):
        weights_at(workdir)


def test_a_step_that_is_asked_for_is_that_step(workdir):
    damage(workdir, 2)
    with pytest.raises(DamagedCheckpointError, match=r"^the checkpoint .*/2 is damaged: .*\. Before it there is 1$"):
        weights_at(workdir / "checkpoints" / "2")
    assert weights_at(workdir / "checkpoints" / "1")[1] == 1


def test_a_run_goes_on_in_its_working_directory_alone(workdir):
    assert restore.run_of(workdir, ["toy"]).config == CONFIG and restore.run_of(workdir / "empty") is None
    for inside in (workdir / "checkpoints", workdir / "checkpoints" / "2"):
        with pytest.raises(ValueError, match="--workdir=.* is of the checkpoints of a run"):
            restore.run_of(inside)


def test_a_run_of_another_method_is_named(workdir, tmp_path):
    with pytest.raises(ValueError, match="is a run of toy, which is not posebh"):
        restore.find_run(workdir, ["posebh"])
    assert restore.find_run(tmp_path / "absent", ["toy"]) is None
    (workdir / "checkpoints" / "2" / "info" / "metadata").write_text("{}")
    assert restore.find_run(workdir, ["toy"]).config == CONFIG


def test_weights_that_are_not_finite_are_refused_with_their_names(tmp_path):
    state = state_at(1)
    spoilt = jax.device_get(state.weights)
    spoilt["params"]["head"]["w"] = spoilt["params"]["head"]["w"].copy()
    spoilt["params"]["head"]["w"][2, 1:3] = np.nan
    start = restore.Start(spoilt, "weights of a toy", (), ())
    name = r"params/head/w has 2 of 64 entries that are NaN or infinite"
    with pytest.raises(ConversionError, match=rf"given.pth holds weights that are not finite[\s\S]*{name}"):
        restore.filler("given.pth", lambda initial: start)(state)
    with pytest.raises(ConversionError, match=name):
        restore.require_finite(tmp_path, spoilt)


def test_processes_that_read_different_weights_are_named(monkeypatch):
    """As of a run that goes on between two readings; JAX tells it, if at all, by printing the numbers."""
    state = state_at(1)
    tree = jax.device_get(state.weights)
    monkeypatch.setattr(restore.jax, "process_count", lambda: 2)
    monkeypatch.setattr(restore.multihost_utils, "process_allgather", lambda own: np.stack([own, own + 1]))
    start = restore.Start(tree, "weights of a toy", (), ())
    message = r"^process 1 has read other weights from workdir/base than process 0"
    with pytest.raises(Disagreement, match=message):
        restore.replicate("workdir/base", tree, make_mesh())
    with pytest.raises(Disagreement, match=message):
        restore.filler("workdir/base", lambda initial: start)(state)
    monkeypatch.setattr(restore.multihost_utils, "process_allgather", lambda own: np.stack([own, own]))
    jax.tree.map(np.testing.assert_array_equal, restore.replicate("workdir/base", tree, make_mesh()), tree)
