"""Test-wide settings: eight virtual CPU devices, full float32 products, one compilation cache."""

from __future__ import annotations

import collections
import gc
import os
import pathlib

# Most of the tests' time is compilation. XLA's other generator of loops without LLVM's optimisation takes a fraction of
# it; they differ from the defaults by rounding, and the tests hold with both. A program in one part is compiled with
# less work than the usual 32, which are for machines of many cores.
XLA_FLAGS = {
    "xla_force_host_platform_device_count": "8",
    "xla_cpu_use_fusion_emitters": "false",
    "xla_backend_optimization_level": "0",
    "xla_cpu_parallel_codegen_split_count": "1",
}

os.environ.setdefault("JAX_PLATFORMS", "cpu")
for _name, _value in XLA_FLAGS.items():
    if _name not in (_flags := os.environ.get("XLA_FLAGS", "")):  # else it was given
        os.environ["XLA_FLAGS"] = f"{_flags} --{_name}={_value}".strip()

import jax  # noqa: E402  (the environment must be set first)

_cache = pathlib.Path(__file__).resolve().parents[1] / ".cache" / "jax"
jax.config.update("jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR", str(_cache)))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)  # small runs are resumed often
jax.config.update("jax_default_matmul_precision", "highest")
# Traced programs are many objects that stay: Python would look through them for garbage again and again.
gc.set_threshold(10_000)


def pytest_collection_modifyitems(items):
    """Files with slow tests come first: with a file a process, one that begins late would leave the others waiting."""
    minutes = collections.Counter()
    for item in items:
        if marker := item.get_closest_marker("slow"):
            minutes[item.path] += marker.kwargs.get("minutes", 0.05)
    items.sort(key=lambda item: -minutes[item.path])  # stable, so that a file stays together
