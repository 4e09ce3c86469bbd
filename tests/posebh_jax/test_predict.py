"""Prediction on pictures equals evaluation, from Python and by command."""

from __future__ import annotations

import collections
import csv
import dataclasses
import json
import os
import shutil

import cv2
import numpy as np
import pytest

import boir_jax
import boir_jax.predict
import posebh_jax
from boir_jax.weights.convert import manifest_of as boir_manifest
from configs import mdt
from data_pipelines.builders.synthetic import prepare_synthetic
from data_pipelines.datasets import PoseDataset, find_dataset, save_definition
from data_pipelines.reading import Reading
from data_pipelines.records import open_records
from data_pipelines.skeletons import KeypointSet
from data_pipelines.top_down.loader import eval_loader
from data_pipelines.whole_image import loader as whole_image
from pose_common.prediction.command import rendered_pictures
from pose_common.prediction.pictures import Picture, PictureError
from pose_common.prediction.sources import pictures_of
from pose_common.prediction.video import video_writer
from pose_common.training.checkpoints import Checkpoints
from pose_common.weights.folder import save_weights
from posebh_jax import build, configuration, predict, sources
from posebh_jax.boxes import with_finder
from posebh_jax.model import PoseBH
from posebh_jax.predictor import Predictor
from posebh_jax.vit import ViTSize
from posebh_jax.weights.manifest import manifest_of
from scripts import convert_weights
from tests.boir_jax import step_program as boir_program
from tests.posebh_jax.step_program import global_batch, spread_embeddings, tiny_method
from tests.settings import DARK_KERNEL

pytestmark = pytest.mark.slow  # compiles whole models

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Folders of random weights: PoseBH (coco, aic, ap10k) and BoIR (crowdpose)."""
    root = tmp_path_factory.mktemp("weights")
    method = tiny_method()
    state = spread_embeddings(jax.jit(method.init)(jax.random.PRNGKey(0)))
    # Newly initialised heads draw nearly flat maps.
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: 50 * x if "final" in jax.tree_util.keystr(path) else x, state.params
    )
    own = {**jax.device_get(state.weights), "params": jax.device_get(params)}
    save_weights(root / "posebh", own, manifest_of(method.model, method.input_size, "tiny"))
    finder = boir_program.tiny_method()
    model = finder.model.clone(num_keypoints=14)
    variables = jax.device_get(
        boir_program.TinyMethod(model, 1, finder.optimizer, finder.losses, 2, 5).init_variables(jax.random.PRNGKey(0))
    )
    save_weights(root / "boir", variables, boir_manifest(model, "crowdpose", "tiny"))
    return root


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """(data folder, its first pictures as files)."""
    root = tmp_path_factory.mktemp("data")
    prepare_synthetic(root, ["synthetic_coco"], num_train=1, num_val=3)
    records = open_records("synthetic_coco", "val", root)
    files = []
    for row in range(3):
        files.append(root / f"scene_{row}.jpg")
        files[-1].write_bytes(records.image(row))
    return root, files


def test_given_boxes_equal_evaluation(weights, prepared):
    root, files = prepared
    protocol = find_dataset("coco")
    loader = eval_loader("synthetic_coco", "val", data_dir=root, batch_size=4, input_size=(48, 64), reading=Reading(0))
    instances = loader.source.instances
    boxes = [instances.box[instances.image_index == row] for row in range(3)]
    pose = posebh_jax.load(weights / "posebh")
    found = list(pose(files, boxes=boxes, dataset="coco", batch_size=4))
    assert [len(result) for result in found] == [len(rows) for rows in boxes]
    predictor = Predictor(pose.predictors[True].model, pose.predictors[True].datasets, (48, 64), True, DARK_KERNEL)
    expected = []
    for batch in loader:
        out = predictor(pose.weights, batch["image"], batch["inverse_warp"], head=0, protocol=protocol)
        expected.append(np.asarray(out["heads"])[batch["valid"]])
    # The same program on the same crops, in the same order: to the last digit.
    np.testing.assert_array_equal(np.concatenate([result.keypoints for result in found]), np.concatenate(expected))
    one = pose(files[0], boxes=boxes[0], batch_size=4)
    np.testing.assert_array_equal(one.keypoints, found[0].keypoints)


def test_several_skeletons_and_forms_of_boxes(weights, prepared, tmp_path):
    _, files = prepared
    pose = posebh_jax.load(str(weights / "posebh"))
    both = pose(files[0], dataset=("coco", "aic"), flip=False)
    assert {name: result.keypoints.shape for name, result in both.items()} == {"coco": (1, 17, 3), "aic": (1, 14, 3)}
    height, width = both["coco"].picture.image.shape[:2]
    whole = pose(files[0], boxes=np.array([[0, 0, width, height]]), flip=False)
    np.testing.assert_array_equal(whole.keypoints, both["coco"].keypoints)
    document = [{"image": files[0].name, "category_id": 7, "bbox": [0, 0, width, height], "score": 0.5}]
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    listed = list(pose(files[:2], boxes=tmp_path / "boxes.json", flip=False))
    np.testing.assert_array_equal(listed[0].keypoints, whole.keypoints)
    np.testing.assert_allclose(listed[0].scores, 0.5 * whole.scores, rtol=1e-6)
    assert len(listed[1]) == 0 and listed[1].draw().shape == listed[1].picture.image.shape
    score = float(listed[0].scores[0])
    options = {"boxes": tmp_path / "boxes.json", "flip": False}
    assert len(pose(files[0], threshold=score, box_threshold=0.5, **options)) == 1
    for less in ({"threshold": score + 1e-6}, {"box_threshold": 0.51}):
        assert len(pose(files[0], **options, **less)) == 0
    with pytest.raises(ValueError, match="category 1 has none"):
        pose(files[0], category=1, **options)
    prototypes = pose(files[0], maps="prototypes", flip=False)
    assert not np.array_equal(prototypes.keypoints, whole.keypoints)


def test_a_result_can_be_drawn_saved_and_converted(weights, prepared, tmp_path):
    _, files = prepared
    result = posebh_jax.load(weights / "posebh")(files[0], flip=False)
    assert result.names == find_dataset("coco").keypoints.keypoints and len(result) == 1
    assert result.draw(threshold=-1).shape == result.picture.image.shape
    assert (result.draw(threshold=-1) != result.picture.image).any()
    (entry,) = result.to_coco(image_id=9)
    assert entry["image_id"] == 9 and len(entry["keypoints"]) == 51
    np.testing.assert_allclose(np.reshape(entry["keypoints"], (17, 3)), result.keypoints[0], atol=6e-4)  # 3 decimals
    rows = result.to_rows()
    assert [row["keypoint"] for row in rows] == list(result.names) and rows[3]["x"] == result.keypoints[0, 3, 0]
    assert cv2.imread(str(result.save(tmp_path / "drawn.png"))).shape == result.picture.image.shape
    assert json.loads(result.save(tmp_path / "poses.json").read_text()) == result.to_coco()


def test_mistakes_are_named(weights, prepared):
    _, files = prepared
    pose = posebh_jax.load(weights / "posebh")
    with pytest.raises(ValueError, match="dataset 'cocoo': .* draws coco, aic, ap10k; did you mean 'coco'"):
        pose(files[0], dataset="cocoo")
    with pytest.raises(ValueError, match="dataset: none is named; .* draws coco, aic, ap10k"):
        pose(files[0], dataset=())
    with pytest.raises(ValueError, match="positive sides"):
        pose(files[0], boxes=np.array([[0, 0, -4, 5]]))
    with pytest.raises(ValueError, match="boxes of 1 pictures were given, none for picture 1"):
        list(pose(files[:2], boxes=[np.array([[0, 0, 4, 5]])]))
    with pytest.raises((ValueError, OSError), match="nowhere"):
        posebh_jax.load(weights / "nowhere")
    for load in (posebh_jax.load, boir_jax.load):
        with pytest.raises(ValueError, match="weights: the name is empty"):
            load("")
    with pytest.raises(ValueError, match="says itself that its heads are coco, aic, ap10k, not coco, mpii"):
        posebh_jax.load(weights / "posebh", datasets="coco,mpii")
    assert list(posebh_jax.load(weights / "posebh", datasets="coco,aic,ap10k").datasets) == ["coco", "aic", "ap10k"]


@pytest.fixture
def run(tmp_path):
    """A run on COCO and a dataset of its own that crops, decodes and scores otherwise than by default."""
    kites = KeypointSet("kites", ("tip", "left_wing", "right_wing"), ((1, 2),), sigmas=(0.1,) * 3)
    save_definition(PoseDataset("kites", "kites", padding=1.4, skeleton=kites), tmp_path / "data")
    config = mdt.get_config("demo")
    config.datasets, config.data_dir, config.eval_also = ("coco", "kites"), str(tmp_path / "data"), ()
    config.dark_kernel, config.rescoring_threshold = 7, 0.3
    configuration.fill_tables(config)
    config.padding.coco, config.codec.coco = 1.6, "msra"
    weights = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(build.make_method(config, 1).init, jax.random.key(0)).weights,
    )
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    checkpoints.save_weights(3, weights, {"notes": {}, "config": json.loads(config.to_json())})
    checkpoints.close()
    return tmp_path / "run"


def test_a_run_and_its_folders_read_pictures_alike(run, tmp_path, capsys):
    expected = posebh_jax.load(run)
    assert (expected.datasets["coco"].padding, expected.datasets["coco"].codec) == (1.6, "msra")
    assert convert_weights.main([str(run), f"--to={tmp_path / 'converted'}"]) == 0
    expected.save(tmp_path / "saved")
    posebh_jax.load(tmp_path / "converted").save(tmp_path / "saved_again")
    for folder in ("converted", "saved", "saved_again"):
        found = posebh_jax.load(tmp_path / folder)
        assert found.rescoring_threshold == expected.rescoring_threshold == 0.3
        for name, dataset in expected.datasets.items():
            assert dataclasses.replace(found.datasets[name], skeleton=dataset.skeleton) == dataset
            assert found.datasets[name].keypoints == dataset.keypoints
        one, other = (model.predictors[True] for model in (found, expected))
        assert (one.dark_kernel, one.dark_blur) == (other.dark_kernel, other.dark_blur) == (7, "released")
        config = sources.read_configuration("", [("mode", "evaluate"), ("checkpoint", str(tmp_path / folder)),
                                                 ("data_dir", str(tmp_path / "data"))])  # fmt: skip
        assert (config.padding.coco, config.codec.coco, config.dark_kernel) == (1.6, "msra", 7), "evaluation likewise"


def test_what_helps_where_a_skeleton_is_unknown(tmp_path):
    model = PoseBH(ViTSize(24, 2, 2, 8), (("kites", 3),), 0, filters=(8, 8))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 48, 3)), jnp.zeros(1, jnp.int32))
    weights = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    save_weights(tmp_path / "old", weights, manifest_of(model, (48, 64), "without definitions"))
    with pytest.raises(ValueError, match=r"head 'kites' \(3 keypoints\) is unknown; convert the run or the file"):
        posebh_jax.load(tmp_path / "old")
    file = tmp_path / "old.safetensors"
    assert convert_weights.main([str(tmp_path / "old"), f"--to={file}"]) == 0
    with pytest.raises(ValueError, match="head 'dataset_0' .* unknown; name its heads' datasets, of those built in"):
        posebh_jax.load(file, num_heads=2)


def test_boir_finds_the_people_for_posebh(weights, prepared, tmp_path):
    root, files = prepared
    model = boir_jax.load(weights / "boir", input_size=64)

    def find(picture):
        return model(picture, threshold=0.0)

    people = find(files[0])
    assert people.keypoints.shape[1:] == (14, 3) and list(people.scores) == sorted(people.scores, reverse=True)
    loader = whole_image.eval_loader(
        "synthetic_coco", "val", data_dir=root, batch_size=1, input_size=64, reading=Reading(0)
    )
    batch = next(batch for batch in loader if batch["image_id"][0] == loader.annotations.image_id[0])
    out = model.predictor(model.weights, batch["image"], batch["inverse_warp"])
    found = {tuple(pose.ravel()) for pose in np.asarray(out["keypoints"])[0][np.asarray(out["found"])[0]]}
    assert {tuple(pose.ravel()) for pose in people.keypoints} <= found, "of evaluation's, those that are not suppressed"
    pose = posebh_jax.load(weights / "posebh")
    np.testing.assert_allclose(pose(files[0], boxes=find, flip=False).boxes, people.boxes)
    by_path, by_model = (
        pose(files[0], boxes=boxes, flip=False) for boxes in (weights / "boir", boir_jax.load(weights / "boir"))
    )
    np.testing.assert_array_equal(by_path.keypoints, by_model.keypoints)


def test_the_finder_at_a_path_is_that_of_its_weights(weights, tmp_path):
    """Loaded once, as long as they are the same."""
    path = shutil.copytree(weights / "boir", tmp_path / "boir")
    first = with_finder(path, None)
    assert with_finder(str(path), None) is first
    shutil.rmtree(path)
    with pytest.raises(ValueError, match="boxes: .*boir: no such file"):
        with_finder(path, None)
    shutil.copytree(weights / "boir", path)
    os.utime(next(path.iterdir()))
    assert with_finder(path, None) is not first


def test_a_thin_picture_costs_itself(weights, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "rule.png"), np.zeros((2, 33, 3), np.uint8))
    options = [f"--out={tmp_path / 'out'}", "--save=json"]
    finder, pose = (f"--checkpoint={weights / name}" for name in ("boir", "posebh"))
    assert boir_jax.predict.main([str(tmp_path), finder, *options]) == 1
    assert predict.main([str(tmp_path), pose, f"--boxes={weights / 'boir'}", *options]) == 1
    printed = capsys.readouterr()
    told = "left out: rule.png: 33x2; the longer side may be 16 times the shorter one"
    assert printed.err.count(told) == 2 and printed.out.count("0 pictures, 0 poses") == 2
    with pytest.raises(PictureError, match="33x2"):
        boir_jax.load(weights / "boir")(tmp_path / "rule.png")


def test_what_cannot_be_read_of_a_list_is_left_out_where_a_list_takes_it(weights, prepared, tmp_path):
    """The others keep the boxes of their place in the list."""
    _, files = prepared
    (tmp_path / "empty.jpg").touch()
    cv2.imwrite(str(tmp_path / "rule.png"), np.zeros((2, 33, 3), np.uint8))
    pose, find = posebh_jax.load(weights / "posebh"), boir_jax.load(weights / "boir", input_size=64)
    sources = [files[0], tmp_path / "empty.jpg", tmp_path / "rule.png", files[1]]
    boxes = [np.array([[number, 1, 20, 30]]) for number in range(4)]
    left_out = ["of an earlier call"]
    found = pose(sources, boxes=boxes, flip=False, left_out=left_out)
    assert [result.boxes[0, 0] for result in found] == [0, 2, 3] and "empty.jpg" in str(left_out[1])
    taken = list(
        pose(sources, boxes=boxes, flip=False, left_out=collections.deque(maxlen=0))
    )  # as if emptied meanwhile
    assert [result.boxes[0, 0] for result in taken] == [0, 2, 3]
    for results in (find(sources, left_out=left_out), pose(sources, boxes=find, flip=False, left_out=left_out)):
        left_out.clear()
        assert [result.name for result in results] == [files[0].name, files[1].name]
        assert ["empty.jpg" in str(left_out[0]), "rule.png: 33x2" in str(left_out[1])] == [True, True]
    with pytest.raises(PictureError, match="empty.jpg"):  # the one picture that was asked for
        pose(tmp_path / "empty.jpg", left_out=left_out)


def test_the_commands(weights, prepared, tmp_path, capsys, monkeypatch):
    root, files = prepared
    out = tmp_path / "out"
    arguments = [f"--checkpoint={weights / 'posebh'}", f"--out={out}", "--save=images,json,csv", "--batch_size=2"]
    assert predict.main([str(root / "scene_*.jpg"), *arguments, "--dataset=coco,aic", "--no_flip"]) == 0
    assert "3 pictures, 6 poses" in capsys.readouterr().out.splitlines()[-1]
    for threshold, poses in (("--threshold=1.01", 0), ("--box_threshold=1.01", 0), ("--box_threshold=1", 3)):
        nothing = [f"--out={tmp_path / 'nothing'}", "--save=json", threshold]
        assert predict.main([str(root / "scene_*.jpg"), *arguments, "--no_flip", *nothing]) == 0
        assert f"3 pictures, {poses} poses" in capsys.readouterr().out.splitlines()[-1]
    assert {path.name for path in out.iterdir()} == {
        *(f"scene_{row}_{name}.png" for row in range(3) for name in ("coco", "aic")),
        "poses_coco.json", "poses_aic.json", "poses.csv",
    }  # fmt: skip
    with (out / "poses.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 3 * (17 + 14)
    assert set(posebh_jax.load(weights / "posebh")(files[0], dataset="coco,aic,coco", flip=False)) == {"coco", "aic"}
    document = {
        "images": [{"id": 90 + row, "file_name": f"scene_{row}.jpg"} for row in range(3)],
        "annotations": [{"image_id": 90 + row, "category_id": 1, "bbox": [1, 1, 30, 30]} for row in (0, 2)],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    boxes = [f"--boxes={tmp_path / 'boxes.json'}", "--no_flip"]
    assert predict.main([str(root / "scene_*.jpg"), *arguments, *boxes]) == 0
    assert [entry["image_id"] for entry in json.loads((out / "poses_coco.json").read_text())] == [90, 92]
    assert predict.main([str(files[0]), *arguments, "--dataset=horse"]) == 1
    with pytest.raises(SystemExit):
        predict.main([str(files[0]), f"--checkpoint={weights / 'posebh'}", f"--out={files[0]}"])
    assert predict.main([str(root / "absent.jpg"), *arguments]) == 1
    assert predict.main([str(files[0]), *arguments, "--save=film"]) == 1
    monkeypatch.setenv("HOME", str(weights))
    assert predict.main([str(files[0]), "--checkpoint=~/posebh", "--boxes=~/absent.json", f"--out={out}"]) == 1
    errors = capsys.readouterr().err
    assert f"argument --out: {files[0]} is a file; name a folder" in errors
    assert "error: dataset 'horse'" in errors and "absent.jpg: there is no such file" in errors and "film" in errors
    assert f"boxes: {weights / 'absent.json'} cannot be read" in errors


def test_nothing_that_was_found_is_lost(weights, prepared, tmp_path, capsys):
    """Two pictures of one name keep their drawings; a broken one does not cost the results before it."""
    _, files = prepared
    folder, out = tmp_path / "pictures", tmp_path / "out"
    folder.mkdir()
    for name in ("a.jpeg", "a.jpg"):
        (folder / name).write_bytes(files[0].read_bytes())
    (folder / "b.jpg").write_bytes(b"no picture")
    arguments = [f"--checkpoint={weights / 'posebh'}", f"--out={out}", "--no_flip", "--batch_size=1"]
    assert predict.main([str(folder), *arguments]) == 1
    assert "b.jpg: cannot be decoded" in capsys.readouterr().err
    assert {path.name for path in out.iterdir()} == {"a.png", "a_2.png", "poses_coco.json"}
    assert len(json.loads((out / "poses_coco.json").read_text())) == 2


def test_rows_of_pictures_do_not_depend_on_the_batch(weights):
    """Padding a batch, or other pictures in it, changes no pose."""
    pose = posebh_jax.load(weights / "posebh")
    pictures = [Picture(str(n), image) for n, image in enumerate(global_batch()["image"][:5])]
    small, large = (list(pose(pictures, batch_size=size)) for size in (2, 5))
    for one, other in zip(small, large, strict=True):
        # Peaks of maps of two batch sizes: float32 sums in another order, times some 10 pixels a cell.
        np.testing.assert_allclose(one.keypoints, other.keypoints, atol=0.01)


def test_the_embedded_models_find_rendered_people(monkeypatch):
    """The pair that the package carries, on scenes that no training set has."""
    find, pose = boir_jax.load(), posebh_jax.load()
    pictures = rendered_pictures()
    found = list(find(pictures))
    assert sum(len(result) for result in found) >= 2 * len(pictures)
    for picture, people in zip(pictures, found, strict=True):
        poses = pose(picture, boxes=find)
        assert len(poses) == len(people) and poses.dataset == "synthetic_coco"
    monkeypatch.setattr(boir_jax, "load", lambda source, device: find)  # compiled already
    np.testing.assert_array_equal(pose(pictures[-1], boxes="auto").keypoints, poses.keypoints)


def test_the_demo_command_and_a_video(tmp_path, capsys):
    out = tmp_path / "out"
    assert predict.main(["--demo", f"--out={out}", "--no_flip", "--save=images,json"]) == 0
    printed = capsys.readouterr().out
    assert "rendered figures only" in printed and "6 pictures" in printed.splitlines()[-1]
    assert len(list(out.glob("*.png"))) == 6
    assert predict.main(["--no_flip"]) == 1 and "--demo" in capsys.readouterr().err
    assert predict.main(["--demo", f"--out={out}", "--no_flip", "--boxes="]) == 1
    assert "the name is empty" in capsys.readouterr().err
    assert predict.main(["--demo", f"--out={out}", "--no_flip", "--save=json", "--boxes=whole"]) == 0
    assert "6 pictures, 6 poses" in capsys.readouterr().out, "one a picture"
    pytest.importorskip("av", reason="PyAV is not installed")
    clip = tmp_path / "clip.mp4"
    with video_writer(clip) as append:
        for number in range(4):
            append(np.roll(rendered_pictures(1)[0].image, 4 * number, axis=1), number / 10)
    assert predict.main([str(clip), f"--out={out}", "--no_flip", "--save=video,json", "--track", "--smooth"]) == 0
    written = list(pictures_of(out / "poses.mp4"))
    np.testing.assert_allclose([frame.time for frame in written], [0, 0.1, 0.2, 0.3], atol=1e-3)
    entries = json.loads((out / "poses_synthetic_coco.json").read_text())
    assert {entry["track_id"] for entry in entries} == {1} and len(entries) == 4


def test_the_device_is_chosen_by_name(tmp_path):
    last = jax.device_count() - 1
    pose = posebh_jax.load(device=f"cpu:{last}")
    assert jax.tree.leaves(pose.weights)[0].devices() == {jax.devices("cpu")[last]}
    picture = np.full((64, 48, 3), 127, np.uint8)
    here = posebh_jax.load()(picture, flip=False).keypoints
    np.testing.assert_array_equal(pose(picture, flip=False).keypoints, here)
    with pytest.raises(ValueError, match="device 'abacus:3': there are cpu:0"):
        posebh_jax.load(device="abacus:3")
