"""Pictures of the synthetic world: background, figures by depth, things in front, and what is seen of each.

`render_scene(kind, seed, index)` is a pure function: picture `index` of a seed does not depend on how many
there are. Every figure carries all named points of its kind: `skeleton_keypoints` gives its truth in any
skeleton.
"""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

from data_pipelines.skeletons import KeypointSet
from data_pipelines.synthetic_world import animals, people
from data_pipelines.synthetic_world.figures import CIRCLE, MAX_PARTS, Figure, capsule, hsv

_ALIASES = {"top_head": "head_top"}  # CrowdPose's name
_SHIFT = 4
# A figure is labelled when this share of it can be seen and so many of its first 17 points are in the picture.
_MIN_VISIBLE = 0.3
_MIN_POINTS = 4
_DISTANT = 2**16 // MAX_PARTS - 1  # number of the distant crowd in the owner map


@dataclasses.dataclass(frozen=True)
class _Rules:
    """How a kind of scene is composed.

    Attributes:
      canvases: sizes of pictures (width, height).
      counts: numbers of figures, one of which is drawn.
      sizes: least and largest standing height as a share of the picture's.
      overlap: how much of the smaller of two figures' boxes may lie in the other's.
    """

    canvases: tuple[tuple[int, int], ...]
    counts: tuple[int, ...]
    sizes: tuple[float, float]
    overlap: float


_RULES = {
    "people": _Rules(((320, 256), (256, 320), (288, 288)), (1, 1, 1, 2, 2, 3), (0.55, 0.9), 0.2),
    "animals": _Rules(((320, 256), (336, 240), (288, 288)), (1, 1, 2, 2), (0.45, 0.72), 0.3),
    "crowd": _Rules(((416, 320), (384, 384), (448, 320)), tuple(range(4, 11)), (0.5, 0.9), 0.6),
}
KINDS = tuple(_RULES)


@dataclasses.dataclass(frozen=True)
class Instance:
    """What an annotator would say of one figure, or of a distant crowd.

    Attributes:
      category: 'person' or the species.
      names, points: the P named points; float32 [P, 3], x and y in pixels and v = 2 visible, 1 hidden, or 0
        outside the picture, where x = y = 0.
      labelled: False for crowds and people too hidden to label; then points are zeros and `mask` is set.
      box: (x, y, w, h) around the figure inside the picture, hidden parts included.
      area: pixels of its silhouette inside the picture, hidden parts included (of the crowd: its mask).
      crowd: a group, not a figure.
      centre, scale: middle of the box and standing height / 200, as MPII describes people.
      head_size: PCKh reference length in pixels; 0 where there is none.
      mask: COCO segmentation (polygons; run lengths for a crowd), None for labelled figures.
    """

    category: str
    names: tuple[str, ...]
    points: np.ndarray
    labelled: bool
    box: np.ndarray
    area: float
    crowd: bool
    centre: np.ndarray
    scale: float
    head_size: float
    mask: list | dict | None


@dataclasses.dataclass(frozen=True)
class Scene:
    """image uint8 [H, W, 3] RGB; the instances, far ones first."""

    image: np.ndarray
    instances: tuple[Instance, ...]


def render_scene(kind: str, seed: tuple[int, ...], index: int) -> Scene:
    """Picture `index` of the world `seed` (non-negative integers); kind is one of `KINDS`.

    Raises:
      ValueError: an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of scene {kind!r}; known: {', '.join(KINDS)}")
    rng = np.random.default_rng(np.random.SeedSequence((*seed, index)))
    width, height = rng.choice(_RULES[kind].canvases)
    image = _background(rng, width, height)
    owner = np.zeros((height, width), np.uint16)
    if kind == "crowd" and rng.random() < 0.4:
        _draw_distant_crowd(rng, image, owner)
    figures = _place_figures(rng, kind, width, height)
    areas = [_draw_figure(image, owner, figure, number) for number, figure in enumerate(figures, start=1)]
    if rng.random() < 0.3:
        _draw_occluder(rng, image, owner)
    image = cv2.add(image, (np.frombuffer(rng.bytes(image.size), np.uint8) & 15).reshape(image.shape))
    instances = [_distant_crowd(owner)] if kind == "crowd" else []
    instances += [
        _instance(figure, area, owner, number)
        for number, (figure, area) in enumerate(zip(figures, areas, strict=True), start=1)
    ]
    return Scene(image, tuple(instance for instance in instances if instance is not None))


def skeleton_keypoints(instance: Instance, keypoints: KeypointSet) -> np.ndarray:
    """float32 [K, 3]: the instance's points in a skeleton's order.

    Raises:
      KeyError: the skeleton has a point that this kind of figure has not.
    """
    where = {name: row for row, name in enumerate(instance.names)}
    return instance.points[[where[_ALIASES.get(name, name)] for name in keypoints.keypoints]]


def _fill(image: np.ndarray, outline: np.ndarray, colour, line: int = cv2.LINE_AA) -> None:
    cv2.fillConvexPoly(image, _fixed_point(outline), colour, line, _SHIFT)


def _fixed_point(outline: np.ndarray) -> np.ndarray:
    """OpenCV's sub-pixel coordinates: multiples of 1 / 2^shift."""
    return np.rint(outline * (1 << _SHIFT)).astype(np.int32)


def _background(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Blurred patches of dull colour, a ground, and clutter: plates, blobs and poles."""
    coarse = rng.integers(75, 175, (4, 5, 1)) + rng.integers(-20, 21, (4, 5, 3))
    rows, columns = height // 8, width // 8
    fine = rng.integers(0, 25, (rows, columns, 1)) + rng.integers(0, 9, (rows, columns, 3))
    image = cv2.resize(coarse.astype(np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    image = cv2.add(image, cv2.resize(fine.astype(np.uint8), (width, height), interpolation=cv2.INTER_LINEAR))
    horizon = rng.uniform(0.45, 0.75) * height
    ground = hsv(rng.random(), rng.uniform(0.05, 0.3), rng.uniform(0.35, 0.7))
    lower = image[int(horizon) :]
    image[int(horizon) :] = cv2.addWeighted(lower, 0.4, np.full_like(lower, ground), 0.6, 0)
    for _ in range(int(rng.integers(4, 10))):
        colour = hsv(rng.random(), rng.uniform(0.05, 0.45), rng.uniform(0.3, 0.85))
        centre = rng.random(2) * (width, height)
        size = rng.uniform(0.03, 0.18, 2) * height
        form = rng.integers(3)
        if form == 0:
            outline = centre + size * ((-1, -1), (1, -1), (1, 1), (-1, 1))
        elif form == 1:
            outline = centre + size * CIRCLE
        else:
            outline = capsule(centre, centre + rng.normal(0, 0.35, 2) * height, size[0] * 0.15, size[0] * 0.15)
        _fill(image, outline, colour)
    return image


def _sample_figure(rng: np.random.Generator, kind: str) -> Figure:
    if kind == "animals":
        species = animals.SPECIES[rng.integers(len(animals.SPECIES))]
        return animals.make_animal(animals.sample_pose(rng), animals.sample_looks(rng, species), species)
    return people.make_person(people.sample_pose(rng), people.sample_looks(rng))


def _place_figures(rng: np.random.Generator, kind: str, width: int, height: int) -> list[Figure]:
    """Figures in pixels, far ones first: each takes the first of a few places with little overlap."""
    rules = _RULES[kind]
    count = int(rng.choice(rules.counts))
    sizes = np.array(rules.sizes) * (1 - 0.12 * min(count - 1, 2))
    canvas = np.array([width, height])
    placed: list[Figure] = []
    for _ in range(count):
        figure = _sample_figure(rng, kind)
        scale = rng.uniform(*sizes) * height / figure.height
        extent = figure.extent()
        scale *= min(1.0, 0.95 * width / ((extent[2] - extent[0]) * scale))
        size = scale * (extent[2:] - extent[:2])
        cut = size * (0.25 if rng.random() < 0.15 else 0.03)  # how far it may reach out of the picture
        for corner in rng.random((10, 2)) * np.maximum(canvas - size + 2 * cut, 1) - cut:
            box = np.concatenate([corner, corner + size])
            if all(_overlap(box, other.extent()) <= rules.overlap for other in placed):
                placed.append(figure.placed(scale, corner - scale * extent[:2]))
                break
    return sorted(placed, key=lambda f: f.extent()[3])


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection of two (x0, y0, x1, y1) boxes over the smaller one."""
    sides = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
    return float(sides.prod() / min((a[2:] - a[:2]).prod(), (b[2:] - b[:2]).prod()))


def _draw_figure(image: np.ndarray, owner: np.ndarray, figure: Figure, number: int) -> int:
    """Paints the figure and enters its parts in `owner`; returns its silhouette's area in pixels."""
    for group in sorted(figure.groups, key=lambda g: -g.depth):
        silhouette, colour = group.shapes[0]
        _fill(image, silhouette, colour)
        edge = tuple(0.55 * c for c in colour)
        cv2.polylines(image, [_fixed_point(silhouette)], True, edge, 1, cv2.LINE_AA, _SHIFT)
        for outline, colour in group.shapes[1:]:
            _fill(image, outline, colour)
        for outline, _ in group.shapes:
            _fill(owner, outline, number * MAX_PARTS + group.part, cv2.LINE_8)
    return int(np.count_nonzero(_pixels(figure, owner, number)[0]))


def _pixels(figure: Figure, owner: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The pixels that show the figure within its frame: bool [h, w], and the frame's corner (x0, y0)."""
    height, width = owner.shape
    extent = figure.extent()
    x0, y0, x1, y1 = np.clip([*np.floor(extent[:2]), *np.ceil(extent[2:]) + 1], 0, [width, height] * 2).astype(int)
    return owner[y0:y1, x0:x1] // MAX_PARTS == number, np.array([x0, y0])


def _draw_occluder(rng: np.random.Generator, image: np.ndarray, owner: np.ndarray) -> None:
    """A post or a bush in front of everything."""
    height, width = owner.shape
    x = rng.uniform(0.1, 0.9) * width
    colour = hsv(rng.uniform(0.2, 0.45), rng.uniform(0.1, 0.4), rng.uniform(0.25, 0.6))
    if rng.random() < 0.5:
        top = np.array([x, rng.uniform(0.2, 0.7) * height])
        outlines = [capsule(np.array([x, height]), top, width * 0.03, width * 0.025)]
    else:
        outlines = [
            np.array([x, height]) + (rng.normal(0, 0.06, 2) + rng.uniform(0.05, 0.1) * CIRCLE) * width for _ in range(4)
        ]
    for outline in outlines:
        _fill(image, outline, tuple(c * rng.uniform(0.85, 1.1) for c in colour))
        _fill(owner, outline, 0, cv2.LINE_8)


def _draw_distant_crowd(rng: np.random.Generator, image: np.ndarray, owner: np.ndarray) -> None:
    """A row of small people behind all others."""
    height, width = owner.shape
    left, base = rng.uniform(0.05, 0.5) * width, rng.uniform(0.35, 0.5) * height
    for step in range(int(rng.integers(5, 9))):
        figure = _sample_figure(rng, "crowd")
        size = rng.uniform(0.16, 0.22) * height
        figure = figure.placed(size / figure.height, np.array([left + step * size * 0.35, base]))
        _draw_figure(image, owner, figure, _DISTANT)


def _distant_crowd(owner: np.ndarray) -> Instance | None:
    """The annotation of the distant crowd: what can be seen of it."""
    mask = owner // MAX_PARTS == _DISTANT
    if not mask.any():
        return None
    box = _mask_box(mask)
    return Instance(
        "person",
        people.POINTS,
        np.zeros((len(people.POINTS), 3), np.float32),
        False,
        box,
        float(mask.sum()),
        True,
        box[:2] + box[2:] / 2,
        0.0,
        0.0,
        run_lengths(mask),
    )


def run_lengths(mask: np.ndarray) -> dict:
    """COCO's uncompressed run lengths of a mask: bool [H, W], counted down the columns, background first."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    edges = np.concatenate([[0], changes, [flat.size]])
    counts = np.diff(edges).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def _mask_box(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1], np.float32)


def _polygons(mask: np.ndarray, corner: np.ndarray) -> list[list[float]]:
    """COCO polygons of the connected pieces of a mask whose top-left pixel is at `corner` (x, y)."""
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [(o[:, 0] + corner).ravel().astype(float).tolist() for o in outlines if len(o) >= 3]


def _visibility(figure: Figure, owner: np.ndarray, number: int) -> np.ndarray:
    """int [P]: 2 where a point's pixel, or one beside it, shows a part it lies on; 1 hidden; 0 outside."""
    height, width = owner.shape
    at = np.rint(figure.points).astype(int)
    inside = ((at >= 0) & (at < (width, height))).all(1)
    shown = np.zeros(len(at), bool)
    for dx, dy in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)):
        pixels = owner[np.clip(at[:, 1] + dy, 0, height - 1), np.clip(at[:, 0] + dx, 0, width - 1)]
        mine = pixels // MAX_PARTS == number
        shown |= mine & figure.owners[np.arange(len(at)), pixels % MAX_PARTS]
    return np.where(inside, 1 + (shown & figure.facing), 0)


def _instance(figure: Figure, area: int, owner: np.ndarray, number: int) -> Instance | None:
    """The annotation of a drawn figure; None when nothing of it can be seen."""
    height, width = owner.shape
    shown, corner = _pixels(figure, owner, number)
    seen = int(np.count_nonzero(shown))
    if seen == 0:
        return None
    extent = figure.extent()
    low, high = np.maximum(extent[:2], 0), np.minimum(extent[2:], (width, height))
    visibility = _visibility(figure, owner, number)
    labelled = seen >= _MIN_VISIBLE * area and int((visibility[:17] > 0).sum()) >= _MIN_POINTS
    points = np.concatenate([figure.points, visibility[:, None]], axis=1).astype(np.float32)
    points[(visibility == 0) | (not labelled)] = 0
    box = np.concatenate([low, high - low]).astype(np.float32)
    return Instance(
        category=figure.species,
        names=figure.names,
        points=points,
        labelled=labelled,
        box=box,
        area=float(area),
        crowd=False,
        centre=box[:2] + box[2:] / 2,
        scale=figure.height / 200,
        head_size=figure.head_size,
        mask=None if labelled else _polygons(shown, corner),
    )


def crowd_index(instances: tuple[Instance, ...], keypoints: KeypointSet) -> float:
    """CrowdPose's crowd index: mean over people of others' joints / own joints in their box, at most 1."""
    labelled = [i for i in instances if i.labelled]
    joints = [skeleton_keypoints(i, keypoints) for i in labelled]
    ratios = []
    for mine, instance in enumerate(labelled):
        low, high = instance.box[:2], instance.box[:2] + instance.box[2:]
        inside = [int(((j[:, :2] >= low) & (j[:, :2] <= high)).all(1)[j[:, 2] > 0].sum()) for j in joints]
        ratios.append((sum(inside) - inside[mine]) / max(inside[mine], 1))
    return float(min(np.mean(ratios), 1.0)) if ratios else 0.0
