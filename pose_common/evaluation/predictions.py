"""Running a prediction over a whole split, on all devices of all processes, with nothing dropped or counted twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from pose_common.training.mesh import batch_sharding


def predict_split(
    predict: Callable[[dict[str, jax.Array]], dict[str, jax.Array]],
    batches: Iterable[dict[str, np.ndarray]],
    mesh: Mesh,
    *,
    inputs: tuple[str, ...],
    keep: tuple[str, ...],
) -> dict[str, np.ndarray]:
    """Predictions for every valid row of `batches`.

    Args:
      predict: {field: global array [B, ...]} -> {name: global array [B, ...]}; compiled by the caller.
      batches: this process's rows of each batch, with `valid`; the same number of batches in every process.
      mesh: rows are split over its devices.
      inputs: fields that `predict` needs; the others stay on the host.
      keep: host fields to return beside the predictions.

    Returns:
      {name: array [N, ...]} of predictions and kept fields, in the same order in every process.

    Raises:
      ValueError: no batch.
    """
    sharding = batch_sharding(mesh)
    rows: list[dict[str, np.ndarray]] = []
    pending: tuple | None = None
    for batch in batches:
        arrays = {name: jax.make_array_from_process_local_data(sharding, batch[name]) for name in inputs}
        outputs = predict(arrays)
        if pending:  # fetched one batch late, so that the device never waits for the host
            rows.append(_fetch(*pending))
        pending = (outputs, {name: batch[name] for name in keep}, batch["valid"])
    if pending:
        rows.append(_fetch(*pending))
    if not rows:
        raise ValueError("the split has no batch to predict")
    return {name: gather(np.concatenate([row[name] for row in rows])) for name in rows[0]}


def _fetch(outputs, kept, valid) -> dict[str, np.ndarray]:
    columns = {name: local_rows(array) for name, array in outputs.items()} | kept
    return {name: column[valid] for name, column in columns.items()}


def local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of a global array [B, ...] that is split along its first axis."""
    shards = {shard.index[0].start or 0: shard for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start].data) for start in sorted(shards)])


def gather(column: np.ndarray) -> np.ndarray:
    """Rows [n, ...] of this process -> those of all, in process order. Processes may hold different numbers of rows."""
    if jax.process_count() == 1:
        return column
    counts = multihost_utils.process_allgather(np.asarray(len(column)))
    # As bytes: collectives would cut 64-bit numbers to 32.
    width = int(column.dtype.itemsize * np.prod(column.shape[1:]))
    padded = np.zeros((int(counts.max()), width), np.uint8)
    padded[: len(column)] = np.ascontiguousarray(column).view(np.uint8).reshape(len(column), width)
    everyone = multihost_utils.process_allgather(padded)
    joined = np.concatenate([part[:count] for part, count in zip(everyone, counts, strict=True)])
    return np.ascontiguousarray(joined).view(column.dtype).reshape(-1, *column.shape[1:])
