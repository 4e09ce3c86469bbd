"""A finished run has its report and says what to do next."""

from __future__ import annotations

import logging

import pytest

from configs import boir, mdt
from pose_common.report.ending import conclude
from tests.pose_common.report.cases import make_run


def test_a_run_ends_with_its_report_and_one_sentence(tmp_path, capsys):
    workdir = make_run(tmp_path / "run")
    conclude(mdt.get_config("demo"), workdir, "posebh_jax")
    report, sentence = capsys.readouterr().out.splitlines()
    assert report == f"report: {workdir / 'report.html'}" and (workdir / "report.html").stat().st_size > 10_000
    assert sentence.startswith("next: ") and "docs/your_own_dataset.md" in sentence


@pytest.mark.parametrize(
    "config, package", [(mdt.get_config("base"), "posebh_jax"), (boir.get_config("coco_w32"), "boir_jax")]
)
def test_a_run_that_was_not_evaluated_ends_as_well(tmp_path, capsys, caplog, config, package):
    with caplog.at_level(logging.WARNING):
        conclude(config, tmp_path / "my run", package)
    assert "no report: " in caplog.text and not (tmp_path / "my run" / "report.html").exists()
    assert f"python -m {package}.predict PICTURE --checkpoint='{tmp_path}/my run'" in capsys.readouterr().out
