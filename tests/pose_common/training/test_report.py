"""Figures between two log lines: means over what exists, and the line that is shown of them."""

from __future__ import annotations

import logging

import jax.numpy as jnp
import pytest

from pose_common.training.report import Metrics, log_parameters, summary_line
from pose_common.training.step import ABSENT, FINITE

FINE = {"parameters": jnp.ones(2, bool), "gradients": jnp.ones(2, bool)}


def test_a_mean_is_over_the_steps_that_have_a_value():
    metrics = Metrics()
    for step, (one, other, none) in enumerate([(0.5, ABSENT, ABSENT), (ABSENT, 0.25, ABSENT), (0.25, 0.5, ABSENT)]):
        accuracies = {"accuracy/one": one, "accuracy/other": other, "accuracy/none": none}
        values = {"loss": float(step), "learning_rate": 0.1 * (step + 1), **accuracies}
        metrics.add(step, {**map_to_arrays(values), FINITE: FINE}, {}, images=8, waited=0.0)
    assert metrics.check() is None
    found = metrics.collect()
    assert found["loss"] == 1 and found["accuracy/one"] == 0.375 and found["accuracy/other"] == 0.375
    assert "accuracy/none" not in found and found["learning_rate"] == pytest.approx(0.3)
    assert summary_line(found).startswith("loss 1, accuracy 0.375, rate 3.00e-01, ")
    assert metrics.collect() == {}


def map_to_arrays(values):
    return {name: jnp.float32(value) for name, value in values.items()}


def test_the_first_step_that_is_not_finite_is_found():
    metrics = Metrics()
    for step in range(3):
        values = map_to_arrays({"loss": 1.0, "other": float("inf") if step == 2 else 0.0})
        fine = {**FINE, "gradients": jnp.array([True, step != 1])}
        metrics.add(step, {**values, FINITE: fine}, {"position": step}, images=8, waited=0.0)
    bad = metrics.check()
    assert (bad.step, bad.position, bad.metrics) == (1, {"position": 1}, ())
    assert bad.finite["gradients"].tolist() == [True, False]


def test_the_log_has_the_totals_of_the_parameters_and_the_file_has_all(tmp_path, caplog):
    heads = {name: {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)} for name in ("coco", "mpii")}
    with caplog.at_level(logging.INFO):
        log_parameters({"backbone": {"kernel": jnp.ones((4, 5))}, "heads": heads}, tmp_path)
    logged = [line.split() for line in caplog.messages[-1].splitlines()[1:]]
    assert logged == [["backbone", "20"], ["heads", "18"], ["all", "38"]]
    table = (tmp_path / "parameters.txt").read_text().splitlines()
    assert len(table) == 5 + 3 and table[1].split()[:4] == ["heads/coco/bias", "(3,)", "float32", "3"]
