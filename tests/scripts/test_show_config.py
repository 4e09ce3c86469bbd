"""The configuration of a run from its folder alone."""

from __future__ import annotations

import pytest

from posebh_jax import configuration
from scripts import show_config


def saved(folder, *overrides):
    folder.mkdir()
    config = configuration.read("mdt:base", overrides)
    (folder / "config.json").write_text(config.to_json())
    return str(folder)


def test_every_number_stands_on_a_line_of_its_own(tmp_path, capsys):
    assert show_config.main([saved(tmp_path / "run")]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line in (
        "losses.momentum = 0.999",
        "augmentation.flip = 0.5",
        "train_splits.ap10k = 'train-split1'",
        "stages[1].epochs = 40",
        "codec.coco = 'udp'",
        "clusters.options = (64, 96, 128)",
    ):
        assert line in lines


def test_two_runs_are_compared(tmp_path, capsys):
    one, two = saved(tmp_path / "one"), saved(tmp_path / "two", ("seed", "3"))
    assert show_config.main([one, two]) == 1
    assert capsys.readouterr().out.splitlines() == ["seed: 0 -> 3"]
    assert show_config.main([one, one]) == 0
    assert capsys.readouterr().out.startswith("the same ")
    assert show_config.main([one, str(tmp_path)]) == 1


@pytest.mark.parametrize("text", ['{"seed": ', "[1]"])
def test_a_damaged_file_is_named(tmp_path, capsys, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    for source in (path, tmp_path):
        assert show_config.main([str(source)]) == 1
        assert capsys.readouterr().err.startswith(f"error: {path} is no configuration: ")
