"""PyTorch's side of the comparisons: its device and threads, and the original's modules from a checkout."""

from __future__ import annotations

import os
import pathlib
import sys
import types
from collections.abc import Callable


def torch_device() -> tuple[str, Callable[[], None]]:
    """(the GPU if there is one, else the CPU; what waits for it to finish).

    On the CPU one thread a core that the process may use, and denormals are 0, as XLA has it.
    """
    import torch

    torch.set_flush_denormal(True)
    if hasattr(os, "sched_getaffinity"):
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    if torch.cuda.is_available():
        return "cuda", torch.cuda.synchronize
    return "cpu", lambda: None


def open_boir(checkout: pathlib.Path) -> None:
    """Makes `models.<module>` of a checkout of the original BoIR importable.

    The package's own `__init__` imports the whole model, and with it packages that its parts do not need.
    """
    folder = checkout / "lib" / "models"
    if not folder.is_dir():
        raise SystemExit(f"--reference={checkout}: there is no lib/models in it; give a checkout of uyoung-jeong/BoIR")
    sys.path.insert(0, str(checkout / "lib"))
    package = sys.modules.setdefault("models", types.ModuleType("models"))
    package.__path__ = [str(folder)]
