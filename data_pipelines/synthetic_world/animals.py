"""Articulated four-legged animals of three species with AP-10K's 17 points, which are APT-36K's as well."""

from __future__ import annotations

import dataclasses

import numpy as np

from data_pipelines.skeletons import KEYPOINT_SETS
from data_pipelines.synthetic_world.figures import (
    CIRCLE,
    Colour,
    Ellipsoid,
    Figure,
    Group,
    capsule,
    disc,
    hsv,
    owner_table,
    rotation,
    shaded,
)

POINTS: tuple[str, ...] = KEYPOINT_SETS["ap10k"].keypoints
SIDES = (("L", 1), ("R", -1))
_PARTS = ("body", "neck", "head", "tail") + tuple(
    f"{side}_{end}_{segment}" for side, _ in SIDES for end in ("F", "B") for segment in ("upper", "lower", "paw")
)
_EYES = np.array([[0.72, -0.4, -0.55], [-0.72, -0.4, -0.55]])  # left, right on the head's unit ball
_HORN: Colour = (240.0, 230.0, 200.0)
_LEFT, _DOWN, _FRONT = np.eye(3) * np.array([1, 1, -1])


@dataclasses.dataclass(frozen=True)
class Species:
    """Proportions in body lengths (shoulder to hip = 1)."""

    name: str
    leg: float
    girth: float
    neck: float
    head: float
    muzzle: float
    ear: float
    tail: float
    hue: tuple[float, float]
    spots: int
    horns: bool = False


SPECIES = (
    Species(
        "dog", leg=0.72, girth=0.2, neck=0.3, head=0.17, muzzle=0.24, ear=0.16, tail=0.4, hue=(0.05, 0.11), spots=1
    ),
    Species(
        "horse", leg=1.0, girth=0.24, neck=0.62, head=0.15, muzzle=0.4, ear=0.1, tail=0.6, hue=(0.0, 0.07), spots=0
    ),
    Species(
        "cow",
        leg=0.66,
        girth=0.31,
        neck=0.26,
        head=0.19,
        muzzle=0.28,
        ear=0.14,
        tail=0.55,
        hue=(0.0, 0.1),
        spots=4,
        horns=True,
    ),
)


@dataclasses.dataclass(frozen=True)
class Pose:
    """Angles in radians.

    Attributes:
      turn: (yaw, pitch, roll) of the body.
      neck: (lift, turn to the left, nod of the head).
      legs: [4, 2] swing to the front and bend; rows left front, right front, left hind, right hind.
      tail: (lift, turn to the left).
    """

    turn: np.ndarray
    neck: np.ndarray
    legs: np.ndarray
    tail: np.ndarray


def sample_pose(rng: np.random.Generator) -> Pose:
    """Standing or walking, mostly seen from the side; now and then grazing."""
    yaw = rng.choice([-1, 1]) * (np.pi / 2 + rng.uniform(-0.75, 0.6))
    stride = rng.uniform(-0.5, 0.5)
    swing = np.array([stride, -stride, -stride, stride]) + rng.uniform(-0.2, 0.2, 4)
    lift = rng.uniform(0.75, 1.1) if rng.random() < 0.8 else rng.uniform(-0.3, 0.3)
    return Pose(
        turn=np.array([yaw, rng.uniform(0.05, 0.3), rng.normal(0, 0.06)]),
        neck=np.array([lift, rng.normal(0, 0.2), rng.uniform(-0.1, 0.35)]),
        legs=np.stack([swing, rng.uniform(0.05, 0.55, 4)], axis=1),
        tail=np.array([rng.uniform(0.2, 1.6), rng.normal(0, 0.3)]),
    )


@dataclasses.dataclass(frozen=True)
class Looks:
    """Colours and build; `spots` [n, 3] are (along, sideways angle, size) on the trunk."""

    legs: float
    girth: float
    coat: Colour
    belly: Colour
    socks: Colour
    spots: np.ndarray


def sample_looks(rng: np.random.Generator, species: Species) -> Looks:
    """One animal's build and colours, as its species has them."""
    value, saturation = rng.uniform(0.45, 0.9), rng.uniform(0.35, 0.75)
    coat = hsv(rng.uniform(*species.hue), saturation * (0.35 if species.name == "cow" else 1), value)
    count = int(rng.integers(0, 2 * species.spots + 1))
    spots = rng.random((count, 3)) * [0.8, 1.1, 0.07] + [0.1, -0.6, 0.05]
    return Looks(
        legs=rng.uniform(0.92, 1.08),
        girth=rng.uniform(0.9, 1.1),
        coat=coat,
        belly=shaded(coat, 1.25),
        socks=shaded(coat, 0.45) if rng.random() < 0.5 else (235.0, 230.0, 220.0),
        spots=spots,
    )


def _owner_names(name: str) -> tuple[str, ...]:
    if name in ("L_Eye", "R_Eye", "Nose"):
        return ("head",)
    if name == "Neck":
        return ("neck", "body")
    if name == "Root of tail":
        return ("body", "tail")
    side, joint = name.split("_", 1)
    end = "F" if joint in ("Shoulder", "Elbow", "F_Paw") else "B"
    upper, middle = ("upper",), ("upper", "lower")
    segments = {"Shoulder": upper, "Hip": upper, "Elbow": middle, "Knee": middle}.get(joint, ("lower", "paw"))
    parts = tuple(f"{side}_{end}_{segment}" for segment in segments)
    return parts + (("body",) if joint in ("Shoulder", "Hip") else ())


_OWNERS = owner_table([_owner_names(name) for name in POINTS], _PARTS)


def _joints(pose: Pose, species: Species, looks: Looks) -> dict[str, np.ndarray]:
    """Joints in the animal's frame, origin in the middle of the trunk."""
    p = {"chest": _FRONT * 0.5, "rump": _FRONT * -0.5}
    p["Neck"] = p["chest"] - _DOWN * 0.12 + _FRONT * 0.02
    p["Root of tail"] = p["rump"] - _DOWN * 0.13 - _FRONT * 0.1
    lift, aside, _ = pose.neck
    along = np.array([np.sin(aside) * np.cos(lift), -np.sin(lift), -np.cos(lift) * np.cos(aside)])
    p["poll"] = p["Neck"] + species.neck * along
    p["tail_end"] = p["Root of tail"] + species.tail * np.array(
        [np.sin(pose.tail[1]), np.cos(pose.tail[0]), np.sin(pose.tail[0])]
    )
    for row, (end, side, sign) in enumerate((e, s, g) for e in ("F", "B") for s, g in SIDES):
        swing, bend = pose.legs[row]
        # Below the elbow front legs bend forward, below the knee hind legs bend back.
        upper = swing - bend * 0.7 if end == "F" else swing + bend * 0.8
        lower = swing + bend * 0.4 if end == "F" else swing - bend * 0.6
        first, middle, last = ("Shoulder", "Elbow", "F_Paw") if end == "F" else ("Hip", "Knee", "B_Paw")
        trunk = p["chest"] if end == "F" else p["rump"]
        thigh, shank = (np.cos(angle) * _DOWN + np.sin(angle) * _FRONT for angle in (upper, lower))
        length = species.leg * looks.legs
        p[f"{side}_{first}"] = trunk + sign * _LEFT * species.girth * 0.62 + _DOWN * 0.04
        p[f"{side}_{middle}"] = p[f"{side}_{first}"] + length * 0.48 * thigh
        p[f"{side}_{last}"] = p[f"{side}_{middle}"] + length * 0.52 * shank
    return p


def make_animal(pose: Pose, looks: Looks, species: Species) -> Figure:
    """The animal in body lengths, origin in the middle of its trunk."""
    turn = rotation(*pose.turn)
    seen = {name: turn @ xyz for name, xyz in _joints(pose, species, looks).items()}
    _, aside, nod = pose.neck
    head_turn = turn @ rotation(-aside, nod, 0.0)
    head = Ellipsoid(seen["poll"], head_turn, np.array([0.8, 0.9, 1.0]) * species.head)
    seen["L_Eye"], seen["R_Eye"] = head.at(_EYES)
    seen["Nose"] = head.centre + head_turn @ (_FRONT * (species.muzzle + 0.05) + _DOWN * species.head * 0.45)
    facing = np.ones(len(POINTS), bool)
    facing[:2] = head.faces_camera(_EYES)
    groups = (*_legs(seen, looks, species), *_trunk(seen, looks, species, turn), _head(seen, head, looks, species))
    return Figure(
        species=species.name,
        names=POINTS,
        points=np.stack([seen[name][:2] for name in POINTS]),
        facing=facing,
        owners=_OWNERS,
        groups=groups,
        height=species.leg + species.girth + 0.4,
        head_size=0.0,
    )


def _light(depth: float) -> float:
    return float(np.clip(1 - 1.6 * depth, 0.55, 1.15))


def _legs(seen: dict[str, np.ndarray], looks: Looks, species: Species) -> list[Group]:
    groups = []
    thick = species.girth * looks.girth
    for side, _ in SIDES:
        for end, first, middle, last in (("F", "Shoulder", "Elbow", "F_Paw"), ("B", "Hip", "Knee", "B_Paw")):
            a, b, c = (seen[f"{side}_{name}"] for name in (first, middle, last))
            light, depth = _light(a[2]), a[2] * 1.5
            for segment, start, stop, ra, rb, colour, order in (
                ("upper", a, b, 0.5 if end == "F" else 0.6, 0.3, looks.coat, 0.0),
                ("lower", b, c, 0.26, 0.18, shaded(looks.coat, 0.82), 0.02),
                ("paw", c, c, 0.24, 0.24, looks.socks, -0.01),
            ):
                outline = capsule(start, stop, ra * thick, rb * thick)
                groups.append(
                    Group(_PARTS.index(f"{side}_{end}_{segment}"), depth + order, ((outline, shaded(colour, light)),))
                )
    return groups


def _trunk(seen: dict[str, np.ndarray], looks: Looks, species: Species, turn: np.ndarray) -> list[Group]:
    girth = species.girth * looks.girth
    chest, rump = seen["chest"], seen["rump"]
    shapes = [(capsule(chest, rump, girth * 1.05, girth), looks.coat)]
    low = turn @ (_DOWN * girth * 0.55)
    shapes.append((capsule(chest + low, rump + low, girth * 0.35, girth * 0.3), looks.belly))
    for along, angle, size in looks.spots:
        middle = chest + along * (rump - chest)
        shapes.append((middle[:2] + [0, np.sin(angle) * girth] + size * CIRCLE * [1.2, 0.9], looks.socks))
    neck = capsule(seen["Neck"] + 0.25 * (chest - seen["Neck"]), seen["poll"], girth * 0.75, species.head * 0.62)
    mane = capsule(seen["Neck"] - 0.04 * (turn @ _FRONT), seen["poll"], 0.035, 0.035)
    tail = capsule(seen["Root of tail"], seen["tail_end"], 0.045, 0.03)
    return [
        Group(0, 0.0, tuple(shapes)),
        Group(
            1,
            float(seen["poll"][2] + chest[2]) / 2 * 0.2 - 0.01,
            ((neck, shaded(looks.coat, 1.06)), (mane, shaded(looks.coat, 0.5))),
        ),
        Group(3, float(seen["tail_end"][2]) * 0.2, ((tail, shaded(looks.coat, 0.6)),)),
    ]


def _head(seen: dict[str, np.ndarray], head: Ellipsoid, looks: Looks, species: Species) -> Group:
    """Skull, muzzle with a dark nose, ears, and the eyes on the sides that can be seen."""
    coat = shaded(looks.coat, 1.12)
    ears = []
    for sign in (1, -1):
        root = head.at(np.array([[0.6 * sign, -0.7, 0.2]]))[0]
        tip = root + head.turn @ (np.array([0.5 * sign, -0.85, 0.1]) * species.ear)
        ears.append((capsule(root, tip, 0.05, 0.025), shaded(looks.coat, 0.7)))
        if species.horns:
            root = head.at(np.array([[0.35 * sign, -0.9, 0]]))[0]
            tip = root + head.turn @ np.array([0.12 * sign, -0.16, -0.03])
            ears.append((capsule(root, tip, 0.03, 0.012), _HORN))
    shapes = [
        (head.outline(), coat),
        *ears,
        (capsule(head.centre, seen["Nose"], species.head * 0.75, species.head * 0.5), coat),
        (disc(seen["Nose"], species.head * 0.3), (35.0, 30.0, 35.0)),
    ]
    for eye, visible in zip(("L_Eye", "R_Eye"), head.faces_camera(_EYES), strict=True):
        if visible:
            shapes += [(disc(seen[eye], 0.036), (245.0, 245.0, 235.0)), (disc(seen[eye], 0.02), (15.0, 15.0, 20.0))]
    return Group(2, float(seen["Nose"][2]) * 0.2 - 0.03, tuple(shapes))
