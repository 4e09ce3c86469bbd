"""What goes wrong in a run of PoseBH is said before the first step, or stops it with where it came from."""

from __future__ import annotations

import json

import numpy as np
import pytest

from configs import mdt
from data_pipelines.builders.synthetic import prepare_synthetic
from data_pipelines.top_down import crops
from pose_common.training.nonfinite import NonFiniteError
from posebh_jax import configuration, main
from tests.training_faults import change_annotations, spoil

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compilation")]  # trains a small network

DATASETS = ("synthetic_coco", "synthetic_ap10k")


def small(data_dir):
    """The multi-head baseline, as small as it goes."""
    config = mdt.get_config("demo")
    config.method, config.datasets, config.data_dir = "multi_head", DATASETS, str(data_dir)
    config.input_size, config.head_filters = (48, 64), (8, 8)
    config.batch_size = config.eval_batch_size = 8
    config.steps_per_epoch, config.checkpoint_every, config.log_every = 4, 1, 50
    config.warmup_steps, config.pictures, config.evaluate_stages, config.compilation_cache = 0, 0, False, ""
    config.stages = [mdt.stage("multi-head", 2, ("backbone", "heads"), mdt.MULTI_HEAD_LOSSES)]
    config.synthetic = type(config.synthetic)()
    configuration.fill_tables(config)
    return config


@pytest.fixture
def data_dir(tmp_path):
    prepare_synthetic(tmp_path / "data", list(DATASETS), num_train=12, num_val=4)
    return tmp_path / "data"


def test_labels_that_are_not_finite_in_the_prepared_data_are_named_before_the_first_step(data_dir, tmp_path):
    change_annotations("synthetic_ap10k", "train", data_dir, keypoints=spoil)
    message = r"synthetic_ap10k/train/.*/annotations.npz: 8 labelled keypoints are not finite, the first of annotation"
    with pytest.raises(ValueError, match=message):
        main.run(small(data_dir), tmp_path / "work")
    assert not (tmp_path / "work" / "checkpoints").exists()


def test_labels_that_are_not_finite_stop_the_run_with_dataset_and_pictures(data_dir, tmp_path, monkeypatch):
    make = crops.Train.__call__

    def spoilt(self, sample, rng):
        element = make(self, sample, rng)
        if element["dataset"] == 1:
            element["visible"][0] = np.nan
        return element

    monkeypatch.setattr(crops.Train, "__call__", spoilt)
    with pytest.raises(NonFiniteError) as stopped:
        main.run(small(data_dir), tmp_path / "work")
    message = str(stopped.value)
    assert "heatmap/synthetic_ap10k" in message and "gradients of backbone (" in message
    assert "labels that are not finite: synthetic_ap10k/train/" in message and ": visible" in message
    (path,) = (tmp_path / "work").glob("nonfinite_step_*.json")
    batch = json.loads(path.read_text())["batch"]
    assert len(batch) == 8
    assert {row["dataset"] for row in batch if row["not finite"]} == {"synthetic_ap10k"}
