"""One step gives the same numbers on one device, eight, sharded or mapped, and in two processes."""

from __future__ import annotations

import functools
import re

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
def one_process():
    return {layout: step_program.run(layout) for layout in ["one", "sharded", "fsdp", "pmap"]}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    return in_two_processes(step_program.__name__, ["fsdp", "pmap"], tmp_path_factory.mktemp("two"))


@pytest.mark.slow(minutes=1)
def test_every_term_is_at_work(one_process):
    for term in step_program.STAGE.losses:
        assert one_process["one"][f"metrics/{term}"] > 1e-3
    assert one_process["one"]["metrics/cross_type/pseudo_labels"] > 10
    assert one_process["one"]["metrics/prototype/moved"] > 0.01


@pytest.mark.parametrize("layout", ["sharded", "fsdp", "pmap"])
def test_eight_devices(layout, one_process):
    same(one_process[layout], one_process["one"])


@pytest.mark.parametrize("layout", ["fsdp", "pmap"])
def test_two_processes(layout, two_processes, one_process):
    same(two_processes[layout], one_process["one"])
