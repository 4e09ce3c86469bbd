"""The memory in which CPUs compute, kept from step to step."""

from __future__ import annotations

import ctypes
import platform

import jax

# Of glibc's <malloc.h>.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_NEVER = -1


def keep() -> None:
    """Memory that is freed stays with the process, and the next step finds it there.

    A program's temporaries are one piece of up to some gigabytes. glibc asks the kernel for a piece above 32 MiB and
    gives it back when it is freed, so that the kernel fills every page with zeros in every step, up to a quarter of its
    time (`docs/benchmarks.md`). From here on pieces of any size come from the heap, which does not shrink: the process
    holds what it needed at its peak. The heap is the main thread's, so programs of one CPU run in the thread that calls
    them where their arguments are there; programs of several devices have threads of their own, and stay as they were.

    For a program, which owns its process, before JAX looks for devices. With another C library nothing changes.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    if mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, _NEVER):
        jax.config.update("jax_cpu_enable_async_dispatch", False)
