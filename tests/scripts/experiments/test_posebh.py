"""The parts of the experiments on known numbers; a finished one only makes its tables; the smallest form runs."""

import dataclasses
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from posebh_jax.method import BANK, PoseBHMethod
from scripts.experiments import lines, posebh, split_skeletons
from scripts.experiments.training import Trainer, pck, percent, truth_of
from tests.posebh_jax.step_program import tiny_method


def test_hits_are_counted_by_keypoint():
    truth = np.zeros((3, 2, 3))
    truth[:, :, 2] = [[1, 1], [2, 0], [1, 1]]
    found = np.zeros((3, 2, 3))
    found[:, 0, 0] = [9.9, 10.1, 0.0]  # a tenth of 100 pixels is the limit
    found[2, 1, 1] = 50.0
    hits, labelled = pck(found, truth, np.full(3, 100.0))
    assert hits.tolist() == [[True, True], [False, False], [True, False]]
    assert percent(hits, labelled) == pytest.approx(100 * (2 / 3 + 1 / 2) / 2)
    assert percent(hits, labelled, [1]) == 50.0 and np.isnan(percent(hits, labelled & False))


def test_truth_goes_by_the_instance():
    columns = types.SimpleNamespace(id=np.array([7, 3]), keypoints=np.arange(12.0).reshape(2, 2, 3))
    found = truth_of(columns, np.array([3, 5, 7]))
    assert found[:, 0, 0].tolist() == [6.0, 0.0, 0.0] and not found[1].any()


def test_halves_share_no_joint_and_lose_none():
    names = ["right_ankle", "right_knee", "right_hip", "left_wrist", "neck"]
    assert split_skeletons.halves(names, "hips") == (["left_wrist", "neck"], names[:3])
    assert split_skeletons.halves(names, "alternate") == (names[::2], names[1::2])
    points = [float(v) for k in range(5) for v in (k, 10 * k, 2 * (k != 4))]
    document = {
        "images": [1],
        "categories": [{"id": 1, "name": "person", "keypoints": names, "skeleton": [[1, 2]]}],
        "annotations": [{"id": 1, "keypoints": points, "num_keypoints": 4}],
    }
    found = split_skeletons.only(document, ["left_wrist", "neck"])
    assert found["annotations"] == [{"id": 1, "keypoints": [3, 30, 2, 4, 40, 0], "num_keypoints": 1}]
    assert found["categories"] == [{"id": 1, "name": "person", "keypoints": ["left_wrist", "neck"]}]
    assert document["annotations"][0]["keypoints"] is points


def test_the_slip_moves_the_first_datasets_prototypes_alone(monkeypatch):
    method = tiny_method()
    fields = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
    monkeypatch.setattr(PoseBHMethod, "update", lambda self, state, *_: ({BANK: state[BANK] + 1}, {}))
    total = method.keypoint_index.total
    new, _ = posebh.FirstDatasetOnly(**fields).update({BANK: jnp.zeros((total, 2, 3))}, None, None)
    assert new[BANK][:17].min() == 1 and not new[BANK][17:].any()


def test_an_experiment_that_is_done_makes_its_tables_and_trains_nothing(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for seed in range(2):
        for poor in (100, 25):
            for arm in ("base", *posebh.BASELINES, *posebh.ARMS):
                value = float(rng.random())
                figures = dict.fromkeys(("own/synthetic_coco", "other/people/head expert"), value)
                key = {"arm": arm, "seed": seed, "poor": poor}
                lines.append(tmp_path / "posebh.jsonl", key | {"steps": 9, "cpu_seconds": 1.0, "figures": figures})
    before = (tmp_path / "posebh.jsonl").read_bytes()
    monkeypatch.setattr(sys, "argv", ["posebh", f"--out={tmp_path}", "--seeds=2", "--poor", "100", "25"])
    posebh.main()
    assert (tmp_path / "posebh.jsonl").read_bytes() == before
    assert (tmp_path / "posebh.svg").stat().st_size and "multi-head (2 runs)" in (tmp_path / "posebh.md").read_text()


@pytest.mark.slow  # compiles a training step
def test_the_smallest_form_runs_and_goes_on(tmp_path):
    config = posebh.configuration()
    config.input_size, config.head_filters, config.batch_size, config.size = (32, 48), (4, 4), 8, "tiny"
    size = posebh.Size(base=1, first=1, rest=1, train=2, val=2, poor=2)
    trainer = Trainer(config, posebh.MULTI_HEAD)
    posebh.Seed(tmp_path / "posebh.jsonl", size, trainer, 0, tmp_path / "data").run(posebh.BASELINES, {})
    rows = lines.read(tmp_path / "posebh.jsonl")
    assert [(row["arm"], row["steps"]) for row in rows] == [
        ("base", 1),
        *((a, f(size)) for a, f in posebh.BASELINES.items()),
    ]
    for row in rows:
        assert {"own/synthetic_coco", "unseen/people/picture expert", "other/animals/head expert"} <= row[
            "figures"
        ].keys()
        assert all(0 <= value <= 100 for value in row["figures"].values()) and row["cpu_seconds"] > 0
    posebh.Seed(tmp_path / "posebh.jsonl", size, trainer, 0, tmp_path / "data").run(posebh.BASELINES, {})
    assert lines.read(tmp_path / "posebh.jsonl") == rows
