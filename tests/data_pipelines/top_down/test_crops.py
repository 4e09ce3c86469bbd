"""Person crops: every step against samples recorded from the release with their draws, and properties."""

from __future__ import annotations

import dataclasses
import json
import re

import cv2
import numpy as np
import pytest

from data_pipelines import geometry
from data_pipelines.datasets import DATASETS
from data_pipelines.top_down import augmentation, instances
from data_pipelines.top_down import crops as top_down
from tests.data_pipelines import fakes
from tests.golden_files import SHARED, golden, shared_path
from tests.settings import AUGMENTATION

FOLDERS = {"coco_wholebody": "coco", "interhand2d": "interhand2.6m"}
JITTER = augmentation.CentreJitter(AUGMENTATION.centre_jitter_probability, AUGMENTATION.centre_jitter_extent)
JOINT_TOLERANCE = 5e-3  # the release maps points in float32; coordinates reach 1000 pixels


def half_body(dataset: str, aspect: float) -> augmentation.HalfBody:
    return augmentation.HalfBody(DATASETS[dataset].keypoints, aspect, 0.3, 8, 0.5, True, 1.5)


def cases():
    return json.loads(shared_path("golden/data/pipeline_cases.json").read_text())


def arrays_of(name: str) -> dict[str, np.ndarray]:
    with np.load(shared_path("golden/data/pipeline_cases.npz")) as archive:
        return {key[len(name) + 1 :]: archive[key] for key in archive.files if key.startswith(name + "/")}


def case_sample(case: dict, arrays: dict) -> top_down.Sample:
    height, width = (int(side) for side in arrays["image_hw"])
    return {
        "size": (width, height),
        "keypoints": arrays["joints_in"],
        "visible": arrays["visible_in"],
        "box": np.zeros(4),
        "centre": arrays["center_in"].astype(np.float64),
        "scale": arrays["scale_in"].astype(np.float64),
        "rotation": 0.0,
        "mirrored": False,
        "dataset": 0,
        "image_id": 0,
        "origin": (case["dataset"], "train", case["image"]),
    }


def case_names() -> list[str]:
    """Of the recorded cases; one that skips where they are not there."""
    path = SHARED / "golden/data/pipeline_cases.json"
    return [case["name"] for case in json.loads(path.read_text())] if path.exists() else ["none"]


@pytest.mark.parametrize("name", case_names())
def test_recorded_samples(name):
    case = {case["name"]: case for case in cases()}[name]
    arrays = arrays_of(name)
    dataset = DATASETS[case["dataset"]]
    sample = case_sample(case, arrays)
    folder = FOLDERS.get(case["dataset"], case["dataset"])
    picture = top_down.decode(shared_path(f"samples/{folder}/{case['image']}").read_bytes(), sample)
    np.testing.assert_array_equal(picture[..., ::-1].reshape(-1, 3).sum(axis=0), arrays["image_rgb_sum"])

    draws = {step: [value for _, value in values] for step, values in case["draws"]}
    if draws:
        steps = {type(step): step for step in augmentation.steps_of(AUGMENTATION, dataset, tuple(case["image_size"]))}
        sample = steps[augmentation.Flip].apply(sample, draws["flip"][0])
        assert sample["mirrored"] == bool(arrays["flipped"])
        np.testing.assert_allclose(sample["keypoints"], arrays["joints_flip"], atol=1e-3)
        np.testing.assert_array_equal(sample["visible"], arrays["visible_flip"])
        np.testing.assert_allclose(sample["centre"], arrays["center_flip"], atol=1e-3)
        if dataset.half_body:
            # A draw that the release did not need was not recorded; here it must not matter.
            uniform, normal = [*draws["half_body"], 0.0, 0.0][:2]
            sample = steps[augmentation.HalfBody].apply(sample, (uniform, normal))
            np.testing.assert_allclose(sample["centre"], arrays["center_half"], atol=1e-3)
            np.testing.assert_allclose(sample["scale"], arrays["scale_half"], atol=1e-5)
        sample = steps[augmentation.ScaleRotation].apply(sample, draws["scale_rotation"])
    np.testing.assert_allclose(sample["centre"], arrays["center"], atol=1e-3)
    np.testing.assert_allclose(sample["scale"], arrays["scale"], atol=1e-5)
    np.testing.assert_allclose(sample["rotation"], arrays["rotation"], atol=1e-9)

    cropped = top_down.Crop(tuple(case["image_size"]), case["use_udp"])(sample, picture)
    np.testing.assert_allclose(cropped["matrix"][:, :2], arrays["matrix"][:, :2], atol=1e-5)
    np.testing.assert_allclose(cropped["matrix"][:, 2], arrays["matrix"][:, 2], atol=JOINT_TOLERANCE)
    np.testing.assert_allclose(cropped["keypoints"], arrays["joints_out"], atol=JOINT_TOLERANCE)
    difference = np.abs(cropped["image"].astype(int) - arrays["crop"])
    # OpenCV 5 interpolates exactly; older versions round positions to 1/32 pixel.
    assert difference.max() <= (1 if int(cv2.__version__.split(".")[0]) >= 5 else 5)


def test_mpii_boxes_widened_as_corrected():
    case = {case["name"]: case for case in cases()}["mpii_udp"]
    arrays, (width, height) = arrays_of("mpii_udp"), case["image_size"]
    sample = case_sample(case, arrays)
    widened = geometry.grow_to_aspect(sample["scale"], width / height)
    flip, scale_rotation = augmentation.steps_of(AUGMENTATION, DATASETS["mpii"], (width, height))
    draws = {step: [value for _, value in values] for step, values in case["draws"]}
    sample = flip.apply(sample | {"scale": widened}, draws["flip"][0])
    sample = scale_rotation.apply(sample, draws["scale_rotation"])
    np.testing.assert_allclose(sample["scale"], arrays["scale_fixed"], atol=1e-5)
    matrix = geometry.warp_matrix(sample["centre"], sample["scale"], sample["rotation"], (width, height), udp=True)
    np.testing.assert_allclose(matrix[:, :2], arrays["matrix_fixed"][:, :2], atol=1e-5)
    np.testing.assert_allclose(
        geometry.transform(matrix, sample["keypoints"]), arrays["joints_out_fixed"], atol=JOINT_TOLERANCE
    )


@pytest.mark.parametrize(
    "dataset", ["coco", "coco_wholebody", "aic", "ap10k", "crowdpose", "ochuman", "halpe", "interhand2d"]
)
def test_centre_jitter_matches_the_release(dataset):
    with np.load(shared_path("golden/data/db.npz")) as archive:
        # The release does not keep whole-body boxes; the people, and so the boxes, are coco's.
        boxes = archive[f"{'coco' if dataset == 'coco_wholebody' else dataset}/test/bbox"]
        before = archive[f"{dataset}/test/center"]
        after, draws = archive[f"{dataset}/train/center"], archive[f"{dataset}/train/jitter_draws"]
    for row in range(len(before)):
        sample = {"centre": before[row].astype(np.float64), "box": boxes[row]}
        moved = JITTER.apply(sample, draws[row])
        np.testing.assert_allclose(moved["centre"], after[row], atol=1e-3)


FUNCTIONS = golden("data/pipeline_functions.npz")
MIRRORED = [match[1] for key in FUNCTIONS if (match := re.fullmatch(r"flip/(\w+)/joints", key))]
HALVED = [match.groups() for key in FUNCTIONS if (match := re.fullmatch(r"half/(\w+)/applied(|_fixed)", key))]


@pytest.mark.parametrize("dataset", MIRRORED)
def test_mirror_matches_the_release(dataset):
    get = lambda name: FUNCTIONS[f"flip/{dataset}/{name}"]  # noqa: E731
    sample = {
        "size": (int(get("width")), 10),
        "keypoints": get("joints"),
        "visible": get("visible"),
        "centre": np.zeros(2),
        "mirrored": False,
    }
    flipped = augmentation.Flip(DATASETS[dataset].keypoints, 0.5).apply(sample, 0.0)
    np.testing.assert_allclose(flipped["keypoints"], get("joints_out"), atol=1e-3)
    np.testing.assert_array_equal(flipped["visible"], get("visible_out"))


@pytest.mark.parametrize("dataset, suffix", HALVED)
def test_half_bodies_match_the_release(dataset, suffix):
    """Recorded as released, and for the two whole-body sets with their own lower half."""
    get = lambda name: FUNCTIONS[f"half/{dataset}/{name}"]  # noqa: E731
    width, height = FUNCTIONS["half/image_size_wh"].tolist()
    step = dataclasses.replace(half_body(dataset, width / height), rest_is_lower=not suffix)
    for row in range(len(get("joints"))):
        crop = step.half(get("joints")[row], get("visible")[row], float(get("normal_draw")[row]))
        assert (crop is not None) == bool(get(f"applied{suffix}")[row])
        if crop is not None:
            np.testing.assert_allclose(crop[0], get(f"center{suffix}")[row], atol=1e-3)
            np.testing.assert_allclose(crop[1], get(f"scale{suffix}")[row], atol=1e-5)


def make_sample(visible_count: int = 17, seed: int = 0) -> top_down.Sample:
    rng = np.random.default_rng(seed)
    visible = np.zeros(17, np.float32)
    visible[rng.permutation(17)[:visible_count]] = 1
    keypoints = rng.uniform(0, 90, (17, 2)).astype(np.float32) * visible[:, None]
    return {
        "size": (100, 90),
        "keypoints": keypoints,
        "visible": visible,
        "rotation": 0.0,
        "mirrored": False,
        "box": np.array([10.0, 20.0, 30.0, 40.0]),
        "centre": np.array([25.0, 40.0]),
        "scale": np.array([0.3, 0.4]),
    }


def test_two_mirrors_are_none():
    flip = augmentation.Flip(DATASETS["coco"].keypoints, 0.5)
    sample = make_sample(12)
    twice = flip.apply(flip.apply(sample, 0.2), 0.2)
    for name in ("visible", "mirrored", "centre"):
        np.testing.assert_array_equal(twice[name], sample[name])
    np.testing.assert_allclose(twice["keypoints"], sample["keypoints"], atol=1e-5)  # float32 subtractions


def test_half_body_needs_more_than_eight_visible_keypoints():
    step = half_body("coco", 0.75)
    for count, changes in ((8, False), (9, True)):
        sample = make_sample(count)
        changed = step.apply(sample, (0.0, 0.0))
        assert (not np.array_equal(changed["centre"], sample["centre"])) == changes
    assert step.apply(make_sample(17), (0.3, 0.0))["scale"] is not None  # 0.3 is not below the probability
    np.testing.assert_array_equal(step.apply(make_sample(17), (0.3, 0.0))["scale"], make_sample(17)["scale"])


def test_half_body_of_coinciding_keypoints_leaves_the_crop():
    step = half_body("coco", 0.75)
    assert step.half(np.ones((17, 2), np.float32), np.ones(17, np.float32), 0.0) is None


def test_scale_and_rotation_stay_within_their_limits():
    step = augmentation.ScaleRotation(0.5, 40.0, 0.6)
    sample = make_sample()
    extreme = step.apply(sample, (9.0, -9.0, 0.6))
    np.testing.assert_allclose(extreme["scale"], 1.5 * sample["scale"])
    assert extreme["rotation"] == -80.0
    assert step.apply(sample, (0.0, 5.0, 0.61))["rotation"] == 0.0


@pytest.mark.parametrize(
    "step",
    [
        JITTER,
        augmentation.Flip(DATASETS["coco"].keypoints, 0.5),
        half_body("coco", 0.75),
        augmentation.ScaleRotation(0.5, 40.0, 0.6),
    ],
    ids=lambda step: type(step).__name__,
)
def test_transforms_leave_their_input_alone(step):
    rng = np.random.default_rng(3)
    sample = make_sample()
    before = {name: np.copy(value) for name, value in sample.items()}
    for _ in range(20):
        step.apply(sample, step.draw(rng))
    for name, value in before.items():
        np.testing.assert_array_equal(sample[name], value)


@pytest.mark.parametrize("udp", [True, False])
@pytest.mark.parametrize("mirrored", [True, False])
def test_pixels_and_keypoints_move_together(udp, mirrored):
    """A bright dot in the picture is found, in the crop, where its keypoint says."""
    sample = make_sample() | {"rotation": 30.0}
    keypoints = np.zeros((17, 2), np.float32)
    keypoints[0] = (28, 47)
    picture = np.zeros((90, 100, 3), np.uint8)
    picture[47, 28] = 255
    sample |= {"keypoints": keypoints, "visible": np.eye(17, dtype=np.float32)[0]}
    if mirrored:  # a keypoint on the body's middle stays itself
        sample = augmentation.Flip(DATASETS["coco"].keypoints, 0.5).apply(sample, 0.0)
    cropped = top_down.Crop((192, 256), udp)(sample, picture)
    rows, columns = np.nonzero(cropped["image"][..., 0] > 100)
    np.testing.assert_allclose([columns.mean(), rows.mean()], cropped["keypoints"][0], atol=0.3)


def wide_sample(shrinks: float, name: str = ".jpg") -> tuple[top_down.Sample, bytes]:
    """A crop of 48x64 that shrinks a picture of odd sides `shrinks` times, and the picture: a smooth blob in it."""
    y, x = np.mgrid[:603, :801]
    blob = 255 * np.exp(-((x - 391.3) ** 2 + (y - 298.6) ** 2) / (2 * 40**2))
    picture = np.repeat(blob.astype(np.uint8)[..., None], 3, axis=2)
    sample = make_sample() | {"size": (801, 603), "centre": np.array([400.0, 300.0]), "rotation": 20.0}
    sample |= {"scale": np.array(SIZE) * shrinks / geometry.SCALE_UNIT}
    return sample, cv2.imencode(name, picture, [cv2.IMWRITE_JPEG_QUALITY, 98])[1].tobytes()


SIZE = (48, 64)


@pytest.mark.parametrize("mirrored", [True, False])
@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_a_reduced_picture_gives_the_same_crop(reduction, mirrored):
    """Blocks at the wrong place by half a picture pixel would move the blob by a sixteenth of a crop pixel or more."""
    sample, encoded = wide_sample(8.0)
    sample |= {"mirrored": mirrored}
    crop = top_down.Crop(SIZE, True)
    exact = crop(sample, top_down.decode(encoded, sample))
    reduced = crop(sample, top_down.decode(encoded, sample, reduction), reduction)
    np.testing.assert_array_equal(exact["keypoints"], reduced["keypoints"])
    middles = []
    for image in (exact["image"], reduced["image"]):
        weights = image[..., 0].astype(float)
        y, x = np.mgrid[: SIZE[1], : SIZE[0]]
        middles.append([(weights * x).sum() / weights.sum(), (weights * y).sum() / weights.sum()])
    np.testing.assert_allclose(middles[0], middles[1], atol=0.03)
    assert np.abs(exact["image"].astype(int) - reduced["image"]).max() <= 8  # the blob's top is averaged


@pytest.mark.parametrize("shrinks, expected", [(0.5, 1), (1.99, 1), (2.0, 2), (3.9, 2), (4.1, 4), (30.0, 8)])
def test_a_reduced_picture_has_a_pixel_for_each_of_the_crops(shrinks, expected):
    assert top_down.Crop(SIZE, True).reduction(wide_sample(shrinks)[0]) == expected


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("name", [".jpg", ".png"])
def test_training_reduces_where_it_is_asked_to_and_can(name, asked, monkeypatch):
    """Pictures other than JPEGs, and those that EXIF turns, are decoded whole."""
    sample, encoded = wide_sample(16.0, name)
    used = []
    decode = top_down.decode
    monkeypatch.setattr(top_down, "decode", lambda *args: used.append(args[2]) or decode(*args))
    settings = dataclasses.replace(AUGMENTATION, reduced_decoding=asked)
    top_down.Train((DATASETS["mpii"],), SIZE, settings)(
        sample | {"encoded": encoded, "dataset": 0, "keypoints": np.zeros((16, 2)), "visible": np.zeros(16)},
        np.random.default_rng(0),
    )
    assert used == [8 if asked and name == ".jpg" else 1]


def test_a_turned_picture_is_not_reduced(monkeypatch):
    sample, encoded = wide_sample(16.0)
    assert top_down.reducible(encoded, sample) and top_down.reducible(encoded, sample | {"upright": True})
    monkeypatch.setattr(top_down.orientation, "tag_of", lambda encoded: 6)
    assert not top_down.reducible(encoded, sample | {"upright": True}) and top_down.reducible(encoded, sample)


def test_colours_are_red_green_blue():
    picture = np.zeros((90, 100, 3), np.uint8)
    picture[..., 0] = 200  # OpenCV's blue
    image = top_down.Crop((48, 64), True)(make_sample(), picture)["image"]
    np.testing.assert_array_equal(image[32, 24], [0, 0, 200])
    assert image.flags["C_CONTIGUOUS"] and image.dtype == np.uint8


def test_zeros_outside_the_picture():
    sample = make_sample() | {"centre": np.array([-500.0, -500.0])}
    assert not top_down.Crop((48, 64), True)(sample, np.full((90, 100, 3), 255, np.uint8))["image"].any()


def test_training_elements_follow_the_contract():
    source = fakes.random_source("coco")
    transform = top_down.Train((DATASETS["coco"], DATASETS["coco_wholebody"]), fakes.INPUT_SIZE, AUGMENTATION)
    element = transform(source[0], np.random.default_rng(0))
    assert {name: (value.shape, value.dtype.name) for name, value in element.items()} == {
        "image": ((64, 48, 3), "uint8"),
        "keypoints": ((133, 2), "float32"),
        "visible": ((133,), "float32"),
        "dataset": ((), "int32"),
        "valid": ((), "bool"),
    }
    assert not element["visible"][17:].any() and not element["keypoints"][17:].any()
    assert set(np.unique(element["visible"])) <= {0, 1}


def test_augmentation_is_the_generators_alone():
    source = fakes.random_source("coco")
    transform = top_down.Train((DATASETS["coco"],), fakes.INPUT_SIZE, AUGMENTATION)
    first, again, other = (transform(source[1], np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first["image"], again["image"])
    assert (first["image"] != other["image"]).any()


@pytest.mark.parametrize(
    "bad, message",
    [
        (b"no picture", r"dataset 'coco', split 'train', image '000000.jpg' \(id 0\): cannot be decoded"),
        (b"", r"cannot be decoded \(0 bytes\)"),
        (cv2.imencode(".png", np.zeros((9, 8, 3), np.uint8))[1].tobytes(), "is 8x9, annotated as"),
    ],
)
def test_bad_pictures_are_named(bad, message):
    source = fakes.random_source("coco", num_images=1)
    source.records.images[0] = bad
    with pytest.raises(ValueError, match=message):
        top_down.Train((source.dataset,), fakes.INPUT_SIZE, AUGMENTATION)(source[0], np.random.default_rng(0))


def test_a_source_without_instances_is_refused():
    dataset = DATASETS["coco"]
    table = fakes.annotation_table(dataset, [{"id": 1, "file_name": "1.jpg", "height": 5, "width": 6}], [])
    with pytest.raises(ValueError, match="'coco', split 'train': no usable instance"):
        top_down.TopDownSource(None, table, instances.ground_truth(table, dataset, (192, 256)), dataset)
