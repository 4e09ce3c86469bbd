"""Exported files compute what prediction computes, and are used as docs/export.md says."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest

import boir_jax
import posebh_jax
from data_pipelines import geometry
from data_pipelines.whole_image.pictures import inference_size
from pose_common.export import stablehlo
from pose_common.export.onnx import read_onnx
from pose_common.prediction.command import rendered_pictures
from pose_common.prediction.pictures import Picture
from posebh_jax.crops import crops_of
from scripts import export

pytestmark = pytest.mark.slow  # compiles whole models
ROOT = pathlib.Path(__file__).resolve().parents[2]
# Float32 sums in another order: of pixels of crops some 100 wide.
TOLERANCE = 1e-4
DATASET = "synthetic_aic"
"""Of the MSRA codec: a quarter of a cell, not DARK, follows the peak."""
SHORT_SIDE = 192


@pytest.fixture(scope="module")
def scene():
    """A rendered picture of a size that BoIR's file is made for."""
    image = rendered_pictures(1)[0].image
    size, _ = inference_size(image.shape[1::-1], SHORT_SIDE)
    return Picture("photo.png", cv2.resize(image, size))


@pytest.fixture(scope="module")
def crops(scene):
    """Five of them, of PoseBH's embedded model."""
    pose = posebh_jax.load()
    boxes = np.array([[20 * number, 10, 70, 110] for number in range(5)], np.float64)
    rows = crops_of(scene, boxes, pose.datasets[DATASET], pose.predictors[True].input_size)
    return np.stack([row["image"] for row in rows])


def exported(folder, capsys, file_format, *arguments):
    """(file, printed differences) of the command."""
    out = folder / f"model.{file_format}"
    assert export.main([f"--format={file_format}", f"--out={out}", "--debug", *arguments]) == 0
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if line.startswith("largest difference"))
    return out, [float(word) for word in re.findall(r"[0-9.]+e[-+][0-9]+", line)]


def keypoints_of(crops, flip, dataset=DATASET):
    """What prediction finds, with all experts and heads in their places."""
    pose = posebh_jax.load()
    identity = np.broadcast_to(np.eye(2, 3, dtype=np.float32), (len(crops), 2, 3))
    head, protocol = list(pose.datasets).index(dataset), pose.datasets[dataset]
    return pose.predictors[flip](pose.weights, crops, identity, head=head, protocol=protocol)["heads"]


def documented(number):
    """A block of Python of docs/export.md."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs/export.md").read_text(encoding="utf8"), re.DOTALL)[number]


def test_stablehlo_runs_by_jax_alone_as_documented(crops, tmp_path, capsys):
    out, differences = exported(tmp_path, capsys, "stablehlo", f"--dataset={DATASET}", "--flip")
    assert max(differences) < TOLERANCE
    for folder in (ROOT, sys.prefix):  # of the machine that exported, with its owner's name
        assert os.fsencode(folder) not in out.read_bytes()
    out.rename(tmp_path / "pose.stablehlo")
    np.save(tmp_path / "crops.npy", crops)
    more = """
import sys
assert not {"flax", "posebh_jax", "pose_common"} & set(sys.modules)
assert pose.platforms == ("cpu", "cuda", "tpu") and keypoints.shape == (5, 14, 3)
numpy.save("found.npy", jax.jit(pose.call)(numpy.load("crops.npy"))[0])
"""
    subprocess.run([sys.executable, "-c", documented(0) + more], cwd=tmp_path, check=True)
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), keypoints_of(crops, True), atol=TOLERANCE)
    about = json.loads((tmp_path / "model.stablehlo.json").read_text())
    assert about["dataset"] == DATASET and about["input"]["shape"] == ["batch", 128, 96, 3]


def test_stablehlo_of_people(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    _, differences = exported(pathlib.Path("~"), capsys, "stablehlo", "--method=boir", "--size=128,64")
    assert len(differences) == 3 and max(differences) < TOLERANCE
    assert (tmp_path / "model.stablehlo").is_file()


def test_mistakes_are_named(tmp_path, capsys, monkeypatch):
    out = [f"--out={tmp_path / 'x'}", "--format=stablehlo"]
    for arguments, message in (
        (["--dataset=horse"], "dataset 'horse'"),
        (["--method=boir", "--size=100,64"], "multiples of 64"),
        (["--method=boir", "--size=64"], "expected width,height"),
        (["--batch_size=0"], "expected 1 or more"),
        ([str(tmp_path / "nowhere")], "nowhere"),
        (["--size=64,64"], "--size does not apply to posebh run"),
        (["--method=boir", "--flip", "--maps=heads"], "--maps, --flip does not apply to BoIR"),
        ([""], "the name is empty"),
    ):
        assert export.main([*out, *arguments]) == 1
        assert message in capsys.readouterr().err
    monkeypatch.setattr(stablehlo, "LARGEST", 2**20)
    assert export.main(out) == 1 and "more than a StableHLO file can hold" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_the_documented_crop_is_that_of_evaluation():
    names: dict = {}
    exec(documented(1), names)
    pose, box = posebh_jax.load(), (20.0, 10.0, 90.0, 140.0)
    size = pose.predictors[False].input_size
    for dataset in pose.datasets.values():
        udp, aspect = dataset.codec == "udp", size[0] / size[1] if dataset.aspect_box else None
        centre, scale = geometry.box_to_crop(np.array(box), aspect, dataset.padding)
        about = {"size": size, "padding": dataset.padding, "grow_to_aspect": aspect is not None, "codec": dataset.codec}
        matrix = names["to_crop"](box, about)
        np.testing.assert_allclose(matrix, geometry.warp_matrix(centre, scale, 0.0, size, udp), rtol=1e-12, atol=1e-12)
        point = np.array([[30.0, 40.0, 0.5]])
        moved = np.column_stack([geometry.transform(matrix, point[:, :2]), point[:, 2]])
        np.testing.assert_allclose(names["to_picture"](moved, matrix), point, rtol=1e-12)


@pytest.mark.onnx
def test_onnx_of_crops_is_used_as_documented(scene, crops, tmp_path, capsys, monkeypatch):
    """By DARK, which divides by the curvature of a map: where that is next to nothing rounding moves a keypoint."""
    pytest.importorskip("jax2onnx", reason="jax2onnx is not installed (the `onnx` extra)")
    out, _ = exported(tmp_path, capsys, "onnx", "--dataset=synthetic_coco", "--flip")
    difference = np.abs(read_onnx(out)(crops)[0] - keypoints_of(crops, True, "synthetic_coco"))
    assert difference[..., 2].max() < 1e-5 and np.median(difference) < TOLERANCE and difference.max() < 0.02
    names = use_documented(tmp_path, monkeypatch, scene, out, "pose.onnx", 1, 2)
    (expected,) = posebh_jax.load()(scene, boxes=np.array([[20, 10, 90, 140]]), dataset="synthetic_coco").keypoints
    np.testing.assert_allclose(names["pose"], expected, atol=0.02)


@pytest.mark.onnx
def test_onnx_of_people_is_used_as_documented(scene, tmp_path, capsys, monkeypatch):
    pytest.importorskip("jax2onnx", reason="jax2onnx is not installed (the `onnx` extra)")
    height, width = scene.image.shape[:2]
    out, differences = exported(tmp_path, capsys, "onnx", "--method=boir", f"--size={width},{height}")
    assert max(differences) < TOLERANCE
    names = use_documented(tmp_path, monkeypatch, scene, out, "people.onnx", 1, 3)
    expected = boir_jax.load(input_size=SHORT_SIDE)(scene).keypoints
    assert len(expected) > 1
    np.testing.assert_allclose(np.stack(names["people"]), expected, atol=TOLERANCE)


def use_documented(folder, monkeypatch, scene, file, name, *blocks):
    """The variables after blocks of the document ran beside a file and a picture of the names that they use."""
    file.rename(folder / name)
    file.with_name(file.name + ".json").rename(folder / f"{name}.json")
    cv2.imwrite(str(folder / "photo.jpg"), scene.image)
    monkeypatch.setattr(cv2, "imread", lambda path: scene.image[..., ::-1])  # JPEG would change the pixels
    monkeypatch.chdir(folder)
    names: dict = {}
    for block in blocks:
        exec(documented(block), names)
    return names
