"""Groups the loose points and rectangles of a label tool into people."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence

from data_pipelines.fields import Fault
from data_pipelines.importers.labels import NO_CATEGORY, Person, Point


@dataclasses.dataclass(frozen=True)
class Mark:
    """A labelled point; `group` is what the tool ties it to others by, None if it does not."""

    name: str
    point: Point
    entry: str
    group: Hashable = None


@dataclasses.dataclass(frozen=True)
class Rectangle:
    """A drawn box (x, y, width, height in pixels) with its class."""

    category: str
    box: tuple[float, float, float, float]
    entry: str
    group: Hashable = None

    def contains(self, point: Point) -> bool:
        x, y, width, height = self.box
        return x <= point[0] <= x + width and y <= point[1] <= y + height


@dataclasses.dataclass
class _Group:
    marks: list[Mark] = dataclasses.field(default_factory=list)
    rectangles: list[Rectangle] = dataclasses.field(default_factory=list)

    @property
    def entry(self) -> str:
        return (self.marks or self.rectangles)[0].entry


def people_of(
    marks: Sequence[Mark], rectangles: Sequence[Rectangle], category: str = NO_CATEGORY
) -> tuple[list[Person], list[tuple[Fault, str]]]:
    """(people, what is wrong) of one picture.

    Points and a rectangle of one group are a person. A point without a group belongs to the only ungrouped rectangle
    that it is in; where the picture has no such rectangle, all points without a group are one person. A group without
    a rectangle gets the one that contains it, if that is clear: one rectangle, and no other group in it.

    Args:
      category: of people without a rectangle.
    """
    groups: dict[Hashable, _Group] = {}
    loose = [rectangle for rectangle in rectangles if rectangle.group is None]
    faults = []
    for rectangle in rectangles:
        if rectangle.group is not None:
            groups.setdefault(rectangle.group, _Group()).rectangles.append(rectangle)
    holders: dict[int, _Group] = {}
    for mark in marks:
        if mark.group is not None:
            groups.setdefault(mark.group, _Group()).marks.append(mark)
            continue
        around = [number for number, rectangle in enumerate(loose) if rectangle.contains(mark.point)]
        if loose and len(around) != 1:
            where = "in no box" if not around else f"in {len(around)} boxes"
            faults.append((Fault("point of nobody", f"{mark.name} is {where}, and of no group"), mark.entry))
            continue
        holders.setdefault(around[0] if loose else -1, _Group()).marks.append(mark)
    rest = {number: rectangle for number, rectangle in enumerate(loose) if number not in holders}
    _enclose([group for group in groups.values() if not group.rectangles], rest)
    for number, group in holders.items():
        group.rectangles += [loose[number]] if number >= 0 else []
    alone = [_Group([], [rectangle]) for rectangle in rest.values()]
    people = []
    for group in (*groups.values(), *holders.values(), *alone):
        try:
            people.append(_person(group, category))
        except Fault as fault:
            faults.append((fault, group.entry))
    return people, faults


def _enclose(groups: list[_Group], rectangles: dict[int, Rectangle]) -> None:
    """Gives groups the rectangle around them; those that are given are taken out of `rectangles`."""
    inside = {
        number: [group for group in groups if all(rectangle.contains(mark.point) for mark in group.marks)]
        for number, rectangle in rectangles.items()
    }
    for group in groups:
        around = [number for number, found in inside.items() if any(other is group for other in found)]
        if len(around) == 1 and len(inside[around[0]]) == 1:
            group.rectangles.append(rectangles.pop(around[0]))


def _person(group: _Group, category: str) -> Person:
    if len(group.rectangles) > 1:
        raise Fault("two boxes", f"{group.rectangles[0].entry} and {group.rectangles[1].entry} are of one group")
    points: dict[str, Point] = {}
    for mark in group.marks:
        if mark.name in points:
            raise Fault("keypoint twice", f"{mark.name!r:.80} again in {mark.entry}; a group number tells people apart")
        points[mark.name] = mark.point
    if not group.rectangles:
        return Person(points, group.entry, None, category)
    (rectangle,) = group.rectangles
    return Person(points, group.entry, rectangle.box, rectangle.category)
