"""Small training runs of both methods, started as users start them, and whether two of them came to the same."""

from __future__ import annotations

import dataclasses
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from pose_common.training.writers import read_metrics
from tests.distribution import ROOT, child_environment

TIMINGS = {"images_per_second_per_device", "seconds_per_step", "mfu", "data_wait_share", "seconds"}
"""Figures of a step that differ from run to run."""
STEPS_PER_EPOCH, STEPS, CHECKPOINT_EVERY = 6, 18, 2

COMMON = (
    f"--config.steps_per_epoch={STEPS_PER_EPOCH}",
    "--config.log_every=1",
    f"--config.checkpoint_every={CHECKPOINT_EVERY}",
    "--config.pictures=0",
    "--config.eval_batch_size=4",
    "--config.synthetic.num_train=12",
    "--config.synthetic.num_val=4",
)
METHODS = {
    "posebh": (
        "posebh_jax.main",
        "configs/mdt.py:demo",
        (
            "--config.datasets=('synthetic_coco','synthetic_ap10k')",
            "--config.batch_size=4",
            "--config.input_size=(48,64)",
            "--config.head_filters=(8,8)",
            "--config.embedding_width=8",
            "--config.embedding_dim=8",
            "--config.num_clusters=8",
            "--config.warmup_steps=4",
            *(f"--config.stages[{stage}].epochs={epochs}" for stage, epochs in enumerate((1, 0, 1, 1))),
        ),
    ),
    "boir": (
        "boir_jax.main",
        "configs/boir.py:demo",
        (
            "--config.batch_size=4",
            "--config.input_size=64",
            "--config.instances=4",
            "--config.instance_cap=8",
            "--config.epochs=3",
            "--config.evaluate_every=1",
        ),
    ),
}


@dataclasses.dataclass
class Program:
    """A running command; what it says is in `log`."""

    process: subprocess.Popen
    log: pathlib.Path

    def text(self) -> str:
        """What it said so far."""
        return self.log.read_text(errors="replace")

    def last_line(self) -> str:
        """The last line of that."""
        lines = [line for line in self.text().replace("\r", "\n").splitlines() if line.strip()]
        return lines[-1].strip() if lines else "nothing said"


def command(method: str, workdir: pathlib.Path, data: pathlib.Path, more: Sequence[str] = ()) -> list[str]:
    """The command line of a run; prepared data and compiled programs are in `data`."""
    module, config, arguments = METHODS[method]
    return [
        *(sys.executable, "-m", module, f"--config={ROOT / config}", f"--workdir={workdir}"),
        *(f"--config.data_dir={data}", f"--config.compilation_cache={data / 'compiled'}"),
        *COMMON,
        *arguments,
        *more,
    ]


def start(arguments: Sequence[str], log: pathlib.Path, devices: int = 1) -> Program:
    """Starts a command; what it says is added to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        process = subprocess.Popen(
            list(arguments), cwd=ROOT, env=child_environment(devices), stdout=file, stderr=subprocess.STDOUT
        )
    return Program(process, log)


def differences(workdir: pathlib.Path, other: pathlib.Path) -> list[str]:
    """Where two finished runs differ: figures of every step, of evaluations, and all arrays at the end; to the bit."""
    found = []
    rows, others = _figures(workdir), _figures(other)
    for key in sorted(rows.keys() | others.keys(), key=str):
        if rows.get(key) != others.get(key):
            found.append(f"{key}: {rows.get(key)} and {others.get(key)}")
    arrays, other_arrays = _arrays(workdir), _arrays(other)
    if arrays.keys() != other_arrays.keys():
        return [*found, f"arrays: {sorted(arrays.keys() ^ other_arrays.keys())[:5]}"]
    return found + [name for name, value in arrays.items() if value.tobytes() != other_arrays[name].tobytes()]


def _figures(workdir: pathlib.Path) -> dict[tuple, dict[str, Any]]:
    return {
        (row["split"], row["step"]): {name: value for name, value in row.items() if name not in TIMINGS}
        for row in read_metrics(workdir / "metrics.jsonl")
    }


def _arrays(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Everything in the last checkpoint, moments and key included."""
    folder = workdir / "checkpoints"
    step = max(int(path.name) for path in folder.iterdir() if path.name.isdigit())
    found = {}
    for item in ("weights", "training"):
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            tree = reader.restore((folder / str(step) / item).absolute())
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            found[f"{step}/{item}{jax.tree_util.keystr(path)}"] = np.asarray(leaf)
    return found
