"""The result table of an evaluation: a row for everything that is prepared, and what to do about the rest."""

from __future__ import annotations

import collections
import logging
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from data_pipelines.records import DatasetNotPrepared
from pose_common.evaluation import result_table as tables
from pose_common.metrics.evaluate import NOT_FRACTIONS
from pose_common.training.checks import ConfigError
from pose_common.training.processes import Disagreement
from pose_common.training.processes import title as title_of

ERRORS_TITLE = (
    "keypoints, percent: PCK within a share of the box's longer side; kinds of error (in brackets their cost)"
)


class Score(NamedTuple):
    """One row: its name, {metric: value} ({} without annotations), the table's fields, and those of its errors."""

    name: str
    values: Mapping[str, float]
    row: Mapping[str, Any]
    errors: Mapping[str, Any] = {}


class Figures(dict[str, Mapping[str, float]]):
    """{row name: {metric: value}} of an evaluation; `failed` says which rows could not be had, and why.

    Those of datasets that are not prepared are none of them: a table has the rows that there is data for.
    """

    def __init__(self, scores: Sequence[Score], failed: Sequence[str]):
        super().__init__({score.name: score.values for score in scores})
        self.failed = tuple(failed)


def evaluate_tasks(
    tasks: Sequence[Any],
    open_task: Callable[[Any], Any],
    evaluate_task: Callable[[Any, Any], Iterable[Score]],
    folder: pathlib.Path,
    title: str,
) -> Figures:
    """Evaluates what can be opened; shows the table and that of errors, saves them as `folder`/table.* and errors.*.

    Args:
      tasks: with `dataset` and `split`.
      open_task: task -> its loader.
      evaluate_task: (task, loader) -> its rows. What is not prepared, or fails by what it reads (a boxes file, a
        picture), is named under the table and costs no other row. With several processes, which must stay together, a
        failure after opening ends the evaluation.

    Returns:
      {row name: {metric: value}}, and what failed.

    Raises:
      Disagreement: a split that not all processes can open.
    """
    scores: list[Score] = []
    skipped: list[str] = []
    failed: list[str] = []
    for task in tasks:
        try:
            loader = open_task(task)
        except DatasetNotPrepared as error:
            skipped.append(str(error))
            loader = None
        except (ValueError, OSError) as error:
            failed.append(_failed(task, error))
            loader = None
        require_everywhere(task, loader is not None)
        if loader is None:
            continue
        try:
            scores += list(evaluate_task(task, loader))
        except (ValueError, OSError) as error:
            if jax.process_count() > 1:
                raise
            failed.append(_failed(task, error))
    if jax.process_index() == 0:
        _tabulate(scores, skipped + failed, folder, title)
    return Figures(scores, failed)


def _tabulate(scores: Sequence[Score], skipped: Sequence[str], folder: pathlib.Path, title: str) -> None:
    rows = [score.row for score in scores]
    tables.save(rows, folder / "table", skipped)
    tables.show(rows, title, skipped)
    which = ("dataset", "split", "maps")
    errors = [{**{k: s.row[k] for k in which if k in s.row}, **s.errors} for s in scores if s.errors]
    if errors:
        tables.save(errors, folder / "errors")
        tables.show(errors, ERRORS_TITLE)


def require_distinct(names: Iterable[str]) -> None:
    """Raises ConfigError for two rows of one name, by which all is told apart that they write."""
    for name, count in collections.Counter(names).items():
        if count > 1:
            raise ConfigError(
                f"config.eval_also: {count} rows would be called {name!r} (dataset, split, name of a file of boxes); "
                "evaluate them in runs of their own, or rename a file"
            )


def require_everywhere(task: Any, is_open: bool) -> None:
    """Raises Disagreement where some processes can open a task's split and some cannot; all of them call this."""
    if jax.process_count() == 1:
        return
    opened = multihost_utils.process_allgather(np.array(is_open))
    if opened.any() and not opened.all():
        raise Disagreement(
            f"{title_of(int(np.argmin(opened)))} cannot read {task.dataset} ({task.split}), as its own log says;"
            f" {title_of(int(np.argmax(opened)))} can"
        )


def check_tasks(tasks: Sequence[Any], open_task: Callable[[Any], Any]) -> None:
    """Opens what will be evaluated, so that what is wrong with it is known before a training begins.

    Args:
      tasks: with `dataset`, `split` and `field`, the part of the configuration that names the split; "" for a further
        row, which may be not prepared: it is only warned of.
      open_task: task -> its loader.

    Raises:
      ConfigError: a split that is not prepared, a file of boxes that cannot be used.
      Disagreement: a further row's split that not all processes can open.
    """
    for task in tasks:
        is_open = True
        where = f"config.{task.field}={task.split!r}" if task.field else f"config.eval_also ({task.name})"
        try:
            open_task(task)
        except DatasetNotPrepared as error:
            if task.field:
                raise ConfigError(f"{where}: {error}") from error
            logging.warning("%s will not be evaluated: %s", where, " ".join(str(error).split()))
            is_open = False
        except (ValueError, OSError) as error:
            raise ConfigError(f"{where}: {error}") from error
        require_everywhere(task, is_open)


def _failed(task: Any, error: Exception) -> str:
    missing = error.filename if isinstance(error, FileNotFoundError) else None
    text = f"{task.dataset} ({task.split}) was not evaluated: {f'there is no {missing}' if missing else error}"
    logging.error("%s", text)
    return text


def shown(names: Sequence[str], values: Mapping[str, float]) -> str:
    """Metrics as papers print them, in percent but for EPE; a dash where there was nothing to evaluate."""
    return " / ".join(shown_figure(name, in_percent(name, values.get(name))) for name in names)


def shown_figure(name: str, value: float | None) -> str:
    """A figure that is in percent already."""
    return "-" if value is None else f"{value:.{2 if name == 'EPE' else 1}f}"


def in_percent(name: str, value: float | None) -> float | None:
    """A metric as papers print it (EPE in pixels); None for -1, where there was nothing to evaluate."""
    if value is None or value < 0:
        return None
    return value if name in NOT_FRACTIONS else 100 * value
