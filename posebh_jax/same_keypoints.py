"""Which keypoints of different skeletons mean the same, by name, and how near their prototypes lie (section 3.2).

PoseBH puts all skeletons into one embedding; nothing tells it that COCO's and MPII's left shoulders are one place.
Whether it finds out is a matter of retrieval: is the prototype of the same name the nearest of the other skeleton?
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import numpy as np

_TIE = 1e-9
"""Similarities that differ by less are the same."""
_WORDS = {"l": "left", "r": "right", "f": "front", "b": "back"}
_SAME = {"top head": "head top", "hip": "pelvis"}
"""Other names of one place: CrowdPose's and Halpe's. AIC's neck and MPII's upper neck and thorax are three places."""


def same_name(name: str) -> str:
    """A keypoint's name in one spelling.

    Lower case; words apart by spaces where they were by '_', '-', a capital or spaces; 'L', 'R', 'F', 'B' in full; a
    side first; then the names of `_SAME`.
    """
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = [_WORDS.get(word, word) for word in re.split(r"[\s_\-]+", apart.strip().lower()) if word]
    words.sort(key=lambda word: word not in ("left", "right"))  # stable: only the side moves
    joined = " ".join(words)
    return _SAME.get(joined, joined)


def keypoint_similarity(bank: np.ndarray) -> np.ndarray:
    """[T, T]: mean over a keypoint's M prototypes of |cos| to the other keypoint's nearest one, made symmetric.

    Args:
      bank: prototypes [T, M, D]; of any length.
    """
    unit = bank / np.maximum(np.linalg.norm(bank, axis=-1, keepdims=True), 1e-12)
    cosine = np.abs(np.einsum("smd,tnd->stmn", unit, unit, optimize=True))
    nearest = cosine.max(axis=-1).mean(axis=-1)
    return (nearest + nearest.T) / 2


def retrieval(bank: np.ndarray, skeletons: Sequence[Sequence[str]], asking: int | None = None) -> dict[str, float]:
    """How well a keypoint finds its namesake in every other skeleton that has one.

    A query is a keypoint and another skeleton, whose keypoints are ranked by `keypoint_similarity`. Keypoints without a
    namesake there are not asked about, but are among the candidates. Of candidates that tie the namesake is the last.

    Args:
      bank: prototypes [T, M, D], skeletons one after the other.
      skeletons: the keypoints' names of each.
      asking: only the queries of this skeleton; None: of all.

    Returns:
      `same_name_mrr`, the mean of 1 / rank; `same_name_top1`, the share at rank 1; `same_name_chance`, the former of a
      random order. In [0, 1]; {} where no other skeleton shares a name.

    Raises:
      ValueError: a bank of another number of keypoints.
    """
    names = [[same_name(name) for name in skeleton] for skeleton in skeletons]
    starts = np.cumsum([0, *map(len, names)])
    if len(bank) != starts[-1]:
        raise ValueError(f"{len(bank)} keypoints have prototypes, but the skeletons have {starts[-1]}")
    similarity = keypoint_similarity(np.asarray(bank, np.float64))
    ranks, chances = [], []
    for one, other in itertools.permutations(range(len(names)), 2):
        if asking not in (None, one):
            continue
        block = similarity[starts[one] : starts[one + 1], starts[other] : starts[other + 1]]
        for row, name in zip(block, names[one], strict=True):
            if name in names[other]:
                ranks.append((row >= row[names[other].index(name)] - _TIE).sum())
                chances.append(np.mean(1 / np.arange(1, len(row) + 1)))
    if not ranks:
        return {}
    return {
        "same_name_mrr": float(np.mean(1 / np.asarray(ranks))),
        "same_name_top1": float(np.mean(np.asarray(ranks) == 1)),
        "same_name_chance": float(np.mean(chances)),
    }
