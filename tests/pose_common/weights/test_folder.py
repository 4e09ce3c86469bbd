from __future__ import annotations

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pose_common.weights.folder import WeightsError, is_weights, load_weights, save_weights
from pose_common.weights.keys import flatten
from scripts import convert_weights

TREE = {
    "params": {"backbone": {"kernel": np.arange(32, dtype=np.float32).reshape(8, 4)}},
    "batch_stats": {"heads": {"a": {"mean": np.ones(3, np.float32)}}},
    "prototypes": {
        "bank": np.zeros((2, 3, 4), np.float32),
        "clusters": {"keypoint": np.arange(3, dtype=np.int32)},
    },
}
MANIFEST = {"family": "test", "datasets": [["a", 3]]}


@pytest.fixture
def folder(tmp_path):
    save_weights(tmp_path / "weights", TREE, MANIFEST)
    return tmp_path / "weights"


def assert_equal(tree):
    assert flatten(tree).keys() == flatten(TREE).keys()
    for name, value in flatten(TREE).items():
        np.testing.assert_array_equal(flatten(tree)[name], value)
        assert flatten(tree)[name].dtype == value.dtype


def test_weights_come_back(folder):
    weights, manifest = load_weights(folder)
    assert manifest == MANIFEST
    assert_equal(weights)


def test_weights_written_from_eight_devices_are_read_without_them(tmp_path):
    mesh = jax.make_mesh((8,), ("data",))
    sharded = jax.device_put(TREE["params"]["backbone"]["kernel"], NamedSharding(mesh, PartitionSpec("data")))
    tree = jax.tree.map(jnp.asarray, TREE)
    tree["params"]["backbone"]["kernel"] = sharded
    save_weights(tmp_path / "weights", tree, MANIFEST)
    weights, _ = load_weights(tmp_path / "weights")
    assert isinstance(weights["params"]["backbone"]["kernel"], np.ndarray)
    assert_equal(weights)


def test_weights_are_not_written_over(folder):
    with pytest.raises(WeightsError, match="holds weights already"):
        save_weights(folder, TREE, MANIFEST)


def test_a_conversion_into_weights_is_refused_before_it_begins(folder, tmp_path, capsys):
    assert convert_weights.main([str(tmp_path / "absent.pth"), f"--to={folder}"]) == 1
    assert "holds weights already" in capsys.readouterr().err


def test_a_folder_is_finished_by_its_manifest(folder):
    (folder / "manifest.json").unlink()
    assert not is_weights(folder)
    with pytest.raises(WeightsError, match="no finished weights"):
        load_weights(folder)
    save_weights(folder, TREE, MANIFEST)  # the interrupted writer's arrays are replaced
    assert_equal(load_weights(folder)[0])


@pytest.mark.parametrize("damage", ["truncated", "removed", "emptied"])
def test_damaged_arrays_never_come_back_half(folder, damage):
    files = [path for path in (folder / "arrays").rglob("*") if path.is_file() and path.parent.name == "d"]
    assert files
    for path in files:
        if damage == "truncated":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        elif damage == "removed":
            path.unlink()
        else:
            path.write_bytes(b"")
    with pytest.raises(WeightsError):
        load_weights(folder)


def test_a_manifest_that_is_not_of_these_arrays_is_refused(folder, tmp_path):
    text = json.loads((folder / "manifest.json").read_text())
    wrong_shape = json.loads(json.dumps(text))
    wrong_shape["arrays"]["batch_stats/heads/a/mean"]["shape"] = [4]
    surplus = json.loads(json.dumps(text))
    surplus["arrays"]["params/new"] = {"shape": [1], "dtype": "float32"}
    lacking = json.loads(json.dumps(text))
    del lacking["arrays"]["params/backbone/kernel"]
    for i, changed in enumerate((wrong_shape, surplus, lacking, {**text, "format": "other"}, {}, [])):
        other = tmp_path / f"changed{i}"
        shutil.copytree(folder, other)
        (other / "manifest.json").write_text(json.dumps(changed))
        with pytest.raises(WeightsError):
            load_weights(other)
    (folder / "manifest.json").write_text('{"format"')
    with pytest.raises(WeightsError, match="is damaged"):
        load_weights(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(tmp_path, value):
    tree = {"params": {"a": np.ones(3, np.float32), "b": np.asarray([1, value], np.float32)}}
    save_weights(tmp_path, tree, MANIFEST)
    with pytest.raises(WeightsError, match="params/b has 1 of 2 entries that are NaN or infinite"):
        load_weights(tmp_path)


def test_a_flipped_bit_is_named_or_harmless(folder, tmp_path):
    """Orbax has no checksums of the numbers; the manifest has."""
    named = 0
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for seed in range(60):
        rng = np.random.default_rng(seed)
        other = tmp_path / f"flipped{seed}"
        shutil.copytree(folder, other)
        path = other / files[seed % len(files)].relative_to(folder)
        raw = bytearray(path.read_bytes())
        raw[rng.integers(len(raw))] ^= 1 << rng.integers(8)
        path.write_bytes(raw)
        try:
            weights, manifest = load_weights(other)
        except WeightsError as error:
            assert str(other) in str(error) and len(str(error)) < 1000
            named += 1
        else:
            assert_equal(weights)
            assert manifest == MANIFEST
    assert named > 15  # of sixty; many bits are of files that merely describe


def test_a_changed_manifest_and_older_ones_without_checksums(folder):
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    content["model"]["datasets"] = [["b", 3]]
    path.write_text(json.dumps(content))
    with pytest.raises(WeightsError, match="has not its checksum"):
        load_weights(folder)
    del content["crc32"]
    for entry in content["arrays"].values():
        del entry["crc32"]
    path.write_text(json.dumps(content))
    weights, manifest = load_weights(folder)
    assert_equal(weights)
    assert manifest["datasets"] == [["b", 3]]
