"""One table for every dataset: perfect predictions score 100 everywhere, and whatever is missing is said."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import mdt
from data_pipelines.builders.coco import Coco
from data_pipelines.builders.synthetic import prepare_synthetic
from data_pipelines.datasets import find_dataset
from data_pipelines.reading import Reading
from data_pipelines.sharing import Share
from data_pipelines.top_down.loader import eval_loader
from pose_common import heatmaps
from pose_common.report.runs import read_runs
from pose_common.training import cli, restore
from pose_common.training.checks import ConfigError
from pose_common.training.mesh import make_mesh
from posebh_jax import build, configuration, main
from posebh_jax.evaluate import Evaluator, Task
from posebh_jax.pose_model import EMBEDDED
from posebh_jax.published import model_name, published
from tests.data_pipelines import tiny_sets
from tests.settings import POSES

SIZE, BATCH = (48, 64), 16
DATASETS = (
    "synthetic_coco",
    "synthetic_mpii",
    "synthetic_ap10k",
    "synthetic_coco_wholebody",
    "synthetic_crowd",
)
READING = Reading(num_threads=1)


class Oracle:
    """A predictor that knows every crop of some datasets by the map that made it."""

    input_size = SIZE

    def __init__(self, data_dir, datasets):
        self.known = {}
        for name in datasets:
            settings = {"batch_size": BATCH, "input_size": SIZE, "share": Share(devices=jax.device_count())}
            loader = eval_loader(name, "val", data_dir=data_dir, reading=READING, **settings)
            for batch in loader:
                truth = heatmaps.to_image(batch["keypoints"], batch["inverse_warp"])
                for warp, keypoints in zip(batch["inverse_warp"], np.asarray(truth), strict=True):
                    self.known[name, warp.tobytes()] = keypoints

    def __call__(self, weights, image, inverse_warp, *, head, protocol):
        rows = [self.known[protocol.name, warp.tobytes()] for warp in np.asarray(inverse_warp)]
        keypoints = np.concatenate([rows, np.ones((len(rows), protocol.num_keypoints, 1))], axis=-1)
        return {"heads": jnp.asarray(keypoints, jnp.float32)}


class Constant:
    """A predictor that always finds the person of `tiny_sets`."""

    input_size = SIZE

    def __call__(self, weights, image, inverse_warp, *, head, protocol):
        keypoints = np.array(tiny_sets.annotation(0, 0)["keypoints"], np.float32).reshape(1, 17, 3)
        return {"heads": jnp.asarray(np.repeat(np.minimum(keypoints, (100, 100, 1)), len(image), axis=0))}


def evaluator(predictor, tasks, data_dir, workdir, **settings):
    return Evaluator(predictor, tasks, POSES, 0.0, str(data_dir), BATCH, make_mesh(), workdir, READING, **settings)


def task(dataset, split="val", boxes="ground_truth"):
    return Task(find_dataset(dataset), split, 0, str(boxes), f"{dataset}_{split}")


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    path = tmp_path_factory.mktemp("synthetic")
    prepare_synthetic(path, DATASETS, num_train=0, num_val=3)
    return path


def test_perfect_predictions_score_100_on_every_dataset(synthetic, tmp_path, capsys):
    tasks = [*map(task, DATASETS), task("apt36k")]
    run = evaluator(Oracle(synthetic, DATASETS), tasks, synthetic, tmp_path, pictures=2)
    figures = run({}, step=7)
    rows = json.loads((tmp_path / "results/step_7/table.json").read_text())
    assert [row["dataset"] for row in rows["rows"]] == list(DATASETS)
    for row in rows["rows"]:
        # Float32 coordinates of a crop, back in the picture, are off by some 1e-5 pixels.
        assert {float(figure) for figure in row["ours"].split(" / ")} == {100.0}, row
        assert row["images"] == 3 and row["instances"] >= 1 and row["boxes"] == "ground truth"
        assert row["metrics"] == figures[f"{row['dataset']}_val/heads"]
        assert (tmp_path / f"results/step_7/{row['dataset']}_val_heads.json").exists()
        assert (tmp_path / f"pictures/{row['dataset']}_val_heads.png").exists()
        analysis = json.loads((tmp_path / f"results/step_7/analysis/{row['dataset']}_val_heads.json").read_text())
        assert analysis["total"]["good"] == analysis["total"]["labelled"] == analysis["total"]["found"] > 0
        assert (tmp_path / f"gallery/{row['dataset']}_val_heads.json").exists()
        assert ("AP of body 100.0, foot 100.0" in "; ".join(row["notes"])) == ("wholebody" in row["dataset"])
    with (tmp_path / "results/step_7/table.csv").open() as file:
        assert [row["ours"] for row in csv.DictReader(file)] == [row["ours"] for row in rows["rows"]]
    errors = json.loads((tmp_path / "results/step_7/errors.json").read_text())["rows"]
    assert [row["PCK@0.05"] for row in errors] == ["100.0"] * len(DATASETS)
    for text in (
        capsys.readouterr().out,
        (tmp_path / "results/step_7/table.md").read_text(),
        *rows["remarks"],
    ):
        assert "scripts.prepare_data apt36k" in text


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """Three pictures, a person in each but the last; the same without annotations (test-dev); detections."""
    root = tmp_path_factory.mktemp("coco")
    content = tiny_sets.document(3)
    content["annotations"] = [tiny_sets.annotation(image, image) for image in (1, 2)]
    path = tiny_sets.write_coco(root, content)
    pictures = root / "coco" / "val2017"
    Coco("val", annotations=path, images=pictures, data_dir=root, progress=False).prepare()
    unlabelled = root / "image_info.json"
    unlabelled.write_text(json.dumps({key: content[key] for key in ("images", "categories")}))
    Coco("test-dev", annotations=unlabelled, images=pictures, data_dir=root, progress=False).prepare()
    box = content["annotations"][0]["bbox"]
    for name, images in (("people", (1, 2)), ("nobody", (3, 1, 2))):
        found = [{"image_id": i, "category_id": 1, "bbox": box, "score": 0.4 + i / 10} for i in images]
        (root / f"{name}.json").write_text(json.dumps(found))
    return root


def test_a_person_found_where_there_is_none_counts(coco, tmp_path):
    people, nobody = (
        evaluator(Constant(), [task("coco", boxes=coco / f"{name}.json")], coco, tmp_path / name)({}, 0)
        for name in ("people", "nobody")
    )
    assert people["coco_val/heads"]["AP"] == 1
    assert nobody["coco_val/heads"]["AP"] < 0.9, "the empty picture's detection is the most certain one"


class WithPrototypes(Constant):
    """The same by prototypes, of two skeletons."""

    datasets = (find_dataset("coco"), find_dataset("ap10k"))

    def __call__(self, weights, image, inverse_warp, *, head, protocol):
        heads = super().__call__(weights, image, inverse_warp, head=head, protocol=protocol)["heads"]
        return {"heads": heads, "prototypes": heads}


def test_rows_of_prototypes_say_whether_namesakes_meet(coco, tmp_path):
    """Only where the run has prototypes; nose and eyes have namesakes, as shoulders, elbows, hips and knees."""
    bank = np.random.default_rng(0).standard_normal((34, 1, 16))
    human, animal = (list(dataset.keypoints.keypoints) for dataset in WithPrototypes.datasets)
    bank[17 + animal.index("L_Hip")] = bank[human.index("left_hip")]
    rows = evaluator(WithPrototypes(), [task("coco")], coco, tmp_path)({"prototypes": {"bank": jnp.asarray(bank)}}, 0)
    found = rows["coco_val/prototypes"]
    assert "same_name_mrr" not in rows["coco_val/heads"] and found["AP"] == rows["coco_val/heads"]["AP"]
    assert 1 / 11 <= found["same_name_top1"] <= found["same_name_mrr"] < 1
    (_, row) = json.loads((tmp_path / "results/step_0/table.json").read_text())["rows"]
    assert row["metrics"]["same_name_mrr"] == found["same_name_mrr"]


def test_detections_of_any_category_and_their_account(tmp_path):
    """Poses keep the detector's category, whatever annotations have the same ids as detections have counts."""
    content = tiny_sets.document(3) | {"categories": [{"id": 40, "name": "cat"}, {"id": 3, "name": "dog"}]}
    kinds = (3, 40, 40)
    content["annotations"] = [
        tiny_sets.annotation(number, number + 1, category_id=kind) for number, kind in enumerate(kinds)
    ]
    path = tiny_sets.write_coco(tmp_path, content)
    Coco("val", annotations=path, images=tmp_path / "coco/val2017", data_dir=tmp_path, progress=False).prepare()
    box = content["annotations"][0]["bbox"]
    found = [{"image_id": i, "category_id": kinds[i - 1], "bbox": box, "score": 0.5} for i in (3, 2, 1)]
    found += [found[0] | {"category_id": 1}, found[0] | {"image_id": 9}]
    (tmp_path / "boxes.json").write_text(json.dumps(found))
    run = evaluator(Constant(), [task("coco", boxes=tmp_path / "boxes.json")], tmp_path, tmp_path / "run")
    assert run({}, 0)["coco_val/heads"]["AP"] == 1
    results = json.loads((tmp_path / "run/results/step_0/coco_val_heads.json").read_text())
    assert {entry["image_id"]: entry["category_id"] for entry in results} == {1: 3, 2: 40, 3: 40}
    (row,) = json.loads((tmp_path / "run/results/step_0/table.json").read_text())["rows"]
    assert row["notes"] == ["3 detected boxes used, 0 images have none; left out: category 1: 1, unknown image: 1"]


def test_of_people_judged_box_by_box_those_without_a_crop_are_left_out_and_counted(tmp_path):
    """As preparation counts them; one of them was an error at the end of the evaluation, and of the training."""
    content = tiny_sets.document(4)
    changes = ({}, {"area": 0}, {"bbox": [4.25, 5, 0, 22.5]}, {"num_keypoints": 0})
    content["annotations"] = [tiny_sets.annotation(n, n, **change) for n, change in enumerate(changes, start=1)]
    path = tiny_sets.write_coco(tmp_path, content)
    Coco("val", annotations=path, images=tmp_path / "coco/val2017", data_dir=tmp_path, progress=False).prepare()
    judged = dataclasses.replace(find_dataset("coco"), metric="hand", drop_unlabelled_by="num_keypoints")
    whole = dataclasses.replace(task("coco"), protocol=judged)
    values = evaluator(Constant(), [whole], tmp_path, tmp_path / "run", pictures=1)({}, 0)["coco_val/heads"]
    assert values["PCK"] == 1 and values["EPE"] == 0
    (row,) = json.loads((tmp_path / "run/results/step_0/table.json").read_text())["rows"]
    said = "left out: without keypoints: 1, box without extent: 1, area of zero: 1"
    assert row["notes"] == [f"1 annotations used, 3 images have none; {said}"]
    # OKS asks for everybody who is labelled.
    whole = dataclasses.replace(whole, protocol=dataclasses.replace(judged, metric="coco"))
    assert evaluator(Constant(), [whole], tmp_path, tmp_path / "run")({}, 1)["coco_val/heads"]["AR"] == 0.25
    (row,) = json.loads((tmp_path / "run/results/step_1/table.json").read_text())["rows"]
    assert row["notes"] == ["3 labelled people give no crop (see the preparation's summary), and count as missed"]


def test_splits_without_annotations_give_a_file_for_submission(coco, tmp_path, capsys):
    tasks = [task("coco", "test-dev", coco / "people.json"), task("coco", "val", coco / "absent.json")]
    assert evaluator(Constant(), tasks, coco, tmp_path)({}, 0) == {"coco_test-dev/heads": {}}
    submission = json.loads((tmp_path / "results/step_0/coco_test-dev_heads.json").read_text())
    assert [entry["image_id"] for entry in submission] == [1, 2] and len(submission[0]["keypoints"]) == 51
    out = capsys.readouterr().out
    assert "for submission" in out and "- / -" in out and "people.json" in out
    assert "coco (val) was not evaluated: there is no" in out and "absent.json" in out


def test_published_figures_stand_beside_ours(coco, tmp_path):
    whole = dataclasses.replace(task("coco", boxes=coco / "people.json"), name="coco_val_people")
    run = evaluator(Constant(), [task("coco"), whole], coco, tmp_path, published_as=model_name(True, "base"))
    assert set(run({}, 0)) == {"coco_val/heads", "coco_val_people/heads"}
    row, detected = json.loads((tmp_path / "results/step_0/table.json").read_text())["rows"]
    assert (row["ours"], row["published"]) == ("100.0 / 100.0", "77.3 / 82.4")
    assert (row["boxes"], row["published boxes"]) == ("ground truth", "person detector of 56 AP (whole pipeline)")
    assert row["notes"] == ["published with person detector of 56 AP boxes"]
    assert (detected["boxes"], detected["published"]) == ("people.json (whole pipeline)", row["published"])
    (run,) = read_runs([tmp_path])
    assert len(run.rows) == len(run.analyses) == 2, "each row of the report has its own analysis"


def test_published_lookup():
    assert model_name(False, "huge") == "ViTPose++-H"
    assert published("PoseBH-H", "ochuman", "test").figures == {"AP": 87.0, "AR": 88.4}
    assert published("PoseBH-B", "ochuman", "val").compare("val", "ground truth") == "published on test"
    assert published("PoseBH-B", "coco", "test-dev").figures == {"AP": 76.6, "AR": 81.7}
    assert published("ViTPose++-B", "ap10k", "val-split1").figures == {"AP": 74.5}
    assert published("PoseBH-H", "interhand2d", "test") is None
    assert published("PoseBH-T", "coco", "val") is None and published("PoseBH-B", "synthetic_coco", "val") is None


def test_the_rows_of_a_configuration():
    config = mdt.get_config("base")
    tasks = build.make_tasks(config)
    assert [t.dataset for t in tasks] == [*mdt.DATASETS, "ochuman"]
    assert {t.dataset: t.split for t in tasks if t.split != "val"} == {
        "ap10k": "val-split1",
        "ochuman": "test",
    }
    assert tasks[-1].head == 0 and tasks[-1].protocol == find_dataset("ochuman")
    config.eval_also = (("coco", "test-dev", "coco", "boxes.json"),)
    assert build.make_tasks(config)[-1] == Task(
        find_dataset("coco"), "test-dev", 0, "boxes.json", "coco_test-dev_boxes"
    )
    config.eval_also = (("coco", "val", "coco", "one/boxes.json"), ("coco", "val", "coco", "other/boxes.json"))
    with pytest.raises(ConfigError, match="config.eval_also: 2 rows would be called 'coco_val_boxes'"):
        build.make_tasks(config)
    for wrong in ("(('ochuman','test','crowdpose'),)", "(('ochuman','test'),)", "ochuman,test,coco"):
        with pytest.raises(ValueError, match="eval_also"):
            configuration.read("mdt", [("eval_also", wrong)])


def test_a_bad_row_costs_no_other(synthetic, tmp_path):
    """A boxes file that is none, and one that is not there, are named under the table of the rest."""
    (tmp_path / "broken.json").write_text("[{")
    files = [tmp_path / "broken.json", tmp_path / "absent.json"]
    tasks = [task("synthetic_mpii"), *(task("synthetic_coco", boxes=file) for file in files)]
    metrics = evaluator(Oracle(synthetic, ["synthetic_mpii"]), tasks, synthetic, tmp_path)({}, step=1)
    assert set(metrics) == {"synthetic_mpii_val/heads"} and len(metrics.failed) == 2
    remarks = json.loads((tmp_path / "results/step_1/table.json").read_text())["remarks"]
    assert len(remarks) == 2 and "broken.json" in remarks[0] and "absent.json" in remarks[1]


def test_an_evaluation_with_a_failed_row_ends_in_an_error_when_all_is_saved(coco, tmp_path, monkeypatch, capsys):
    """The exit status of the command; what is not prepared is no failure, as a table has what there is data for."""
    (tmp_path / "broken.json").write_text("[{")
    files = {"broken": [task("coco", boxes=tmp_path / "broken.json")], "absent": [task("ochuman")], "none": []}
    config = mdt.get_config("demo")
    for name, more in files.items():
        run = evaluator(Constant(), [task("coco", "test-dev", coco / "people.json"), *more], coco, tmp_path / name)
        made = types.SimpleNamespace(make_evaluator=lambda *_, run=run: run)
        monkeypatch.chdir(tmp_path)
        (tmp_path / name).mkdir()
        failing = pytest.raises(ValueError, match="not everything was evaluated: coco .val. .*broken.json")
        with failing if name == "broken" else contextlib.nullcontext():
            cli.evaluate(config, tmp_path / name, made, lambda *_: restore.Loaded(None, {}, 3))
        (row,) = json.loads((tmp_path / name / "results/step_3/table.json").read_text())["rows"]
        assert row["split"] == "test-dev" and f"results: {tmp_path / name}" in capsys.readouterr().out


def test_weights_that_cannot_be_evaluated_cost_no_rendering(tmp_path):
    config = mdt.get_config("demo")
    config.mode, config.checkpoint, config.data_dir = "evaluate", str(EMBEDDED), str(tmp_path / "data")
    config.size = "base"
    configuration.fill_tables(config)
    with pytest.raises(ConfigError, match="is tiny; the configuration is base"):
        main.run(config, tmp_path / "run")
    assert not (tmp_path / "data").exists()
