"""One step gives the same numbers on one device, eight, sharded or mapped, and in two processes."""

from __future__ import annotations

import functools
import re

import jax
import pytest

from tests.distribution import check, in_two_processes
from tests.posebh_jax import step_program

pytestmark = pytest.mark.slow  # starts processes that compile whole training steps

# A convolution bias in front of a batch norm has no effect; its gradient is rounding noise.
NO_EFFECT = re.compile(r"gradients/embedding/(neck/conv[12]|conv)/bias")
# Between float32 runs that add in another order: 1e-7 was seen of the forward pass, 5e-5 of gradients that went back
# through every batch norm.
same = functools.partial(check, no_effect=NO_EFFECT, gradients=2e-4, others=2e-6)


@pytest.fixture(scope="module")
def one_device():
    return step_program.run("one")


def test_every_term_is_at_work(one_device):
    for term in step_program.STAGE.losses:
        assert one_device[f"metrics/{term}"] > 1e-3
    assert one_device["metrics/cross_type/pseudo_labels"] > 10
    assert one_device["metrics/prototype/moved"] > 0.01


@pytest.mark.parametrize("layout", ["sharded", "fsdp", "pmap"])
def test_eight_devices(layout, one_device):
    assert jax.device_count() == 8
    same(step_program.run(layout), one_device)


@pytest.mark.parametrize("layout", ["fsdp", "pmap"])
def test_two_processes(layout, one_device, tmp_path):
    same(in_two_processes("tests.posebh_jax.step_program", layout, tmp_path), one_device)
