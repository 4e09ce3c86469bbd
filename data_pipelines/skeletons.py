"""Keypoint sets (skeletons): the anatomy of every kind of annotation, as data.

Names in storage order, which pairs a mirror exchanges, limbs to draw, halves of the body, OKS sigmas. Index pairs
count keypoints from 0. Sigmas are those of COCO-style object keypoint similarity: the variance of keypoint i is
(2 sigma_i)^2 times the object's area; `sigmas` is empty where no OKS metric is defined. Which datasets use a skeleton,
and by which protocol, is in `data_pipelines/datasets.py`.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

DEFAULT_SIGMA = 0.05
"""Of a keypoint for which none is stated."""


@dataclasses.dataclass(frozen=True)
class KeypointSet:
    """One skeleton. `flip_pairs` are exchanged by a mirror; `limbs` are for drawing only.

    `parts` are (name, first, end) ranges that are scored on their own (whole-body sets).
    """

    name: str
    keypoints: tuple[str, ...]
    flip_pairs: tuple[tuple[int, int], ...] = ()
    limbs: tuple[tuple[int, int], ...] = ()
    upper_body: tuple[int, ...] = ()
    lower_body: tuple[int, ...] = ()
    sigmas: tuple[float, ...] = ()
    parts: tuple[tuple[str, int, int], ...] = ()

    @property
    def num_keypoints(self) -> int:
        return len(self.keypoints)

    @functools.cached_property
    def flip_index(self) -> np.ndarray:
        """int32 [K]: `keypoints[flip_index]` is the mirrored order."""
        index = np.arange(self.num_keypoints, dtype=np.int32)
        for a, b in self.flip_pairs:
            index[a], index[b] = b, a
        return index

    @functools.cached_property
    def oks_sigmas(self) -> np.ndarray:
        """float64 [K]: `sigmas`, or `DEFAULT_SIGMA` for each where there are none but poses must be compared."""
        return np.array(self.sigmas or (DEFAULT_SIGMA,) * self.num_keypoints)


def _names(text: str) -> tuple[str, ...]:
    return tuple(word.replace("~", " ") for word in text.split())


# Tables of names in their order of storage, several a line.
# fmt: off
_SETS = (
    KeypointSet(
        name="coco",
        keypoints=_names("""
            nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow
            right_elbow left_wrist right_wrist left_hip right_hip left_knee right_knee
            left_ankle right_ankle
        """),
        flip_pairs=((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)),
        limbs=((15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7),
            (6, 8), (7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)),
        upper_body=(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10),
        lower_body=(11, 12, 13, 14, 15, 16),
        sigmas=(.026, .025, .025, .035, .035, .079, .079, .072, .072, .062, .062, .107, .107, .087,
            .087, .089, .089),
    ),
    KeypointSet(
        name="aic",
        keypoints=_names("""
            right_shoulder right_elbow right_wrist left_shoulder left_elbow left_wrist right_hip
            right_knee right_ankle left_hip left_knee left_ankle head_top neck
        """),
        flip_pairs=((0, 3), (1, 4), (2, 5), (6, 9), (7, 10), (8, 11)),
        limbs=((2, 1), (1, 0), (0, 13), (13, 3), (3, 4), (4, 5), (8, 7), (7, 6), (6, 9), (9, 10),
            (10, 11), (12, 13), (0, 6), (3, 9)),
        upper_body=(0, 1, 2, 3, 4, 5, 12, 13),
        lower_body=(6, 7, 8, 9, 10, 11),
        sigmas=(.01388152, .01515228, .01057665, .01417709, .01497891, .01402144, .03909642,
            .03686941, .01981803, .03843971, .03412318, .02415081, .01291456, .01236173),
    ),
    KeypointSet(
        name="mpii",
        keypoints=_names("""
            right_ankle right_knee right_hip left_hip left_knee left_ankle pelvis thorax
            upper_neck head_top right_wrist right_elbow right_shoulder left_shoulder left_elbow
            left_wrist
        """),
        flip_pairs=((0, 5), (1, 4), (2, 3), (10, 15), (11, 14), (12, 13)),
        limbs=((0, 1), (1, 2), (2, 6), (6, 3), (3, 4), (4, 5), (6, 7), (7, 8), (8, 9), (8, 12), (12,
            11), (11, 10), (8, 13), (13, 14), (14, 15)),
        upper_body=(7, 8, 9, 10, 11, 12, 13, 14, 15),
        lower_body=(0, 1, 2, 3, 4, 5, 6),
        sigmas=(.089, .083, .107, .107, .083, .089, .026, .026, .026, .026, .062, .072, .179, .179,
            .072, .062),
    ),
    KeypointSet(
        name="ap10k",
        keypoints=_names("""
            L_Eye R_Eye Nose Neck Root~of~tail L_Shoulder L_Elbow L_F_Paw R_Shoulder R_Elbow
            R_F_Paw L_Hip L_Knee L_B_Paw R_Hip R_Knee R_B_Paw
        """),
        flip_pairs=((0, 1), (5, 8), (6, 9), (7, 10), (11, 14), (12, 15), (13, 16)),
        limbs=((0, 1), (0, 2), (1, 2), (2, 3), (3, 4), (3, 5), (5, 6), (6, 7), (3, 8), (8, 9), (9,
            10), (4, 11), (11, 12), (12, 13), (4, 14), (14, 15), (15, 16)),
        upper_body=(0, 1, 2, 3, 5, 6, 7, 8, 9),
        lower_body=(4, 10, 11, 12, 13, 14, 15, 16),
        sigmas=(.025, .025, .026, .035, .035, .079, .072, .062, .079, .072, .062, .107, .087, .089,
            .107, .087, .089),
    ),
    KeypointSet(
        name="crowdpose",
        keypoints=_names("""
            left_shoulder right_shoulder left_elbow right_elbow left_wrist right_wrist left_hip
            right_hip left_knee right_knee left_ankle right_ankle top_head neck
        """),
        flip_pairs=((0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (10, 11)),
        limbs=((10, 8), (8, 6), (11, 9), (9, 7), (6, 7), (0, 6), (1, 7), (0, 1), (0, 2), (1, 3), (2,
            4), (3, 5), (12, 13), (1, 13), (0, 13)),
        upper_body=(0, 1, 2, 3, 4, 5, 12, 13),
        lower_body=(6, 7, 8, 9, 10, 11),
        sigmas=(.079, .079, .072, .072, .062, .062, .107, .107, .087, .087, .089, .089, .079, .079),
    ),
    KeypointSet(
        name="interhand2d",
        keypoints=_names("""
            thumb4 thumb3 thumb2 thumb1 forefinger4 forefinger3 forefinger2 forefinger1
            middle_finger4 middle_finger3 middle_finger2 middle_finger1 ring_finger4
            ring_finger3 ring_finger2 ring_finger1 pinky_finger4 pinky_finger3 pinky_finger2
            pinky_finger1 wrist
        """),
        limbs=((20, 3), (3, 2), (2, 1), (1, 0), (20, 7), (7, 6), (6, 5), (5, 4), (20, 11), (11, 10),
            (10, 9), (9, 8), (20, 15), (15, 14), (14, 13), (13, 12), (20, 19), (19, 18), (18, 17),
            (17, 16)),
    ),
    KeypointSet(
        name="pw3d",
        keypoints=_names("""
            pelvis left_hip right_hip spine1 left_knee right_knee spine2 left_ankle right_ankle
            spine3 left_foot right_foot neck left_collar right_collar jaw left_shoulder
            right_shoulder left_elbow right_elbow left_wrist right_wrist left_thumb right_thumb
        """),
        flip_pairs=((1, 2), (4, 5), (7, 8), (10, 11), (13, 14), (16, 17), (18, 19), (20, 21), (22,
            23)),
        limbs=((7, 4), (4, 1), (8, 5), (5, 2), (1, 0), (2, 0), (0, 3), (3, 6), (6, 9), (9, 12), (12,
            15), (12, 16), (12, 17), (16, 18), (17, 19), (18, 20), (19, 21), (20, 22), (21, 23), (7,
            10), (8, 11), (16, 13), (17, 14)),
        upper_body=(3, 6, 9, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23),
        lower_body=(0, 1, 2, 4, 5, 7, 8, 10, 11),
        sigmas=(.107, .107, .107, .107, .087, .087, .107, .089, .089, .107, .089, .089, .079, .079,
            .079, .035, .079, .079, .072, .072, .062, .062, .062, .062),
    ),
    KeypointSet(
        name="halpe",
        keypoints=_names("""
            nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow
            right_elbow left_wrist right_wrist left_hip right_hip left_knee right_knee
            left_ankle right_ankle head neck hip left_big_toe right_big_toe left_small_toe
            right_small_toe left_heel right_heel face-0 face-1 face-2 face-3 face-4 face-5
            face-6 face-7 face-8 face-9 face-10 face-11 face-12 face-13 face-14 face-15 face-16
            face-17 face-18 face-19 face-20 face-21 face-22 face-23 face-24 face-25 face-26
            face-27 face-28 face-29 face-30 face-31 face-32 face-33 face-34 face-35 face-36
            face-37 face-38 face-39 face-40 face-41 face-42 face-43 face-44 face-45 face-46
            face-47 face-48 face-49 face-50 face-51 face-52 face-53 face-54 face-55 face-56
            face-57 face-58 face-59 face-60 face-61 face-62 face-63 face-64 face-65 face-66
            face-67 left_hand_root left_thumb1 left_thumb2 left_thumb3 left_thumb4
            left_forefinger1 left_forefinger2 left_forefinger3 left_forefinger4
            left_middle_finger1 left_middle_finger2 left_middle_finger3 left_middle_finger4
            left_ring_finger1 left_ring_finger2 left_ring_finger3 left_ring_finger4
            left_pinky_finger1 left_pinky_finger2 left_pinky_finger3 left_pinky_finger4
            right_hand_root right_thumb1 right_thumb2 right_thumb3 right_thumb4
            right_forefinger1 right_forefinger2 right_forefinger3 right_forefinger4
            right_middle_finger1 right_middle_finger2 right_middle_finger3 right_middle_finger4
            right_ring_finger1 right_ring_finger2 right_ring_finger3 right_ring_finger4
            right_pinky_finger1 right_pinky_finger2 right_pinky_finger3 right_pinky_finger4
        """),
        flip_pairs=((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16), (20, 21),
            (22, 23), (24, 25), (26, 42), (27, 41), (28, 40), (29, 39), (30, 38), (31, 37), (32,
            36), (33, 35), (43, 52), (44, 51), (45, 50), (46, 49), (47, 48), (57, 61), (58, 60),
            (62, 71), (63, 70), (64, 69), (65, 68), (66, 73), (67, 72), (74, 80), (75, 79), (76,
            78), (81, 85), (82, 84), (86, 90), (87, 89), (91, 93), (94, 115), (95, 116), (96, 117),
            (97, 118), (98, 119), (99, 120), (100, 121), (101, 122), (102, 123), (103, 124), (104,
            125), (105, 126), (106, 127), (107, 128), (108, 129), (109, 130), (110, 131), (111,
            132), (112, 133), (113, 134), (114, 135)),
        limbs=((15, 13), (13, 11), (11, 19), (16, 14), (14, 12), (12, 19), (17, 18), (18, 19), (18,
            5), (5, 7), (7, 9), (18, 6), (6, 8), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4),
            (3, 5), (4, 6), (15, 20), (15, 22), (15, 24), (16, 21), (16, 23), (16, 25), (9, 95),
            (95, 96), (96, 97), (97, 98), (9, 99), (99, 100), (100, 101), (101, 102), (9, 103),
            (103, 104), (104, 105), (105, 106), (9, 107), (107, 108), (108, 109), (109, 110), (9,
            111), (111, 112), (112, 113), (113, 114), (10, 116), (116, 117), (117, 118), (118, 119),
            (10, 120), (120, 121), (121, 122), (122, 123), (10, 124), (124, 125), (125, 126), (126,
            127), (10, 128), (128, 129), (129, 130), (130, 131), (10, 132), (132, 133), (133, 134),
            (134, 135)),
        upper_body=(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 17, 18),
        lower_body=(11, 12, 13, 14, 15, 16, 19, 20, 21, 22, 23, 24, 25),
        sigmas=(.026, .025, .025, .035, .035, .079, .079, .072, .072, .062, .062, .107, .107, .087,
            .087, .089, .089, .08, .08, .08, .089, .089, .089, .089, .089, .089, .015, .015, .015,
            .015, .015, .015, .015, .015, .015, .015, .015, .015, .015, .015, .015, .015, .015,
            .015, .015, .015, .015, .015, .015, .015, .015, .015, .015, .015, .015, .015, .015,
            .015, .015, .015, .015, .015, .015, .015, .015, .015, .015, .015, .015, .015, .015,
            .015, .015, .015, .015, .015, .015, .015, .015, .015, .015, .015, .015, .015, .015,
            .015, .015, .015, .015, .015, .015, .015, .015, .015, .015, .015, .015, .015, .015,
            .015, .015, .015, .015, .015, .015, .015, .015, .015, .015, .015, .015, .015, .015,
            .015, .015, .015, .015, .015, .015, .015, .015, .015, .015, .015, .015, .015, .015,
            .015, .015, .015, .015, .015, .015, .015, .015, .015),
    ),
    KeypointSet(
        name="coco_wholebody",
        keypoints=_names("""
            nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow
            right_elbow left_wrist right_wrist left_hip right_hip left_knee right_knee
            left_ankle right_ankle left_big_toe left_small_toe left_heel right_big_toe
            right_small_toe right_heel face-0 face-1 face-2 face-3 face-4 face-5 face-6 face-7
            face-8 face-9 face-10 face-11 face-12 face-13 face-14 face-15 face-16 face-17
            face-18 face-19 face-20 face-21 face-22 face-23 face-24 face-25 face-26 face-27
            face-28 face-29 face-30 face-31 face-32 face-33 face-34 face-35 face-36 face-37
            face-38 face-39 face-40 face-41 face-42 face-43 face-44 face-45 face-46 face-47
            face-48 face-49 face-50 face-51 face-52 face-53 face-54 face-55 face-56 face-57
            face-58 face-59 face-60 face-61 face-62 face-63 face-64 face-65 face-66 face-67
            left_hand_root left_thumb1 left_thumb2 left_thumb3 left_thumb4 left_forefinger1
            left_forefinger2 left_forefinger3 left_forefinger4 left_middle_finger1
            left_middle_finger2 left_middle_finger3 left_middle_finger4 left_ring_finger1
            left_ring_finger2 left_ring_finger3 left_ring_finger4 left_pinky_finger1
            left_pinky_finger2 left_pinky_finger3 left_pinky_finger4 right_hand_root
            right_thumb1 right_thumb2 right_thumb3 right_thumb4 right_forefinger1
            right_forefinger2 right_forefinger3 right_forefinger4 right_middle_finger1
            right_middle_finger2 right_middle_finger3 right_middle_finger4 right_ring_finger1
            right_ring_finger2 right_ring_finger3 right_ring_finger4 right_pinky_finger1
            right_pinky_finger2 right_pinky_finger3 right_pinky_finger4
        """),
        flip_pairs=((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16), (17, 20),
            (18, 21), (19, 22), (23, 39), (24, 38), (25, 37), (26, 36), (27, 35), (28, 34), (29,
            33), (30, 32), (40, 49), (41, 48), (42, 47), (43, 46), (44, 45), (54, 58), (55, 57),
            (59, 68), (60, 67), (61, 66), (62, 65), (63, 70), (64, 69), (71, 77), (72, 76), (73,
            75), (78, 82), (79, 81), (83, 87), (84, 86), (88, 90), (91, 112), (92, 113), (93, 114),
            (94, 115), (95, 116), (96, 117), (97, 118), (98, 119), (99, 120), (100, 121), (101,
            122), (102, 123), (103, 124), (104, 125), (105, 126), (106, 127), (107, 128), (108,
            129), (109, 130), (110, 131), (111, 132)),
        limbs=((15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7),
            (6, 8), (7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6), (15,
            17), (15, 18), (15, 19), (16, 20), (16, 21), (16, 22), (91, 92), (92, 93), (93, 94),
            (94, 95), (91, 96), (96, 97), (97, 98), (98, 99), (91, 100), (100, 101), (101, 102),
            (102, 103), (91, 104), (104, 105), (105, 106), (106, 107), (91, 108), (108, 109), (109,
            110), (110, 111), (112, 113), (113, 114), (114, 115), (115, 116), (112, 117), (117,
            118), (118, 119), (119, 120), (112, 121), (121, 122), (122, 123), (123, 124), (112,
            125), (125, 126), (126, 127), (127, 128), (112, 129), (129, 130), (130, 131), (131,
            132)),
        upper_body=(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10),
        lower_body=(11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22),
        sigmas=(.026, .025, .025, .035, .035, .079, .079, .072, .072, .062, .062, .107, .107, .087,
            .087, .089, .089, .068, .066, .066, .092, .094, .094, .042, .043, .044, .043, .04, .035,
            .031, .025, .02, .023, .029, .032, .037, .038, .043, .041, .045, .013, .012, .011, .011,
            .012, .012, .011, .011, .013, .015, .009, .007, .007, .007, .012, .009, .008, .016, .01,
            .017, .011, .009, .011, .009, .007, .013, .008, .011, .012, .01, .034, .008, .008, .009,
            .008, .008, .007, .01, .008, .009, .009, .009, .007, .007, .008, .011, .008, .008, .008,
            .01, .008, .029, .022, .035, .037, .047, .026, .025, .024, .035, .018, .024, .022, .026,
            .017, .021, .021, .032, .02, .019, .022, .031, .029, .022, .035, .037, .047, .026, .025,
            .024, .035, .018, .024, .022, .026, .017, .021, .021, .032, .02, .019, .022, .031),
        parts=(
            ("body", 0, 17), ("foot", 17, 23), ("face", 23, 91),
            ("lefthand", 91, 112), ("righthand", 112, 133),
        ),
    ),
)

KEYPOINT_SETS: dict[str, KeypointSet] = {s.name: s for s in _SETS}
"""Skeleton by name. APT-36K annotates AP-10K's skeleton and OCHuman COCO's."""
