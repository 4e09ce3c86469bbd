from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from pose_common.weights.keys import (
    CONV,
    DECONV,
    LINEAR,
    ConversionError,
    Rule,
    expected_sources,
    require_fit,
    to_flax,
    to_torch,
)

RULES = [
    Rule("stem.weight", "params/stem/kernel", CONV),
    Rule("blocks.{layer}.fc.weight", "params/blocks/fc/kernel", LINEAR, ("layer",)),
    Rule("blocks.{layer}.experts.{expert}.bias", "params/blocks/experts/bias", None, ("layer", "expert")),
    Rule("rest.{block+1}.up.weight", "params/rest/kernel", DECONV, ("block",)),
    *(Rule(f"attention.{n}.weight", "params/qkv/kernel", LINEAR, part=(i, 3)) for i, n in enumerate("qkv")),
    Rule("norm.running_mean", "batch_stats/norm/mean"),
    Rule("norm.running_var", "batch_stats/norm/var"),
    Rule("shortcut.weight", "params/shortcut/kernel", CONV),
]
SHAPES = {
    "params/stem/kernel": (5, 4, 3, 2),
    "params/blocks/fc/kernel": (3, 4, 6),
    "params/blocks/experts/bias": (3, 2, 7),
    "params/rest/kernel": (2, 4, 4, 3, 5),
    "params/qkv/kernel": (4, 12),
    "batch_stats/norm/mean": (5,),
    "batch_stats/norm/var": (5,),
}
SOURCE_SHAPES = {
    "stem.weight": (2, 3, 5, 4),
    **{f"blocks.{i}.fc.weight": (6, 4) for i in range(3)},
    **{f"blocks.{i}.experts.{e}.bias": (7,) for i in range(3) for e in range(2)},
    **{f"rest.{i}.up.weight": (3, 5, 4, 4) for i in (1, 2)},
    **{f"attention.{n}.weight": (4, 4) for n in "qkv"},
    "norm.running_mean": (5,),
    "norm.running_var": (5,),
}
TARGETS = {path: np.zeros(shape, np.float32) for path, shape in SHAPES.items()}


@pytest.fixture
def state() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SOURCE_SHAPES.items()}


def problems_of(state, **options) -> str:
    with pytest.raises(ConversionError) as caught:
        to_flax(state, RULES, TARGETS, **options)
    return "\n".join(caught.value.problems)


def test_entries_land_where_the_table_says(state):
    tree = to_flax(dict(state), RULES, TARGETS).tree
    assert {path: value.shape for path, value in tree.items()} == SHAPES
    np.testing.assert_array_equal(tree["params/stem/kernel"][1, 2, 0], state["stem.weight"][:, 0, 1, 2])
    np.testing.assert_array_equal(tree["params/blocks/fc/kernel"][2], state["blocks.2.fc.weight"].T)
    np.testing.assert_array_equal(tree["params/blocks/experts/bias"][1, 0], state["blocks.1.experts.0.bias"])
    np.testing.assert_array_equal(tree["params/rest/kernel"][0, 1, 3, 2], state["rest.1.up.weight"][2, :, 1, 3])
    np.testing.assert_array_equal(tree["params/qkv/kernel"][:, 4:8], state["attention.k.weight"].T)


def test_there_and_back_is_the_identity(state):
    back = to_torch(to_flax(dict(state), RULES, TARGETS).tree, RULES)
    assert back.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(back[name], value)


def test_the_source_is_emptied_as_it_is_used(state):
    """So that both copies of large weights never exist together."""
    to_flax(state, RULES, TARGETS)
    assert not state


def test_a_rule_without_target_expects_nothing():
    assert "shortcut.weight" not in expected_sources(RULES, TARGETS)
    assert set(expected_sources(RULES, TARGETS)) == set(SOURCE_SHAPES)


def test_a_table_that_uses_a_name_twice_is_refused():
    with pytest.raises(ValueError, match="twice"):
        expected_sources([Rule("a", "x"), Rule("a", "y")], {"x": np.zeros(1), "y": np.zeros(1)})


def test_all_problems_come_together_with_shapes(state):
    del state["blocks.1.fc.weight"]
    state["rest.2.up.weight"] = state["rest.2.up.weight"].reshape(5, 3, 4, 4)
    state["surprise"] = np.zeros((2, 3), np.float32)
    state["norm.running_mean"] = np.zeros(5, np.int64)
    state["norm.running_var"] = np.zeros(5, np.bool_)
    assert problems_of(state).splitlines() == [
        "unexpected surprise [2, 3]",
        "missing blocks.1.fc.weight [6, 4]",
        "rest.2.up.weight has shape [5, 3, 4, 4], expected [3, 5, 4, 4]",
        "norm.running_mean has type int64, expected a floating one",
        "norm.running_var has type bool, expected a floating one",
    ]


def test_a_failure_leaves_the_source_alone(state):
    state["surprise"] = np.zeros(1, np.float32)
    before = dict(state)
    problems_of(state)
    assert state.keys() == before.keys()


def test_what_is_dropped_or_fresh_is_listed(state):
    del state["stem.weight"]
    state["optimizer.step"] = np.zeros((), np.int64)
    converted = to_flax(state, RULES, TARGETS, dropped=[r"optimizer\..*"], initialised=[r"params/stem/.*"])
    assert converted.dropped == ("optimizer.step",)
    assert converted.initialised == ("params/stem/kernel",)
    assert "params/stem/kernel" not in converted.tree


def test_half_of_a_stacked_target_is_not_fresh(state):
    del state["blocks.1.fc.weight"]
    assert problems_of(state, initialised=[r"params/blocks/.*"]) == "missing blocks.1.fc.weight [6, 4]"


def test_targets_that_no_rule_fills_are_reported(state):
    targets = TARGETS | {"params/forgotten": np.zeros((2, 2))}
    with pytest.raises(ConversionError, match=r"no rule fills params/forgotten \[2, 2\]"):
        to_flax(state, RULES, targets)


def test_back_without_a_name_is_reported():
    with pytest.raises(ConversionError, match=r"params/forgotten \[2\]"):
        to_torch(TARGETS | {"params/forgotten": np.zeros(2)}, RULES)


def test_numbers_that_are_not_finite_are_named(state):
    state["blocks.2.fc.weight"][0, 0] = np.nan
    state["norm.running_var"][:2] = np.inf
    assert problems_of(state).splitlines() == [
        "blocks.2.fc.weight has 1 of 24 entries that are NaN or infinite",
        "norm.running_var has 2 of 5 entries that are NaN or infinite",
    ]


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_floating_types_become_float32(state, dtype):
    other = {name: value.astype(dtype) for name, value in state.items()}
    tree = to_flax(dict(other), RULES, TARGETS).tree
    assert all(value.dtype == np.float32 for value in tree.values())
    np.testing.assert_array_equal(tree["params/qkv/kernel"][:, :4], other["attention.q.weight"].T.astype(np.float32))


def test_mixed_precision_becomes_float32(state):
    """As trainers save that keep norms in float32."""
    mixed = {name: value if "norm" in name else value.astype(np.float16) for name, value in state.items()}
    tree = to_flax(dict(mixed), RULES, TARGETS).tree
    rounded = to_flax({name: value.astype(np.float32) for name, value in mixed.items()}, RULES, TARGETS).tree
    for path, value in tree.items():
        np.testing.assert_array_equal(value, rounded[path], strict=True)


def test_batch_counters_are_all_there_or_none(state):
    dropped = [r".*\.num_batches_tracked"]
    state["norm.num_batches_tracked"] = np.zeros((3,), np.int64)
    assert problems_of(dict(state), dropped=dropped) == "norm.num_batches_tracked is int64 [3], expected one integer"
    state["norm.num_batches_tracked"] = np.zeros((), np.int64)
    assert to_flax(state, RULES, TARGETS, dropped=dropped).dropped == ("norm.num_batches_tracked",)


def test_trees_that_differ_are_told_apart():
    require_fit(TARGETS, TARGETS)
    other = {**TARGETS, "params/new": np.zeros(2), "batch_stats/norm/var": np.zeros(6)}
    del other["params/stem/kernel"]
    with pytest.raises(ConversionError) as caught:
        require_fit(other, TARGETS)
    assert caught.value.problems == (
        "missing params/stem/kernel [5, 4, 3, 2]",
        "unexpected params/new [2]",
        "batch_stats/norm/var has shape [6], expected [5]",
    )
