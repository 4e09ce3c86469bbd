"""What goes wrong in a run of PoseBH is said before the first step, or stops it with where it came from."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from configs import mdt
from data_pipelines.builders.synthetic import prepare_synthetic
from data_pipelines.records import DatasetNotPrepared
from data_pipelines.top_down import crops
from pose_common.training.checks import ConfigError
from pose_common.training.mesh import make_mesh
from pose_common.training.nonfinite import NonFiniteError
from posebh_jax import build, configuration, main
from tests.training_faults import change_annotations, spoil

pytestmark = pytest.mark.slow  # trains a small network

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
    config.synthetic, config.evaluate_every = type(config.synthetic)(), 100
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


def test_what_can_be_known_is_said_before_the_first_step(data_dir, tmp_path, caplog):
    """Splits to train on and to evaluate, boxes entry by entry, batches and devices; nothing is compiled for it."""
    boxes = tmp_path / "boxes.json"
    boxes.write_text(
        json.dumps([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}, {"image_id": 2}])
    )

    def refused(match, error=ConfigError, **tables):
        config = small(data_dir)
        for name, value in tables.items():
            if isinstance(value, dict):
                config[name].update(value)
            else:
                config[name] = value
        with pytest.raises(error, match=match):
            main.run(config, tmp_path / "work")

    missing = r"synthetic_coco \(vall\) is not prepared: there is no .*, only train, val. Prepare it with"
    refused(missing, DatasetNotPrepared, train_splits={"synthetic_coco": "vall"})
    refused(f"^config.eval_splits.synthetic_coco='vall': {missing}", eval_splits={"synthetic_coco": "vall"})
    refused(
        r"^config.eval_splits.synthetic_ap10k='val': .*entry 1 is no COCO detection", boxes={DATASETS[1]: str(boxes)}
    )
    refused(
        r"config.eval_also \(synthetic_coco_val_boxes\): .*entry 1",
        eval_also=((DATASETS[0], "val", DATASETS[0], str(boxes)),),
    )
    refused(r"config.batch_size=12 does not divide over 8 devices", batch_size=12)
    refused(r"config.stages\[0\].train", ValueError, stages=[mdt.stage("all", 1, ("backbones",), ("heatmap",))])
    assert not (tmp_path / "work" / "checkpoints").exists()
    # A further row may be missing; the run is told of it, and goes on (here to what stops it next).
    refused(r"config.stages", ValueError, eval_also=((DATASETS[0], "test", DATASETS[0]),), stages=[])
    config = small(data_dir)
    evaluator = build.make_evaluator(config, build.make_method(config, 1).model, make_mesh(), tmp_path)
    tasks = [
        *evaluator.tasks,
        dataclasses.replace(evaluator.tasks[0], split="test", field="", name="synthetic_coco_test"),
    ]
    dataclasses.replace(evaluator, tasks=tasks).check()
    assert "config.eval_also (synthetic_coco_test) will not be evaluated: synthetic_coco (test) is not" in caplog.text


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
