"""Checkpoints: whole on any layout; a damaged one is known as such, and the one before it is used."""

from __future__ import annotations

import pathlib
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from pose_common.training import fingerprints, parallel
from pose_common.training.checkpoints import (
    INFO,
    TRAINING,
    WEIGHTS,
    Checkpoints,
    DamagedCheckpointError,
    NonFiniteStateError,
    find_checkpoints,
)
from pose_common.training.fingerprints import summarise
from pose_common.training.mesh import make_mesh, replicated
from tests.distribution import in_two_processes
from tests.pose_common.training import fingerprint_program
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


def test_small_arrays_are_saved_without_a_program_for_every_slice(tmp_path, caplog):
    """Which took longer to compile than the first checkpoint to write, the more so the more devices have a copy."""
    weights = {"params": {"w": np.ones((24, 7), np.float32)}}  # a shape that nothing else has
    weights = jax.device_put(weights, replicated(make_mesh()))
    checkpoints = Checkpoints(tmp_path)
    with jax.log_compiles():
        checkpoints.save_weights(1, weights, {})
        checkpoints.close()
    assert "jit(slice)" not in caplog.text
    assert_same(Checkpoints(tmp_path).read_weights(1), weights)


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
    rng = np.random.default_rng(0)
    for item in (WEIGHTS, TRAINING, INFO):
        for file in sorted((folder / "2" / item).rglob("*")):
            if file.is_file():
                whole = file.read_bytes()
                flipped = np.frombuffer(whole, np.uint8).copy()
                flipped[rng.integers(len(flipped), size=2)] ^= rng.integers(1, 256, 2, dtype=np.uint8)
                yield from ((file, content) for content in (None, b"", whole[: len(whole) // 2], flipped.tobytes()))


def test_a_missing_a_cut_and_a_changed_file_are_an_error_or_harmless(copied):
    """Orbax writes some things twice; what it needs it misses, and values that were not saved are not taken."""
    refused, expected = 0, state_at(2)
    for file, content in list(damages(copied)):
        whole = file.read_bytes()
        file.unlink() if content is None else file.write_bytes(content)
        try:
            state = restore(copied, 2)
        except DamagedCheckpointError as error:
            assert f"{copied / '2'} is damaged: " in str(error) and str(error).endswith(". Before it there is 1")
            assert "\n" not in str(error) and len(str(error)) < 600
            refused += 1
        else:
            assert_same(state, expected)
        file.write_bytes(whole)
    assert refused >= 25
    assert_same(restore(copied, 2), expected)


def test_every_changed_value_shows_in_the_fingerprint():
    """Of any type, at any place, of any sign, on any layout."""
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.int32, np.uint32, jax.numpy.bfloat16, np.uint8, bool):
        whole = rng.integers(0, 2 if dtype is bool else 100, (8, 3, 5)).astype(dtype)
        names = {"whole": jax.numpy.asarray(whole), "again": jax.numpy.asarray(whole.copy())}
        names["swapped"] = names["whole"][::-1]
        for place in ((0, 0, 0), (7, 2, 4), (3, 1, 2)):
            changed = whole.copy()
            changed[place] = not changed[place] if dtype is bool else changed[place] + changed.dtype.type(1)
            names[str(place)] = jax.numpy.asarray(changed)
        found = {name: value.fingerprint for name, value in summarise(names).items()}
        assert found.pop("again") == found["whole"]
        assert len(set(found.values())) == len(found), dtype
    signs = np.ones(10, np.float32)
    signs[[2, 7]] = -1
    one, other = summarise({"one": jax.numpy.ones(10), "other": jax.numpy.asarray(signs)}).values()
    assert one.fingerprint != other.fingerprint
    layouts = [state_at(3, layout) for layout in LAYOUTS]
    assert summarise(layouts[0]) == summarise(layouts[1]) == summarise(layouts[2])
    for array in (names["whole"], jax.numpy.float32(-3), *jax.tree.leaves(layouts[0].params)):
        on_device, on_host = fingerprints._compiled_summary(array), fingerprints._summarise(np.asarray(array), np)
        assert [int(value) for value in on_device] == [int(value) for value in on_host]


def test_fingerprints_of_arrays_that_processes_share(tmp_path):
    """So many at once that CPUs would wait for each other for ever, were they not made one after the other."""
    found = in_two_processes(fingerprint_program.__name__, ["fsdp"], tmp_path)["fsdp"]
    expected = {name: each.fingerprint for name, each in fingerprint_program.on_host().items()}
    assert len(expected) == fingerprint_program.COUNT and found == expected


def test_changed_bytes_that_the_format_does_not_notice_are_noticed(tmp_path):
    """Large arrays are stored without a checksum: most of their bytes can be changed and still be read."""
    weights = {"params": {"w": jax.random.normal(jax.random.PRNGKey(0), (128, 256))}}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_weights(1, weights, {"stage": 0})
    checkpoints.close()
    file = max((tmp_path / "1" / WEIGHTS).rglob("*"), key=lambda path: path.stat().st_size)
    whole = file.read_bytes()
    said = set()
    for place in range(1000, len(whole), len(whole) // 12):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DamagedCheckpointError) as refused:
            Checkpoints(tmp_path).read_weights(1)
        said.add(str(refused.value).partition("is damaged: ")[2])
    assert "weights/params/w of 1 arrays have other values" in said


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_saved(copied, value):
    state = state_at(3)
    state = state.replace(params={**state.params, "head": {"w": state.params["head"]["w"].at[3, 1].set(value)}})
    checkpoints = Checkpoints(copied)
    with pytest.raises(NonFiniteStateError, match="weights/params/head/w") as refused:
        checkpoints.save(3, state, {"stage": 0})
    assert refused.value.names == ("weights/params/head/w",)
    checkpoints.close()
    assert Checkpoints(copied).steps == (2, 1)


def test_the_newest_that_can_be_read_is_used_with_a_warning(copied, caplog):
    (copied / "2" / WEIGHTS / "manifest.ocdbt").write_bytes(b"")
    checkpoints = Checkpoints(copied, read_only=True)
    shardings = LAYOUTS["sharded"]().shardings(SHAPES)
    step, state = checkpoints.newest(lambda step: checkpoints.restore(step, SHAPES, shardings))
    assert step == 1 and f"{copied / '2'} is damaged: " in caplog.text
    assert_same(state, state_at(1))
    (copied / "1" / INFO / "metadata").unlink()
    with pytest.raises(DamagedCheckpointError, match=r"none of the 2 .*/2 is damaged: .*/1 is damaged: ") as error:
        checkpoints.newest(lambda step: checkpoints.restore(step, SHAPES, shardings))
    assert "\n" not in str(error.value)
    assert Checkpoints(copied, read_only=True).steps == (2, 1), "reading changes nothing"


@pytest.mark.parametrize(
    "error", [ValueError("UNAVAILABLE: CURL error Could not resolve host"), PermissionError(13, "no rights")]
)
def test_what_cannot_be_reached_is_not_called_damaged(copied, error, monkeypatch):
    """A run would set it aside, and go on from an older one."""

    def fail(*_, **__):
        raise error

    checkpoints = Checkpoints(copied)
    monkeypatch.setattr(ocp.JsonCheckpointHandler, "restore", fail)
    with pytest.raises(OSError, match=r"checkpoints/2 cannot be read now: .*(resolve host|no rights)"):
        checkpoints.newest(checkpoints.read_info)


def test_a_damaged_one_is_set_aside_and_its_step_saved_again(copied):
    for _ in range(2):
        checkpoints = Checkpoints(copied)
        checkpoints.set_aside_after(1)
        assert checkpoints.steps == (1,) and (copied / "2.damaged" / WEIGHTS).is_dir()
        checkpoints.save(2, state_at(5), {"stage": 9})
        checkpoints.close()
    assert Checkpoints(copied).read_info(2) == {"stage": 9}
    assert find_checkpoints(copied) == (copied, (2, 1))


@pytest.mark.parametrize("item", [WEIGHTS, TRAINING])
def test_a_missing_item_is_named(copied, item):
    shutil.rmtree(copied / "2" / item)
    with pytest.raises(ValueError, match=rf"checkpoints/2 is damaged: .*{item}"):
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
    with pytest.raises(ValueError, match=r"checkpoints/2 is damaged: .*Before it there is 1"):
        Checkpoints(copied).read_info(2)


def test_a_folder_that_was_being_written_is_no_checkpoint(copied):
    (copied / "2").rename(copied / "2.orbax-checkpoint-tmp-7")
    checkpoints = Checkpoints(copied)
    assert checkpoints.latest_step == 1
    assert find_checkpoints(copied) == (copied, (1,))
    checkpoints.save(3, state_at(3), {})
    checkpoints.close()
    assert not (copied / "2.orbax-checkpoint-tmp-7").exists(), "who writes here clears it away"


def test_what_a_path_means(copied):
    for path in (copied.parent, copied, str(copied)):
        assert find_checkpoints(path) == (copied, (2, 1))
    for path in (copied / "1", copied / "1" / WEIGHTS, copied / "1" / INFO):
        assert find_checkpoints(path) == (copied, (1,))
    for path in (copied / "absent", copied.parent / WEIGHTS, copied / "1" / INFO / "metadata"):
        assert find_checkpoints(path) is None
    best = Checkpoints(copied / "best", keep=1)
    for step in (1, 2):
        best.save_weights(step, state_at(step).weights, {"stage": 0})
    best.close()
    assert find_checkpoints(copied / "best") == (copied / "best", (2,))
    assert find_checkpoints(copied) == (copied, (2, 1)) and Checkpoints(copied).steps == (2, 1)
    shutil.rmtree(copied / "2" / WEIGHTS)
    assert find_checkpoints(copied.parent) == (copied, (2, 1)), "damaged, but there"


def test_reading_is_no_warning(tmp_path, caplog):
    assert not Checkpoints(tmp_path, read_only=True).steps and not caplog.text
