"""Intervals against known values, resumable files, tables and plots."""

import math

import pytest

from scripts.experiments import lines


def _line(arm, seed, value):
    return {"arm": arm, "seed": seed, "steps": 3, "seconds": 1.5, "figures": {"AP": value}}


def test_interval_of_known_numbers():
    # 1 .. 5: standard deviation sqrt(2.5), t(0.975, 4) = 2.7764451 (tables), so 2.7764451 * sqrt(2.5 / 5) = 1.9632432.
    found = lines.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.count == 5 and found.mean == 3.0
    assert found.high - 3.0 == pytest.approx(1.9632432, abs=1e-6) == 3.0 - found.low  # digits of the table
    # Two runs: t(0.975, 1) = 12.7062047, deviation 1 / sqrt(2) of 0 and 1, over sqrt(2).
    assert lines.interval([0.0, 1.0]).high == pytest.approx(0.5 + 12.7062047 / 2, abs=1e-6)


def test_fewer_than_two_runs_have_no_interval():
    one, none = lines.interval([4.0]), lines.interval([])
    assert (one.mean, one.count, math.isnan(one.low)) == (4.0, 1, True)
    assert none.count == 0 and math.isnan(none.mean)


def test_paired_differences_count_only_seeds_that_both_have():
    rows = [_line("a", seed, 10.0 * seed + 1 + seed % 2) for seed in range(4)]
    rows += [_line("b", seed, 10.0 * seed) for seed in range(1, 5)]
    found = lines.paired(rows, "AP", "a", "b")
    # Seeds 1 to 3: differences 2, 1, 2. The runs themselves differ by tens; their pairs hardly do.
    assert found.count == 3 and found.mean == pytest.approx(5 / 3)
    assert found.high - found.low < 3 < lines.mean(rows, "AP", "a").high - lines.mean(rows, "AP", "a").low
    assert lines.mean(rows, "seconds", "b").mean == 1.5


def test_a_file_goes_on_after_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "new" / "x.jsonl"
    assert lines.read(path) == []
    lines.append(path, _line("a", 0, 1.0))
    with path.open("a") as file:
        file.write('{"arm": "a", "se')
    assert len(lines.read(path)) == 1
    lines.append(path, _line("a", 1, 2.0))
    rows = lines.read(path)
    assert lines.find(rows, arm="a", seed=1)["figures"]["AP"] == 2.0
    assert lines.find(rows, arm="b") is None and len(rows) == 2
    path.write_text("no\n" + path.read_text())
    with pytest.raises(ValueError, match="line 1"):
        lines.read(path)


def test_table_and_plot(tmp_path):
    rows = [_line("a", 0, 1.0), _line("a", 1, 3.0)]
    value = lines.mean(rows, "AP", "a")
    assert lines.markdown([("arm", "AP"), ("a", value)]).splitlines() == [
        "| arm | AP |",
        "|---|---|",
        "| a | 2.0 [-10.7, 14.7] |",
    ]
    path = tmp_path / "x.svg"
    lines.plot(path, {"AP": {"a": value, "b": lines.interval([])}}, ylabel="AP")
    first = path.read_bytes()
    lines.plot(path, {"AP": {"a": value, "b": lines.interval([])}}, ylabel="AP")
    assert first == path.read_bytes()  # no date, no random names: nothing to commit where nothing changed
