"""The loader benchmark compares like with like: both pipelines make the same crop from the same draws."""

from __future__ import annotations

import re

import numpy as np
import pytest

from data_pipelines.builders import synthetic
from data_pipelines.top_down import crops as top_down
from scripts.benchmarks import loader as benchmark
from tests.data_pipelines import fakes
from tests.golden_files import golden
from tests.settings import AUGMENTATION

SIZE, HEATMAPS = (192, 256), (48, 64)


def test_the_plain_pipeline_makes_the_same_crops(tmp_path):
    source = fakes.random_source("coco", input_size=SIZE)
    files = []
    for row, encoded in enumerate(source.records.images):
        files.append(tmp_path / f"{row}.jpg")
        files[-1].write_bytes(encoded)
    plain = benchmark.PerSample(source, tuple(map(str, files)), SIZE, HEATMAPS, 20)
    ours = top_down.Train((source.dataset,), SIZE, AUGMENTATION)
    for index in range(len(source)):
        theirs = plain.transform(plain[index], np.random.default_rng(index))
        mine = ours(source[index], np.random.default_rng(index))
        pixels = theirs["image"] * benchmark.STD[:, None, None] + benchmark.MEAN[:, None, None]
        # Mirroring the picture and mirroring within the warp round a few pixels differently.
        assert np.abs(255 * pixels.transpose(1, 2, 0) - mine["image"]).max() < 1.01
        assert theirs["target"].shape == (20, 64, 48)
        assert not theirs["target_weight"][17:].any()


RECORDED = golden("data/pipeline_functions.npz")
TARGETS = [match.groups() for key in RECORDED if (match := re.fullmatch(r"edge/(udp|msra)_target_sigma(\d+)", key))]


@pytest.mark.parametrize("name, sigma", TARGETS)
def test_the_plain_pipeline_draws_the_recorded_heatmaps(name, sigma, monkeypatch):
    monkeypatch.setattr(benchmark, "SIGMA", int(sigma))
    joints, visible = RECORDED["edge/joints"], RECORDED["edge/visible"]
    sizes = (tuple(RECORDED[f"edge/{kind}_size_wh"].tolist()) for kind in ("image", "heatmap"))
    plain = benchmark.PerSample(fakes.random_source(), (), *sizes, len(joints))
    target, _ = plain.targets(joints, visible, name == "udp")
    drawn = RECORDED[f"edge/{name}_weight_sigma{sigma}"] > 0.5
    np.testing.assert_allclose(target[drawn], RECORDED[f"edge/{name}_target_sigma{sigma}"][drawn], atol=1e-5)


def test_it_runs(tmp_path, capsys):
    synthetic.prepare_synthetic(tmp_path, ["synthetic_coco"], num_train=2, num_val=0)
    result = benchmark.main(
        [
            f"--data_dir={tmp_path}",
            "--dataset=synthetic_coco",
            "--batch_size=2",
            "--batches=1",
            "--rounds=1",
            "--workers=0",
        ]
    )
    assert result["one_core"]["cpu_time"]["ratio"]["ours"] > 0 and '"ratio"' in capsys.readouterr().out
