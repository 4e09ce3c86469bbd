"""What decides which checkpoint is the best."""

from __future__ import annotations

import pytest

from pose_common.evaluation.best import Judgement, best_metric
from pose_common.training.checks import ConfigError

ROWS = {
    "coco/heads": ("AP", "AR"),
    "mpii/heads": ("PCKh", "PCKh@0.1"),
    "hands/heads": ("PCK", "AUC", "EPE"),
    "coco/prototypes": ("AP", "AR"),
}
FIRST = ("coco/heads", "mpii/heads", "hands/heads")
SCORES = {
    "coco/heads": {"AP": 0.5, "AR": 0.6},
    "mpii/heads": {"PCKh": 80.0},
    "hands/heads": {"PCK": 0.2, "EPE": 12.0},
    "ochuman_test/heads": {"AP": 1.0},
}


@pytest.mark.parametrize(
    "pattern, value, name",
    [
        ("", 50.0, "mean of coco/heads/AP, mpii/heads/PCKh, hands/heads/PCK"),
        ("coco/heads/AP", 50.0, "coco/heads/AP"),
        ("coco/*/A?", 55.0, "mean of coco/heads/AP, coco/heads/AR, coco/prototypes/AP, coco/prototypes/AR"),
        ("*/EPE", 12.0, "hands/heads/EPE"),
        ("coco/prototypes/AP", None, "coco/prototypes/AP"),
    ],
)
def test_its_value_is_what_the_table_shows(pattern, value, name):
    metric = best_metric(pattern, ROWS, FIRST)
    assert metric.name == name
    judged = metric.judge(SCORES)
    assert (judged and judged.value) == (value if value is None else pytest.approx(value))
    assert metric.judge({}) is None and metric.judge({"coco/heads": {"AP": -1.0}}) is None


def test_more_is_better_but_of_errors():
    accuracy, error = best_metric("coco/heads/AP", ROWS, FIRST), best_metric("*/EPE", ROWS, FIRST)
    one, two = Judgement(1.0, 1), Judgement(2.0, 1)
    assert accuracy.better(two, one) and not accuracy.better(one, one) and accuracy.better(Judgement(0.0, 1), None)
    assert error.better(one, two) and not error.better(two, one) and not error.better(one, one)


def test_a_mean_of_fewer_figures_is_never_the_best():
    """As of an evaluation in which a dataset with low figures failed."""
    metric = best_metric("", ROWS, FIRST)
    part, whole = metric.judge({"coco/heads": {"AP": 0.9}}), metric.judge(SCORES)
    assert (part.figures, whole.figures) == (1, 3) and part.value > whole.value
    assert metric.better(whole, part) and not metric.better(part, whole)


@pytest.mark.parametrize("pattern", ["AP", "coco/heads/PCK", "ochuman_test/heads/AP"])
def test_what_no_figure_fits_is_refused_with_what_there_is(pattern):
    with pytest.raises(
        ConfigError, match=rf"^config.best_metric={pattern!r}: expected .* of coco/heads/AP, coco/heads/AR"
    ):
        best_metric(pattern, ROWS, FIRST)


def test_opposites_do_not_mix():
    with pytest.raises(ConfigError, match=r"config.best_metric='hands/\*' mixes EPE, of which less is better"):
        best_metric("hands/*", ROWS, FIRST)
    assert best_metric("none", ROWS, FIRST) is None
