"""The loop: the same numbers however the devices are used, exact resumes, orderly stops."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import re
import shutil
import signal

import jax
import numpy as np
import pytest

from pose_common.evaluation.best import BestMetric
from pose_common.training import loop, parallel
from pose_common.training.checkpoints import Checkpoints, DamagedCheckpointError, find_checkpoints
from pose_common.training.checks import ConfigError
from pose_common.training.loop import LoopSettings
from pose_common.training.mesh import make_mesh
from pose_common.training.nonfinite import NonFiniteError
from pose_common.training.stages import Stage, evaluation_steps
from pose_common.training.state import STATE_TRAINED
from pose_common.training.step import train_step
from pose_common.training.writers import read_metrics
from pose_common.weights.keys import flatten
from tests.distribution import in_two_processes
from tests.pose_common.training import toy_program
from tests.pose_common.training.toy import ToyData, ToyMethod

pytestmark = pytest.mark.slow  # compiles a training step for every layout

SETTINGS = LoopSettings(steps_per_epoch=3, log_every=1, checkpoint_every=2, evaluate_every=0, keep=20)
PLANS = {
    "one device": lambda: parallel.ShardedStrategy(
        jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "fsdp"))
    ),
    "eight sharded": lambda: parallel.make_strategy("sharded"),
    "fsdp": lambda: parallel.make_strategy("sharded", fsdp=4, fsdp_min_size=1),
    "pmap": lambda: parallel.make_strategy("pmap"),
}


AP = BestMetric("toy/AP", (("toy", "AP"),))


def run(workdir, strategy="eight sharded", settings=SETTINGS, data=None, **kwargs):
    data = data or ToyData()
    return loop.train(ToyMethod(), data, PLANS[strategy](), settings, workdir, key=jax.random.PRNGKey(0), **kwargs)


@pytest.fixture
def without_curves(monkeypatch):
    """For many evaluations: a picture takes longer than the steps between."""
    monkeypatch.setattr(loop, "draw_curves", lambda *paths: None)


class Interrupted(ToyData):
    """Data that come with a signal to stop after so many steps."""

    def __init__(self, stop_after: int):
        super().__init__()
        self.stop_after = stop_after

    def __next__(self):
        if self.position == self.stop_after - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().__next__()


def losses(workdir):
    return [row["loss"] for row in read_metrics(workdir / "metrics.jsonl") if row["split"] == "train"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one")
    state, complete = run(workdir, "one device")
    assert complete
    return losses(workdir), jax.device_get(state)


@pytest.mark.parametrize("strategy", ["eight sharded", "fsdp", "pmap"])
def test_same_numbers_on_any_layout(strategy, reference, tmp_path):
    state, _ = run(tmp_path, strategy)
    # float32 sums in another order, through twelve Adam steps.
    np.testing.assert_allclose(losses(tmp_path), reference[0], rtol=2e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), jax.device_get(state), reference[1]
    )


@pytest.mark.parametrize("strategy", ["eight sharded", "pmap"])
@pytest.mark.parametrize("stop_after", [5, 6, 7])
def test_resume_is_exact(strategy, stop_after, tmp_path):
    run(tmp_path / "whole", strategy)
    _, complete = run(tmp_path / "cut", strategy, data=Interrupted(stop_after))
    assert not complete
    assert Checkpoints(tmp_path / "cut" / "checkpoints").latest_step == stop_after
    _, complete = run(tmp_path / "cut", strategy)
    assert complete
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")  # to the last bit


def test_a_signal_while_the_last_checkpoint_is_written_does_not_end_that(tmp_path, monkeypatch):
    outside, close = [], Checkpoints.close

    def interrupted(checkpoints):
        os.kill(os.getpid(), signal.SIGTERM)
        close(checkpoints)

    monkeypatch.setattr(Checkpoints, "close", interrupted)
    before = signal.signal(signal.SIGTERM, lambda *_: outside.append("would have been killed"))
    try:
        _, complete = run(tmp_path)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert complete and not outside


@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(damage, reference, tmp_path, caplog):
    """The run goes on from there, writes the damaged one's step again, and ends with the same numbers."""
    run(tmp_path, "one device", data=Interrupted(stop_after=8))
    folder = tmp_path / "checkpoints" / "8"
    file = folder / "info" / "metadata" if damage == "changed" else folder / "training" / "manifest.ocdbt"
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:20])
    else:
        file.write_text(file.read_text().replace('"position": 8', '"position": 9'))
    state, complete = run(tmp_path, "one device")
    assert complete and f"{folder} is damaged: " in caplog.text
    assert losses(tmp_path) == reference[0]  # to the last bit
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), reference[1])
    assert (tmp_path / "checkpoints" / "8.damaged").is_dir()
    assert Checkpoints(tmp_path / "checkpoints").read_info(8)["data"] == {"position": 8}


def test_without_a_readable_checkpoint_nothing_is_started_anew(tmp_path):
    run(tmp_path, "one device", data=Interrupted(stop_after=3))
    for folder in ("2", "3"):
        (tmp_path / "checkpoints" / folder / "info" / "metadata").unlink()
    with pytest.raises(DamagedCheckpointError, match=r"none of the 2 checkpoints can be read: .*/3 is .*/2 is damaged"):
        run(tmp_path, "one device")
    assert Checkpoints(tmp_path / "checkpoints").steps == (3, 2)


def test_a_group_that_thaws_counts_its_own_steps(tmp_path):
    """Its bias correction starts there; so it is in checkpoints too, on any layout."""
    run(tmp_path, "fsdp", dataclasses.replace(SETTINGS, steps_per_epoch=1))
    method, checkpoints = ToyMethod(), Checkpoints(tmp_path / "checkpoints")
    shapes = method.shapes(method.stages[-1], {})
    one = checkpoints.restore(4, shapes, parallel.ShardedStrategy(make_mesh()).shardings(shapes))
    assert int(one.step) == 4 and set(one.opt_state) == {"body", "head"}
    assert int(one.opt_state["head"].count) == 4 and int(one.opt_state["body"].count) == 2


@pytest.mark.parametrize("strategy", ["eight sharded", "fsdp", "pmap"])
def test_labels_that_are_not_finite_stop_the_run_and_are_named(tmp_path, strategy):
    settings = dataclasses.replace(SETTINGS, log_every=50)
    with pytest.raises(NonFiniteError) as stopped:
        run(tmp_path, strategy, settings=settings, data=ToyData(poison_at=5))
    assert str(stopped.value) == (
        "step 5: not finite: grad_norm, loss, mse; gradients of head (1, first head/w); batch: toy (16); "
        "labels that are not finite: toy/train/3.jpg (id 3): target, toy/train/5.jpg (id 5): target; all of it in "
        f"{tmp_path}/nonfinite_step_5.json; last good checkpoint: {tmp_path}/checkpoints/4. Mend the labels of these "
        "pictures, or leave them out"
    )
    assert Checkpoints(tmp_path / "checkpoints").latest_step == 4
    written = json.loads((tmp_path / "nonfinite_step_5.json").read_text())
    assert written["gradients"] == ["head/w"] and written["parameters"] == [] and len(written["batch"]) == 16


def test_parameters_that_an_update_spoils_are_named(tmp_path):
    """By a rate that makes them overflow although the gradient was finite; the next step shows it."""
    optimizer = ToyMethod().optimizer
    rate = lambda step, xp=np: jax.numpy.where(step == 2, 3.4e38, 1e-2)  # noqa: E731
    method = ToyMethod(optimizer=dataclasses.replace(optimizer, schedule=rate))
    with pytest.raises(NonFiniteError) as stopped:
        loop.train(method, ToyData(), PLANS["fsdp"](), SETTINGS, tmp_path, key=jax.random.PRNGKey(0))
    assert "step 3: not finite: grad_norm, loss, mse; parameters of head (1, first head/w); " in str(stopped.value)
    assert "its labels are finite, pictures: toy/train/0.jpg (id 0), " in str(stopped.value)
    assert str(stopped.value).endswith("The parameters were spoilt by the step before: lower the learning rate")
    assert Checkpoints(tmp_path / "checkpoints").latest_step == 2


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    """Spoilt after the last figures that could have shown it: here the method's own state."""

    class Spoilt(ToyMethod):
        def update(self, method_state, observed, axis_name):
            state, seen = super().update(method_state, observed, axis_name)
            return {"bank": state["bank"].at[3].set(np.nan)}, seen

    with pytest.raises(NonFiniteError) as stopped:
        loop.train(Spoilt(), ToyData(), PLANS["fsdp"](), SETTINGS, tmp_path, key=jax.random.PRNGKey(0))
    message = "step 1: not finite: the state after it; state of prototypes (1, first prototypes/bank); batch: toy"
    assert message in str(stopped.value) and "last good checkpoint: none was saved yet" in str(stopped.value)
    assert Checkpoints(tmp_path / "checkpoints").latest_step is None


def test_frozen_group_does_not_move():
    strategy, method = PLANS["eight sharded"](), ToyMethod()
    state = strategy.create(method.init, jax.random.PRNGKey(0))
    before = np.asarray(state.params["body"]["w"])
    step = functools.partial(train_step, method=method, stage=method.stages[0])
    step = strategy.compile(step, state)
    state, _ = step(state, strategy.put(next(ToyData())))
    np.testing.assert_array_equal(before, state.params["body"]["w"])
    assert set(state.opt_state) == {"head"}


def test_figures_of_a_run_and_a_trace(tmp_path, caplog):
    def evaluate(weights, step):
        return {
            "toy": {"AP (M)": -1.0, "AP": float(step) / 12, "norm": float(np.abs(weights["params"]["head"]["w"]).sum())}
        }

    settings = dataclasses.replace(SETTINGS, evaluate_every=2, profile_steps=(2, 3))
    with caplog.at_level(logging.INFO):
        run(tmp_path, settings=settings, evaluate=evaluate)
    assert (tmp_path / "profile" / "plugins" / "profile" / "steps_2_3" / "host_0.xplane.pb").stat().st_size
    assert len(re.findall(r"compiled in .* s: .* GFLOP a step", caplog.text)) == 2, "once a stage"
    assert len(re.findall("goodput .*, lost 0%", caplog.text)) == 4, "of three epochs and at the end"
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(r["step"], r["AP"]) for r in rows if r["split"] == "eval/toy"] == [(6, 0.5), (12, 1.0)]
    assert all(set(row) == {"step", "split", "AP", "norm"} for row in rows if row["split"] == "eval/toy")
    train = [r for r in rows if r["split"] == "train"]
    speed = {"seconds_per_step", "images_per_second_per_device", "data_wait_share"}
    assert {"loss", "mse", "grad_norm", "learning_rate"} | speed <= set(train[0])
    assert "mfu" not in train[0], "of no device whose peak is unknown"
    assert "all" in (tmp_path / "parameters.txt").read_text()
    json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])


@pytest.mark.parametrize("ends", [(4,), (12,), (720,), (420, 630, 660, 720), (10**6,), (333, 1000)])
@pytest.mark.parametrize("stages", [True, False])
def test_evaluations_are_early_and_about_ten(ends, stages):
    steps = sorted(evaluation_steps(ends, 0, stages))
    total = ends[-1]
    assert steps[-1] == total and len(steps) <= 10 + len(ends) + 1
    assert set(ends) < set(steps) or not stages
    if total >= 100:
        assert steps[0] == (0 if stages else total // 50) and len(steps) >= 10
        gaps = np.diff([0, *steps])
        assert gaps.max() <= total * 0.15, "no long time without"
    else:
        assert len(steps) == len(set(steps)) and (steps[0] == 0) == stages


@pytest.mark.parametrize("every, stages, expected", [(2, False, {6, 12}), (100, False, {12}), (3, True, {0, 6, 9, 12})])
def test_evaluations_as_asked_for(every, stages, expected):
    assert evaluation_steps((6, 12), 3 * every, stages) == expected


def test_the_best_weights_are_kept_through_stops_and_resumes(tmp_path, without_curves):
    """By figures that go up and down; each evaluation saves itself only if it is the best so far."""
    seen = {}

    def evaluate(weights, step):
        seen[step] = jax.device_get(weights["params"])
        return {"toy": {"AP": {3: 0.2, 6: 0.5, 9: 0.4, 12: 0.5}[step]}}

    settings = dataclasses.replace(SETTINGS, evaluate_every=1)
    best = tmp_path / "checkpoints" / "best"
    run(tmp_path, settings=settings, evaluate=evaluate, best=AP, data=Interrupted(stop_after=4))
    assert find_checkpoints(best) == (best, (3,))
    run(tmp_path, settings=settings, evaluate=evaluate, best=AP, data=Interrupted(stop_after=8))
    assert find_checkpoints(best) == (best, (6,)) and find_checkpoints(tmp_path).steps[0] == 8
    run(tmp_path, settings=settings, evaluate=evaluate, best=AP)
    assert find_checkpoints(best) == (best, (6,)), "neither a lower one nor the same again"
    checkpoints = Checkpoints(best, read_only=True)
    jax.tree.map(np.testing.assert_array_equal, checkpoints.read_weights(6)["params"], seen[6])
    info = checkpoints.read_info(6)
    assert (
        info["best"] == {"metric": "toy/AP", "value": 50.0, "figures": 1}
        and info["notes"]["first"]
        and info["config"] == {}
    )


def test_a_better_one_at_an_earlier_step_replaces_the_best(tmp_path, without_curves):
    """A run that has gone back; Orbax writes no step before its newest."""
    figures = dict.fromkeys(range(13), 0.1) | {9: 0.5}
    settings = dataclasses.replace(SETTINGS, evaluate_every=1, checkpoint_every=2)

    def evaluate(weights, step):
        return {"toy": {"AP": figures[step]}}

    best = tmp_path / "checkpoints" / "best"
    run(tmp_path, settings=settings, evaluate=evaluate, best=AP, data=Interrupted(stop_after=10))
    assert find_checkpoints(best) == (best, (9,))
    for step in find_checkpoints(tmp_path).steps:
        if step > 4:
            shutil.rmtree(tmp_path / "checkpoints" / str(step))
    figures[6] = 0.6
    run(tmp_path, settings=settings, evaluate=evaluate, best=AP)
    assert find_checkpoints(best) == (best, (6,)) and (best / "9.damaged").is_dir()


def test_a_best_that_could_not_be_written_is_written_by_the_next_start(tmp_path, without_curves, monkeypatch):
    """Its figures are there already, and are not made again."""
    evaluated = []

    def evaluate(weights, step):
        evaluated.append(step)
        return {"toy": {"AP": step / 100}}

    def full(self, step, *rest):
        if step == 12:
            raise OSError("No space left on the device")
        return offer(self, step, *rest)

    settings = dataclasses.replace(SETTINGS, evaluate_every=1)
    with monkeypatch.context() as patch:
        offer = loop.BestCheckpoint.offer
        patch.setattr(loop.BestCheckpoint, "offer", full)
        with pytest.raises(OSError, match="No space left"):
            run(tmp_path, settings=settings, evaluate=evaluate, best=AP)
    run(tmp_path, settings=settings, evaluate=evaluate, best=AP)
    best = tmp_path / "checkpoints" / "best"
    assert find_checkpoints(best) == (best, (12,)) and evaluated == [3, 6, 9, 12]


def test_a_start_without_a_checkpoint_leaves_nothing_to_the_next(tmp_path, without_curves, caplog):
    """Which may have other settings: neither its best weights nor its figures count."""

    def started(step_size, data):
        def evaluate(weights, step):
            return {"toy": {"AP": step_size if step else 0.0}}

        settings = dataclasses.replace(SETTINGS, evaluate_every=1, evaluate_stages=True, checkpoint_every=0)
        return run(tmp_path, settings=settings, evaluate=evaluate, best=AP, data=data)

    with pytest.raises(NonFiniteError, match="none was saved yet"):
        started(0.5, ToyData(poison_at=7))
    started(0.1, ToyData())
    best = tmp_path / "checkpoints" / "best"
    assert Checkpoints(best, read_only=True).read_info(3)["best"]["value"] == pytest.approx(10)
    assert (best / "3.damaged").is_dir() and (tmp_path / "metrics.before.jsonl").exists()
    assert [len(list((tmp_path / name).iterdir())) for name in ("tensorboard", "tensorboard.before")] == [1, 1]
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if row["split"] == "eval/toy"]
    assert [(row["step"], row["AP"]) for row in rows] == [(0, 0.0), *((step, 0.1) for step in (3, 6, 9, 12))]
    assert "has no checkpoint to go on from" in caplog.text


def test_other_lengths_of_stages_are_refused_before_a_step_is_done(tmp_path):
    """As when the data were prepared again and make other epochs."""
    run(tmp_path, data=Interrupted(stop_after=8))
    by_data = dataclasses.replace(SETTINGS, steps_per_epoch=10, config={"steps_per_epoch": 0})
    with pytest.raises(ConfigError, match="had 3 steps an epoch, its data now make 10.*--config.steps_per_epoch=3"):
        run(tmp_path, settings=by_data)
    accepted = dataclasses.replace(SETTINGS, steps_per_epoch=10, config={"steps_per_epoch": 10})
    with pytest.raises(ConfigError, match="step 8 is from stage 2, and with 10 steps an epoch .* is in stage 1 of 2"):
        run(tmp_path, settings=accepted)
    with pytest.raises(ConfigError, match="of step 8, and the stages as they are now end at step 4: give"):
        run(tmp_path, settings=dataclasses.replace(SETTINGS, steps_per_epoch=1, config={"steps_per_epoch": 1}))
    assert losses(tmp_path) and find_checkpoints(tmp_path).steps[0] == 8
    assert json.loads((tmp_path / "config.json").read_text()) == SETTINGS.config, "refused ones are not recorded"
    assert run(tmp_path)[1], "as before it goes on"


def test_a_trace_that_will_not_be_made_is_warned_of(tmp_path, caplog):
    run(tmp_path, settings=dataclasses.replace(SETTINGS, profile_steps=(12, 13)))
    assert "config.profile_steps=12,13: this run does steps 1 to 12" in caplog.text


def test_a_line_at_every_epoch_however_rarely_figures_are_logged(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        run(tmp_path, settings=dataclasses.replace(SETTINGS, log_every=0))
    assert len(re.findall("goodput ", caplog.text)) == 4, "of three epochs and at the end"


def test_a_damaged_best_is_replaced(tmp_path, without_curves):
    def evaluate(weights, step):
        return {"toy": {"AP": 0.5}}

    settings = dataclasses.replace(SETTINGS, evaluate_every=1)
    best = tmp_path / "checkpoints" / "best"
    run(tmp_path, settings=settings, evaluate=evaluate, best=AP, data=Interrupted(stop_after=4))
    (best / "3" / "info" / "metadata").write_text("{")
    run(tmp_path, settings=settings, evaluate=evaluate, best=AP)
    assert find_checkpoints(best) == (best, (6,)) and (best / "3.damaged").is_dir()


def test_a_state_that_was_not_trained_is_not_evaluated(tmp_path, without_curves):
    """Until a stage notes that it is; of a state that was given, from the beginning."""
    seen = []

    def evaluate(weights, step):
        seen.append((step, sorted(weights["prototypes"])))
        return {}

    class Noting(ToyMethod):
        def enter_stage(self, state, stage):
            change, notes = super().enter_stage(state, stage)
            return change, notes | ({STATE_TRAINED: True} if stage.name == "second" else {})

    def given(state):
        return state.replace(method_state={"bank": state.method_state["bank"] + 1})

    settings = dataclasses.replace(SETTINGS, evaluate_every=1, evaluate_stages=True)
    for prepare, first in ((None, 9), (lambda state: state, 9), (given, 0)):
        seen.clear()
        strategy, key = PLANS["one device"](), jax.random.PRNGKey(0)
        workdir = tmp_path / str(len(list(tmp_path.iterdir())))
        loop.train(Noting(), ToyData(), strategy, settings, workdir, evaluate=evaluate, key=key, prepare=prepare)
        assert seen == [(step, ["bank"] if step >= first else []) for step in (0, 3, 6, 9, 12)]


def test_a_stage_without_epochs_changes_nothing(tmp_path):
    """Neither moments nor the method's state: the stages around it may run one compiled step."""

    class Growing(ToyMethod):
        def enter_stage(self, state, stage):
            change, notes = super().enter_stage(state, stage)
            if stage.name != "none":
                return change, notes
            return lambda state: change(state).replace(method_state={**state.method_state, "more": 0}), notes

    def trained(*stages):
        strategy, workdir = PLANS["eight sharded"](), tmp_path / str(len(stages))
        state, _ = loop.train(Growing(stages=stages), ToyData(), strategy, SETTINGS, workdir, key=jax.random.PRNGKey(0))
        return flatten(state.weights), Checkpoints(workdir / "checkpoints").read_info(12)["notes"]

    halves = [Stage(name, 2, ("body", "head"), ("mse",)) for name in ("before", "after")]
    weights, notes = trained(halves[0], Stage("none", 0, ("head",), ("mse",), updates_state=True), halves[1])
    expected, expected_notes = trained(*halves)
    assert notes == expected_notes
    jax.tree.map(np.testing.assert_array_equal, weights, expected)


def test_a_line_of_the_log_is_short(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        run(tmp_path)
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("step 5 of 12: ")]
    assert len(lines) == 1
    assert re.fullmatch(
        r"step 5 of 12: loss [\d.]+, rate 1\.00e-02, [\d.e-]+ s/step, [\d.e+]+ images/s, waiting \d+%", lines[0]
    )


def test_two_processes_save_the_newest_and_the_best_and_go_on_after_damage(reference, tmp_path):
    """Both are written at the same time; what one process cannot read, none takes."""
    found = in_two_processes(toy_program.__name__, ["toy"], tmp_path)["toy"]
    for name, value in flatten(reference[1].params).items():
        # float32 sums in another order, through twelve Adam steps.
        np.testing.assert_allclose(found[f"first/{name}"], value, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(found[f"again/{name}"], found[f"first/{name}"])
    folder = tmp_path / "toy" / "checkpoints"
    assert find_checkpoints(folder / "best") == (folder / "best", (12,)) and (folder / "12.damaged").is_dir()


def test_an_evaluation_that_a_kill_took_away_is_made_up(tmp_path, without_curves):
    """A run that is killed between its last checkpoint and the evaluation of it ends with a table all the same."""
    seen = []

    def evaluate(weights, step):
        seen.append(step)
        return {"toy": {"AP": step / 100}}

    settings = dataclasses.replace(SETTINGS, evaluate_every=1)
    run(tmp_path, settings=settings, evaluate=evaluate)
    last = seen[-1]
    file = tmp_path / "metrics.jsonl"
    rows = file.read_text().splitlines(keepends=True)
    file.write_text("".join(row for row in rows if not ("eval/" in row and f'"step": {last},' in row)))
    run(tmp_path, settings=settings, evaluate=evaluate)
    assert seen[-2:] == [last, last] and seen.count(last) == 2
    whole = read_metrics(file)
    run(tmp_path, settings=settings, evaluate=evaluate)
    assert seen.count(last) == 2 and read_metrics(file) == whole
