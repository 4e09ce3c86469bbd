"""Where the tests' recorded numbers are.

`tests/golden/` holds numbers only and travels with the repository: what is not there is an error. Pictures and
annotations of public datasets do not: tests that need them look for a folder `shared` beside the checkout and skip,
saying so, when it is not there.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib

import numpy as np
import pytest

from tests import rounding

GOLDEN = pathlib.Path(os.environ.get("GOLDEN_DIR", pathlib.Path(__file__).parent / "golden"))
SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


def golden_path(name: str) -> pathlib.Path:
    """The file `name` of the recorded numbers. Raises FileNotFoundError."""
    return (GOLDEN / name).resolve(strict=True)


@functools.cache
def golden(name: str):
    """The recorded numbers of `name`: a dict of arrays for .npz, the parsed document for .json.

    Raises FileNotFoundError.
    """
    path = golden_path(name)
    if path.suffix == ".json":
        return json.loads(path.read_text())
    with np.load(path, allow_pickle=False) as archive:
        seed = os.environ.get(rounding.SEED, "")
        return {key: rounding.move_by_an_ulp(archive[key], seed) for key in archive.files}


def golden_config(name: str) -> dict:
    """The settings that a golden archive was recorded with."""
    arrays = golden(name)
    return json.loads(str(arrays["config_json" if "config_json" in arrays else "config"]))


def shared_path(relative: str) -> pathlib.Path:
    """A file or folder of the optional `shared` folder; skips the test when it is absent."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"needs {relative} of the optional folder 'shared' beside the checkout")
    return path
