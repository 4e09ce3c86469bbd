"""Skeletons that are learned from a few pictures, without training."""

from __future__ import annotations

import dataclasses
import json

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posebh_jax
from data_pipelines.annotated import read_annotated
from data_pipelines.synthetic_world import render_scene
from posebh_jax import export, predict, skeleton
from posebh_jax.crops import crops_of
from posebh_jax.figures import figures_of, protocol_of
from tests.settings import PROTOTYPES

pytestmark = pytest.mark.slow  # compiles the embedded model

NAMES = ("chest", "left_shin", "right_shin", "left_forearm", "right_forearm")
ENDS = (("neck", "pelvis"), ("left_knee", "left_ankle"), ("right_knee", "right_ankle"), ("left_elbow", "left_wrist"),
        ("right_elbow", "right_wrist"))  # fmt: skip
FLIP = [0, 2, 1, 4, 3]
PICTURES = 6


@pytest.fixture(scope="module")
def people():
    """(pictures, keypoints [n, 5, 3], boxes [n, 4]) of rendered people, and middles of limbs that nobody annotates."""
    rows = []
    for index in range(2 * PICTURES):
        scene = render_scene("people", (11,), index)
        person = next(person for person in scene.instances if person.labelled)
        where = dict(zip(person.names, person.points, strict=True))
        ends = np.array([[where[a], where[b]] for a, b in ENDS], np.float64)
        points = np.where((ends[..., 2:] > 0).all(1), ends.mean(1), 0.0)
        rows.append((scene.image, points, np.asarray(person.box, np.float64)))
    pictures, keypoints, boxes = zip(*rows, strict=True)
    return list(pictures), np.stack(keypoints), np.stack(boxes)


@pytest.fixture(scope="module")
def pose():
    return posebh_jax.load()


@pytest.fixture(scope="module")
def learned(pose, people):
    """From three people, with a choice of expert and source."""
    return learn(pose, people, range(3))


def learn(pose, people, rows, **changes):
    pictures, keypoints, boxes = people
    options = {"names": NAMES, "boxes": boxes[list(rows)], "name": "limbs", "per_keypoint": 1, "batch_size": 4}
    return pose.learn_skeleton([pictures[row] for row in rows], keypoints[list(rows)], **options | changes)


def found(model, people, rows, **options):
    pictures, _, boxes = people
    results = model([pictures[row] for row in rows], boxes=[boxes[row][None] for row in rows], batch_size=4, **options)
    return np.concatenate([result.keypoints for result in results])


def test_other_pictures_are_understood(pose, people, learned):
    held_back = range(PICTURES, 2 * PICTURES)
    _, keypoints, boxes = people
    seen = found(learned, people, held_back)
    truth = keypoints[list(held_back)]
    apart = np.linalg.norm(seen[..., :2] - truth[..., :2], axis=-1) / boxes[list(held_back), 2:].max(1)[:, None]
    assert np.median(apart[truth[..., 2] > 0]) < 0.12  # 0.08 were measured over many; chance is about 0.3
    assert list(learned.datasets) == ["limbs"] and learned.maps == ("prototypes",)
    assert learned.datasets["limbs"].keypoints.flip_index.tolist() == FLIP
    assert "limbs of 3 people" in learned.title and list(pose.datasets)[0] == "synthetic_coco"


def test_the_order_of_pictures_does_not_matter(pose, people, learned):
    other = learn(pose, people, (2, 0, 1))
    assert other.title == learned.title
    jax.tree.map(np.testing.assert_array_equal, other.weights, learned.weights)


def test_mirrored_pictures_give_mirrored_predictions(pose, people):
    pictures, keypoints, boxes = people
    widths = np.array([picture.shape[1] for picture in pictures], np.float64)
    turned = keypoints[:, FLIP] * [-1, 1, 1] + (widths[:, None, None] - 1) * [1, 0, 0]
    moved = boxes * [-1, 1, 1, 1] + np.stack([widths - 1 - boxes[:, 2], *3 * [0 * widths]], axis=1)
    mirrored = [np.ascontiguousarray(picture[:, ::-1]) for picture in pictures], turned, moved
    one = found(learn(pose, people, (1,)), people, (4, 5))
    other = found(learn(pose, mirrored, (1,)), mirrored, (4, 5))
    back = other[:, FLIP] * [-1, 1, 1] + (widths[[4, 5], None, None] - 1) * [1, 0, 0]
    # Crops are interpolated at 32nds of a pixel. That moves most peaks by a hundredth of a heatmap cell, of 8 pixels of
    # these pictures, and a flat one, which the refinement below a cell steps on further, by up to a tenth.
    np.testing.assert_allclose(one, back, atol=0.8)
    assert np.median(np.abs(one - back)) < 0.08


def test_prototypes_of_a_dataset_draw_as_they_do(pose, people):
    protocol = pose.datasets["synthetic_coco"]
    start = 0  # it is the first dataset
    bank = pose.weights["prototypes"]["bank"][start : start + protocol.num_keypoints]
    dim = bank.shape[-1]
    own = skeleton.Learned(skeleton.Choice(0, skeleton.HEAD, bank.shape[1]), jnp.zeros(dim), jnp.eye(dim), bank)
    copied = pose.with_skeleton(protocol, own, "copied")
    expected = found(pose, people, (0, 1), dataset="synthetic_coco", maps="prototypes")
    # The expert's product is part of a larger one: float32 sums in another order, times pixels of a crop.
    np.testing.assert_allclose(found(copied, people, (0, 1)), expected, atol=0.01)


def test_saved_exported_and_loaded_it_is_the_same(people, learned, tmp_path):
    learned.save(tmp_path / "limbs")
    again = posebh_jax.load(tmp_path / "limbs")
    assert again.datasets == learned.datasets and again.title == learned.title
    expected = found(learned, people, (3, 4))
    np.testing.assert_array_equal(found(again, people, (3, 4)), expected)
    with pytest.raises(ValueError, match="holds weights already"):
        learned.save(tmp_path / "limbs")
    with pytest.raises(ValueError, match="maps='heads': .* has prototypes"):
        found(learned, people, (0,), maps="heads")
    program = export.program(again, flip=True)
    assert program.about["maps"] == "prototypes" and program.about["keypoints"]["mirrored"] == FLIP
    pictures, _, boxes = people
    rows = [crops_of(predict.Picture("", pictures[row]), boxes[[row]], again.datasets["limbs"], (96, 128))[0]
            for row in (3, 4)]  # fmt: skip
    (in_crops,) = jax.jit(program.function)(np.stack([row["image"] for row in rows]))
    warps = np.stack([row["inverse_warp"] for row in rows])
    in_pictures = np.einsum("nij,nkj->nki", warps[..., :2], in_crops[..., :2]) + warps[:, None, :, 2]
    np.testing.assert_allclose(in_pictures, expected[..., :2], atol=0.01)  # as above


def test_one_map_for_bare_features_and_their_head(pose, people):
    """The backbone's features by an embedding head of one convolution."""
    pictures, keypoints, boxes = people
    protocol = protocol_of("limbs", NAMES, None, ())
    figures = figures_of(pictures[:2], keypoints[:2], boxes[:2], protocol, (96, 128))
    context = skeleton.context_of(pose.predictors[True], protocol)
    variables = {name: pose.weights[name] for name in ("params", "batch_stats")}
    only = skeleton.learn(context, variables, figures, [skeleton.Choice(1, skeleton.FEATURES, 2)], 4)
    model = pose.with_skeleton(protocol, only, "bare")
    assert set(model.weights["params"]["embedding"]) == {"final"}
    seen = found(model, people, (0, 1))
    labelled = keypoints[:2, :, 2] > 0
    apart = np.linalg.norm(seen[..., :2] - keypoints[:2, :, :2], axis=-1)[labelled]
    assert np.median(apart) < 0.1 * boxes[:2, 2:].max()  # on what it was learned from


def test_prototypes_of_one_point_and_of_groups():
    def bank_of(points, labelled, per_keypoint):
        return jax.jit(lambda *seen: skeleton.bank_of(*seen, per_keypoint, PROTOTYPES))(points, labelled)

    points = np.random.default_rng(0).normal(size=(1, 2, 4)).astype(np.float32)
    unit = points[0] / np.linalg.norm(points[0], axis=-1, keepdims=True)
    bank = bank_of(points, np.ones((1, 2), np.float32), 3)
    np.testing.assert_allclose(bank, np.repeat(unit[:, None], 3, axis=1), atol=1e-6)  # float32 of unit length
    groups = np.repeat(np.eye(4, dtype=np.float32)[:2], 5, axis=0)[:, None]  # two directions, five points each
    bank = bank_of(groups, np.ones((10, 1), np.float32), 2)
    np.testing.assert_allclose(np.sort(bank[0], axis=0), np.sort(np.eye(4)[:2], axis=0), atol=1e-6)
    assert not bank_of(points, np.zeros((1, 2), np.float32), 1).any()


def test_whitening_needs_no_background():
    """A white background stays finite, whatever there is of it."""
    rng = np.random.default_rng(0)
    some = rng.normal(2, 3, size=(500, 3)).astype(np.float32)
    for pixels in (some, np.repeat(some[:1], 4, axis=0) * 0, some[:0]):
        seen = skeleton.Seen(None, None, np.float32(len(pixels)), pixels.sum(0), pixels.T @ pixels)
        mean, matrix = skeleton.whitening(seen)
        white = (pixels - mean) @ matrix
        if len(pixels) == 500:  # the variances are about equal; 0.02 for by how much 500 draws of one differ
            np.testing.assert_allclose(np.cov(white.T), np.eye(3) / (1 + skeleton.SHRINKAGE), atol=0.02)
        else:
            np.testing.assert_allclose(matrix, np.eye(3), atol=1e-6)


def test_a_point_alone_is_in_a_box_of_the_usual_size():
    image = np.zeros((200, 200, 3), np.uint8)
    line, alone = [[50, 100, 1], [100, 100, 1]], [[150, 100, 1], [0, 0, 0]]
    protocol = protocol_of("line", ("start", "end"), None, ())

    def crops(*keypoints, boxes=None):
        return figures_of([image] * len(keypoints), keypoints, boxes, protocol, (48, 64))

    square = [150 - 35, 100 - 35, 70, 70]  # half of the line's 50 pixels and its margin of a fifth
    expected = crops([line, alone], boxes=[[[40, 90, 70, 20], square]])
    for given in ([[line, alone]], [line, alone], [alone, line]):
        for found, other in zip(crops(*given), expected, strict=True):
            np.testing.assert_allclose(found, other, atol=1e-4)  # float32 pixels of a crop
    with pytest.raises(ValueError, match="boxes of picture_0: one point has no extent in the picture; give boxes="):
        crops([line[0], [0, 0, 0]], [[0, 0, 0], line[1]])


def test_one_picture_needs_no_lists(people, monkeypatch):
    pictures, keypoints, boxes = people
    given = []
    monkeypatch.setattr(
        predict.PoseModel, "learn_protocol", lambda pose, *what, **options: given.append((what, options))
    )
    pose = posebh_jax.load()
    pose.learn_skeleton([pictures[0]], [keypoints[:1]], boxes=[boxes[:1]])
    pose.learn_skeleton(pictures[0], keypoints[0], boxes=boxes[0])
    pose.learn_skeleton(pictures[0], keypoints[:1], boxes=boxes[:1])
    crops = [
        figures_of(images, points, options["boxes"], protocol, (48, 64))
        for (images, points, protocol), options in given
    ]
    for other in crops[1:]:
        for one, same in zip(crops[0], other, strict=True):
            np.testing.assert_array_equal(one, same)


def test_mistakes_are_named(pose, people):
    pictures, keypoints, boxes = people
    hidden = keypoints[:2].copy()
    hidden[:, 0, 2] = 0
    without = dataclasses.replace(pose, weights={**pose.weights, "prototypes": {}})
    for change, message in (
        (lambda: pose.learn_skeleton([], [], names=NAMES), "images: there are none"),
        (lambda: pose.learn_skeleton([], []), "keypoints: there are none"),
        (lambda: learn(pose, people, (0,), boxes=[[-900, -900, 9, 9]]), "chest, .* lies in no crop"),
        (lambda: pose.learn_skeleton(pictures[:2], hidden, names=NAMES), "chest of 'new_skeleton' is visible in none"),
        (lambda: learn(pose, people, (0,), names=("a", "b", "c", "d", "a")), "names that differ"),
        (lambda: learn(pose, people, (0,), mirror=[("chest", "tail")]), r"\('chest', 'tail'\) should be two of"),
        (lambda: learn(without, people, (0,)), "has no prototypes"),
        (lambda: learn(pose, people, (0,), per_keypoint=0), "per_keypoint=0"),
        (lambda: learn(pose, people, (0,), name="a/b"), "name='a/b': files of results are called by it"),
        (lambda: learn(pose, people, (0,), name=5), "name=5: files of results are called by it"),
        (lambda: learn(pose, people, (0,), names=[1, 2, 3, 4, 5]), r"names=\[1, 2, .* expected a list of texts"),
        (lambda: learn(pose, people, (0,), names="abcde"), "names='abcde': expected a list of texts"),
        (lambda: learn(pose, people, (0, 1), boxes=boxes[:1]), "boxes: there are 1 for 2 pictures"),
        (lambda: learn(pose, people, (0,), boxes=[[0, 0, -1, 5]]), "height > 0"),
        (
            lambda: pose.learn_skeleton(pictures[:1], keypoints[:1, :3], names=NAMES),
            r"expected \[5, 3\].* number of names, 5",
        ),
        (lambda: pose.learn_skeleton(pictures[:1], keypoints[0]), "give a list, of each picture"),
    ):
        with pytest.raises(ValueError, match=message):
            change()


@pytest.fixture(scope="module")
def folder(people, tmp_path_factory):
    """Two annotated pictures as COCO has them."""
    pictures, keypoints, boxes = people
    root = tmp_path_factory.mktemp("annotated") / "limbs"
    root.mkdir()
    document = {"categories": [{"id": 1, "name": "person", "keypoints": NAMES}], "images": [], "annotations": []}
    for row in range(2):
        cv2.imwrite(str(root / f"{row}.png"), pictures[row][..., ::-1])
        document["images"].append({"id": row, "file_name": f"{row}.png"})
        entry = {"id": row + 1, "image_id": row, "category_id": 1, "bbox": boxes[row].tolist()}
        document["annotations"].append(entry | {"keypoints": keypoints[row].ravel().tolist()})
    (root / "labels.json").write_text(json.dumps(document))
    return root


def test_annotated_pictures_are_read(people, folder, tmp_path, capsys):
    pictures, keypoints, boxes = people
    found = read_annotated(folder, (96, 128))
    assert found.dataset.name == "limbs" and found.dataset.keypoints.keypoints == NAMES and not found.left_out
    labelled = keypoints[:2, :, 2:] > 0
    np.testing.assert_allclose(found.keypoints[..., :2] * labelled, keypoints[:2, :, :2] * labelled, atol=1e-3)
    # Clipped to the picture as COCO's loaders do, a pixel narrower.
    np.testing.assert_allclose(found.boxes[..., :2], np.maximum(boxes[:2, :2], 0), atol=1e-9)
    assert np.abs(found.images[0].astype(int) - pictures[0]).mean() < 4  # it was re-encoded as JPEG
    with pytest.raises(ValueError, match="no annotation file or folder; looked for .*nowhere"):
        read_annotated(folder / "nowhere", (96, 128))
    # COCO's own layout: the pictures in a folder beside that of the labels.
    apart = tmp_path / "annotations"
    apart.mkdir()
    (apart / "limbs.json").write_bytes((folder / "labels.json").read_bytes())
    found = read_annotated(apart / "limbs.json", (96, 128), images=folder, format="coco")
    assert len(found.images) == 2 and not found.left_out
    with pytest.raises(ValueError, match="format 'dlc' is none of coco, cvat, deeplabcut"):
        read_annotated(folder, (96, 128), format="dlc")
    with pytest.raises(SystemExit):
        predict.main([str(folder), f"--skeleton_images={folder}"])
    assert "of the labels of --skeleton" in capsys.readouterr().err


def test_there_is_no_model_to_save_without_a_skeleton(tmp_path, capsys):
    with pytest.raises(SystemExit):
        predict.main([str(tmp_path), f"--save_model={tmp_path / 'model'}"])
    assert "--save_model keeps the model that --skeleton learns" in capsys.readouterr().err


def test_the_command(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(skeleton, "PER_KEYPOINT", (1,))  # fewer programs
    out = [f"--out={tmp_path / 'out'}", "--no_flip", "--save=json", "--batch_size=4"]
    assert (
        predict.main([str(folder / "0.png"), f"--skeleton={folder}", *out, f"--save_model={tmp_path / 'model'}"]) == 0
    )
    assert "limbs of 2 people" in capsys.readouterr().out
    entries = json.loads((tmp_path / "out/poses_limbs.json").read_text())
    assert predict.main([str(folder / "0.png"), f"--checkpoint={tmp_path / 'model'}", *out]) == 0
    assert json.loads((tmp_path / "out/poses_limbs.json").read_text()) == entries
    monkeypatch.setenv("HOME", str(tmp_path))
    assert predict.main([str(folder / "0.png"), "--skeleton=~/nothing", *out]) == 1
    assert f"no annotation file or folder; looked for {tmp_path / 'nothing'}" in capsys.readouterr().err
    # Said before a minute is spent on learning what cannot be kept.
    assert predict.main([str(folder / "0.png"), "--skeleton=~/nothing", *out, "--save_model=~/model"]) == 1
    assert f"{tmp_path / 'model'} holds weights already" in capsys.readouterr().err
