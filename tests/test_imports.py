"""What packages import, as docs/architecture.md has it, and that importing them changes nothing for other code."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "data_pipelines": (),
    "pose_common": ("data_pipelines",),
    "posebh_jax": ("data_pipelines", "pose_common"),
    "boir_jax": ("data_pipelines", "pose_common"),
}
INSTALLED = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]["scripts"]
ON_REQUEST = {("posebh_jax/boxes.py", "boir_jax")}
"""The other method where its model is asked for: BoIR finds people for PoseBH."""


def imported(file: pathlib.Path) -> set[str]:
    """The packages of this project that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return {name.split(".")[0] for name in names} & {*MAY_IMPORT, "configs", "scripts", "tests"}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_what_it_may(package):
    files = [(path, path.relative_to(ROOT).as_posix()) for path in (ROOT / package).rglob("*.py")]
    found = {(file, name) for path, file in files for name in imported(path) - {package, *MAY_IMPORT[package]}}
    assert found <= ON_REQUEST


@pytest.mark.parametrize(("command", "entry"), INSTALLED.items())
def test_an_installed_command_imports_what_is_installed(command, entry):
    """A wheel has `scripts` and `configs` inside of `posebh_jax` (setup.py): modules there are imported relatively."""
    module = entry.split(":")[0].removeprefix("posebh_jax.scripts.")
    folder = ROOT / "scripts" if "posebh_jax.scripts." in entry else ROOT
    assert not imported(folder / f"{module.replace('.', '/')}.py") & {"configs", "scripts", "tests"}


def test_importing_leaves_logging_as_it_was():
    """Libraries share absl's logger: a program that uses these packages still reads all of its lines."""
    modules = (
        "posebh_jax.main",
        "boir_jax.main",
        "posebh_jax.predict",
        "data_pipelines.builders",
        "scripts.prepare_data",
    )
    program = f"import {', '.join(modules)}, logging; print(logging.getLogger('absl').filters, logging.root.level)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] 30"
