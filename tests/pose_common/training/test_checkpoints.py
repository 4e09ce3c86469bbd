"""Checkpoints: whole on any layout, refused with a way out where they are damaged."""

from __future__ import annotations

import pathlib
import shutil

import jax
import numpy as np
import pytest

from pose_common.training import parallel
from pose_common.training.checkpoints import INFO, TRAINING, WEIGHTS, Checkpoints, find_checkpoint
from tests.pose_common.training.toy import ToyMethod

pytestmark = pytest.mark.slow  # writes and damages many checkpoints

METHOD = ToyMethod()
SHAPES = METHOD.shapes(METHOD.stages[0], {})
LAYOUTS = {
    "sharded": lambda: parallel.make_strategy("sharded"),
    "fsdp": lambda: parallel.make_strategy("sharded", fsdp=4, fsdp_min_size=1),
    "pmap": lambda: parallel.make_strategy("pmap"),
}


def state_at(step: int, layout: str = "fsdp"):
    strategy = LAYOUTS[layout]()
    state = strategy.to_global(strategy.create(METHOD.init, jax.random.PRNGKey(step)))
    return state.replace(step=state.step + step)


def save(folder, *steps: int, layout: str = "fsdp", **options) -> pathlib.Path:
    checkpoints = Checkpoints(folder, **options)
    for step in steps:
        checkpoints.save(step, state_at(step, layout), {"stage": 0, "data": {"position": step}})
    checkpoints.close()
    return pathlib.Path(folder)


def restore(folder, step: int, layout: str = "sharded"):
    return Checkpoints(folder).restore(step, SHAPES, LAYOUTS[layout]().shardings(SHAPES))


def assert_same(found, expected) -> None:
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(expected))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save(tmp_path_factory.mktemp("saved") / "checkpoints", 1, 2)


@pytest.fixture
def copied(saved, tmp_path):
    return pathlib.Path(shutil.copytree(saved, tmp_path / "checkpoints"))


@pytest.mark.parametrize("written", LAYOUTS)
@pytest.mark.parametrize("read", LAYOUTS)
def test_a_state_comes_back_on_another_layout(tmp_path, written, read):
    folder = save(tmp_path, 3, layout=written)
    state = restore(folder, 3, read)
    assert_same(state, state_at(3))
    shardings = LAYOUTS[read]().shardings(SHAPES)
    jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim) or pytest.fail(f"{x.sharding}"), state, shardings)


def test_weights_and_info_alone(saved):
    checkpoints = Checkpoints(saved)
    weights = checkpoints.read_weights(2)
    assert_same(weights, state_at(2).weights)
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(weights))
    assert checkpoints.read_info(2) == {"stage": 0, "data": {"position": 2}}
    assert (checkpoints.latest_step, checkpoints.directory) == (2, saved)


def test_the_newest_are_kept_and_every_so_many(tmp_path):
    folder = save(tmp_path, *range(1, 8), keep=2, keep_every=3)
    assert sorted(int(child.name) for child in folder.iterdir() if child.name.isdigit()) == [3, 6, 7]


def test_a_step_that_is_there_is_left_alone(copied):
    checkpoints = Checkpoints(copied)
    checkpoints.save(2, state_at(5), {"stage": 9})
    checkpoints.close()
    assert_same(restore(copied, 2), state_at(2))


def test_another_shape_is_refused_with_the_arrays_name(saved):
    shapes = SHAPES.replace(params={**SHAPES.params, "head": {"w": jax.ShapeDtypeStruct((16, 5), np.float32)}})
    misfit = r"params/head/w is \(16, 4\) in the checkpoint, \(16, 5\) here"
    with pytest.raises(ValueError, match=rf"checkpoints/2 does not fit this configuration: {misfit}\.$"):
        Checkpoints(saved).restore(2, shapes, LAYOUTS["sharded"]().shardings(shapes))


def test_another_structure_is_refused_with_the_arrays_names(saved):
    """Here of a later stage, whose optimizer has another group."""
    shapes = METHOD.shapes(METHOD.stages[1], {})
    misfit = r"opt_state/body/count is nothing in the checkpoint, \(\) here"
    with pytest.raises(ValueError, match=rf"checkpoints/2 does not fit this configuration: {misfit}"):
        Checkpoints(saved).restore(2, shapes, LAYOUTS["sharded"]().shardings(shapes))


def damages(folder: pathlib.Path):
    """(the file, its damage) for every file that holds arrays or says which there are."""
    for item in (WEIGHTS, TRAINING):
        for file in sorted((folder / "2" / item).rglob("*")):
            if file.is_file():
                yield file, b""
                yield file, file.read_bytes()[: file.stat().st_size // 2]
                yield file, None


def test_a_missing_or_cut_file_is_an_error_or_harmless(copied):
    """Orbax writes some things twice; what it needs it misses, and the message says from where a run can resume."""
    refused, expected = 0, state_at(2)
    for file, content in list(damages(copied)):
        whole = file.read_bytes()
        file.unlink() if content is None else file.write_bytes(content)
        try:
            state = restore(copied, 2)
        except ValueError as error:
            assert f"{copied / '2'} is damaged: " in str(error)
            assert "Before it there is 1, from which a run resumes once 2 is moved away" in str(error)
            refused += 1
        else:
            assert_same(state, expected)
        file.write_bytes(whole)
    assert refused >= 12
    assert_same(restore(copied, 2), expected)


@pytest.mark.parametrize("item", [WEIGHTS, TRAINING])
def test_a_missing_item_is_named(copied, item):
    shutil.rmtree(copied / "2" / item)
    with pytest.raises(ValueError, match=rf"checkpoints/2 is damaged: [\s\S]*{item}"):
        restore(copied, 2)


@pytest.mark.parametrize("damage", ["missing", "cut", "folder"])
def test_damaged_info_is_refused(copied, damage):
    file = copied / "2" / INFO / "metadata"
    if damage == "folder":
        shutil.rmtree(file.parent)
    elif damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:9])
    with pytest.raises(ValueError, match=r"checkpoints/2 is damaged: [\s\S]*Before it there is 1"):
        Checkpoints(copied).read_info(2)


def test_the_one_before_is_used_once_the_damaged_one_is_moved_away(copied, tmp_path):
    (copied / "2").rename(tmp_path / "2_damaged")
    assert Checkpoints(copied).latest_step == 1
    assert_same(restore(copied, 1), state_at(1))


def test_a_folder_that_was_being_written_is_no_checkpoint(copied):
    (copied / "2").rename(copied / "2.orbax-checkpoint-tmp-7")
    assert Checkpoints(copied).latest_step == 1
    assert find_checkpoint(copied) == (copied, 1)


def test_what_a_path_means(copied):
    for path in (copied.parent, copied, str(copied)):
        assert find_checkpoint(path) == (copied, 2)
    assert find_checkpoint(copied / "1") == (copied, 1)
    for path in (copied / "1" / WEIGHTS, copied / "absent", copied / "1" / INFO / "metadata"):
        assert find_checkpoint(path) is None
