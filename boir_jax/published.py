"""What the paper's repository states for its models, in percent."""

from __future__ import annotations

from pose_common.evaluation.published import Published

_CROWD = ("AP", "AP .5", "AP .75", "AP(E)", "AP(M)", "AP(H)")
_COCO = ("AP", "AP .5", "AP .75", "AP (M)", "AP (L)")
_OCHUMAN = ("AP", "AP .5", "AP .75", "AR")
_TABLE = {
    ("W32", "coco", "val"): (_COCO, (70.6, 89.2, 77.4, 65.1, 79.0)),
    ("W48", "coco", "val"): (_COCO, (72.5, 89.9, 79.1, 68.2, 79.4)),
    ("W32", "coco", "test-dev"): (_COCO, (69.5, 90.4, 76.9, 64.2, 77.3)),
    ("W48", "coco", "test-dev"): (_COCO, (71.2, 90.8, 78.6, 67.0, 77.6)),
    ("W32", "crowdpose", "test"): (_CROWD, (70.6, 89.9, 76.5, 77.1, 71.2, 63.0)),
    ("W48", "crowdpose", "test"): (_CROWD, (71.2, 90.3, 76.7, 77.8, 71.8, 63.5)),
    ("W32 finetuned", "crowdpose", "test"): (_CROWD, (75.8, 92.2, 82.3, 82.3, 76.5, 67.5)),
    ("W48 finetuned", "crowdpose", "test"): (_CROWD, (77.2, 92.4, 83.5, 82.7, 78.1, 69.8)),
    ("W32", "ochuman", "val"): (_OCHUMAN, (47.4, 60.0, 52.6, 80.1)),
    ("W48", "ochuman", "val"): (_OCHUMAN, (49.4, 62.3, 54.9, 80.8)),
    ("W32", "ochuman", "test"): (_OCHUMAN, (47.0, 59.7, 52.3, 80.3)),
    ("W48", "ochuman", "test"): (_OCHUMAN, (48.5, 61.3, 54.1, 80.7)),
}


def published(model: str, dataset: str, split: str) -> Published | None:
    """The row of a model such as 'W32' or 'W48 finetuned' on a split."""
    if (model, dataset, split) not in _TABLE:
        return None
    return Published(split, "", dict(zip(*_TABLE[model, dataset, split], strict=True)))
