"""Left and right in the names of keypoints, as people write them: which names a mirror exchanges.

A name is cut into words at anything but letters and digits, before capitals (leftEye, LShoulder, hipL) and between
letters and digits. A word that is a side (left, right, l, r, lt, rt, lft, rgt), or begins or ends with left or right,
gives the name its side; names that are the same but for exchanged sides are a pair. Where names are written without a
boundary (lshoulder, LSHO, kneer), an l or r that begins or ends a word counts as well, but only where the counterpart
exists.
"""

from __future__ import annotations

import collections
import functools
import re
from collections.abc import Sequence

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_a-zA-Z]+|\d+")
_SIDES = {"left": "l", "right": "r", "l": "l", "r": "r", "lt": "l", "rt": "r", "lft": "l", "rgt": "r"}
_LETTERS = {"左": "left", "右": "right"}
_OTHER = {"l": "r", "r": "l"}
_INSIDE = re.compile(r"(?:(left|right)(.+)|(.+)(left|right))")


def mirror_pairs(names: Sequence[str]) -> tuple[tuple[tuple[int, int], ...], list[str]]:
    """(pairs of numbers in order, names that look like sides and have no counterpart)."""
    other: dict[int, int] = {}
    split = [_split(name) for name in names]
    for key_of in (_exact, _loose):
        _match(other, [key_of(words, False) for words in split], [key_of(words, True) for words in split])
    letters = set()
    for ending in (False, True):
        before = len(other)
        _match(other, *([_letter_key(name, ending, mirrored) for name in names] for mirrored in (False, True)))
        if len(other) > before:  # names are written so here
            letters |= {number for number, name in enumerate(names) if _letter_key(name, ending, False)}
    alone = [
        name
        for number, name in enumerate(names)
        if number not in other and (number in letters or _has_side(split[number]))
    ]
    return tuple(sorted((a, b) for a, b in other.items() if a < b)), alone


@functools.cache
def sides_of(names: tuple[str, ...]) -> tuple[str, ...]:
    """'left', 'right' or 'centre' of every name; of two sides in a name the middle."""
    other = dict(pair for a, b in mirror_pairs(names)[0] for pair in ((a, b), (b, a)))
    return tuple(_side(name, names[other[number]] if number in other else name) for number, name in enumerate(names))


def _side(name: str, counterpart: str) -> str:
    found = {text for kind, text in _split(name) if kind == "side"}
    if not found and name != counterpart:  # the letter that differs, first or last
        found = {name.lower()[0 if name.lower()[1:] == counterpart.lower()[1:] else -1]}
    return {"l": "left", "r": "right"}[found.pop()] if len(found) == 1 else "centre"


def unpaired(names: Sequence[str], pairs: Sequence[tuple[int, int]]) -> list[str]:
    """Names that look like sides and are in none of the pairs."""
    paired = {number for pair in pairs for number in pair}
    found, alone = mirror_pairs(names)
    sides = {number for pair in found for number in pair} | {names.index(name) for name in alone}
    return [names[number] for number in sorted(sides - paired)]


def against_names(names: Sequence[str], pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Pairs that are not those of their names, where these have some: left_eye with left_ear."""
    own = {frozenset(pair) for pair in mirror_pairs(names)[0]}
    sided = {number for pair in own for number in pair}
    return [pair for pair in pairs if sided & set(pair) and frozenset(pair) not in own]


def _match(other: dict[int, int], keys: list, mirrored: list) -> None:
    """Adds pairs of names of which one's mirrored key is the other's, and nobody else's. A key of None is no side."""
    place = collections.defaultdict(list)
    for number, key in enumerate(keys):
        if number not in other and key is not None:
            place[key].append(number)
    for number, key in enumerate(mirrored):
        if number in other or key is None or len(place[key]) != 1 or len(place[keys[number]]) != 1:
            continue
        counterpart = place[key][0]
        if counterpart != number and counterpart not in other:
            other[number], other[counterpart] = counterpart, number


def _split(name: str) -> list[tuple[str, str]]:
    """Words as (kind, text): ("side", "l" or "r") or ("word", text in small letters)."""
    words: list[tuple[str, str]] = []
    for text in _words(name):
        if text in _SIDES:
            words.append(("side", _SIDES[text]))
        elif inside := _INSIDE.fullmatch(text):
            first, rest, before, last = inside.groups()
            words += [("side", _SIDES[first]), ("word", rest)] if first else [("word", before), ("side", _SIDES[last])]
        else:
            words.append(("word", text))
    return words


def _words(name: str) -> list[str]:
    """LShoulder is l, shoulder; hipL is hip, l; L_EYE is l, eye; LSHO is lsho."""
    for letter, word in _LETTERS.items():
        name = name.replace(letter, f" {word} ")
    return [word.lower() for word in _WORD.findall(name)]


def _has_side(words: list[tuple[str, str]]) -> bool:
    return any(kind == "side" for kind, _ in words)


def _exact(words: list[tuple[str, str]], mirrored: bool) -> tuple | None:
    """The words in order, sides exchanged if mirrored."""
    if not _has_side(words):
        return None
    return tuple((kind, _OTHER[text] if mirrored and kind == "side" else text) for kind, text in words)


def _loose(words: list[tuple[str, str]], mirrored: bool) -> tuple | None:
    """As `_exact`, wherever in the name the sides stand: left_eye and EyeR are a pair."""
    exact = _exact(words, mirrored)
    return None if exact is None else tuple(sorted(exact, key=lambda word: word[0] == "word"))


def _letter_key(name: str, ending: bool, mirrored: bool) -> str | None:
    """The name with its first (last) letter as a side; None where that is neither l nor r."""
    name = name.lower()
    letter, rest = (name[-1:], name[:-1]) if ending else (name[:1], name[1:])
    if letter not in _OTHER or len(rest) < 2:
        return None
    letter = _OTHER[letter] if mirrored else letter
    return rest + letter if ending else letter + rest
