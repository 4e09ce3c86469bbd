"""Kinds of error, against a loop written from the paper's definitions; corrections do what they say."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from data_pipelines.datasets import find_dataset
from pose_common.analysis import errors as kinds
from pose_common.analysis.errors import KINDS
from pose_common.metrics import evaluate
from pose_common.metrics.columns import Poses
from tests.golden_files import golden
from tests.pose_common.analysis.cases import COCO, crowded
from tests.pose_common.metrics.cases import random_document, recorded_poses, settings_of, truth_of

FLIP = COCO.keypoints.flip_index


def similarity(point, place, area, sigma) -> float:
    distance = np.hypot(*(point - place[:2]))
    return float(np.exp(-(distance**2) / (2 * (area + np.spacing(1)) * (2 * sigma) ** 2)))


def reference(truth, poses, dataset) -> dict[tuple[int, int], tuple[str, float, float]]:
    """{(annotation, keypoint): (kind, similarity to its own place, to the nearest place)}, one at a time."""
    found = {}
    for person in range(len(truth.id)):
        rows = np.flatnonzero(poses.instance_id == truth.id[person])
        if truth.crowd[person] or not len(rows):
            continue
        for k, flip in enumerate(dataset.keypoints.flip_index):
            if truth.keypoints[person, k, 2] <= 0:
                continue
            point, sigma = poses.keypoints[rows[0], k, :2], dataset.keypoints.sigmas[k]
            places = []
            for other in np.flatnonzero(truth.image == truth.image[person]):
                for index in {k, int(flip)}:
                    place = truth.keypoints[other, index]
                    if place[2] > 0:
                        whose = ("own" if index == k else "mirror") if other == person else "other"
                        places.append((similarity(point, place, truth.area[other], sigma), whose))
            own = next(value for value, whose in places if whose == "own")
            best = max(value for value, _ in places)
            nearest = {name for value, name in places if value == best}
            if best < 0.5:
                kind = "miss"
            elif "own" in nearest:
                kind = "good" if own >= 0.85 else "jitter"
            else:
                kind = "inversion" if "mirror" in nearest else "swap"
            found[person, k] = kind, own, best
    return found


@pytest.mark.parametrize("seed", range(4))
def test_kinds_are_those_of_a_plain_loop(seed):
    truth, poses = crowded(seed)
    pairs = kinds.pair(COCO, truth, poses, by_instance=True)
    errors = kinds.keypoint_errors(truth, poses, pairs, kinds.scale_of(COCO, truth), FLIP)
    expected = reference(truth, poses, COCO)
    assert {KINDS[number] for number in np.unique(errors.kind) if number >= 0} == set(KINDS), "all kinds are there"
    seen = np.argwhere(errors.kind >= 0)
    assert {(int(pairs.annotation[p]), int(k)) for p, k in seen} == set(expected)
    for p, k in seen:
        kind, own, best = expected[int(pairs.annotation[p]), int(k)]
        assert KINDS[errors.kind[p, k]] == kind
        # The same formula in another order of float64 operations.
        np.testing.assert_allclose([errors.own[p, k], errors.best[p, k]], [own, best], atol=1e-12)
        partner = expected.get((int(pairs.annotation[p]), int(FLIP[k])), ("",))[0]
        assert errors.exchanged[p, k] == (kind == partner == "inversion")


def test_neighbours_in_parts_are_neighbours_at_once(monkeypatch):
    truth, poses = crowded(0)
    pairs, scale = kinds.pair(COCO, truth, poses, by_instance=True), kinds.scale_of(COCO, truth)
    whole = kinds.keypoint_errors(truth, poses, pairs, scale, FLIP)
    monkeypatch.setattr(kinds, "_CHUNK", 200)
    for one, other in zip(whole, kinds.keypoint_errors(truth, poses, pairs, scale, FLIP), strict=True):
        np.testing.assert_array_equal(one, other)


def test_pairs_and_kinds_are_those_of_the_released_analysis():
    """Of poses that were scored and suppressed; the analysis matched them to annotations by itself."""
    document, expected = golden("data/eval/coco_synth_gt.json"), golden("data/eval/coco_synth_kinds.json")
    truth = truth_of(COCO, document)
    predictions = recorded_poses(golden("data/eval/coco_synth_pred.json"), COCO)
    settings = settings_of(golden("data/eval/coco_synth_expected.json"))
    poses = evaluate.final_poses(COCO, truth, predictions, **settings)
    pairs = kinds.pair(COCO, truth, poses, by_instance=False)
    errors = kinds.keypoint_errors(truth, poses, pairs, kinds.scale_of(COCO, truth), FLIP)
    letters = np.array([name[0] for name in KINDS] + ["-"])
    found = {str(truth.id[a]): "".join(letters[row]) for a, row in zip(pairs.annotation, errors.kind, strict=True)}
    assert found == expected and set("gjism") < set("".join(expected.values()))


@pytest.mark.parametrize("kind", [kinds.JITTER, kinds.INVERSION, kinds.SWAP, kinds.MISS])
def test_corrected_points_have_the_named_similarity_and_others_stay(kind):
    truth, poses = crowded(1)
    pairs, scale = kinds.pair(COCO, truth, poses, by_instance=True), kinds.scale_of(COCO, truth)
    errors = kinds.keypoint_errors(truth, poses, pairs, scale, FLIP)
    changed = kinds.corrected(truth, poses, pairs, scale, errors, kind)
    wrong = errors.kind == kind
    sized = scale.area[pairs.annotation] > 0
    assert wrong[sized].any()
    after = kinds.keypoint_errors(truth, changed, pairs, scale, FLIP)
    expected = {kinds.JITTER: 0.85, kinds.MISS: 0.5}.get(kind, errors.best[wrong & sized[:, None]])
    # A distance is computed from a similarity and back.
    np.testing.assert_allclose(after.own[wrong & sized[:, None]], expected, atol=1e-9)
    before, moved = (p.keypoints[pairs.pose] for p in (poses, changed))
    np.testing.assert_array_equal(before[~wrong], moved[~wrong])
    np.testing.assert_array_equal(before[..., 2], moved[..., 2])


def test_without_errors_of_any_kind_everybody_is_found_at_an_oks_of_one_half():
    """All places reached at least half similarity: every person's OKS is at least 0.5, and AP .5 with it is 1."""
    truth, poses = crowded(2)
    sized = np.isin(poses.instance_id, truth.id[truth.area > 0])
    poses = poses.take(np.flatnonzero(sized))
    pairs, scale = kinds.pair(COCO, truth, poses, by_instance=True), kinds.scale_of(COCO, truth)
    errors = kinds.keypoint_errors(truth, poses, pairs, scale, FLIP)
    for kind in (kinds.JITTER, kinds.INVERSION, kinds.SWAP, kinds.MISS):
        poses = kinds.corrected(truth, poses, pairs, scale, errors, kind)
    after = kinds.keypoint_errors(truth, poses, pairs, scale, FLIP)
    assert (after.own[after.own >= 0] >= 0.5 - 1e-9).all()


def test_pairs_by_similarity_are_those_of_the_metric():
    """With everybody drawn once, near the own place, both ways of pairing agree; a second copy gets nobody."""
    document, _ = random_document(3, COCO, images=8)
    for annotation in document["annotations"]:  # people apart from each other, with a size, so that OKS says who is who
        points = np.array(annotation["keypoints"]).reshape(-1, 3)
        points[:, :2] += 5000 * annotation["id"]
        annotation |= {"keypoints": points.ravel().tolist(), "area": 4000.0}
    truth = truth_of(COCO, document)
    people = np.flatnonzero(kinds.judged(truth))[::-1]
    one = np.ones(len(people), np.int64)
    keypoints = truth.keypoints[people] + np.array([2.0, 0, 0])
    poses = Poses(truth.image_id[truth.image[people]], truth.id[people], keypoints, 1.0 * one, 1.0 * one, one)
    doubled = poses.take(np.r_[np.arange(len(people)), np.arange(len(people))])
    doubled = dataclasses.replace(doubled, score=np.r_[1.0 * one, 0.5 * one])
    expected = kinds.pair(COCO, truth, poses, by_instance=True)
    for found in (poses, doubled):
        pairs = kinds.pair(COCO, truth, found, by_instance=False)
        np.testing.assert_array_equal(pairs.annotation, expected.annotation)
        np.testing.assert_array_equal(pairs.pose, expected.pose)


def test_a_skeleton_without_sigmas_has_the_default_ones():
    hand = find_dataset("interhand2d")
    document, _ = random_document(0, hand, images=3)
    scale = kinds.scale_of(hand, truth_of(hand, document))
    np.testing.assert_array_equal(scale.width, np.full(21, 0.1))


def test_sizes_are_the_protocols():
    document, _ = random_document(0, COCO, images=3)
    boxed = dataclasses.replace(COCO, area="box")
    truth = truth_of(COCO, document)
    np.testing.assert_array_equal(kinds.scale_of(COCO, truth).area, truth.area)
    np.testing.assert_allclose(kinds.scale_of(boxed, truth).area, 0.53 * truth.box[:, 2] * truth.box[:, 3])


def test_nobody_found():
    document, poses = random_document(0, COCO, images=3)
    truth = truth_of(COCO, document)
    nobody = poses.take(np.zeros(0, np.int64))
    for by_instance in (True, False):
        pairs = kinds.pair(COCO, truth, nobody, by_instance=by_instance)
        assert len(pairs.annotation) == 0
        errors = kinds.keypoint_errors(truth, nobody, pairs, kinds.scale_of(COCO, truth), FLIP)
        assert errors.kind.shape == (0, 17)
    assert evaluate.headline_figure(COCO, truth, nobody) == 0
