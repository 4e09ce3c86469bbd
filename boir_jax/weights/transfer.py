"""Starts a model from weights of another: HRNet's, or those of a BoIR for another skeleton."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from boir_jax.weights.keys import SKELETON
from pose_common.training.restore import Start, take_parts
from pose_common.weights.keys import Conversion, flatten


def start_from(conversion: Conversion, initial: Mapping[str, Any], keypoint_set: str) -> Start:
    """The model's initial weights with every part that the given ones have for it.

    Args:
      conversion: the given weights; those of another `keypoint_set` leave the layers that draw keypoints fresh.
      initial: nested {"params": ..., "batch_stats": ..., "prototypes": {}}.
      keypoint_set: the model's.

    Raises:
      ValueError: weights that do not fit.
    """
    loaded = flatten(conversion.weights)
    if conversion.manifest["keypoint_set"] != keypoint_set:
        loaded = {name: value for name, value in loaded.items() if not re.fullmatch(SKELETON, name)}
    start = take_parts(loaded, flatten(initial), _part, conversion.title)
    start.tree.setdefault("prototypes", {})
    return start


def _part(name: str) -> str:
    """The part of a model to which a flat name belongs."""
    group = name.split("/")[1]
    return f"{group}/output" if re.fullmatch(SKELETON, name) else group
