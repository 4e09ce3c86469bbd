from __future__ import annotations

import pytest

from data_pipelines.sharing import fitting_batch


@pytest.mark.parametrize(
    "batch_size, count, devices, expected", [(512, 68, 8, 128), (512, 600, 1, 512), (6, 1, 2, 6), (16, 1, 4, 4)]
)
def test_small_splits_have_small_batches(batch_size, count, devices, expected):
    assert fitting_batch(batch_size, count, devices) == expected
