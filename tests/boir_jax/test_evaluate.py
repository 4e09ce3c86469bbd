"""Whole splits in one table: perfect predictions score 100, duplicates go, submissions and missing data are said."""

from __future__ import annotations

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from boir_jax import build, configuration
from boir_jax.evaluate import Evaluator, Task
from boir_jax.published import published
from configs import boir
from data_pipelines.builders.coco import Coco
from data_pipelines.builders.synthetic import prepare_synthetic
from data_pipelines.datasets import find_dataset
from data_pipelines.reading import Reading
from data_pipelines.records import load_annotations
from data_pipelines.top_down.instances import detections
from data_pipelines.whole_image.loader import eval_loader
from pose_common.training.checks import ConfigError
from pose_common.training.mesh import make_mesh
from tests.data_pipelines import tiny_sets

SIZE, BATCH, PEOPLE = 64, 8, 24
READING = Reading(num_threads=1)


class Oracle:
    """A predictor that knows every picture; it finds everybody twice, the second time less surely."""

    def __init__(self, dataset, split, data_dir):
        loader = eval_loader(dataset, split, data_dir=data_dir, batch_size=BATCH, input_size=SIZE, reading=READING)
        samples = [loader.source.describe(index) for index in range(len(loader.source))]
        people = {sample["image_id"]: sample["keypoints"] for sample in samples}
        self.skeleton = loader.source.dataset.keypoints
        self.known = {
            image.tobytes(): people[image_id]
            for batch in loader
            for image, image_id, valid in zip(batch["image"], batch["image_id"], batch["valid"], strict=True)
            if valid
        }

    def __call__(self, weights, image, inverse_warp):
        keypoints = np.zeros((len(image), PEOPLE, self.skeleton.num_keypoints, 3), np.float32)
        score = np.zeros((len(image), PEOPLE), np.float32)
        for row, picture in enumerate(np.asarray(image)):
            people = self.known.get(picture.tobytes(), [])  # none: a row that fills the batch
            for rank, person in enumerate(people):
                for copy, sure in ((2 * rank, 0.9), (2 * rank + 1, 0.5)):
                    keypoints[row, copy], score[row, copy] = person, sure - 0.01 * rank
        found = {"keypoints": keypoints, "score": score, "found": score > 0}
        return {name: jnp.asarray(value) for name, value in found.items()}


def evaluator(tasks, data_dir, workdir, **settings):
    return Evaluator(tasks, str(data_dir), BATCH, SIZE, make_mesh(), workdir, READING, **settings)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    path = tmp_path_factory.mktemp("synthetic")
    prepare_synthetic(path, ["synthetic_crowd", "synthetic_coco"], num_train=0, num_val=5)
    return path


def test_perfect_predictions_score_100(synthetic, tmp_path, capsys):
    names = ("synthetic_crowd", "synthetic_coco")
    tasks = [Task(find_dataset(name), "val", Oracle(name, "val", synthetic), 0.8) for name in names]
    absent = Task(find_dataset("crowdpose"), "test", tasks[0].predictor, 0.8)
    figures = evaluator([*tasks, absent], synthetic, tmp_path, pictures=2)({}, step=3)
    assert list(figures) == [f"{name}_val" for name in names]
    table = json.loads((tmp_path / "results/step_3/table.json").read_text())
    for row, task in zip(table["rows"], tasks, strict=True):
        assert (row["boxes"], row["published boxes"]) == ("none (whole pipeline)", "")
        assert figures[task.name]["AP"] == pytest.approx(1), "a second pose of everybody was suppressed"
        # Levels of crowding without any of these five pictures count as -1.
        assert row["ours"].split(" / ")[0] == "100.0" and row["metrics"] == figures[task.name]
        results = json.loads((tmp_path / f"results/step_3/{task.name}.json").read_text())
        assert len(results) == sum(map(len, task.predictor.known.values()))
        boxes = detections(
            tmp_path / f"results/step_3/{task.name}_boxes.json",
            load_annotations(task.dataset, "val", synthetic),
            task.protocol,
            (96, 128),
        )
        assert len(boxes) == len(results), "a top-down model can take every box"
        assert (tmp_path / f"pictures/{task.name}.png").exists()
        analysis = json.loads((tmp_path / f"results/step_3/analysis/{task.name}.json").read_text())
        people = analysis["people"]
        assert people["found"] == people["labelled"] and analysis["total"]["good"] == analysis["total"]["labelled"]
    for text in (capsys.readouterr().out, *table["remarks"]):
        assert "scripts.prepare_data crowdpose" in text


def test_without_suppression_duplicates_stay(synthetic, tmp_path):
    predictor = Oracle("synthetic_crowd", "val", synthetic)
    evaluator([Task(find_dataset("synthetic_crowd"), "val", predictor, 1.0)], synthetic, tmp_path)({}, 0)
    results = json.loads((tmp_path / "results/step_0/synthetic_crowd_val.json").read_text())
    assert len(results) == 2 * sum(map(len, predictor.known.values()))


def test_a_skeleton_without_sigmas_is_suppressed_by_the_default_one(synthetic, tmp_path):
    own, predictor = find_dataset("synthetic_crowd"), Oracle("synthetic_crowd", "val", synthetic)
    own = dataclasses.replace(own, skeleton=dataclasses.replace(own.keypoints, sigmas=()))
    (task,) = tasks = [Task(own, "val", predictor, 0.8)]
    judge = evaluator(tasks, synthetic, tmp_path)
    assert len(judge.find_poses({}, task, judge._loader(task))) == sum(map(len, predictor.known.values()))


def test_nobody_found(synthetic, tmp_path):
    predictor = Oracle("synthetic_crowd", "val", synthetic)
    predictor.known = {}
    figures = evaluator(
        [Task(find_dataset("synthetic_crowd"), "val", predictor, 0.8)], synthetic, tmp_path, pictures=1
    )({}, 0)
    assert figures["synthetic_crowd_val"]["AP"] == 0


def test_splits_without_annotations_give_a_file_for_submission(tmp_path, capsys):
    content = tiny_sets.document(2)
    tiny_sets.write_coco(tmp_path, content)
    pictures = tmp_path / "coco" / "val2017"
    unlabelled = tmp_path / "image_info.json"
    kinds = [*content["categories"], {"id": 18, "name": "dog"}]  # as COCO's test-dev, which lists them all
    unlabelled.write_text(json.dumps({"images": content["images"], "categories": kinds}))
    Coco("test-dev", annotations=unlabelled, images=pictures, data_dir=tmp_path, progress=False).prepare()
    predictor = Oracle("coco", "test-dev", tmp_path)
    person = np.array(content["annotations"][0]["keypoints"], np.float32).reshape(1, 17, 3)
    predictor.known = dict.fromkeys(predictor.known, person)
    tasks = [Task(find_dataset("coco"), "test-dev", predictor, 0.8)]
    assert evaluator(tasks, tmp_path, tmp_path, published_as="W32")({}, 0) == {"coco_test-dev": {}}
    submission = json.loads((tmp_path / "results/step_0/coco_test-dev.json").read_text())
    assert sorted(entry["image_id"] for entry in submission) == [1, 2]
    assert all(len(entry["keypoints"]) == 51 and entry["category_id"] == 1 for entry in submission)
    out = capsys.readouterr().out
    assert "for submission" in out and "69.5 / -" in out


def test_several_categories_are_refused_before_a_training_and_under_the_table(tmp_path):
    content = tiny_sets.document(2) | {"categories": [{"id": 1, "name": "cat"}, {"id": 18, "name": "dog"}]}
    path = tiny_sets.write_coco(tmp_path, content)
    Coco("val", annotations=path, images=tmp_path / "coco/val2017", data_dir=tmp_path, progress=False).prepare()
    tasks = [Task(find_dataset("coco"), "val", Oracle("coco", "val", tmp_path), 0.8)]
    assert evaluator(tasks, tmp_path, tmp_path)({}, 0) == {}
    remarks = json.loads((tmp_path / "results/step_0/table.json").read_text())["remarks"]
    assert "coco_val: the annotation file has the categories [1, 18]" in remarks[0]
    tasks = [dataclasses.replace(tasks[0], field="eval_split")]
    with pytest.raises(ConfigError, match=r"^config.eval_split='val': coco_val: .* the categories \[1, 18\]"):
        evaluator(tasks, tmp_path, tmp_path).check()


def test_what_cannot_be_evaluated_is_known_before_the_training(synthetic, tmp_path, caplog):
    """An own split is refused, a further row is warned of; what decides which weights are the best is the own one's."""
    config = boir.get_config("demo")
    config.data_dir, config.eval_also = str(synthetic), (("synthetic_coco", "val"), ("synthetic_coco", "test"))
    model = build.make_model(config)
    evaluator = build.make_evaluator(config, model, make_mesh(), tmp_path)
    evaluator.check()
    assert "config.eval_also (synthetic_coco_test) will not be evaluated: synthetic_coco (test) is not" in caplog.text
    assert evaluator.best_metric("").figures == (("synthetic_crowd_val", "AP"),)
    assert evaluator.best_metric("*/AP(H)").name == "synthetic_crowd_val/AP(H)"
    with pytest.raises(
        ConfigError, match=r"config.best_metric='synthetic_coco_val/AP': .* of synthetic_crowd_val/AP, "
    ):
        evaluator.best_metric("synthetic_coco_val/AP")
    config.eval_split = "vall"
    with pytest.raises(
        ConfigError, match=r"^config.eval_split='vall': synthetic_crowd \(vall\) .*, only val\. Prepare"
    ):
        build.make_evaluator(config, model, make_mesh(), tmp_path).check()


def test_published_lookup():
    assert published("W48 finetuned", "crowdpose", "test").figures["AP(H)"] == 69.8
    assert published("W32", "ochuman", "test").figures["AR"] == 80.3
    assert not published("W32", "synthetic_crowd", "val") and not published("", "coco", "val")


def tasks_of(name):
    config = boir.get_config(name)
    return build.make_tasks(config, build.make_model(config))


def test_the_rows_of_a_configuration():
    coco = tasks_of("coco_w32")
    assert [(task.dataset, task.split) for task in coco] == [("coco", "val"), ("ochuman", "test")]
    assert [task.oks_threshold for task in coco] == [0.8, 0.7]
    assert [task.predictor.proposals.smoothing for task in coco] == [3, 11]
    (crowd,) = tasks_of("crowdpose_w48")
    assert (crowd.dataset, crowd.split, crowd.predictor.proposals.maximum) == ("crowdpose", "test", 30)
    with pytest.raises(ValueError, match="'crowdpose' has other keypoints"):
        configuration.read("boir:coco_w32", [("eval_also", "(('crowdpose','test'),)")])
