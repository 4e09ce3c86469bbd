"""Where NaN and infinity came from: parameters or gradients by their path, loss terms, datasets, pictures.

A step says of every parameter and gradient whether it was finite, and the data stream can be read again at any
position; so nothing of this costs anything before it is needed.
"""

from __future__ import annotations

import collections
import itertools
import json
import logging
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

LISTED = 3
"""Pictures in the message; the file has them all."""


class NonFiniteError(RuntimeError):
    """Training met NaN or infinity; one line says where."""


class NonFiniteStep(NamedTuple):
    """A step with something that is not finite.

    Attributes:
      step: its number, from 0.
      position: of the data, before its batch.
      metrics: names of the metrics that are not finite.
      finite: {"parameters": bool [n], "gradients": bool [n]} of the arrays that learn, the parameters before the step.
      state: names of the arrays of the state after it that are not finite, where the metrics were.
    """

    step: int
    position: dict[str, Any]
    metrics: tuple[str, ...]
    finite: Mapping[str, np.ndarray]
    state: tuple[str, ...] = ()


class Row(Protocol):
    """One example of a batch (`data_pipelines.top_down.loader.Row`)."""

    @property
    def dataset(self) -> str: ...

    @property
    def picture(self) -> str: ...

    @property
    def fields(self) -> Mapping[str, np.ndarray]: ...


class Rereadable(Protocol):
    """Data that can be read again."""

    def rows_at(self, state: dict[str, Any]) -> Iterable[Row]: ...


def explain(
    bad: NonFiniteStep, names: Sequence[str], data: Rereadable, workdir: pathlib.Path, last_good: str
) -> NonFiniteError:
    """The error that says everything known of a step; the whole of it is written to `workdir` as well.

    Args:
      bad: the step.
      names: of the arrays that learn, in the order of `bad.finite`.
      data: the batch is read again from it.
      workdir: gets `nonfinite_step_<n>.json`.
      last_good: the checkpoint to go on from.
    """
    arrays = {
        kind: [name for name, fine in zip(names, flags, strict=True) if not fine] for kind, flags in bad.finite.items()
    }
    batch, unread = _batch(data, bad.position)
    inputs = [row for row in batch if row["not finite"]]
    path = workdir / f"nonfinite_step_{bad.step}.json"
    _write(path, {"step": bad.step, "metrics": bad.metrics, **arrays, "state": bad.state, "batch": batch})
    parts = [f"not finite: {', '.join(bad.metrics) or 'the state after it'}"]
    state = [name.partition("/")[2] for name in bad.state]  # without the checkpoint's item
    cause = {"parameters": arrays.get("parameters")} if arrays.get("parameters") else {**arrays, "state": state}
    parts += [_by_group(kind, found) for kind, found in cause.items() if found]
    datasets = collections.Counter(row["dataset"] for row in batch)
    composition = ", ".join(f"{name or 'no name'} ({count})" for name, count in datasets.items())
    parts.append(unread or f"batch: {composition}; {_pictures(inputs, batch)}")
    parts += [f"all of it in {path}", f"last good checkpoint: {last_good}"]
    advice = _advice(bool(inputs), bool(arrays.get("parameters")))
    return NonFiniteError(f"step {bad.step}: {'; '.join(parts)}. {advice}")


def _batch(data: Rereadable, position: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """(a line a picture, why there are none)."""
    try:
        return [
            {
                "dataset": row.dataset,
                "picture": row.picture,
                "not finite": [name for name, value in row.fields.items() if not _finite(value)],
            }
            for row in data.rows_at(position)
        ], ""
    except Exception as error:  # whatever it is, it must not hide the error that is explained here
        return [], f"its batch cannot be read again: {error}"


def _finite(value: Any) -> bool:
    value = np.asarray(value)
    return value.dtype.kind != "f" or bool(np.isfinite(value).all())


def _by_group(kind: str, names: Sequence[str]) -> str:
    """'gradients of heads (12, first heads/coco/kernel), backbone (...)'."""
    groups = itertools.groupby(names, key=lambda name: name.split("/")[0])
    listed = [(group, list(members)) for group, members in groups]
    return f"{kind} of " + ", ".join(f"{group} ({len(members)}, first {members[0]})" for group, members in listed)


def _pictures(inputs: Sequence[Mapping[str, Any]], batch: Sequence[Mapping[str, Any]]) -> str:
    chosen = inputs or batch
    names = [f"{row['dataset']}/{row['picture']}" for row in chosen[:LISTED]]
    if inputs:
        names = [f"{name}: {', '.join(row['not finite'])}" for name, row in zip(names, inputs, strict=False)]
    more = f" and {len(chosen) - LISTED} more" if len(chosen) > LISTED else ""
    return f"{'labels that are not finite' if inputs else 'its labels are finite, pictures'}: {', '.join(names)}{more}"


def _advice(inputs: bool, parameters: bool) -> str:
    if inputs:
        return "Mend the labels of these pictures, or leave them out"
    if parameters:
        return "The parameters were spoilt by the step before: lower the learning rate"
    return "Lower the learning rate, or set config.dtype='float32' to see whether it is the precision"


def _write(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    if jax.process_index() != 0:
        return
    try:
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf8")
    except OSError as error:
        logging.warning("%s cannot be written: %s", path, error)
