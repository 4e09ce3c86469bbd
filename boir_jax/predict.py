"""Finds the people in pictures and videos, draws and writes their poses; no boxes are needed.

    python -m boir_jax.predict street.jpg --checkpoint=workdir/boir_coco_w32 --out=poses

docs/prediction.md describes it. The model is in `boir_jax/pose_model.py`, what both prediction commands do in
`pose_common/prediction/command.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from boir_jax.pose_model import THRESHOLD, fitting, load
from pose_common.prediction import command
from pose_common.prediction.result import Result
from pose_common.prediction.sources import pictures_of


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = command.parser(__doc__, batch_size=1, threshold=THRESHOLD, name="python -m boir_jax.predict")
    parser.add_argument("--input_size", type=int, help="short side of the resized picture")
    return command.run(parser.parse_args(argv), _predict)


def _predict(args: Any) -> tuple[str, Iterator[list[Result]]]:
    model = load(args.checkpoint, input_size=args.input_size, device=args.device, dtype=args.dtype)
    pictures = fitting(pictures_of(args.source, args.left_out.append), args.left_out.append)
    results = model.results(pictures, args.batch_size, args.threshold)
    return model.title, ([result] for result in results)


if __name__ == "__main__":
    raise SystemExit(main())
