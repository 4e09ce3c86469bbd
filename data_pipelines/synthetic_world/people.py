"""Articulated people with the 133 whole-body points and the extra joints of the other human skeletons.

Point names are those of COCO-WholeBody plus `head_top`, `neck`, `upper_neck`, `thorax` and `pelvis`; the same
anatomical point has one name, hence one position, in every skeleton.
"""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

from data_pipelines.skeletons import KEYPOINT_SETS
from data_pipelines.synthetic_world.figures import (
    Colour,
    Ellipsoid,
    Figure,
    Group,
    capsule,
    disc,
    hsv,
    owner_table,
    perpendicular,
    rotation,
    shaded,
    unit,
)

_WHOLE_BODY = KEYPOINT_SETS["coco_wholebody"]
POINTS: tuple[str, ...] = (*_WHOLE_BODY.keypoints, "head_top", "neck", "upper_neck", "thorax", "pelvis")
SIDES = ("left", "right")
_FINGERS = ("thumb", "forefinger", "middle_finger", "ring_finger", "pinky_finger")
_PARTS = ("torso", "head", "neck") + tuple(
    f"{side}_{name}" for side in SIDES for name in ("upper_arm", "forearm", "hand", "thigh", "shin", "foot")
)
_FACE = slice(23, 91)
_LEFT, _DOWN, _FRONT = np.eye(3) * np.array([1, 1, -1])

# Finger bases and tips in the hand's plane, in hand lengths: (towards the thumb, along the forearm).
_FINGER_BASES = np.array([[0.26, 0.22], [0.23, 0.52], [0.07, 0.55], [-0.09, 0.52], [-0.24, 0.46]])
_FINGER_TIPS = np.array([[0.62, 0.62], [0.36, 1.0], [0.10, 1.1], [-0.16, 1.02], [-0.42, 0.86]])


@dataclasses.dataclass(frozen=True)
class Pose:
    """Angles in radians; rows of `arms` and `legs` are (left, right).

    Attributes:
      turn: (yaw, pitch, roll) of the body.
      lean: (forward, to the left) of the torso.
      head: (yaw, pitch, roll) of the head on the body.
      arms: [2, 3] elevation of the upper arm (0 hangs, pi up), its azimuth (0 sideways, pi/2 forward),
        bend of the elbow.
      legs: [2, 3] forward swing of the thigh, outward swing, knee bend.
      hands: [2, 2] wrist bend towards the thumb, spread of the fingers (factor).
    """

    turn: np.ndarray
    lean: np.ndarray
    head: np.ndarray
    arms: np.ndarray
    legs: np.ndarray
    hands: np.ndarray


@dataclasses.dataclass(frozen=True)
class Looks:
    """Build (`limbs`: length factors of arm and leg, `girth`) and colours."""

    limbs: np.ndarray
    girth: float
    skin: Colour
    hair: Colour
    shirt: Colour
    sleeve: Colour
    trousers: Colour
    shin: Colour
    shoe: Colour
    stripes: bool


def sample_pose(rng: np.random.Generator) -> Pose:
    """A standing, walking, waving or sitting person, mostly seen from the front half."""
    spread = rng.choice([0.9, np.pi], p=[0.8, 0.2])
    yaw = rng.uniform(-spread, spread)
    elevations = rng.uniform([0.1, 0.5, 1.6], [0.9, 1.6, 2.7])  # hanging, held out, raised
    bends = rng.uniform(0.05, 1.9, 2) * rng.integers(0, 2, 2) + 0.1
    arms = np.stack([rng.choice(elevations, 2, p=[0.5, 0.3, 0.2]), rng.uniform(-0.2, 1.2, 2), bends], axis=1)
    stride = rng.uniform(-0.5, 0.5)
    legs = np.stack(
        [np.array([stride, -stride]) + rng.uniform(-0.1, 0.1, 2), rng.uniform(0.02, 0.35, 2), rng.uniform(0.0, 0.7, 2)],
        axis=1,
    )
    if rng.random() < 0.15:  # sitting
        legs[:, 0] = rng.uniform(0.9, 1.5, 2)
        legs[:, 2] = rng.uniform(1.0, 1.6, 2)
    return Pose(
        turn=np.array([yaw, rng.uniform(0.08, 0.3), rng.normal(0, 0.1)]),
        lean=np.array([rng.uniform(-0.1, 0.3), rng.normal(0, 0.12)]),
        head=np.array([rng.normal(0, 0.25), rng.uniform(-0.2, 0.15), rng.normal(0, 0.12)]),
        arms=arms,
        legs=legs,
        hands=np.stack([rng.uniform(-0.3, 0.3, 2), rng.uniform(0.8, 1.2, 2)], axis=1),
    )


def sample_looks(rng: np.random.Generator) -> Looks:
    """One person's build and colours."""
    shirt, trousers = rng.random(2)
    skin = hsv(rng.uniform(0.04, 0.09), rng.uniform(0.3, 0.6), rng.uniform(0.6, 0.98))
    sleeve = hsv(shirt, rng.uniform(0.5, 0.95), rng.uniform(0.55, 0.9))
    leg = hsv(trousers, rng.uniform(0.4, 0.9), rng.uniform(0.35, 0.75))
    return Looks(
        limbs=rng.uniform(0.93, 1.07, 2),
        girth=rng.uniform(0.88, 1.15),
        skin=skin,
        hair=hsv(rng.uniform(0.02, 0.13), rng.uniform(0.3, 0.8), rng.uniform(0.1, 0.45)),
        shirt=hsv(shirt + rng.normal(0, 0.03), rng.uniform(0.5, 0.95), rng.uniform(0.6, 0.95)),
        sleeve=sleeve,
        trousers=leg,
        shin=skin if rng.random() < 0.5 else shaded(leg, 1.35),
        shoe=hsv(rng.random(), rng.uniform(0.2, 0.8), rng.uniform(0.15, 0.95)),
        stripes=bool(rng.random() < 0.4),
    )


def _face_directions() -> np.ndarray:
    """The 68 face points on the unit ball (head frame), right half modelled, left half mirrored."""
    xy = np.zeros((68, 2))
    s = np.linspace(-1, 0, 9)
    xy[:9] = np.stack([np.sin(s * np.pi / 2) * 0.97, 0.05 + 0.9 * np.cos(s * np.pi / 2) ** 0.9], 1)
    xy[17:22] = np.stack([np.linspace(-0.68, -0.16, 5), [-0.28, -0.37, -0.4, -0.38, -0.32]], 1)
    xy[27:31, 1] = [-0.1, 0.02, 0.14, 0.27]
    xy[31:34] = [[-0.17, 0.34], [-0.09, 0.37], [0, 0.38]]
    eye = np.array([[-0.17, 0], [-0.07, -0.09], [0.07, -0.09], [0.17, 0], [0.07, 0.08], [-0.07, 0.08]])
    xy[36:42] = eye + [-0.38, -0.08]
    xy[48:52] = [[-0.33, 0.58], [-0.2, 0.52], [-0.07, 0.5], [0, 0.51]]
    xy[57:60] = [[0, 0.72], [-0.09, 0.71], [-0.22, 0.67]]
    xy[60:63] = [[-0.27, 0.585], [-0.09, 0.56], [0, 0.57]]
    xy[66:68] = [[0, 0.64], [-0.09, 0.635]]
    mirror = _WHOLE_BODY.flip_index[_FACE] - _FACE.start
    xy = np.where((np.abs(xy).sum(1) > 0)[:, None], xy, xy[mirror] * [-1, 1])
    z = -np.sqrt(np.maximum(1 - (xy**2).sum(1), 0))
    directions = np.concatenate([xy, z[:, None]], 1)
    directions[29:31] *= [[1.08], [1.18]]  # the nose stands out
    return directions


def _head_directions() -> np.ndarray:
    """Nose, left eye, right eye, left ear, right ear on the unit ball."""
    return np.array(
        [
            _FACE_POINTS[30],
            _FACE_POINTS[42:48].mean(0),
            _FACE_POINTS[36:42].mean(0),
            [1.04, 0.0, 0.0],
            [-1.04, 0.0, 0.0],
        ]
    )


_FACE_POINTS = _face_directions()
_HEAD_DIRECTIONS = _head_directions()
# Ears stand out, so they show from the front.
_HEAD_NORMALS = np.concatenate([_HEAD_DIRECTIONS[:3], [[1.0, 0, -0.35], [-1.0, 0, -0.35]]])
_BROW_X, _BROW_Y = (f(np.linspace(0.15, np.pi - 0.15, 9)) * size for f, size in ((np.cos, 0.93), (np.sin, -0.52)))
_FACE_BORDER = np.concatenate(
    [
        _FACE_POINTS[:17],
        np.stack([_BROW_X, _BROW_Y, -np.sqrt(1 - _BROW_X**2 - _BROW_Y**2)], 1),
    ]
)


def _owner_names(name: str) -> tuple[str, ...]:
    """The parts on which the point lies."""
    if name.startswith("face-") or name.endswith(("nose", "_eye", "_ear")) or name == "head_top":
        return ("head",)
    if name in ("neck", "upper_neck"):
        return ("neck", "torso", "head")
    if name in ("thorax", "pelvis"):
        return ("torso", "neck")
    side, joint = name.split("_", 1)
    by_joint = {
        "shoulder": ("upper_arm", "torso"),
        "elbow": ("upper_arm", "forearm"),
        "wrist": ("forearm", "hand"),
        "hip": ("thigh", "torso"),
        "knee": ("thigh", "shin"),
        "ankle": ("shin", "foot"),
        "big_toe": ("foot",),
        "small_toe": ("foot",),
        "heel": ("foot", "shin"),
    }
    return tuple(p if p == "torso" else f"{side}_{p}" for p in by_joint.get(joint, ("hand", "forearm")))


_OWNERS = owner_table([_owner_names(name) for name in POINTS], _PARTS)


def _joints(pose: Pose, looks: Looks) -> dict[str, np.ndarray]:
    """Every joint but the face's, in the body frame with the pelvis at the origin."""
    forward, left = pose.lean
    up = unit(np.array([np.sin(left), -np.cos(left) * np.cos(forward), -np.sin(forward)]))
    across = perpendicular(_LEFT, up)
    arm, leg = looks.limbs
    p = {"pelvis": np.zeros(3), "thorax": up * 0.29}
    p["neck"], p["upper_neck"] = up * 0.315, up * 0.34
    for row, (side, sign) in enumerate(zip(SIDES, (1, -1), strict=True)):
        elevation, azimuth, elbow = pose.arms[row]
        sin_e = np.sin(elevation)
        upper = np.array([sign * sin_e * np.cos(azimuth), np.cos(elevation), -sin_e * np.sin(azimuth)])
        hint = perpendicular(_FRONT * 0.8 - _DOWN * 0.7 - sign * _LEFT * 0.35 + upper * 1e-3, upper)
        fore = np.cos(elbow) * upper + np.sin(elbow) * hint
        p[f"{side}_shoulder"] = p["thorax"] + sign * 0.12 * across + up * -0.01
        p[f"{side}_elbow"] = p[f"{side}_shoulder"] + upper * 0.165 * arm
        p[f"{side}_wrist"] = p[f"{side}_elbow"] + fore * 0.15 * arm
        _hand(p, side, fore, perpendicular(_FRONT - 0.5 * sign * _LEFT + fore * 1e-3, fore), *pose.hands[row])
        swing, out, knee = pose.legs[row]
        thigh = unit(np.array([sign * np.sin(out), np.cos(swing), -np.sin(swing)]))
        back = perpendicular(-_FRONT + 1e-3 * _DOWN, thigh)
        shin = np.cos(knee) * thigh + np.sin(knee) * back
        p[f"{side}_hip"] = sign * 0.075 * _LEFT
        p[f"{side}_knee"] = p[f"{side}_hip"] + thigh * 0.245 * leg
        p[f"{side}_ankle"] = p[f"{side}_knee"] + shin * 0.235 * leg
        _foot(p, side, sign, shin)
    return p


def _hand(p: dict, side: str, along: np.ndarray, thumb: np.ndarray, bend: float, spread: float) -> None:
    """Adds the 21 points of a hand that starts at the wrist and continues the forearm."""
    along, thumb = np.cos(bend) * along + np.sin(bend) * thumb, np.cos(bend) * thumb - np.sin(bend) * along
    frame = np.stack([thumb * spread, along]) * 0.115
    p[f"{side}_hand_root"] = p[f"{side}_wrist"] + along * 0.01
    steps = np.linspace(0, 1, 4)[:, None]
    for finger, base, tip in zip(_FINGERS, _FINGER_BASES, _FINGER_TIPS, strict=True):
        for number, point in enumerate((base + steps * (tip - base)) @ frame, start=1):
            p[f"{side}_{finger}{number}"] = p[f"{side}_wrist"] + point


def _foot(p: dict, side: str, sign: int, shin: np.ndarray) -> None:
    """Adds toes and heel: the foot stands at right angles to the shin, turned slightly outwards."""
    toes = perpendicular(_FRONT + 0.25 * sign * _LEFT + 1e-3 * shin, shin)
    outwards = perpendicular(sign * _LEFT - (sign * _LEFT @ toes) * toes, shin)
    sole = p[f"{side}_ankle"] + 0.03 * shin
    p[f"{side}_big_toe"] = sole + 0.095 * toes - 0.02 * outwards
    p[f"{side}_small_toe"] = sole + 0.085 * toes + 0.028 * outwards
    p[f"{side}_heel"] = sole - 0.03 * toes


def make_person(pose: Pose, looks: Looks) -> Figure:
    """The person in body units, pelvis at the origin."""
    turn = rotation(*pose.turn)
    joints = _joints(pose, looks)
    head_turn = turn @ rotation(*pose.head)
    axes = np.array([0.078, 0.1, 0.085])
    seen = {name: turn @ xyz for name, xyz in joints.items()}
    head = Ellipsoid(seen["upper_neck"] - head_turn @ (_DOWN * 0.09), head_turn, axes)
    seen["head_top"] = head.at(-_DOWN[None])[0]
    seen.update(zip(_WHOLE_BODY.keypoints[:5], head.at(_HEAD_DIRECTIONS), strict=True))
    seen.update(zip(_WHOLE_BODY.keypoints[_FACE], head.at(_FACE_POINTS), strict=True))
    facing = np.ones(len(POINTS), bool)
    facing[_FACE] = head.faces_camera(_FACE_POINTS)
    facing[:5] = head.faces_camera(_HEAD_NORMALS)
    groups = (*_limbs(seen, looks), *_torso(seen, looks, turn), _head(seen, head, looks))
    return Figure(
        species="person",
        names=POINTS,
        points=np.stack([seen[name][:2] for name in POINTS]),
        facing=facing,
        owners=_OWNERS,
        groups=groups,
        height=1.06,
        head_size=float(0.6 * 2 * np.hypot(axes[0], axes[1])),
    )


def _light(depth: float) -> float:
    """Near limbs are lighter than far ones."""
    return float(np.clip(1 - 2.2 * depth, 0.62, 1.18))


def _limbs(seen: dict[str, np.ndarray], looks: Looks) -> list[Group]:
    g = looks.girth
    groups = []
    for side in SIDES:
        for part, a, b, ra, rb, colour, bias in (
            ("upper_arm", "shoulder", "elbow", 0.034, 0.027, looks.sleeve, -0.03),
            ("forearm", "elbow", "wrist", 0.025, 0.018, looks.skin, -0.035),
            ("thigh", "hip", "knee", 0.055, 0.038, looks.trousers, 0.0),
            ("shin", "knee", "ankle", 0.036, 0.022, looks.shin, 0.0),
        ):
            start, end = seen[f"{side}_{a}"], seen[f"{side}_{b}"]
            depth = (start[2] + end[2]) / 2
            groups.append(
                Group(
                    _PARTS.index(f"{side}_{part}"),
                    depth + bias,
                    ((capsule(start, end, ra * g, rb * g), shaded(colour, _light(depth))),),
                )
            )
        groups += [_hand_group(seen, side, looks), _foot_group(seen, side, looks)]
    return groups


def _hand_group(seen: dict[str, np.ndarray], side: str, looks: Looks) -> Group:
    wrist, knuckle = seen[f"{side}_wrist"], seen[f"{side}_middle_finger1"]
    light = _light(knuckle[2])
    shapes = [(capsule(wrist, knuckle, 0.017, 0.026), shaded(looks.skin, light * 1.05))]
    for finger in _FINGERS:
        base, tip = seen[f"{side}_{finger}1"], seen[f"{side}_{finger}4"]
        shapes.append((capsule(base, tip, 0.0095, 0.008), shaded(looks.skin, light * 0.86)))
    return Group(_PARTS.index(f"{side}_hand"), knuckle[2] - 0.04, tuple(shapes))


def _foot_group(seen: dict[str, np.ndarray], side: str, looks: Looks) -> Group:
    heel, toe = seen[f"{side}_heel"], (seen[f"{side}_big_toe"] + seen[f"{side}_small_toe"]) / 2
    colour = shaded(looks.shoe, _light(seen[f"{side}_ankle"][2]))
    shapes = ((capsule(heel, toe, 0.026, 0.03), colour), (disc(toe, 0.018), shaded(colour, 1.25)))
    return Group(_PARTS.index(f"{side}_foot"), seen[f"{side}_ankle"][2] - 0.02, shapes)


def _torso(seen: dict[str, np.ndarray], looks: Looks, turn: np.ndarray) -> list[Group]:
    """Torso and neck. The chest is lighter with a row of buttons, the back wears a dark pack."""
    corners = [disc(seen[f"{s}_shoulder"], 0.04 * looks.girth) for s in SIDES]
    corners += [disc(seen[f"{s}_hip"], 0.05 * looks.girth) for s in SIDES]
    hull = cv2.convexHull(np.concatenate(corners).astype(np.float32))[:, 0].astype(np.float64)
    shapes = [(hull, looks.shirt)]
    front = turn @ _FRONT
    top, bottom = seen["thorax"], seen["pelvis"]
    across = (seen["left_shoulder"] - seen["right_shoulder"]) / 2
    if looks.stripes:
        for t in (0.3, 0.55, 0.8):
            middle = top + t * (bottom - top)
            stripe = capsule(middle - 0.8 * across, middle + 0.8 * across, 0.012, 0.012)
            shapes.append((stripe, shaded(looks.shirt, 0.7)))
    shapes.append((capsule(seen["left_hip"], seen["right_hip"], *[0.054 * looks.girth] * 2), looks.trousers))
    if front[2] < 0.1:
        panel = 0.06 * front
        shapes.append(
            (
                capsule(top * 0.95 + bottom * 0.05 + panel, top * 0.28 + bottom * 0.72 + panel, 0.03, 0.024),
                shaded(looks.shirt, 1.5),
            )
        )
        for t in (0.2, 0.42, 0.64):
            shapes.append((disc(top + t * (bottom - top) + panel, 0.009), (40.0, 40.0, 40.0)))
    else:
        pack = -0.06 * front
        shapes.append(
            (
                capsule(top * 0.85 + bottom * 0.15 + pack, top * 0.35 + bottom * 0.65 + pack, 0.065, 0.075),
                shaded(looks.trousers, 0.8),
            )
        )
    neck = (capsule(seen["thorax"], seen["upper_neck"], 0.036, 0.034), shaded(looks.skin, 0.85))
    depth = float((top[2] + bottom[2]) / 2)
    return [Group(0, depth, tuple(shapes)), Group(2, depth - 0.005, (neck,))]


def _head(seen: dict[str, np.ndarray], head: Ellipsoid, looks: Looks) -> Group:
    """Hair all round, the face where it is turned to the camera, ears on top."""
    shapes = [(head.outline(), looks.hair)]
    if head.turn[2] @ _FRONT < 0.45:
        shapes.append((head.patch(_FACE_BORDER), looks.skin))
    for ear, visible in zip(SIDES, head.faces_camera(_HEAD_NORMALS[3:]), strict=True):
        if visible:
            shapes.append((disc(seen[f"{ear}_ear"], 0.017), shaded(looks.skin, 0.8)))
    visible = head.faces_camera(_FACE_POINTS)
    face = head.at(_FACE_POINTS)[:, :2]
    for eye, brow in ((slice(36, 42), slice(17, 22)), (slice(42, 48), slice(22, 27))):
        if visible[eye].all():
            shapes.append((face[eye], (250.0, 250.0, 250.0)))
            shapes.append((disc(face[eye].mean(0), 0.0075), (25.0, 25.0, 30.0)))
        if visible[brow].all():
            shapes.append((capsule(face[brow][0], face[brow][4], 0.005, 0.005), shaded(looks.hair, 0.8)))
    if visible[48:60].sum() > 8:
        shapes.append((face[48:60], (190.0, 60.0, 70.0)))
    if visible[30]:
        shapes.append((capsule(face[28], face[30], 0.006, 0.013), shaded(looks.skin, 0.78)))
    return Group(1, float(head.centre[2]) - 0.02, tuple(shapes))
