"""How a finished run ends: with its report, and what to do next."""

from __future__ import annotations

import logging
import pathlib
import shlex

from ml_collections import ConfigDict

from data_pipelines.paths import write_whole
from pose_common.report.page import make_page
from pose_common.report.runs import read_runs

FILE = "report.html"


def conclude(config: ConfigDict, workdir: pathlib.Path, package: str) -> None:
    """Writes `report.html` into the working directory of a complete run, prints where it is, and one sentence.

    A run that was never evaluated has none; that, or a file that cannot be read, is said and costs nothing else.

    Args:
      config: the run's.
      workdir: its working directory.
      package: the method's, whose `predict` draws poses.
    """
    try:
        page = make_page(read_runs([workdir]))
        write_whole(workdir / FILE, page)
        print(f"report: {workdir / FILE}")
    except (ValueError, OSError) as error:
        logging.warning("no report: %s", error)
    print(f"next: {what_next(config, workdir, package)}")


def what_next(config: ConfigDict, workdir: pathlib.Path, package: str) -> str:
    """One sentence for somebody who has just seen a run end."""
    if config.synthetic:
        return (
            "open the report in a browser; then train on your own labels (docs/your_own_dataset.md), because this "
            "model knows rendered figures only"
        )
    return f"draw poses with it: python -m {package}.predict PICTURE --checkpoint={shlex.quote(str(workdir))}"
