"""Working directories become runs; what is missing or damaged is named."""

from __future__ import annotations

import shutil

import pytest

from pose_common.report.runs import read_runs, result_name
from tests.pose_common.report.cases import REMARK, make_run


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "base")


def test_a_run_has_everything_that_its_folder_has(workdir):
    (run,) = read_runs([workdir])
    results = ["coco val heads", "coco val prototypes"]
    assert (run.name, run.step, run.method) == ("base", 40, "posebh")
    assert [result_name(row) for row in run.rows] == list(run.analyses) == list(run.galleries) == results
    assert run.remarks == [REMARK] and run.other_steps == []
    assert [panel.name for panel in run.panels][:3] == ["loss", "accuracy", "AP"]
    assert run.stages == [(0, "a"), (20, "b")]
    assert run.settings["losses.momentum"] == "0.999" and run.settings["stages[1].name"] == "'b'"


def test_the_newest_evaluation_counts_unless_one_is_named(workdir, tmp_path):
    copy = shutil.copytree(workdir, tmp_path / "base")
    shutil.copytree(copy / "results/step_40", copy / "results/step_5")
    assert [run.step for run in read_runs([copy, copy / "results/step_5"])] == [40, 5]
    assert read_runs([copy / "results/step_5"])[0].other_steps == [40], "the gallery is the newest evaluation's"


def test_names_tell_runs_apart(workdir, tmp_path):
    other = shutil.copytree(workdir, tmp_path / "base")
    step = shutil.copytree(other / "results/step_40", other / "results/step_9")
    assert [run.name for run in read_runs([other, step])] == ["base step 40", "base step 9"]
    assert [run.name for run in read_runs([workdir, other])] == [f"{workdir} step 40", f"{other} step 40"]
    assert len({run.name for run in read_runs([workdir, workdir])}) == 2


@pytest.mark.parametrize("inside", ["results", "gallery"])
def test_a_folder_within_a_run_is_told_the_run(workdir, inside):
    with pytest.raises(ValueError, match=f"{workdir}/{inside}: expected a working directory, which is {workdir}, or"):
        read_runs([workdir / inside])


def test_an_evaluation_without_a_run(workdir, tmp_path):
    """Of an older or a bare evaluation there is the table alone."""
    bare = tmp_path / "bare"
    shutil.copytree(workdir / "results", bare / "results")
    shutil.rmtree(bare / "results/step_40/analysis")
    (run,) = read_runs([bare])
    assert len(run.rows) == 2
    assert not (run.analyses or run.galleries or run.panels or run.settings or run.method)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("results/step_40/table.json", "{", r"table\.json: not valid JSON"),
        ("results/step_40/analysis/coco_heads.json", "[]", r"coco_heads\.json: expected an object, not a list"),
        ("gallery/coco_heads.json", "", r"gallery.coco_heads\.json: not valid JSON"),
        ("config.json", "nothing", r"config\.json: not valid JSON"),
        ("metrics.jsonl", "{\n", r"metrics\.jsonl, line 1 is damaged"),
    ],
)
def test_a_damaged_file_is_named(workdir, tmp_path, name, content, message):
    copy = shutil.copytree(workdir, tmp_path / "damaged")
    (copy / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_runs([copy])


def test_folders_without_an_evaluation_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no such folder"):
        read_runs([tmp_path / "absent"])
    with pytest.raises(ValueError, match="nothing was evaluated here.*mode=evaluate"):
        read_runs([tmp_path])
    with pytest.raises(ValueError, match=r"there is no .*table\.json"):
        read_runs([tmp_path / "results/step_3"])
