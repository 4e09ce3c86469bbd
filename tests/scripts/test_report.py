"""The command writes a page, or one line that says what is wrong."""

from __future__ import annotations

from scripts import report
from tests.pose_common.report.cases import make_run


def test_the_file_is_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    out = tmp_path / "new" / "report.html"
    assert report.main([str(make_run(tmp_path / "run")), "--out=~/new/report.html", "--max_mb=0.05"]) == 0
    assert out.read_text(encoding="utf8").lstrip().startswith("<!DOCTYPE html>")
    assert capsys.readouterr().out.startswith(f"{out}: 0.")


def test_a_mistake_is_one_line(tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and not captured.out


def test_a_limit_that_is_none_is_refused(tmp_path, capsys):
    for limit in ("nan", "-1"):
        assert report.main([str(tmp_path), f"--max_mb={limit}"]) == 1
        assert capsys.readouterr().err == f"error: --max_mb={limit}: expected a number from 0\n"
