"""Six training steps with large temporaries; prints how many pages the kernel was asked for in the last one.

python -m tests.pose_common.host_memory_program [kept]
"""

from __future__ import annotations

import resource
import sys

import jax
import jax.numpy as jnp
import numpy as np

from pose_common import host_memory
from pose_common.training import parallel
from pose_common.training.mesh import make_mesh

BYTES = 2**26
"""Of the largest temporary."""
WIDTH = 64


def step(state, batch, axis_name):
    del axis_name
    rows = jnp.tanh(batch["rows"].astype(jnp.float32) @ state["params"])
    return {"params": rows.T @ rows / len(rows)}, {}


def main(kept: bool) -> int:
    """Pages that were new to the process in the last step."""
    if kept:
        host_memory.keep()
    strategy = parallel.ShardedStrategy(make_mesh())
    state = strategy.create(lambda: {"params": jnp.eye(WIDTH)})
    call, batch = strategy.compile(step, state), {"rows": np.ones([BYTES // (4 * WIDTH), WIDTH], np.uint8)}
    for _ in range(6):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        state, _ = jax.block_until_ready(call(state, strategy.put(batch)))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


if __name__ == "__main__":
    print(main("kept" in sys.argv))
