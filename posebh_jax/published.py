"""Published figures of the papers' weights: crops of 256x192, flip test, percent (EPE in pixels).

Numbers come from the tables in the PoseBH repository; where its paper prints other ones, both are given.
"""

from __future__ import annotations

from pose_common.evaluation.published import ANNOTATED, Published

_PERSON_56, _PERSON_609 = "person detector of 56 AP", "person detector of 60.9 AP"
_APT36K = "published for another split of the videos"
_AP10K = "published as the test split; the released script evaluates val-split1"
_MODELS = ("ViTPose++-B", "ViTPose++-H", "PoseBH-B", "PoseBH-H")
_COCO, _MPII, _HAND = ("AP", "AR"), ("PCKh", "PCKh@0.1"), ("PCK", "AUC", "EPE")
_TABLE = {  # (dataset, split): metrics, boxes, figures of the four models (None: not stated), remarks by model
    ("coco", "val"): (_COCO, _PERSON_56, ((77.0, 82.6), (79.4, 84.8), (77.3, 82.4), (79.5, 84.5)), {}),
    ("coco", "test-dev"): (_COCO, _PERSON_609, ((76.4, 81.5), (78.5, 83.4), (76.6, 81.7), (78.6, 83.5)), {}),
    ("ochuman", "test"): (_COCO, ANNOTATED, ((82.6, 84.8), (85.7, 87.4), (83.1, 85.1), (87.0, 88.4)), {}),
    ("mpii", "val"): (_MPII, ANNOTATED, ((92.8, 39.1), (94.2, 41.6), (93.2, 39.3), (94.2, 42.3)), {}),
    ("aic", "val"): (_COCO, ANNOTATED, ((31.8, 36.3), (34.8, 39.1), (32.1, 36.7), (35.1, 39.5)), {}),
    ("ap10k", "val-split1"): (
        _COCO,
        ANNOTATED,
        ((74.5, None), (82.4, None), (75.0, 78.3), (82.6, 85.4)),
        dict.fromkeys(_MODELS, _AP10K),
    ),
    ("apt36k", "val"): (
        _COCO,
        ANNOTATED,
        ((75.9, None), (82.3, None), (87.2, 89.6), (90.6, 92.6)),
        dict.fromkeys(_MODELS[:2], _APT36K),
    ),
    ("coco_wholebody", "val"): (_COCO, "detected", ((57.4, None), (60.6, None), (57.9, 69.5), (62.0, 72.9)), {}),
    ("interhand2d", "test"): (
        _HAND,
        ANNOTATED,
        ((98.3, 86.2, 4.02), None, (98.7, 86.6, 3.61), None),
        {"PoseBH-B": "paper: 98.6 / 87.1 / 3.70"},
    ),
    ("pw3d", "test"): (
        _COCO,
        ANNOTATED,
        ((81.7, 85.2), None, (83.8, 87.1), None),
        {"PoseBH-B": "paper: 83.6 / 87.1"},
    ),
}


def model_name(prototypes: bool, size: str | None) -> str:
    """The papers' name of a model with or without prototypes, such as 'PoseBH-B'; '' of another size than theirs."""
    return f"{'PoseBH' if prototypes else 'ViTPose++'}-{size[0].upper()}" if size else ""


def published(model: str, dataset: str, split: str) -> Published | None:
    """The row of `model` (a `model_name`) on a split, else on the split of the dataset that was published."""
    rows = {there: row for (name, there), row in _TABLE.items() if name == dataset}
    if model not in _MODELS or not rows:
        return None
    there = split if split in rows else next(iter(rows))
    names, boxes, of_models, remarks = rows[there]
    found = of_models[_MODELS.index(model)]
    if found is None:
        return None
    figures = {name: value for name, value in zip(names, found, strict=True) if value is not None}
    return Published(there, boxes, figures, remarks.get(model, ""))
