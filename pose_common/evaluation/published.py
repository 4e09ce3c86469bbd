"""A published figure, and how it compares with an evaluation; the tables are in `published.py` of each method."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from pose_common.evaluation.tasks import shown_figure

ANNOTATED = "ground truth"
"""What tables say of annotated boxes."""
WHOLE_PIPELINE = "whole pipeline"
"""What a result says that had to find the people as well; with annotated boxes it had not."""
UNBOXED = f"none ({WHOLE_PIPELINE})"
"""The boxes of a method that needs none."""


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
        detected = boxes != ANNOTATED
        differences = [f"published on {self.split}"] if split != self.split else []
        if boxes and detected != (self.boxes != ANNOTATED):
            differences.append(f"published with {self.boxes} boxes")
        return ", ".join([*differences, *filter(None, [self.remark])])


def shown_boxes(boxes: str) -> str:
    """What a table says of boxes: the annotated ones, or whose ('' for none) and that finding people was included."""
    if boxes == ANNOTATED:
        return boxes
    return f"{boxes} ({WHOLE_PIPELINE})" if boxes else UNBOXED


def columns(known: Published | None, names: Sequence[str]) -> dict[str, str]:
    """`published` and `published boxes` of a table's row with the metrics `names`; empty where nothing is known."""
    if known is None:
        return {"published": "", "published boxes": ""}
    figures = " / ".join(shown_figure(name, known.figures.get(name)) for name in names)
    return {"published": figures, "published boxes": shown_boxes(known.boxes)}
