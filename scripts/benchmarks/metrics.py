"""Times the keypoint metric and suppression at COCO-val size, and pycocotools in the same run.

    python -m scripts.benchmarks.metrics

Synthetic: 5,000 images, 11,000 people, 20 detections an image. Ratios within one run are what to compare;
seconds depend on the machine. A plain per-image suppression is timed beside ours on a share of the images and
scaled up.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data_pipelines.datasets import find_dataset
from pose_common.metrics import evaluate, nms
from pose_common.metrics.columns import Poses, coco_results, ground_truth_from_coco


def synthetic_coco(rng: np.random.Generator, images: int, people: int, detections: int) -> tuple[dict[str, Any], Poses]:
    """COCO-format ground truth of random people, and detections scattered around them at varied accuracy."""
    keypoints = find_dataset("coco").num_keypoints
    owner = np.sort(rng.integers(0, images, people))
    box = np.concatenate([rng.uniform(0, 400, (people, 2)), rng.lognormal(4.5, 0.8, (people, 2))], axis=1)
    points = box[:, None, :2] + rng.random((people, keypoints, 2)) * box[:, None, 2:]
    visible = np.where(rng.random((people, keypoints)) < 0.7, 2, 0) * (rng.random((people, 1)) < 0.6)
    annotated = np.concatenate([points, visible[..., None]], axis=-1)
    annotations = [
        {
            "id": i + 1,
            "image_id": int(owner[i]) + 1,
            "category_id": 1,
            "bbox": box[i].tolist(),
            "iscrowd": 0,
            "area": float(0.6 * box[i, 2] * box[i, 3]),
            "keypoints": annotated[i].ravel().tolist(),
            "num_keypoints": int(np.count_nonzero(visible[i])),
        }
        for i in range(people)
    ]
    document = {
        "images": [{"id": i + 1, "width": 640, "height": 480} for i in range(images)],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person"}],
    }

    image = np.repeat(np.arange(images), detections // images)
    first, count = np.searchsorted(owner, image), np.searchsorted(owner, image, side="right")
    near = np.minimum(first + (rng.random(len(image)) * (count - first)).astype(int), people - 1)
    spread = np.sqrt(box[near, 2] * box[near, 3]) * rng.lognormal(-3, 1.5, len(image))
    found = points[near] + rng.normal(size=(len(image), keypoints, 2)) * spread[:, None, None]
    predicted = np.concatenate([found, rng.random((len(image), keypoints, 1))], axis=-1)
    poses = Poses(
        image + 1,
        np.arange(len(image)),
        predicted,
        rng.random(len(image)),
        nms.extent_area(predicted),
        np.ones(len(image), np.int64),
    )
    return document, poses


def plain_nms(
    keypoints: np.ndarray, area: np.ndarray, score: np.ndarray, sigmas: np.ndarray, threshold: float
) -> list[int]:
    """Suppression in one image as it is usually written: one similarity at a time."""
    order, kept = list(np.argsort(-score)), []
    variance = np.square(2 * sigmas)
    while order:
        best, *rest = order
        kept.append(best)
        order = []
        for other in rest:
            distance = np.square(keypoints[best, :, :2] - keypoints[other, :, :2]).sum(-1)
            if np.exp(-distance / variance / (area[best] + area[other])).mean() <= threshold:
                order.append(other)
    return kept


def pycocotools_metric(truth: COCO, results: list[dict[str, Any]]) -> np.ndarray:
    """COCOeval's ten numbers, its chatter dropped."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(results), "keypoints")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def seconds(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Best time of several runs, and the last result."""
    best = np.inf
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        best = min(best, time.perf_counter() - start)
    return best, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--people", type=int, default=11000)
    parser.add_argument("--detections", type=int, default=100000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    dataset = find_dataset("coco")
    sigmas = np.array(dataset.keypoints.sigmas)
    rng = np.random.default_rng(0)
    document, poses = synthetic_coco(rng, options.images, options.people, options.detections)
    with contextlib.redirect_stdout(io.StringIO()):
        official = COCO()
        official.dataset = document
        official.createIndex()
    results = coco_results(poses, dataset.keypoints)

    truth = ground_truth_from_coco(document, dataset.keypoints)
    ours, numbers = seconds(lambda: evaluate.metrics_of(dataset, truth, poses), options.repeats)
    theirs, reference = seconds(lambda: pycocotools_metric(official, [dict(r) for r in results]), 1)
    difference = np.abs(np.array(list(numbers.values())) - reference).max()

    def suppress(rows: np.ndarray | slice) -> np.ndarray:
        return nms.oks_nms(
            poses.keypoints[rows], poses.area[rows], poses.score[rows], sigmas, 0.9, poses.image_id[rows]
        )

    ours_nms, kept = seconds(lambda: suppress(slice(None)), options.repeats)
    per_image = np.split(np.arange(len(poses)), np.flatnonzero(np.diff(poses.image_id)) + 1)
    share = per_image[: max(1, len(per_image) // 20)]
    plain, _ = seconds(
        lambda: [plain_nms(poses.keypoints[r], poses.area[r], poses.score[r], sigmas, 0.9) for r in share], 1
    )
    plain *= len(per_image) / len(share)

    print(f"{options.images} images, {options.people} people, {len(poses)} detections; {len(kept)} after NMS")
    print(f"{'':10}{'ours':>10}{'reference':>12}{'ratio':>9}   reference")
    for name, mine, other, what in (
        ("metric", ours, theirs, f"pycocotools; largest difference {difference:.1e}"),
        ("OKS-NMS", ours_nms, plain, "a plain loop over pairs"),
    ):
        print(f"{name:10}{mine:9.2f}s{other:11.2f}s{other / mine:8.1f}x   {what}")


if __name__ == "__main__":
    main()
