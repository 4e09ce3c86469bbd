"""One training step under several layouts of devices and processes, for any method.

A method's tests bring a module with `run(layout) -> arrays` that ends in `if __name__ == "__main__": program(run)`;
`in_two_processes` starts it as

    python -m <module> <folder> <coordinator> <process> <layout>...
"""

from __future__ import annotations

import functools
import gc
import os
import pathlib
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence

import jax
import numpy as np

from pose_common.training import distributed, parallel
from pose_common.training.processes import leaving_together
from pose_common.training.stages import Stage
from pose_common.training.state import TrainState
from pose_common.training.step import train_step
from pose_common.weights.keys import flatten

ROOT = pathlib.Path(__file__).resolve().parents[1]
LAYOUTS = {
    "one": lambda: parallel.ShardedStrategy(
        jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "fsdp"))
    ),
    "sharded": lambda: parallel.make_strategy("sharded"),
    "fsdp": lambda: parallel.make_strategy("sharded", fsdp=4, fsdp_min_size=512),
    "pmap": lambda: parallel.make_strategy("pmap"),
}
Arrays = dict[str, np.ndarray]


def one_step(
    layout: str, method, stage: Stage, batch: Arrays, key: jax.Array, prepare: Callable[[TrainState], TrainState]
) -> Arrays:
    """{"metrics/...", "gradients/...", "batch_stats/...", "prototypes/..."} after one step on the global `batch`.

    Args:
      layout: one of `LAYOUTS`.
      prepare: applied to the newly initialised state.
    """
    strategy = LAYOUTS[layout]()
    state = strategy.create(method.init, key)
    change, _ = method.enter_stage(strategy.to_global(state), stage)
    state = strategy.transform(lambda state: change(prepare(state)), state)
    step = functools.partial(train_step, method=method, stage=stage)
    rows, process = len(batch["image"]) // jax.process_count(), jax.process_index()
    batch = {name: value[process * rows : (process + 1) * rows] for name, value in batch.items()}
    state, metrics = strategy.compile(step, state)(state, strategy.put(batch))
    state = strategy.to_global(state)
    # After one step Adam's first moment is a tenth of the gradient.
    gradients = {group: moments.mu for group, moments in state.opt_state.items()}
    found = {
        "metrics": metrics,
        "gradients": gradients,
        "batch_stats": state.batch_stats,
        "prototypes": state.method_state,
    }
    return {name: np.asarray(jax.device_get(value)) for name, value in flatten(found).items()}


def program(run: Callable[[str], Arrays]) -> None:
    """The program of one of two processes; the first one writes <folder>/<layout>.npz."""
    folder, coordinator, process, *layouts = sys.argv[1:]
    distributed.start(coordinator, 2, int(process))
    jax.config.update("jax_default_matmul_precision", "highest")
    gc.set_threshold(10_000)  # see `tests/conftest.py`
    with leaving_together():
        for layout in layouts:
            arrays = run(layout)
            if jax.process_index() == 0:
                np.savez(pathlib.Path(folder) / f"{layout}.npz", **arrays)


def child_environment(devices: int) -> dict[str, str]:
    """Of a process with so many virtual devices, compiled as the tests are (`tests/conftest.py`)."""
    given = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
    flags = f"{given} --xla_force_host_platform_device_count={devices}"
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip(), "JAX_COMPILATION_CACHE_DIR": ""}


def in_two_processes(module: str, layouts: Sequence[str], folder: pathlib.Path) -> dict[str, Arrays]:
    """What `module` finds under each layout with eight devices, shared between two processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    programs = [
        subprocess.Popen(
            [sys.executable, "-m", module, folder, coordinator, str(process), *layouts],
            cwd=ROOT,
            env=child_environment(devices=4),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(2)
    ]
    outputs = [program.communicate(timeout=900)[0] for program in programs]
    assert not any(program.returncode for program in programs), "\n".join(outputs)
    return {layout: dict(np.load(folder / f"{layout}.npz")) for layout in layouts}


def check(found: Arrays, expected: Arrays, no_effect: re.Pattern, gradients: float, others: float) -> None:
    """Compares two steps, relative to the largest entry of each array.

    Args:
      no_effect: names of gradients that are rounding noise.
      gradients, others: tolerances.
    """
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if not no_effect.fullmatch(name):
            of_gradients = name.startswith("gradients") or name == "metrics/grad_norm"
            tolerance = (gradients if of_gradients else others) * np.abs(value).max() + 3e-8
            np.testing.assert_allclose(found[name], value, rtol=0, atol=tolerance, err_msg=name)
