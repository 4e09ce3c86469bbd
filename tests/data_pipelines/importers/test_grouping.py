"""Which points and rectangles are one person."""

from __future__ import annotations

from data_pipelines.importers.grouping import Mark, Rectangle, people_of


def mark(name, x, y, group=None):
    return Mark(name, (x, y, 2.0), f"{name} {x}", group)


LEFT, RIGHT = (Rectangle("mouse", (x, 0, 10, 10), f"box {x}") for x in (0, 20))


def test_a_point_is_of_the_box_around_it():
    people, faults = people_of([mark("a", 5, 5), mark("a", 25, 5), mark("b", 26, 6)], [LEFT, RIGHT])
    assert not faults
    assert [(sorted(person.points), person.box) for person in people] == [(["a"], LEFT.box), (["a", "b"], RIGHT.box)]


def test_a_point_in_no_box_or_in_two_is_nobodys():
    people, faults = people_of([mark("a", 15, 5), mark("b", 5, 5)], [LEFT, Rectangle("mouse", (4, 4, 9, 9), "box")])
    said = [fault.detail for fault, _ in faults]
    assert said == ["a is in no box, and of no group", "b is in 2 boxes, and of no group"]
    assert [entry for _, entry in faults] == ["a 15", "b 5"]
    assert [person.points for person in people] == [{}, {}]


def test_without_boxes_all_ungrouped_points_are_one():
    people, _ = people_of([mark("a", 1, 1), mark("b", 90, 90), mark("a", 5, 5, 1)], [])
    assert sorted(len(person.points) for person in people) == [1, 2]


def test_a_group_gets_the_only_box_around_it_alone():
    people, _ = people_of([mark("a", 1, 1, 1), mark("b", 9, 9, 1), mark("a", 25, 1, 2)], [LEFT, RIGHT])
    assert [person.box for person in people] == [LEFT.box, RIGHT.box]
    people, _ = people_of([mark("a", 1, 1, 1), mark("a", 2, 2, 2)], [LEFT])
    assert [person.box for person in people] == [None, None, LEFT.box]


def test_what_cannot_be_one_person():
    people, faults = people_of([mark("a", 1, 1, 1), mark("a", 2, 2, 1)], [])
    assert not people and faults[0][0].reason == "keypoint twice" and faults[0][1] == "a 1"
    grouped = [Rectangle("mouse", (0, 0, 1, 1), f"box {number}", 1) for number in range(2)]
    people, faults = people_of([mark("a", 1, 1, 1)], grouped)
    assert not people and faults[0][0].reason == "two boxes"
