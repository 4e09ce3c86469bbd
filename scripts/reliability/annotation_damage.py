"""Mutations of annotation files: what is damaged, and whom that may cost."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from typing import Any

from hypothesis import strategies as st

from data_pipelines import fields

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.text(max_size=6),
    st.integers(),
    st.floats(),
    st.lists(st.one_of(st.integers(), st.floats(), st.text(max_size=2), st.none()), max_size=4),
    st.dictionaries(st.text(max_size=3), st.one_of(st.integers(), st.none()), max_size=2),
    st.sampled_from(
        [math.nan, math.inf, -math.inf, 1e30, -1e30, 1e308, 2**70, -(2**63), 10**300, [[]], [[[[1]]]], "1e999", "NaN"]
    ),
    st.sampled_from(["12;5", "1,5", "\udce9", "a/b", "../x.jpg", "x" * 5000, "\x00", "0x10", "true", " 3 ", "-0"]),
)
"""What stands in a field that another tool, or damage, has written."""

EVERYTHING = "everything"


@dataclasses.dataclass(frozen=True)
class Damage:
    """One mutation.

    Attributes:
      kind: what was done.
      where: the entry and field, for messages.
      images: ids of the pictures whose people it may cost; or `EVERYTHING`.
      people: how many of them.
      others: how many people may have other labels than before.
      plain: the new value is as good as the old one, or the field may be absent, so that nothing need be said.
    """

    kind: str
    where: str
    images: frozenset | str = frozenset()
    people: int = 0
    others: int = 0
    plain: bool = False


def lists_of(content: Any) -> dict[str, list]:
    """The lists of entries in a file, by name."""
    if isinstance(content, list):
        return {"people": content}
    return {
        name: content[name] for name in ("images", "annotations", "categories") if isinstance(content.get(name), list)
    }


def image_of(name: str, entry: Any) -> Any:
    """The key of the picture that an entry is of, or is."""
    if not isinstance(entry, dict):
        return None
    if name == "people":
        return entry.get("image")
    return fields.id_key(entry.get("image_id" if name == "annotations" else "id"))


@st.composite
def mutations(draw, original: Any, per_entry: int) -> tuple[Any, Damage]:
    """(content, what was done to it): one mutation of the content of an annotation file."""
    content = copy.deepcopy(original)
    lists = lists_of(content)
    kind = draw(st.sampled_from(list(_MUTATIONS)))
    name = draw(st.sampled_from([name for name in ("annotations", "people", "images", "categories") if name in lists]))
    return _MUTATIONS[kind](draw, content, name, lists[name], per_entry)


def _cost(content: Any, name: str, entry: Any, per_entry: int) -> dict[str, Any]:
    """Whom the loss of an entry costs: its person; all people of a picture; everybody of a category."""
    if name == "categories":
        return {"images": EVERYTHING}
    key = image_of(name, entry)
    if name in ("annotations", "people"):
        return {"images": frozenset([key]), "people": per_entry, "others": per_entry}
    return {"images": frozenset([key]), "people": 10**6, "others": 0 if per_entry == 1 else 10**6}


def _chosen(draw, entries: list) -> int:
    return draw(st.integers(0, len(entries) - 1))


def _field(draw, content, name, entries, per_entry, change, kind, plain=lambda key, value: False):
    """Changes one field of one entry by `change(entry, key) -> new value or none`."""
    place = _chosen(draw, entries)
    entry = entries[place]
    key = draw(st.sampled_from(sorted(entry)))
    cost = _cost(content, name, entry, per_entry)
    change(entry, key)
    if name == "images" and key == "id" and cost["images"] != EVERYTHING:  # by chance that of another
        cost["images"] |= {image_of(name, entry)}
    return content, Damage(kind, f"{name}[{place}].{key}", plain=plain(key, entry.get(key)), **cost)


def _delete(draw, content, name, entries, per_entry):
    return _field(
        draw, content, name, entries, per_entry, lambda entry, key: entry.pop(key), "field deleted", _may_lack
    )


def _rename(draw, content, name, entries, per_entry):
    suffix = draw(st.sampled_from(["x", "_", " ", "2"]))

    def change(entry, key):
        entry[key + suffix] = entry.pop(key)

    return _field(draw, content, name, entries, per_entry, change, "field renamed", _may_lack)


def _may_lack(key: str, value: Any) -> bool:
    return True  # what is needed and absent is told by the loss


def _replace(draw, content, name, entries, per_entry):
    junk = draw(JUNK)

    def change(entry, key):
        entry[key] = junk

    return _field(draw, content, name, entries, per_entry, change, "other value", lambda key, value: is_plain(value))


def _replace_inside(draw, content, name, entries, per_entry):
    """One number of a list, however nested."""
    junk = draw(JUNK)
    place = _chosen(draw, entries)
    entry = entries[place]
    nested = [key for key in sorted(entry) if isinstance(entry[key], (list, dict)) and entry[key]]
    if not nested:
        return _replace(draw, content, name, entries, per_entry)
    key = draw(st.sampled_from(nested))
    cost = _cost(content, name, entry, per_entry)
    inside = entry[key]
    while True:
        keys = list(inside) if isinstance(inside, dict) else range(len(inside))
        at = draw(st.sampled_from(keys))
        if not isinstance(inside[at], (list, dict)) or not inside[at]:
            break
        inside = inside[at]
    inside[at] = junk
    return content, Damage("other number", f"{name}[{place}].{key}: {junk!r:.60}", plain=is_plain(junk), **cost)


def _resize(draw, content, name, entries, per_entry):
    """A list that is longer or shorter."""
    place = _chosen(draw, entries)
    entry = entries[place]
    lists = [key for key in sorted(entry) if isinstance(entry[key], list)]
    if not lists:
        return _delete(draw, content, name, entries, per_entry)
    key = draw(st.sampled_from(lists))
    cost = _cost(content, name, entry, per_entry)
    how = draw(st.sampled_from(["shorter", "longer", "doubled", "nested"]))
    value = entry[key]
    entry[key] = {"shorter": value[:-1], "longer": [*value, 0], "doubled": value * 2, "nested": [value]}[how]
    plain = how == "nested" or key == "segmentation"
    return content, Damage("list resized", f"{name}[{place}].{key} {how}", plain=plain, **cost)


def _no_object(draw, content, name, entries, per_entry):
    place = _chosen(draw, entries)
    cost = _cost(content, name, entries[place], per_entry)
    entries[place] = draw(JUNK)
    return content, Damage("entry replaced", f"{name}[{place}]: {entries[place]!r:.60}", **cost)


def _duplicate(draw, content, name, entries, per_entry):
    place = _chosen(draw, entries)
    entries.insert(draw(st.integers(0, len(entries))), copy.deepcopy(entries[place]))
    return content, Damage("entry twice", f"{name}[{place}]", plain=name in ("categories", "people"), others=per_entry)


def _remove(draw, content, name, entries, per_entry):
    """Nobody can say what is no longer there, but what was of it is told."""
    place = _chosen(draw, entries)
    cost = {"images": EVERYTHING} if _by_order(name, entries) else _cost(content, name, entries[place], per_entry)
    del entries[place]
    return content, Damage("entry removed", f"{name}[{place}]", plain=True, **cost)


def _shuffle(draw, content, name, entries, per_entry):
    entries[:] = draw(st.permutations(entries))
    images = EVERYTHING if _by_order(name, entries) else frozenset()
    return content, Damage("other order", name, images=images, plain=True)


def _by_order(name: str, entries: list) -> bool:
    """Whether splits are cut at places of this list: the release of APT-36K."""
    return name == "images" and any("\\" in entry["file_name"] for entry in entries)


def _copied_field(draw, content, name, entries, per_entry):
    """An id, or anything else, that another entry has."""
    place, other = _chosen(draw, entries), _chosen(draw, entries)
    shared = sorted(set(entries[place]) & set(entries[other]))
    key = draw(st.sampled_from(shared))
    cost = _cost(content, name, entries[place], per_entry)
    before = entries[place][key]
    entries[place][key] = copy.deepcopy(entries[other][key])
    if name == "images" and key == "id":  # which of the two is it?
        cost["images"] |= {image_of(name, entries[other])}
    if name == "images" and key == "file_name":
        cost["others"] = 10**6
    ids = key == "id" and before != entries[place][key] and name != "people"
    return content, Damage("value of another", f"{name}[{place}].{key} of [{other}]", plain=not ids, **cost)


def _dangling(draw, content, name, entries, per_entry):
    keys = [key for key in ("image_id", "category_id", "id") if key in entries[0]]
    if not keys:
        return _no_object(draw, content, name, entries, per_entry)
    place, key = _chosen(draw, entries), draw(st.sampled_from(keys))
    cost = _cost(content, name, entries[place], per_entry)
    entries[place][key] = draw(st.sampled_from([987654321, -7, "987654321", 3.5, 2**62]))
    return content, Damage("unknown id", f"{name}[{place}].{key}", plain=key == "id", **cost)


def _top(draw, content, name, entries, per_entry):
    """A whole list is gone or something else."""
    damage = Damage("list replaced", name, images=EVERYTHING)
    if isinstance(content, list):
        return draw(JUNK), damage
    if draw(st.booleans()):
        del content[name]
    else:
        content[name] = draw(JUNK)
    return content, damage


def _bytes(draw, content, name, entries, per_entry):
    """The file's text is damaged."""
    text = bytearray(json.dumps(content).encode())
    how = draw(st.sampled_from(["cut", "flipped bit", "byte", "nested", "UTF-16", "appended"]))
    place = draw(st.integers(0, len(text) - 1))
    if how == "cut":
        text = text[:place]
    elif how == "flipped bit":
        text[place] ^= 1 << draw(st.integers(0, 7))
    elif how == "byte":
        text[place] = draw(st.integers(0, 255))
    elif how == "nested":
        text[place:place] = b"[" * 100_000
    elif how == "UTF-16":
        return text.decode().encode("utf-16"), Damage("other bytes: encoding", "", plain=True)
    else:
        text += draw(st.binary(min_size=1, max_size=8))
    # One letter of a file may be any number of any entry, or what a field is called.
    return bytes(text), Damage("other bytes", f"{how} at {place}", images=EVERYTHING, others=10**6, plain=True)


_MUTATIONS = {
    "delete": _delete,
    "rename": _rename,
    "replace": _replace,
    "replace inside": _replace_inside,
    "resize": _resize,
    "no object": _no_object,
    "duplicate": _duplicate,
    "remove": _remove,
    "shuffle": _shuffle,
    "copy": _copied_field,
    "dangling": _dangling,
    "top": _top,
    "bytes": _bytes,
}


def is_plain(value: Any) -> bool:
    """Whether a value is as good as another of a field: null, a number within reason, or one as text; or a name."""
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, (int, float)):
        return math.isfinite(value) and abs(value) < 1e7
    if isinstance(value, str):
        found = fields.whole(value)
        return found is None or abs(found) < 1e7
    return False
