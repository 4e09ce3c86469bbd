"""Trains or evaluates BoIR.

    python -m boir_jax.main --config=configs/boir.py:coco_w32 --workdir=workdir/boir_coco_w32
    python -m boir_jax.main --config=configs/boir.py:coco_w32 --workdir=... --config.mode=evaluate --config.checkpoint=...

A run that finds checkpoints in its working directory goes on from the newest.
"""

from __future__ import annotations

import functools

from boir_jax import build
from pose_common.training import cli as program

train, evaluate, run = (functools.partial(part, build) for part in (program.train, program.evaluate, program.run))

if __name__ == "__main__":
    program.main(build, "configs/boir.py", "workdir/boir")
