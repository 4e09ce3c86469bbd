"""Draws and writes the poses in pictures and videos, in boxes that are given or found.

    python -m posebh_jax.predict photo.jpg --checkpoint=workdir/base --out=poses
    python -m posebh_jax.predict holiday/ --checkpoint=vitpose++_base.pth --boxes=boir_w32.pth --dataset=coco,mpii

docs/prediction.md describes it. The model is in `posebh_jax/pose_model.py`, what both prediction commands do in
`pose_common/prediction/command.py`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from pose_common.prediction import command
from pose_common.prediction.pictures import Picture
from pose_common.prediction.result import Result
from pose_common.prediction.sources import count_of
from pose_common.weights.folder import require_new
from posebh_jax.boxes import AUTO, WHOLE, boxes_of, with_finder
from posebh_jax.named_boxes import Found
from posebh_jax.pose_model import PoseModel, load
from posebh_jax.predictor import HEAD_MAPS, PROTOTYPE_MAPS

FINDING = "finding the people"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = command.parser(__doc__, name="python -m posebh_jax.predict")
    parser.add_argument(
        "--boxes",
        type=os.path.expanduser,
        help="whole (default), a COCO detection file, BoIR weights that find the people, or auto (default of --demo): "
        "the package's own small BoIR, which knows rendered figures only",
    )
    parser.add_argument("--box_threshold", type=float, default=0.0, help="smallest score of a box (default: all)")
    parser.add_argument("--category", type=int, help="category_id of the boxes of a file (default: all)")
    parser.add_argument("--dataset", help="skeletons to draw, separated by commas; the model's first by default")
    parser.add_argument(
        "--datasets", help="the datasets of the weights' heads in order, where the file does not say them"
    )
    parser.add_argument(
        "--maps", choices=(HEAD_MAPS, PROTOTYPE_MAPS), help="the model's heads by default, where it has some"
    )
    parser.add_argument(
        "--skeleton",
        type=os.path.expanduser,
        help="draw the skeleton of a few annotated pictures instead, learned without training: a file or folder in any "
        "format that prepare_data custom reads",
    )
    parser.add_argument(
        "--skeleton_images",
        type=os.path.expanduser,
        help="with --skeleton: the labels' pictures, where they lie elsewhere",
    )
    parser.add_argument("--skeleton_format", help="with --skeleton: the labels' format, where it is not recognised")
    parser.add_argument("--save_model", help="with --skeleton: a folder for the model, to give as --checkpoint later")
    parser.add_argument("--no_flip", action="store_true", help="without the flip test: twice as fast, a little worse")
    args = parser.parse_args(argv)
    if args.save_model and not args.skeleton:
        parser.error("--save_model keeps the model that --skeleton learns; without it there is none")
    if not args.skeleton and (args.skeleton_images or args.skeleton_format):
        parser.error("--skeleton_images and --skeleton_format are of the labels of --skeleton")
    return command.run(args, _predict)


def _predict(args: Any) -> tuple[str, Iterator[list[Result]]]:
    model = load(args.checkpoint, datasets=args.datasets, device=args.device, dtype=args.dtype)
    if args.skeleton:
        model = _with_skeleton(model, args)
    names = model.names(args.dataset)
    boxes: Any = args.boxes
    if boxes is None:
        boxes = AUTO if args.demo and not args.checkpoint else WHOLE
    boxes = with_finder(boxes, model.device)
    boxes_by_number = boxes_of(boxes, count_of(args.source), threshold=args.box_threshold, category=args.category)

    def find_boxes(number: int, picture: Picture) -> Found:
        began = time.perf_counter()
        found = boxes_by_number(number, picture)
        if callable(boxes):
            args.costs[FINDING] = args.costs.get(FINDING, 0.0) + time.perf_counter() - began
        return found

    settings = not args.no_flip, args.batch_size, args.maps, args.threshold or 0.0, args.left_out.append
    results = model.results(args.source, find_boxes, names, *settings)
    return model.title, (list(found.values()) for found in results)


def _with_skeleton(model: PoseModel, args: Any) -> PoseModel:
    from data_pipelines.annotated import read_annotated  # what preparation needs, only where it was asked for

    if args.save_model:
        require_new(args.save_model)  # before what may take minutes
    size = model.predictors[True].input_size
    labels = read_annotated(args.skeleton, size, args.skeleton_images, args.skeleton_format)
    for line in labels.left_out:
        print(f"left out of {args.skeleton}: {line}", file=sys.stderr)
    learned = model.learn_protocol(
        labels.images, labels.keypoints, labels.dataset, boxes=labels.boxes, batch_size=args.batch_size
    )
    if args.save_model:
        learned.save(args.save_model)
    return learned


if __name__ == "__main__":
    raise SystemExit(main())
