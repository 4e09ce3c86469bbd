"""One step gives the same numbers on one device, eight, sharded or mapped, and in two processes."""

from __future__ import annotations

import os
import pathlib
import re
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.posebh_jax import step_program

ROOT = pathlib.Path(__file__).resolve().parents[2]
# A convolution bias in front of a batch norm has no effect; its gradient is rounding noise.
NO_EFFECT = re.compile(r"gradients/embedding/(neck/conv[12]|conv)/bias")


@pytest.fixture(scope="module")
def one_device():
    return step_program.run("one")


def check(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if NO_EFFECT.fullmatch(name):
            continue
        # Relative to the largest entry, between float32 runs that add in another order: 1e-7 was seen of the forward
        # pass, 5e-5 of gradients that went back through every batch norm.
        tolerance = (2e-4 if name.startswith("gradients") else 2e-6) * np.abs(value).max() + 3e-8
        np.testing.assert_allclose(found[name], value, rtol=0, atol=tolerance, err_msg=name)


def test_every_term_is_at_work(one_device):
    for term in step_program.STAGE.losses:
        assert one_device[f"metrics/{term}"] > 1e-3
    assert one_device["metrics/cross_type/pseudo_labels"] > 10
    assert one_device["metrics/prototype/moved"] > 0.01


@pytest.mark.parametrize("layout", ["sharded", "fsdp", "pmap"])
def test_eight_devices(layout, one_device):
    assert jax.device_count() == 8
    check(step_program.run(layout), one_device)


@pytest.mark.parametrize("layout", ["fsdp", "pmap"])
def test_two_processes(layout, one_device, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_COMPILATION_CACHE_DIR": "",
    }
    programs = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.posebh_jax.step_program", layout, tmp_path / "out.npz", coordinator, "2", str(i)],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    outputs = [program.communicate(timeout=600)[0] for program in programs]
    assert [program.returncode for program in programs] == [0, 0], "\n".join(outputs)
    with np.load(tmp_path / "out.npz") as found:
        check(dict(found), one_device)
