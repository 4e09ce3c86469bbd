"""The notebooks for Colab, run outside of it."""

from __future__ import annotations

import base64
import json
import pathlib
import re
import tomllib

import cv2
import numpy as np
import pytest

from data_pipelines.builders.synthetic import prepare_synthetic
from data_pipelines.synthetic_world.scene import render_scene
from pose_common.weights.embedded import read_embedded
from pose_common.weights.folder import save_weights
from posebh_jax.pose_model import EMBEDDED
from posebh_jax.weights.transfer import single_dataset

pytestmark = pytest.mark.slow  # runs the commands, which compile whole models
ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]["optional-dependencies"]


def executed(name, folder, **settings):
    """The cells by their names after the notebook ran in `folder` with other settings."""
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (the `test` extra)")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(SCRIPTS / name, as_version=4)
    cells = {cell["id"]: cell for cell in notebook.cells}
    cells["settings"].source += "".join(f"\n{key} = {value!r}" for key, value in settings.items())
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return cells


def printed(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


def pictures(cell):
    found = [output["data"]["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]
    return [cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR) for data in found]


@pytest.mark.parametrize("name", ["colab_predict.ipynb", "colab_eval.ipynb"])
def test_what_is_installed_fits_the_runtime(name):
    """The extras exist, and the notebook's own process never opens the accelerator, which is the commands'."""
    notebook = json.loads((SCRIPTS / name).read_text(encoding="utf8"))
    sources = {cell["id"]: "".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"}
    install = sources["install"]
    for kind in (
        r'device = "(\w+)" if importlib.util.find_spec\("libtpu"\)',
        r'else "(\w+)" if os.path.exists\("/dev/nvidia0"\)',
    ):
        (extra,) = re.findall(kind, install)
        assert extra in EXTRAS
    assert set(re.findall(r"or '(\w+)'\},(\w+)\]", install)[0]) <= EXTRAS.keys()
    for source in sources.values():
        opened = re.search(r"^\s*(import jax$|import (posebh|boir)_jax|from pose_common)", source, re.MULTILINE)
        assert not opened or 'jax.config.update("jax_platforms", "cpu")' in source


def test_predict(tmp_path):
    scene = render_scene("crowd", (2026,), 7).image
    cv2.imwrite(str(tmp_path / "own picture.png"), scene[..., ::-1])
    cells = executed("colab_predict.ipynb", tmp_path, WEIGHTS="", PICTURES="own picture.png")
    demo, own, python = cells["demo"], cells["own"], cells["python"]
    assert "rendered figures only" in printed(demo) and len(pictures(demo)) == 2
    assert "1 pictures, 1 poses" in printed(own)
    (drawn,) = pictures(own)
    assert drawn.shape == scene.shape and (drawn != scene[..., ::-1]).any(), "nothing was drawn"
    assert {path.name for path in (tmp_path / "poses").iterdir()} >= {"own picture.png", "poses.csv"}
    assert int(re.search(r"(\d+) people, 17 keypoints", printed(python))[1]) > 0 and len(pictures(python)) == 1


def test_evaluation(tmp_path):
    """Of one dataset's part of the embedded weights, on four rendered pictures."""
    conversion = read_embedded(EMBEDDED)
    save_weights(tmp_path / "weights", *single_dataset(conversion.weights, conversion.manifest, "synthetic_coco"))
    prepare_synthetic(tmp_path / "data", ["synthetic_coco"], num_train=1, num_val=4)
    settings = {"datasets": "synthetic_coco", "fold": "true", "synthetic.num_train": 1, "synthetic.num_val": 4}
    cells = executed(
        "colab_eval.ipynb",
        tmp_path,
        DATA=str(tmp_path / "data"),
        WEIGHTS=str(tmp_path / "weights"),
        CONFIG="mdt:demo",
        SETTINGS=" ".join(f"--config.{name}={value}" for name, value in {**settings, "flip_test": "false"}.items()),
    )
    table = "".join(output.get("data", {}).get("text/markdown", "") for output in cells["table"].outputs)
    assert "| synthetic_coco | val | heads |" in table and pictures(cells["table"])


def test_evaluation_without_data_says_so(tmp_path):
    cells = executed("colab_eval.ipynb", tmp_path, DATA="nowhere", WEIGHTS="none.pth")
    assert printed(cells["drive"]).count("is not there: nothing is evaluated") == 2
    assert not cells["table"].outputs
