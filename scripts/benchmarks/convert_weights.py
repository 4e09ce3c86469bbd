"""Memory and time of converting a checkpoint of a published size, random numbers in it.

    python -m scripts.benchmarks.convert_weights --size=huge

Needs PyTorch, and on disk twice the size of the weights.
"""

from __future__ import annotations

import argparse
import multiprocessing
import pathlib
import resource
import tempfile
import time
from collections.abc import Sequence

import numpy as np

from pose_common.weights.folder import save_weights
from pose_common.weights.keys import expected_sources
from pose_common.weights.torch_files import write_state
from posebh_jax.model import PoseBH
from posebh_jax.vit import SIZES
from posebh_jax.weights.convert import read_weights
from posebh_jax.weights.keys import BANK, posebh_rules
from posebh_jax.weights.manifest import model_targets

MIXTURE = (("coco", 17), ("aic", 14), ("mpii", 16), ("ap10k", 17), ("apt36k", 17), ("coco_wholebody", 133))


def write_checkpoint(path: pathlib.Path, size: str) -> int:
    """Writes a PoseBH checkpoint in the original code's names; returns its bytes."""
    targets = dict(model_targets(PoseBH(SIZES[size], MIXTURE, num_experts=len(MIXTURE)), (192, 256)))
    targets[BANK] = np.empty((sum(count for _, count in MIXTURE), 3, 64), np.float32)
    rng = np.random.default_rng(0)
    state = {}
    for name, slot in expected_sources(posebh_rules([name for name, _ in MIXTURE]), targets).items():
        shape = slot.view(np.broadcast_to(np.float32(0), targets[slot.rule.target].shape)).shape
        state[name] = rng.random(shape, np.float32)
    write_state(path, state)
    return sum(value.nbytes for value in state.values())


def convert(path: pathlib.Path, folder: pathlib.Path, queue: multiprocessing.Queue) -> None:
    """Converts in a process of its own, so that the peak is that of the conversion alone."""
    start = time.perf_counter()
    conversion = read_weights(path)
    save_weights(folder, conversion.weights, conversion.manifest)
    queue.put((time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark and prints its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=[name for name in SIZES if name != "tiny"], default="huge")
    parser.add_argument("--format", choices=[".pth", ".safetensors"], default=".pth")
    args = parser.parse_args(arguments)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / f"posebh{args.format}"
        queue, writer = context.Queue(), context.Pool(1)
        with writer:
            size = writer.apply(write_checkpoint, (path, args.size))
        process = context.Process(target=convert, args=(path, pathlib.Path(folder) / "weights", queue))
        process.start()
        seconds, peak = queue.get()
        process.join()
    print(f"ViT-{args.size} from {args.format}: {size / 1e9:.2f} GB of weights, {seconds:.0f} s")
    print(f"peak memory {peak / 1e9:.2f} GB, {peak / size:.2f} times the weights (interpreter and JAX included)")


if __name__ == "__main__":
    main()
