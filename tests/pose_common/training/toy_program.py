"""A toy run in processes that share the parameters: trained, its newest checkpoint damaged, and gone on with."""

from __future__ import annotations

import pathlib
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils

from pose_common.evaluation.best import BestMetric
from pose_common.training import loop, parallel
from pose_common.weights.keys import flatten
from tests.distribution import program
from tests.pose_common.training.toy import ToyData, ToyMethod

SETTINGS = loop.LoopSettings(steps_per_epoch=3, log_every=3, checkpoint_every=3, evaluate_every=1)


def run(layout: str) -> dict[str, np.ndarray]:
    """The final parameters: {"first/...", "again/..."}."""
    loop.draw_curves = lambda *paths: None  # would take longer than the run
    workdir, found = pathlib.Path(sys.argv[1]) / layout, {}
    for name in ("first", "again"):
        data = ToyData(rank=jax.process_index(), ranks=jax.process_count())
        state, _ = loop.train(
            ToyMethod(),
            data,
            parallel.make_strategy("sharded", fsdp=8, fsdp_min_size=1),
            SETTINGS,
            workdir,
            evaluate=lambda weights, step: {"toy": {"AP": 0.01 * step}},
            best=BestMetric("toy/AP", (("toy", "AP"),)),
            key=jax.random.PRNGKey(0),
        )
        whole = multihost_utils.process_allgather(state.params, tiled=True)
        found |= {f"{name}/{path}": np.asarray(value) for path, value in flatten(whole).items()}
        if jax.process_index() == 0:
            (workdir / "checkpoints" / "12" / "training" / "manifest.ocdbt").unlink(missing_ok=True)
        multihost_utils.sync_global_devices("damaged")
    return found


if __name__ == "__main__":
    program(run)
