"""One step gives the same numbers on one device, eight, sharded or mapped, and in two processes."""

from __future__ import annotations

import functools
import re

import pytest

from boir_jax.method import TERMS
from tests.boir_jax import step_program
from tests.distribution import check, in_two_processes

pytestmark = pytest.mark.slow  # starts processes that compile whole training steps

# Biases in front of an instance norm have no effect; their gradient is rounding noise.
NO_EFFECT = re.compile(r"gradients/instance_head/(mask|fuse)_bias")
# Between float32 runs that add in another order.
same = functools.partial(check, no_effect=NO_EFFECT, gradients=1e-3, others=1e-5)


@pytest.fixture(scope="module")
def one_process():
    return {layout: step_program.run(layout) for layout in ["one", "fsdp", "pmap"]}


@pytest.mark.slow(minutes=1)
def test_every_term_is_at_work(one_process):
    for term in TERMS:
        assert one_process["one"][f"metrics/{term}"] > 1e-2
    people = step_program.global_batch()["instance_valid"].sum()
    assert one_process["one"]["metrics/people"] == people
    assert one_process["one"]["metrics/people/in_instance_head"] < people, "the cap is at work"


@pytest.mark.parametrize("layout", ["fsdp", "pmap"])
def test_eight_devices(layout, one_process):
    same(one_process[layout], one_process["one"])


def test_two_processes(one_process, tmp_path):
    same(in_two_processes(step_program.__name__, ["sharded"], tmp_path)["sharded"], one_process["one"])
