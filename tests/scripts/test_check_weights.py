from __future__ import annotations

import hashlib
import sys
import types

import jax
import numpy as np
import pytest

import boir_jax
import posebh_jax
from data_pipelines.datasets import PoseDataset, custom_definitions
from data_pipelines.skeletons import KeypointSet
from pose_common.training import logs
from pose_common.weights.embedded import read_embedded
from pose_common.weights.folder import save_weights
from pose_common.weights.keys import unflatten
from posebh_jax.model import PoseBH
from posebh_jax.vit import SIZES, ViTSize
from posebh_jax.weights.manifest import manifest_of, model_targets
from scripts import check_weights, convert_weights, export
from tests.posebh_jax.conversion_cases import recorded_options, tiny_posebh
from tests.weight_files import as_file


def test_a_file_is_described(tmp_path, capsys):
    file = as_file(tmp_path, dict(tiny_posebh()) | {"ema_decay": np.float32(0.9)})
    datasets = ["--num_heads", str(recorded_options().num_heads)]
    checksum = hashlib.sha256(file.read_bytes()).hexdigest()
    assert check_weights.main([str(file), *datasets]) == 0
    out = capsys.readouterr().out
    assert checksum in out and "PoseBH" in out and "a PoseBH training would initialise: nothing" in out
    assert "left out: ema_decay" in out
    converted = f"{file} --to=FOLDER {'='.join(datasets)} --datasets='<dataset_0>,<dataset_1>,<dataset_2>'\n"
    assert converted in out and "--config.mode=evaluate --config.checkpoint=FOLDER" in out
    # A name that carries the checksum is compared with the content.
    for digits, status in ((checksum[:8], 0), ("36af842e", 1)):
        named = file.rename(file.with_name(f"posebh-{digits}.safetensors"))
        assert check_weights.main([str(named), *datasets]) == status
        file = named
    captured = capsys.readouterr()
    assert "as its name says" in captured.out and "its name says 36af842e: damaged" in captured.err


def test_a_folder_without_prototypes_is_described(tmp_path, capsys):
    model = PoseBH(ViTSize(24, 2, 2, 8), (("coco", 17),), 0, filters=(8, 8))
    shapes = unflatten(model_targets(model, (48, 64)))
    weights = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    save_weights(tmp_path / "heads", weights, manifest_of(model, (48, 64), "the baseline"))
    assert check_weights.main([str(tmp_path / "heads")]) == 0
    out = capsys.readouterr().out
    assert "the baseline" in out and "prototypes: none" in out and "initialise: experts" in out


def test_a_skeleton_that_is_not_built_in_is_not_in_a_file(tmp_path, capsys):
    model = PoseBH(ViTSize(24, 2, 2, 8), (("kites", 3),), 0, filters=(8, 8))
    shapes = unflatten(model_targets(model, (48, 64)))
    weights = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    kites = PoseDataset("kites", "kites", skeleton=KeypointSet("kites", ("a", "b", "c"), sigmas=(0.1,) * 3))
    known = {"definitions": custom_definitions([kites])}
    save_weights(tmp_path / "my folder", weights, manifest_of(model, (48, 64), "kites") | known)
    assert check_weights.main([str(tmp_path / "my folder")]) == 0
    advice = f"predict: python -m posebh_jax.predict PICTURE --checkpoint='{tmp_path}/my folder'"
    assert advice in capsys.readouterr().out
    file = tmp_path / "kites.safetensors"
    assert convert_weights.main([str(tmp_path / "my folder"), f"--to={file}"]) == 0
    needed = "prediction needs the run, or a folder of weights that is made of the run"
    assert f"that of kites is not built in: {needed}" in capsys.readouterr().out
    assert check_weights.main([str(file), "--num_heads=2"]) == 0
    out = capsys.readouterr().out
    assert "--to=FOLDER --num_heads=2 --datasets='<dataset_0>'\n" in out
    assert """--config.checkpoint=FOLDER --config.datasets="('<dataset_0>',)" --config.data_dir=""" in out
    assert f"predict: this does not say the skeleton of dataset_0: {needed}" in out


def test_the_commands_name_the_datasets_that_were_named(tmp_path, capsys):
    """17 and 16 keypoints are of no published mixture, so that without names neither command would know its heads."""
    model = PoseBH(SIZES["tiny"], (("coco", 17), ("mpii", 16)), 0, filters=(8, 8))
    shapes = unflatten(model_targets(model, (48, 64)))
    weights = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    weights["prototypes"] = {"bank": np.zeros((33, 3, 64), np.float32)}
    save_weights(tmp_path / "heads", weights, manifest_of(model, (48, 64), "two heads"))
    file = tmp_path / "heads.safetensors"
    assert convert_weights.main([str(tmp_path / "heads"), f"--to={file}"]) == 0
    assert check_weights.main([str(file), "--datasets=coco,mpii", "--num_heads=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3].endswith(f"{file} --to=FOLDER --num_heads=2 --datasets=coco,mpii")
    assert lines[-2].endswith(".checkpoint=FOLDER") and lines[-1].endswith("--checkpoint=FOLDER")
    assert check_weights.main([str(file), "--datasets=coco,mpii"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].endswith(f"--config.checkpoint={file} --config.datasets=coco,mpii")
    assert lines[-1].endswith(f"--checkpoint={file} --datasets=coco,mpii")


def test_a_skeleton_learned_without_training_has_no_heads(tmp_path, capsys):
    model = PoseBH(ViTSize(24, 2, 2, 8), (("kites", 3),), 0, filters=(8, 8))
    shapes = unflatten(model_targets(model, (48, 64)))
    weights = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    del weights["params"]["heads"]
    weights["prototypes"] = {"bank": np.zeros((3, 1, 8), np.float32)}
    kites = PoseDataset("kites", "kites", skeleton=KeypointSet("kites", ("a", "b", "c"), sigmas=(0.1,) * 3))
    known = {"definitions": custom_definitions([kites])}
    folder = tmp_path / "folder"
    save_weights(folder, weights, manifest_of(model, (48, 64), "kites") | known)
    assert check_weights.main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert "heads (keypoints): none; prototypes alone draw kites (3)" in out and "would initialise: heads" in out
    assert f"predict: python -m posebh_jax.predict PICTURE --checkpoint={folder}" in out and "evaluate" not in out
    file = tmp_path / "kites.safetensors"
    assert convert_weights.main([str(folder), f"--to={file}"]) == 1
    said = f"{folder} is a skeleton learned without training, which no file holds: use the folder"
    assert said in capsys.readouterr().err and not file.exists()


def test_a_file_of_boir_with_a_skeleton_of_its_own(tmp_path, capsys):
    model = boir_jax.load()
    manifest, file = read_embedded(boir_jax.pose_model.EMBEDDED).manifest, tmp_path / "kites.safetensors"
    names = tuple(f"point_{number}" for number in range(model.skeleton.num_keypoints))
    kites = PoseDataset("kites", "kites", skeleton=KeypointSet("kites", names, sigmas=(0.1,) * len(names)))
    own = {"keypoint_set": "kites", "definitions": custom_definitions([kites])}
    save_weights(tmp_path / "folder", jax.device_get(model.weights), manifest | own)
    assert boir_jax.load(tmp_path / "folder").skeleton.keypoints == names
    assert check_weights.main([str(tmp_path / "folder")]) == 0
    assert f"predict: python -m boir_jax.predict PICTURE --checkpoint={tmp_path}" in capsys.readouterr().out
    assert convert_weights.main([str(tmp_path / "folder"), f"--to={file}"]) == 0
    assert "that of kites is not built in" in capsys.readouterr().out


def test_what_is_no_weights_is_one_line(tmp_path, capsys):
    (tmp_path / "page.pth").write_text("<html>")
    assert check_weights.main([str(tmp_path / "page.pth")]) == 1
    assert "a web page" in capsys.readouterr().err
    assert check_weights.main([str(tmp_path / "absent.pth")]) == 1
    assert "absent.pth" in capsys.readouterr().err


@pytest.mark.parametrize(
    "main, more",
    [
        (check_weights.main, ()),
        (convert_weights.main, ("--to={}/made",)),
        (export.main, ("--format=stablehlo", "--out={}/made")),
    ],
)
def test_of_damaged_weights_commands_say_one_line(main, more, tmp_path, monkeypatch, capsys):
    """And not what Orbax's abandoned threads print beside it, of which it depends on the moment whether they do."""
    posebh_jax.load().save(tmp_path / "weights")
    for file in (tmp_path / "weights/arrays/d").iterdir():
        file.unlink()
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    logs.hide_abandoned_tasks.cache_clear()
    assert main([str(tmp_path / "weights"), *(word.format(tmp_path) for word in more)]) == 1
    assert "arrays cannot be restored" in capsys.readouterr().err
    sys.unraisablehook(types.SimpleNamespace(object=None, exc_value=RuntimeError("Event loop is closed")))
    assert not told
