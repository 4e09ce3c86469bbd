"""What a figure of the synthetic world is: coloured convex outlines in depth order, and named points on them.

Figures are built in 3D and seen by an orthographic camera: x to the right, y down, z away from the camera. In
a figure's own frame +x is its left, -z its front, +y down, so that a figure with yaw 0 looks into the camera
with its left side on the right of the picture. Lengths are in body units (a person is about 1 high, an animal
about 1 long) until `placed`.

Left and right are told apart as in photographs: by where the figure faces and by which limbs are near
(lighter) and far (darker), never by a colour reserved for one side. A mirrored picture is therefore another
picture of the same world, which the mirror augmentation and the flip test rely on.
"""

from __future__ import annotations

import dataclasses

import numpy as np

MAX_PARTS = 32
Colour = tuple[float, float, float]


def _arc(angles: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


CIRCLE = _arc(np.linspace(0, 2 * np.pi, 20, endpoint=False))
_HALF_TURN = _arc(np.linspace(-np.pi / 2, np.pi / 2, 7))


@dataclasses.dataclass(frozen=True)
class Group:
    """Shapes of one body part, the silhouette first. A larger `depth` is farther."""

    part: int
    depth: float
    shapes: tuple[tuple[np.ndarray, Colour], ...]


@dataclasses.dataclass(frozen=True)
class Figure:
    """A person or an animal.

    Attributes:
      species: name of its category.
      names: names of the P points, shared by all figures of a kind.
      points: float64 [P, 2].
      facing: bool [P], False for points on a surface turned away from the camera.
      owners: bool [P, MAX_PARTS], the parts a point lies on: it is seen where its pixel shows one of them.
      groups: the drawing, in no particular order.
      height: length of the standing figure.
      head_size: 0.6 x the diagonal of the head's box (the PCKh reference length); 0 for animals.
    """

    species: str
    names: tuple[str, ...]
    points: np.ndarray
    facing: np.ndarray
    owners: np.ndarray
    groups: tuple[Group, ...]
    height: float
    head_size: float

    def extent(self) -> np.ndarray:
        """(x0, y0, x1, y1) around everything drawn."""
        outlines = np.concatenate([outline for group in self.groups for outline, _ in group.shapes])
        return np.concatenate([outlines.min(0), outlines.max(0)])

    def placed(self, scale: float, offset: np.ndarray) -> Figure:
        """The figure in pixels: scaled, then moved by offset (2,)."""
        groups = tuple(
            dataclasses.replace(g, shapes=tuple((outline * scale + offset, c) for outline, c in g.shapes))
            for g in self.groups
        )
        return dataclasses.replace(
            self,
            points=self.points * scale + offset,
            groups=groups,
            height=self.height * scale,
            head_size=self.head_size * scale,
        )


def rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """float64 [3, 3]: turns about the vertical first, then nods, then tilts in the picture plane (radians).

    Positive yaw turns the front to the left of the picture; positive pitch is a camera that looks down. A
    mirrored world (x -> -x) has `rotation(-yaw, pitch, -roll)`.
    """
    cy, sy, cp, sp, cr, sr = (f(a) for a in (yaw, pitch, roll) for f in (np.cos, np.sin))
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return about_z @ about_x @ about_y


def unit(v: np.ndarray) -> np.ndarray:
    """The vector (3,) of length 1 in v's direction."""
    return v / np.sqrt(v @ v)


def perpendicular(v: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """The unit vector along v's component at right angles to the unit vector `axis`."""
    return unit(v - (v @ axis) * axis)


def capsule(a: np.ndarray, b: np.ndarray, radius_a: float, radius_b: float) -> np.ndarray:
    """Outline [14, 2] of a limb from a to b (only x and y count) with round ends."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    length = max(np.hypot(dx, dy), 1e-9)
    along, across = np.array([dx, dy]) / length, np.array([-dy, dx]) / length
    cap = _HALF_TURN[:, :1] * along + _HALF_TURN[:, 1:] * across
    return np.concatenate([b[:2] + radius_b * cap, a[:2] - radius_a * cap])


def disc(centre: np.ndarray, radius: float) -> np.ndarray:
    """Outline [20, 2] of a ball."""
    return centre[:2] + radius * CIRCLE


@dataclasses.dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid seen by the camera: `centre` (3,), rotation `turn` [3, 3], half `axes` (3,)."""

    centre: np.ndarray
    turn: np.ndarray
    axes: np.ndarray

    def at(self, directions: np.ndarray) -> np.ndarray:
        """Points [n, 3] of the unit ball [n, 3] carried to the ellipsoid."""
        return self.centre + (directions * self.axes) @ self.turn.T

    def faces_camera(self, directions: np.ndarray) -> np.ndarray:
        """bool [n]: the surface there is turned towards the camera."""
        return (directions / self.axes) @ self.turn[2] < 0

    def _shadow(self) -> np.ndarray:
        flat = self.turn[:2] * self.axes
        return np.linalg.cholesky(flat @ flat.T)

    def outline(self) -> np.ndarray:
        """Its silhouette [20, 2]."""
        return self.centre[:2] + CIRCLE @ self._shadow().T

    def patch(self, directions: np.ndarray) -> np.ndarray:
        """A region of the surface as it is seen [n, 2]: border points behind the horizon move onto it."""
        shadow = self._shadow()
        flat = np.linalg.solve(shadow, (self.at(directions)[:, :2] - self.centre[:2]).T).T
        length = np.linalg.norm(flat, axis=1, keepdims=True)
        flat = np.where(self.faces_camera(directions)[:, None], flat, flat / np.maximum(length, 1e-9))
        return self.centre[:2] + flat @ shadow.T


def shaded(colour: Colour, factor: float) -> Colour:
    """The colour, lighter or darker."""
    red, green, blue = (min(255.0, channel * factor) for channel in colour)
    return red, green, blue


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """RGB (0..255) of hue, saturation and value in 0..1."""
    wheel = np.clip(np.abs((hue * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1)
    red, green, blue = (255 * value * (1 - saturation * (1 - wheel))).tolist()
    return red, green, blue


def owner_table(owners: list[tuple[str, ...]], parts: tuple[str, ...]) -> np.ndarray:
    """bool [P, MAX_PARTS] from the names of the parts each point lies on."""
    table = np.zeros((len(owners), MAX_PARTS), bool)
    for row, names in enumerate(owners):
        table[row, [parts.index(name) for name in names]] = True
    return table
