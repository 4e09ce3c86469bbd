"""Trains or evaluates PoseBH, or its multi-head baseline.

    python -m posebh_jax.main --config=configs/mdt.py:base --workdir=workdir/base
    python -m posebh_jax.main --config=configs/mdt.py --workdir=... --config.mode=evaluate --config.checkpoint=...

A run that finds checkpoints in its working directory goes on from the newest.
"""

from __future__ import annotations

import functools

from pose_common.training import cli as program
from posebh_jax import build

train, evaluate, run = (functools.partial(part, build) for part in (program.train, program.evaluate, program.run))

if __name__ == "__main__":
    program.main(build, "configs/mdt.py", "workdir/posebh")
