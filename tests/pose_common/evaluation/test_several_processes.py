"""What processes of an evaluation tell each other, with one played by hand."""

from __future__ import annotations

import types

import numpy as np
import pytest

from data_pipelines.records import DatasetNotPrepared
from pose_common.evaluation import predictions, tasks
from pose_common.training.processes import Disagreement


@pytest.mark.parametrize("column", [np.arange(6, dtype=np.int64).reshape(2, 3), np.zeros(2, bool)])
@pytest.mark.parametrize("own", [0, 2])
def test_rows_of_a_process_that_has_none(monkeypatch, column, own):
    """A small split on many hosts: the last of them have only padding."""
    everyone = [column, column[:own]]

    def process_allgather(value):
        """As the second process calls it: counts first, then rows as bytes."""
        if value.ndim == 0:
            return np.array([2, own])
        first = np.ascontiguousarray(column).view(np.uint8).reshape(2, -1)
        return np.stack([first, value])

    monkeypatch.setattr(predictions.jax, "process_count", lambda: 2)
    monkeypatch.setattr(predictions.multihost_utils, "process_allgather", process_allgather)
    found = predictions.gather(column[:own])
    np.testing.assert_array_equal(found, np.concatenate(everyone))
    assert found.dtype == column.dtype


@pytest.mark.parametrize("prepared_here", [True, False])
def test_a_split_that_one_host_lacks_ends_all(monkeypatch, tmp_path, prepared_here):
    """Each would go on to another collective otherwise."""
    task = types.SimpleNamespace(dataset="ochuman", split="test", name="ochuman_test", field="")
    monkeypatch.setattr(tasks.jax, "process_count", lambda: 2)
    monkeypatch.setattr(tasks.multihost_utils, "process_allgather", lambda own: np.array([own, not own]))

    def open_task(task):
        if not prepared_here:
            raise DatasetNotPrepared("ochuman (test) is not prepared")
        return object()

    with pytest.raises(Disagreement, match=r"cannot read ochuman \(test\).*process \d"):
        tasks.evaluate_tasks([task], open_task, lambda *_: [], tmp_path, "title")
    with pytest.raises(Disagreement, match="ochuman"):
        tasks.check_tasks([task], open_task)
