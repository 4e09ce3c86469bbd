"""The synthetic world: pictures are functions of their seed, and what is said of them is what they show."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from data_pipelines.builders.report import RawDataError
from data_pipelines.builders.synthetic import SYNTHETIC, default_seed, prepare_synthetic
from data_pipelines.datasets import DATASETS
from data_pipelines.records import load_annotations, open_records, split_dir
from data_pipelines.skeletons import KEYPOINT_SETS
from data_pipelines.synthetic_world import (
    KINDS,
    animals,
    crowd_index,
    people,
    render_scene,
    skeleton_keypoints,
)
from data_pipelines.synthetic_world.scene import run_lengths

PEOPLE = ("coco", "aic", "mpii", "crowdpose", "coco_wholebody")
# The same anatomical point in the order of PEOPLE, from the published definitions (not from the names).
SHARED_JOINTS = {
    "left_shoulder": (5, 3, 13, 0, 5),
    "right_shoulder": (6, 0, 12, 1, 6),
    "left_wrist": (9, 5, 15, 4, 9),
    "right_elbow": (8, 1, 11, 3, 8),
    "left_hip": (11, 9, 3, 6, 11),
    "right_knee": (14, 7, 1, 9, 14),
    "left_ankle": (15, 11, 5, 10, 15),
    "right_ankle": (16, 8, 0, 11, 16),
}


@pytest.fixture(scope="module")
def scenes():
    """A few pictures of every kind."""
    return {kind: [render_scene(kind, (7,), index) for index in range(12)] for kind in KINDS}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Every synthetic dataset, three validation pictures each."""
    path = tmp_path_factory.mktemp("synthetic")
    prepare_synthetic(path, list(SYNTHETIC), num_train=0, num_val=3)
    return path


def _builder(dataset, split, tmp_path, **kwargs):
    return SYNTHETIC[dataset](split, data_dir=tmp_path, progress=False, **kwargs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_a_function_of_seed_and_index(kind, scenes):
    again = render_scene(kind, (7,), 5)
    np.testing.assert_array_equal(again.image, scenes[kind][5].image)
    for a, b in zip(again.instances, scenes[kind][5].instances, strict=True):
        np.testing.assert_array_equal(a.points, b.points)
        np.testing.assert_array_equal(a.box, b.box)
    assert not np.array_equal(render_scene(kind, (8,), 5).image, again.image)
    assert len({scene.image.tobytes() for scene in scenes[kind]}) == len(scenes[kind])


def test_unknown_kind_is_named():
    with pytest.raises(ValueError, match="landscape"):
        render_scene("landscape", (0,), 0)


def test_more_images_start_with_the_same_ones_and_splits_differ(tmp_path):
    few = [data for data, _ in _builder("synthetic_aic", "train", tmp_path, num_images=2).images()]
    many = [data for data, _ in _builder("synthetic_aic", "train", tmp_path, num_images=4).images()]
    val = [data for data, _ in _builder("synthetic_aic", "val", tmp_path, num_images=4).images()]
    assert few == many[:2]
    assert not set(many) & set(val)


def test_joints_shared_by_skeletons_agree(scenes):
    for scene in scenes["people"]:
        for instance in scene.instances:
            keypoints = [skeleton_keypoints(instance, KEYPOINT_SETS[name]) for name in PEOPLE]
            for name, indices in SHARED_JOINTS.items():
                rows = np.stack([k[i] for k, i in zip(keypoints, indices, strict=True)])
                assert (rows == rows[0]).all(), name
            mpii, aic, crowdpose = keypoints[2], keypoints[1], keypoints[3]
            np.testing.assert_array_equal(mpii[9], aic[12])  # head top
            np.testing.assert_array_equal(crowdpose[12:], aic[12:])  # head top and neck
            if (mpii[[2, 3, 6], 2] > 0).all():  # the pelvis is half way between the hips
                np.testing.assert_allclose(mpii[6, :2], mpii[[2, 3], :2].mean(0), atol=1e-3)


def test_a_skeleton_without_these_points_is_refused(scenes):
    with pytest.raises(KeyError):
        skeleton_keypoints(scenes["animals"][0].instances[0], KEYPOINT_SETS["coco"])


@pytest.mark.parametrize("kind", KINDS)
def test_labelled_points_lie_in_picture_and_box(kind, scenes):
    seen = set()
    for scene in scenes[kind]:
        height, width = scene.image.shape[:2]
        for instance in scene.instances:
            x, y, w, h = instance.box
            assert x >= 0 and y >= 0 and x + w <= width and y + h <= height and w > 0 and h > 0
            assert 0 < instance.area <= 1.02 * w * h + 4  # pixels touched by the outline count whole
            points, v = instance.points[:, :2], instance.points[:, 2]
            seen |= set(v.astype(int).tolist())
            assert (instance.points[v == 0] == 0).all()
            # A pixel's centre is an integer, so a point may lie half a pixel before the first one.
            inside = points[v > 0]
            assert (inside >= -0.5).all() and (inside <= (width - 0.5, height - 0.5)).all()
            assert (inside >= (x - 0.5, y - 0.5)).all() and (inside <= (x + w + 0.5, y + h + 0.5)).all()
    assert seen >= {1, 2}


def test_boxes_are_tight(scenes):
    """The outermost points of a person lie within a foot's length of the box's sides."""
    for scene in scenes["people"]:
        for instance in scene.instances:
            points = instance.points[instance.points[:, 2] > 0, :2]
            margins = np.concatenate(
                [points.min(0) - instance.box[:2], instance.box[:2] + instance.box[2:] - points.max(0)]
            )
            assert margins.max() < 0.15 * 200 * instance.scale


def _mirrored(pose):
    """The pose seen in a mirror: sides exchanged, turns to the left become turns to the right."""
    if isinstance(pose, people.Pose):
        return dataclasses.replace(
            pose,
            turn=pose.turn * [-1, 1, -1],
            lean=pose.lean * [1, -1],
            head=pose.head * [-1, 1, -1],
            arms=pose.arms[::-1],
            legs=pose.legs[::-1],
            hands=pose.hands[::-1],
        )
    return dataclasses.replace(
        pose,
        turn=pose.turn * [-1, 1, -1],
        neck=pose.neck * [1, -1, 1],
        legs=pose.legs[[1, 0, 3, 2]],
        tail=pose.tail * [1, -1],
    )


@pytest.mark.parametrize("seed", range(6))
def test_a_mirrored_person_is_another_person_of_the_world(seed):
    rng = np.random.default_rng(seed)
    pose, looks = people.sample_pose(rng), people.sample_looks(rng)
    figure, mirrored = people.make_person(pose, looks), people.make_person(_mirrored(pose), looks)
    for name in PEOPLE:
        skeleton = KEYPOINT_SETS[name]
        rows = [people.POINTS.index({"top_head": "head_top"}.get(n, n)) for n in skeleton.keypoints]
        exchanged = figure.points[rows][skeleton.flip_index]
        np.testing.assert_allclose(mirrored.points[rows] * [-1, 1], exchanged, atol=1e-9)  # float64 rounding
    x0, y0, x1, y1 = mirrored.extent()
    np.testing.assert_allclose(figure.extent(), [-x1, y0, -x0, y1], atol=1e-3)  # the torso's hull is float32


@pytest.mark.parametrize("species", animals.SPECIES, ids=lambda s: s.name)
def test_a_mirrored_animal_is_another_animal_of_the_world(species):
    rng = np.random.default_rng(3)
    pose, looks = animals.sample_pose(rng), animals.sample_looks(rng, species)
    figure = animals.make_animal(pose, looks, species)
    mirrored = animals.make_animal(_mirrored(pose), looks, species)
    exchanged = figure.points[KEYPOINT_SETS["ap10k"].flip_index]
    np.testing.assert_allclose(mirrored.points * [-1, 1], exchanged, atol=1e-9)  # float64 rounding


def _person(yaw):
    rng = np.random.default_rng(0)
    pose, looks = people.sample_pose(rng), people.sample_looks(rng)
    still = dataclasses.replace(
        pose,
        turn=np.array([yaw, 0.1, 0]),
        lean=np.zeros(2),
        head=np.zeros(3),
        arms=np.full((2, 3), [0.2, 0, 0.2]),
        legs=np.full((2, 3), [0, 0.05, 0.1]),
    )
    return people.make_person(still, looks)


def _point(figure, name):
    return figure.points[figure.names.index(name)]


def _part(figure, name):
    """The drawing of a part on which the point lies."""
    part = np.flatnonzero(figure.owners[figure.names.index(name)])[0]
    return next(group for group in figure.groups if group.part == part)


def test_left_and_right_follow_from_where_a_person_faces():
    front, back = _person(0.0), _person(np.pi)
    for joint in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle", "eye", "ear"):
        assert _point(front, f"left_{joint}")[0] > _point(front, f"right_{joint}")[0], joint
        assert _point(back, f"left_{joint}")[0] < _point(back, f"right_{joint}")[0], joint
    face = slice(front.names.index("face-17"), front.names.index("face-17") + 51)
    assert front.facing[face].all() and not back.facing[face].any()
    # Toes point to the camera, which looks down.
    assert _point(front, "left_big_toe")[1] > _point(front, "left_heel")[1]


@pytest.mark.parametrize("yaw, near, far", [(np.pi / 2, "left", "right"), (-np.pi / 2, "right", "left")])
def test_a_profile_shows_the_side_it_turns_to_the_camera(yaw, near, far):
    figure = _person(yaw)
    assert np.sign(_point(figure, "nose")[0] - _point(figure, f"{near}_ear")[0]) == -np.sign(yaw)
    assert [figure.facing[figure.names.index(f"{side}_ear")] for side in (near, far)] == [True, False]
    near_arm, far_arm = (_part(figure, f"{side}_elbow") for side in (near, far))
    assert near_arm.depth < far_arm.depth
    assert sum(near_arm.shapes[0][1]) > sum(far_arm.shapes[0][1])  # lighter


def test_an_animal_that_faces_left_shows_its_left_legs_nearest():
    rng = np.random.default_rng(1)
    species = animals.SPECIES[1]
    pose, looks = animals.sample_pose(rng), animals.sample_looks(rng, species)
    figure = animals.make_animal(dataclasses.replace(pose, turn=np.array([np.pi / 2, 0.1, 0])), looks, species)
    assert _point(figure, "Nose")[0] < _point(figure, "Neck")[0] < _point(figure, "Root of tail")[0]
    assert _part(figure, "L_B_Paw").depth < _part(figure, "R_B_Paw").depth


@pytest.mark.parametrize("kind", ("people", "animals"))
def test_points_lie_on_the_parts_they_belong_to(kind):
    """Each point is within 0.04 body units (about a wrist's thickness) of an outline of one of its parts."""
    for seed in range(8):
        rng = np.random.default_rng(seed)
        if kind == "people":
            figure = people.make_person(people.sample_pose(rng), people.sample_looks(rng))
        else:
            species = animals.SPECIES[seed % 3]
            looks = animals.sample_looks(rng, species)
            figure = animals.make_animal(animals.sample_pose(rng), looks, species)
        for point, owners, name in zip(figure.points, figure.owners, figure.names, strict=True):
            depth_inside = max(
                cv2.pointPolygonTest(outline.astype(np.float32), point.tolist(), True)
                for group in figure.groups
                if owners[group.part]
                for outline, _ in group.shapes
            )
            assert depth_inside > -0.04, name


def test_hidden_people_are_not_called_visible(scenes):
    """In a crowd many points are hidden, but some people hide none of theirs."""
    hidden = [
        np.mean(instance.points[:17, 2] == 1)
        for scene in scenes["crowd"]
        for instance in scene.instances
        if instance.labelled
    ]
    assert 0.05 < np.mean(hidden) < 0.4 and np.min(hidden) == 0


def test_crowds_and_hidden_people_have_masks_and_no_keypoints(scenes):
    crowds = [(scene, i) for scene in scenes["crowd"] for i in scene.instances if i.crowd]
    assert crowds
    for scene, instance in crowds:
        height, width = scene.image.shape[:2]
        mask = coco_mask.decode(coco_mask.frPyObjects(instance.mask, height, width))
        assert mask.sum() == instance.area and not instance.labelled
        for person in scene.instances:  # the crowd stands behind: its mask spares what hides it
            for x, y in np.rint(person.points[person.points[:, 2] == 2, :2]).astype(int):
                assert not mask[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].all()
    for scene in scenes["crowd"]:
        for instance in scene.instances:
            assert instance.labelled == (instance.mask is None)
            assert instance.labelled or not instance.points.any()


def test_run_lengths_are_coco_s():
    mask = np.random.default_rng(0).random((7, 5)) < 0.5
    for case in (mask, ~mask, np.ones((4, 3), bool), np.zeros((4, 3), bool)):
        decoded = coco_mask.decode(coco_mask.frPyObjects(run_lengths(case), *case.shape))
        np.testing.assert_array_equal(decoded.astype(bool), case)


def test_crowd_index_is_small_for_loners_and_large_for_crowds(scenes):
    skeleton = KEYPOINT_SETS["crowdpose"]
    alone = [crowd_index(scene.instances, skeleton) for scene in scenes["people"] if len(scene.instances) == 1]
    crowded = [crowd_index(scene.instances, skeleton) for scene in scenes["crowd"]]
    assert max(alone) == 0 and np.mean(crowded) > 0.3 and max(crowded) <= 1


@pytest.mark.parametrize("dataset", SYNTHETIC)
def test_records_hold_the_rendered_bytes(dataset, data_dir, tmp_path):
    source = open_records(dataset, "val", data_dir)
    rendered = list(_builder(dataset, "val", tmp_path, num_images=3).images())
    assert len(source) == 3
    for index, (data, record) in enumerate(rendered):
        stored = source[index]
        assert stored["image"] == data and stored["file_name"] == record["file_name"]
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert image.shape == (stored["height"], stored["width"], 3)
        # JPEG at quality 92 of a picture with grain: a few grey levels.
        scene = render_scene(SYNTHETIC[dataset].kind, (default_seed(dataset), 1), index)
        assert np.abs(image[..., ::-1].astype(int) - scene.image).mean() < 6
        for number, instance in enumerate(record["instances"]):
            np.testing.assert_array_equal(stored["instances"]["keypoints"][number], instance["keypoints"])
            np.testing.assert_array_equal(stored["instances"]["box"][number], instance["box"])


@pytest.mark.parametrize("dataset", SYNTHETIC)
def test_annotations_have_what_the_real_dataset_has(dataset, data_dir):
    table = load_annotations(dataset, "val", data_dir)
    protocol = DATASETS[dataset]
    real = DATASETS[dataset.removeprefix("synthetic_").replace("crowd", "crowdpose")]
    milder = {"scale_factor": real.scale_factor, "rotation_factor": real.rotation_factor}
    assert dataclasses.replace(protocol, name=real.name, **milder) == real
    assert protocol.scale_factor < real.scale_factor and protocol.rotation_factor < real.rotation_factor
    assert ((table.area > 0) == (protocol.area == "annotated")).all()
    assert (table.crowd_index >= 0).all() == (protocol.metric == "crowdpose")
    assert ((table.scale > 0) & (table.head_size > 0)).all() == (protocol.metric == "mpii")
    assert [name for _, name in table.categories] == (
        ["dog", "horse", "cow"] if SYNTHETIC[dataset].kind == "animals" else ["person"]
    )
    coco = COCO()
    coco.dataset = table.to_coco()
    coco.createIndex()
    assert len(coco.getAnnIds()) == table.num_instances > 0


def test_the_same_seed_gives_the_same_pictures_in_every_skeleton(data_dir, tmp_path):
    seed = default_seed("synthetic_coco")
    prepare_synthetic(tmp_path, ["synthetic_aic"], num_train=0, num_val=3, seed=seed)
    own = open_records("synthetic_coco", "val", data_dir)
    truth = open_records("synthetic_aic", "val", tmp_path)
    for index in range(3):
        a, b = own[index], truth[index]
        assert all(a[field] == b[field] for field in ("image", "image_id", "file_name"))
        np.testing.assert_array_equal(a["instances"]["id"], b["instances"]["id"])
        for coco, aic, *_ in SHARED_JOINTS.values():
            np.testing.assert_array_equal(a["instances"]["keypoints"][:, coco], b["instances"]["keypoints"][:, aic])
    assert open_records("synthetic_aic", "val", data_dir)[0]["image"] != truth[0]["image"]


def test_prepare_keeps_what_is_there_and_renews_what_differs(tmp_path):
    directory = split_dir("synthetic_ap10k", "val", tmp_path)

    def prepared(**kwargs):
        prepare_synthetic(tmp_path, ["synthetic_ap10k"], **{"num_train": 0, "num_val": 2} | kwargs)
        return directory.stat().st_ino, len(open_records("synthetic_ap10k", "val", tmp_path))

    first = prepared()
    assert prepared() == first
    assert prepared(num_val=3)[1] == 3
    image = open_records("synthetic_ap10k", "val", tmp_path)[0]["image"]
    prepared(num_val=3, seed=99)
    assert open_records("synthetic_ap10k", "val", tmp_path)[0]["image"] != image
    assert not split_dir("synthetic_ap10k", "train", tmp_path).exists()


def test_interrupted_rendering_leaves_nothing_that_looks_finished(tmp_path, monkeypatch):
    def fail(kind, seed, index):
        if index == 1:
            raise KeyboardInterrupt
        return render_scene(kind, seed, index)

    monkeypatch.setattr("data_pipelines.builders.synthetic.render_scene", fail)
    with pytest.raises(KeyboardInterrupt):
        prepare_synthetic(tmp_path, ["synthetic_coco"], num_train=0, num_val=3)
    monkeypatch.undo()
    assert not split_dir("synthetic_coco", "val", tmp_path).exists()
    prepare_synthetic(tmp_path, ["synthetic_coco"], num_train=0, num_val=3)
    assert len(open_records("synthetic_coco", "val", tmp_path)) == 3


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(KeyError, match="coco"):
        prepare_synthetic(tmp_path, ["coco"], num_train=1, num_val=1)
    with pytest.raises(RawDataError, match="test"):
        _builder("synthetic_coco", "test", tmp_path)
