"""A published figure, and how it compares with an evaluation; the tables are in `published.py` of each method."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

GROUND_TRUTH = "ground truth"


@dataclasses.dataclass(frozen=True)
class Published:
    """One published row.

    Attributes:
      split: what was evaluated.
      boxes: 'ground truth', or which detector's; '' for a method that needs none.
      figures: {metric: value} in percent (EPE in pixels), without those that were not stated.
      remark: what else one must know to compare.
    """

    split: str
    boxes: str
    figures: Mapping[str, float]
    remark: str = ""

    def compare(self, split: str, boxes: str) -> str:
        """How an evaluation on other terms differs; empty where it does not. A method without boxes has ''."""
        detected = boxes != GROUND_TRUTH
        differences = [f"published on {self.split}"] if split != self.split else []
        if boxes and detected != (self.boxes != GROUND_TRUTH):
            differences.append(f"published with {self.boxes} boxes")
        return ", ".join([*differences, *filter(None, [self.remark])])
