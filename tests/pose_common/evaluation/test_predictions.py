"""Predictions of whole splits: rows that are none are dropped."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from pose_common.evaluation.predictions import predict_split
from pose_common.training.mesh import make_mesh


def batch(first: int, valid: int) -> dict[str, np.ndarray]:
    rows = np.arange(first, first + 8, dtype=np.float32)
    return {"x": rows[:, None], "id": rows.astype(np.int64) * 10**12, "valid": np.arange(8) < valid}


def test_rows_are_those_that_are_valid_with_what_is_kept_beside_them():
    found = predict_split(
        jax.jit(lambda rows: {"double": 2 * rows["x"]}),
        [batch(0, 8), batch(8, 3)],
        make_mesh(),
        inputs=("x",),
        keep=("id",),
    )
    np.testing.assert_array_equal(found["double"][:, 0], 2 * np.arange(11))
    np.testing.assert_array_equal(found["id"], np.arange(11) * 10**12)  # of 64 bits


def test_an_empty_split_is_refused():
    with pytest.raises(ValueError, match="no batch"):
        predict_split(lambda rows: rows, [], make_mesh(), inputs=("x",), keep=())
