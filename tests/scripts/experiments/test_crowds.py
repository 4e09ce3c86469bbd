"""People that are lost, found twice or mixed up are counted, and clusters measured, on cases that are known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from data_pipelines.datasets import find_dataset
from pose_common.metrics import evaluate
from pose_common.metrics.columns import GroundTruth, Poses
from scripts.experiments import crowds

CROWD = find_dataset("synthetic_crowd")
POINTS = CROWD.num_keypoints


def people(*corners):
    """People of 100 x 100 pixels, whose keypoints lie on a grid, [P, K, 3]."""
    grid = np.stack(np.meshgrid(np.linspace(10, 90, 7), (20, 80)), axis=-1).reshape(POINTS, 2)
    placed = np.array(corners, np.float64)[:, None] + grid
    return np.concatenate([placed, np.full((len(corners), POINTS, 1), 2.0)], axis=-1)


def truth_of(keypoints, image, crowd=None):
    count = len(keypoints)
    low = keypoints[..., :2].min(1) - 10
    return GroundTruth(
        image_id=np.array([5, 9]),
        crowd_index=np.array([0.1, 0.9]),
        category_id=np.array([1]),
        image=np.array(image),
        id=np.arange(count),
        category=np.ones(count, np.int64),
        keypoints=keypoints,
        box=np.concatenate([low, np.full((count, 2), 100.0)], axis=1),
        area=np.full(count, 1e4),
        crowd=np.zeros(count, bool) if crowd is None else np.array(crowd),
        num_keypoints=np.full(count, POINTS),
        head_size=np.zeros(count),
    )


def poses_of(keypoints, score, image_id):
    count = len(keypoints)
    return Poses(np.array(image_id), np.arange(count), keypoints, np.array(score), np.full(count, 1e4))


TWO = people((0, 0), (200, 0))
FAR = people((900, 900))


def counted(poses, score):
    """Of one picture with two people, another with nobody: people, found, duplicates, strays, merged."""
    account = crowds.account(CROWD, truth_of(TWO, [1, 1]), poses_of(poses, score, [9] * len(poses)))
    assert account.people.tolist() == [0, 2]
    return [int(column[1]) for column in (account.found, account.duplicates, account.strays, account.merged)]


def test_everybody_is_found_and_what_is_beyond_their_number_does_not_count():
    assert counted(np.concatenate([TWO, TWO, FAR]), [0.9, 0.8, 0.5, 0.4, 0.3]) == [2, 0, 0, 0]


def test_a_second_pose_of_somebody_is_a_duplicate():
    assert counted(np.stack([TWO[0], TWO[0] + (1, 1, 0), TWO[1]]), [0.9, 0.8, 0.1]) == [1, 1, 0, 0]


def test_a_pose_where_nobody_is_strays():
    assert counted(np.concatenate([FAR, TWO[:1]]), [0.9, 0.8]) == [1, 0, 1, 0]


def test_a_pose_with_keypoints_of_two_people_is_merged():
    merged = TWO[0].copy()
    merged[: crowds.MIXED] = TWO[1, : crowds.MIXED]
    assert counted(np.stack([merged, TWO[1]]), [0.9, 0.8]) == [2, 0, 0, 1]
    merged[0] = TWO[0, 0]
    assert counted(np.stack([merged, TWO[1]]), [0.9, 0.8]) == [2, 0, 0, 0], "one keypoint makes nobody else"


def test_poses_at_crowds_count_for_nothing():
    truth = truth_of(np.concatenate([TWO, FAR]), [1, 1, 1], [False, False, True])
    account = crowds.account(CROWD, truth, poses_of(np.concatenate([FAR, TWO]), [0.9, 0.8, 0.7], [9] * 3))
    assert account.shares(evaluate.crowd_levels(truth) == 2) == {"missed": 0, "duplicates": 0, "strays": 0, "merged": 0}


def test_a_crowd_takes_nobodys_pose():
    """Without keypoints it is wherever its box is, grown threefold: as far as the people beside it."""
    unlabelled = people((100, 0)) * (1, 1, 0)
    truth = truth_of(np.concatenate([TWO, unlabelled]), [1, 1, 1], [False, False, True])
    account = crowds.account(CROWD, truth, poses_of(TWO, [0.9, 0.8], [9] * 2))
    assert account.found.tolist() == [0, 2]


def test_pictures_without_a_crowd_index_are_of_no_level():
    """But count among all."""
    truth = dataclasses.replace(truth_of(TWO, [0, 1]), crowd_index=np.array([0.1, np.nan]))
    found = crowds.figures(CROWD, truth, poses_of(np.zeros((0, POINTS, 3)), [], np.zeros(0, np.int64)))
    assert (found["missed"], found["missed, easy"], found["missed, hard"]) == (100, 100, 0)


def test_without_poses_everybody_is_missed():
    nothing = poses_of(np.zeros((0, POINTS, 3)), [], np.zeros(0, np.int64))
    assert crowds.account(CROWD, truth_of(TWO, [0, 1]), nothing).missed.tolist() == [1, 1]


def test_silhouettes_of_clusters_that_are_known():
    across, up = (1.0, 0.0), (0.0, 3.0)  # lengths do not matter
    apart = crowds.silhouette(np.array([across, across, up, up]), np.array([7, 7, 2, 2]))
    np.testing.assert_allclose(apart, 1)
    # Own cluster: one point at distance 1. The other: points at distances 0 and 1.
    mixed = crowds.silhouette(np.array([across, up, across, up]), np.array([0, 0, 1, 1]))
    np.testing.assert_allclose(mixed, -0.5)
    alone = crowds.silhouette(np.array([across, up, up]), np.array([0, 1, 1]))
    np.testing.assert_allclose(alone, [0, 1, 1])
    with pytest.raises(ValueError, match="two clusters"):
        crowds.silhouette(np.ones((2, 2)), np.zeros(2))
