"""Plans: how states and batches go to devices and come back."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pose_common.training import parallel
from pose_common.training.mesh import make_mesh
from tests.pose_common.training.toy import ToyMethod

DEVICES = 8
PLANS = {
    "sharded": lambda: parallel.make_strategy("sharded"),
    "fsdp": lambda: parallel.make_strategy("sharded", fsdp=4, fsdp_min_size=1),
    "pmap": lambda: parallel.make_strategy("pmap"),
}
every_plan = pytest.mark.parametrize("strategy", PLANS)


def create(strategy):
    return strategy.create(ToyMethod().init, jax.random.PRNGKey(0))


def batch(rows: int = 16) -> dict[str, np.ndarray]:
    return {"image": np.arange(rows * 3, dtype=np.float32).reshape(rows, 3), "index": np.arange(rows)}


def assert_same(found, expected) -> None:
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(expected))


def test_fsdp_splits_parameters_and_moments():
    state = create(PLANS["fsdp"]())
    weight, moment = state.params["head"]["w"], state.opt_state["head"].mu["w"]
    assert weight.addressable_shards[0].data.size == moment.addressable_shards[0].data.size == weight.size // 4
    assert state.method_state["bank"].is_fully_replicated


@every_plan
def test_a_state_is_the_same_numbers_on_any_layout(strategy):
    strategy = PLANS[strategy]()
    expected = ToyMethod().init(jax.random.PRNGKey(0))
    state = create(strategy)
    assert_same(strategy.to_global(state), expected)
    assert_same(strategy.to_global(strategy.from_global(strategy.to_global(state))), expected)


@every_plan
def test_a_global_state_lies_where_its_shardings_say(strategy):
    strategy = PLANS[strategy]()
    state = strategy.to_global(create(strategy))
    shardings = strategy.shardings(jax.eval_shape(lambda: state))
    assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), state, shardings))


@every_plan
def test_a_change_of_structure(strategy):
    """As a new stage makes it: groups of the optimizer come and go."""
    strategy = PLANS[strategy]()
    method = ToyMethod()
    change, _ = method.enter_stage(None, method.stages[1])
    changed = strategy.to_global(strategy.transform(change, create(strategy)))
    assert set(changed.opt_state) == {"body", "head"}
    assert_same(changed.params, method.init(jax.random.PRNGKey(0)).params)


@every_plan
def test_a_step_sees_every_row_once(strategy):
    strategy = PLANS[strategy]()

    def step(state, batch, axis_name):
        total = batch["index"].sum()
        total = total if axis_name is None else jax.lax.psum(total, axis_name)
        return jax.tree.map(lambda x: x + 1, state), {"total": total}

    state = strategy.create(lambda: {"params": jnp.zeros((8, 4))})
    state, metrics = strategy.compile(step, state)(state, strategy.put(batch()))
    assert int(metrics["total"]) == sum(range(16))
    assert_same(strategy.to_global(state), {"params": np.ones((8, 4))})


@every_plan
def test_rows_keep_their_order(strategy):
    put = PLANS[strategy]().put(batch())
    for name, rows in batch().items():
        np.testing.assert_array_equal(np.asarray(put[name]).reshape(rows.shape), rows)


@every_plan
@pytest.mark.parametrize("rows", [1, 7, 12, 17])
def test_a_batch_that_does_not_divide_is_refused(strategy, rows):
    match = f"{rows} rows of 'image' do not divide over {DEVICES} devices; config.batch_size"
    with pytest.raises(ValueError, match=match):
        PLANS[strategy]().put(batch(rows))


def test_rows_for_some_of_the_devices():
    one = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), make_mesh().axis_names)
    assert parallel.put_rows(batch(7), one)["index"].tolist() == list(range(7))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ddp",), "config.parallel='ddp': expected 'sharded' or 'pmap'"),
        (("pmap", 2), "set config.fsdp=1 or use 'sharded'"),
        (("sharded", 3), "config.fsdp=3 does not divide"),
    ],
)
def test_plans_that_there_are_not(arguments, message):
    with pytest.raises(ValueError, match=message):
        parallel.make_strategy(*arguments)
