"""Makes the models that the package carries from two runs on rendered figures.

    python -m scripts.embed_models workdir/embedded workdir/demo_boir

`make embedded` makes these runs and calls this.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence

import boir_jax.pose_model
import boir_jax.predict
import boir_jax.sources
import posebh_jax.pose_model
import posebh_jax.predict
import posebh_jax.sources
from boir_jax.predictor import without_training_heads
from pose_common.weights.embedded import write_embedded
from pose_common.weights.keys import own_weights


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m scripts.embed_models", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("posebh", type=pathlib.Path, help="working directory of the run of PoseBH")
    parser.add_argument("boir", type=pathlib.Path, help="working directory of the run of BoIR")
    args = parser.parse_args(argv)
    try:
        pose, finder = posebh_jax.sources.read(args.posebh), boir_jax.sources.read(args.boir)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    write_embedded(pose, posebh_jax.pose_model.EMBEDDED)
    weights = {name: without_training_heads(finder.weights[name]) for name in ("params", "batch_stats")}
    network = {**finder.manifest["network"], "training_heads": False}
    manifest = {**finder.manifest, "network": network}
    write_embedded(own_weights(weights, manifest), boir_jax.pose_model.EMBEDDED)
    for path in (posebh_jax.pose_model.EMBEDDED, boir_jax.pose_model.EMBEDDED):
        print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
