"""Identities from frame to frame."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipelines.skeletons import KEYPOINT_SETS
from pose_common.prediction import tracking
from pose_common.prediction.pictures import Picture
from pose_common.prediction.result import Result, extent_boxes
from pose_common.prediction.sources import pictures_of
from pose_common.prediction.video import video_writer

COCO = KEYPOINT_SETS["coco"]
BODY = np.random.default_rng(0).uniform(0, 60, (17, 2))
BLANK = np.zeros((8, 8, 3), np.uint8)


def frame(time, *places, noise=0.0, seed=0, scores=None):
    """One body at each place."""
    rng = np.random.default_rng(seed)
    xy = np.array([BODY + place for place in places]) + noise * rng.standard_normal((len(places), 17, 2))
    keypoints = np.concatenate([xy, np.ones((len(places), 17, 1))], axis=-1).astype(np.float32)
    scores = np.ones(len(places), np.float32) if scores is None else np.array(scores, np.float32)
    return Result(Picture("f", BLANK, time), "coco", COCO, keypoints, extent_boxes(keypoints), scores)


def test_a_clip_where_nobody_crosses_keeps_its_ids():
    rng = np.random.default_rng(1)
    frames, expected = [], []
    for number in range(60):
        places = [(10 + 2 * number, 20), (400 - 2 * number, 220), (200, 420 + number)]
        order = rng.permutation(3)  # a detector lists people in any order
        frames.append(frame(number / 30, *[places[i] for i in order], noise=1.5, seed=number))
        expected.append(order)
    names = [result.ids[np.argsort(order)] for result, order in zip(tracking.track(frames), expected, strict=True)]
    assert (np.array(names) == names[0]).all() and len(set(names[0])) == 3


def test_somebody_hidden_for_a_while_comes_back_under_the_same_id():
    frames = [frame(n / 30, (0, 0), (300, 0)) if n not in range(5, 12) else frame(n / 30, (0, 0)) for n in range(20)]
    ids = [result.ids.tolist() for result in tracking.track(frames)]
    assert ids[4] == ids[12] == [1, 2] and ids[8] == [1]
    impatient = [r.ids.tolist() for r in tracking.track(frames, tracking.MatchSettings(patience=3))]
    assert impatient[12] == [1, 3], "a new person"


@pytest.mark.parametrize("gap, expected", [(3, [1, 2]), (4, [1, 3])])
def test_a_track_outlives_as_many_frames_as_its_patience(gap, expected):
    both, one = frame(0, (0, 0), (300, 0)), frame(0, (0, 0))
    frames = [both, *[one] * gap, both]
    *_, last = tracking.track(frames, tracking.MatchSettings(patience=3))
    assert last.ids.tolist() == expected


def test_pairs_that_stay_apart_take_no_pose_from_a_track(monkeypatch):
    """0.18 + 0.18 is more than 0.32, but neither is similar enough to be a pair."""
    tracks, _ = tracking.step(tracking.no_tracks(17), frame(0, (0, 0), (300, 0)))
    monkeypatch.setattr(tracking, "similarities", lambda *_: np.array([[0.18, 0.0], [0.32, 0.18]]))
    _, found = tracking.step(tracks, frame(0.1, (0, 0), (300, 0)))
    assert found.ids.tolist() == [2, 3]


def test_weak_poses_start_no_track_but_continue_one():
    frames = [frame(0, (0, 0), (300, 0), scores=[1, 0.01]), frame(0.1, (0, 0), (300, 0), scores=[0.01, 1])]
    first, second = tracking.track(frames)
    assert first.ids.tolist() == [1] and second.ids.tolist() == [1, 2]


def test_overlaps_of_boxes():
    boxes = np.array([[0, 0, 10, 20], [5, 0, 10, 20], [20, 20, 1, 1]], np.float64)
    np.testing.assert_allclose(tracking.overlaps(boxes, boxes), [[1, 1 / 3, 0], [1 / 3, 1, 0], [0, 0, 1]], atol=1e-12)


def test_similarity_is_the_mean_of_oks_and_overlap():
    """COCO's OKS, with 0.53 of the track's box as its area."""
    tracks, _ = tracking.step(tracking.no_tracks(17), frame(0, (0, 0), (300, 0)))
    found = tracking.similarities(tracks, frame(0.1, (0, 0), (4, 3)), COCO.oks_sigmas)
    width, height = tracks.boxes[0, 2:]
    oks = np.mean([np.exp(-25 / (2 * 0.53 * width * height * (2 * sigma) ** 2)) for sigma in COCO.oks_sigmas])
    common = (width - 4) * (height - 3)
    expected = (oks + common / (2 * width * height - common)) / 2
    assert 0.2 < expected < 0.8
    np.testing.assert_allclose(found, [[1, expected], [0, 0]], atol=1e-5)  # coordinates are float32


def test_smoothing_calms_a_person_at_rest_and_follows_a_fast_one():
    still = [frame(n / 30, (0, 0), noise=3.0, seed=n) for n in range(60)]
    smoothed = list(tracking.smooth(tracking.track(still)))
    before = np.std([r.keypoints[0, :, 0] for r in still[30:]], axis=0).mean()
    after = np.std([r.keypoints[0, :, 0] for r in smoothed[30:]], axis=0).mean()
    assert after < 0.6 * before
    fast = [frame(n / 30, (20 * n, 0)) for n in range(30)]
    *_, last = tracking.smooth(tracking.track(fast))
    assert np.abs(last.keypoints[0, :, :2] - fast[-1].keypoints[0, :, :2]).max() < 10  # half a frame's way
    np.testing.assert_array_equal(last.keypoints[..., 2], fast[-1].keypoints[..., 2])


@pytest.mark.parametrize("encoders", [None, frozenset()], ids=["PyAV's", "not of H.264"])
def test_frames_keep_their_times_through_a_file(tmp_path, monkeypatch, encoders):
    av = pytest.importorskip("av", reason="PyAV is not installed")
    if encoders is not None:
        monkeypatch.setattr(av, "codecs_available", encoders)
    times = [0.0, 0.04, 0.2, 0.25, 1.0]
    with video_writer(tmp_path / "clip.mp4") as append:
        for number, time in enumerate(times):
            append(np.full((48, 65, 3), 50 * number, np.uint8), time)
    pictures = list(pictures_of(tmp_path / "clip.mp4"))
    np.testing.assert_allclose([picture.time for picture in pictures], times, atol=1e-3)
    assert [round(picture.image.mean() / 50) for picture in pictures] == [0, 1, 2, 3, 4]
    assert pictures[0].image.shape == (48, 64, 3)


def test_frames_at_one_time_follow_each_other(tmp_path):
    pytest.importorskip("av", reason="PyAV is not installed")
    times = [0.0, 0.1, 0.2, 0.2, 0.3, 0.4, 0.5, 0.6]
    with video_writer(tmp_path / "clip.mp4") as append:
        for number, time in enumerate(times):
            append(np.full((48, 64, 3), 30 * number, np.uint8), time)
    pictures = list(pictures_of(tmp_path / "clip.mp4"))
    np.testing.assert_allclose([picture.time for picture in pictures], times, atol=1e-3)
    assert [round(picture.image.mean() / 30) for picture in pictures] == list(range(8))


@pytest.mark.parametrize("height, width", [(1, 8), (8, 1)])
def test_a_frame_of_one_pixel_a_side_is_refused(tmp_path, height, width):
    pytest.importorskip("av", reason="PyAV is not installed")
    with pytest.raises(ValueError, match=f"a frame of {width}x{height}: a video has two pixels"):
        with video_writer(tmp_path / "clip.mp4") as append:
            append(np.zeros((height, width, 3), np.uint8), None)
    assert not list(tmp_path.iterdir())


def test_a_stream_without_times_has_those_of_its_rate(tmp_path):
    av = pytest.importorskip("av", reason="PyAV is not installed")
    if "libx264" not in av.codecs_available:
        pytest.skip("PyAV has no encoder of H.264")
    with av.open(str(tmp_path / "clip.mp4"), "w", format="h264") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    np.testing.assert_allclose([picture.time for picture in pictures_of(tmp_path / "clip.mp4")], [0, 0.04, 0.08])
