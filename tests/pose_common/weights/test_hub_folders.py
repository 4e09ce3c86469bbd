"""Folders of weights as the Hugging Face hub lays them out."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pose_common.weights.hub_folders import local_path
from pose_common.weights.torch_files import StateFileError, read_state, write_state
from tests.weight_files import assert_same

STATE = {f"layer.{i}.weight": np.full((2, 3), i, np.float32) for i in range(5)}
INDEX = "model.safetensors.index.json"


def shards(folder, *, count: int = 2, **changes):
    """Writes the state in several files with an index; `changes` replace names' files in the index."""
    folder.mkdir(exist_ok=True)
    places = {}
    for i in range(count):
        file = f"model-{i + 1:05}-of-{count:05}.safetensors"
        part = {name: value for j, (name, value) in enumerate(STATE.items()) if j % count == i}
        write_state(folder / file, part)
        places |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places | changes}))
    return folder


def refused(path) -> str:
    with pytest.raises(StateFileError) as caught:
        read_state(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_folder_means_its_file(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    write_state(tmp_path / "model.safetensors", STATE)
    assert_same(read_state(tmp_path), STATE)
    (tmp_path / "pytorch_model.bin").write_bytes(b"the same weights once more")
    assert_same(read_state(tmp_path), STATE)


def test_addresses_of_the_web_are_named():
    assert local_path("a/b.pth") == "a/b.pth"
    for address in ("http://example.org/b.pth", "https://example.org/b.pth"):
        with pytest.raises(ValueError, match=f"^{address}: download it first, or give hf://owner/name"):
            local_path(address)


def test_a_file_below_ones_home(tmp_path, monkeypatch):
    """A shell leaves the ~ of --config.checkpoint=~/w.safetensors as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    write_state(tmp_path / "w.safetensors", STATE)
    assert_same(read_state(local_path("~/w.safetensors")), STATE)


def test_a_folder_with_one_file_of_any_name(tmp_path):
    write_state(tmp_path / "best.safetensors", STATE)
    assert_same(read_state(tmp_path), STATE)
    write_state(tmp_path / "last.safetensors", STATE)
    assert "name one of them: best.safetensors, last.safetensors" in refused(tmp_path)


def test_a_folder_without_weights(tmp_path):
    (tmp_path / "tf_model.h5").write_bytes(b"x")
    message = refused(tmp_path)
    assert "model.safetensors" in message and "it holds tf_model.h5" in message


def test_the_hubs_cache_of_a_model(tmp_path):
    """The files are links to blobs."""
    snapshot, blobs = tmp_path / "snapshots" / "0a1b", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    write_state(blobs / "w.safetensors", STATE)
    (snapshot / "model.safetensors").symlink_to(blobs / "w.safetensors")
    assert_same(read_state(tmp_path), STATE)


@pytest.mark.parametrize("given", ["folder", "index"])
def test_shards_are_joined(tmp_path, given):
    shards(tmp_path, count=3)
    assert_same(read_state(tmp_path if given == "folder" else tmp_path / INDEX), STATE)


def test_a_lone_shard_is_refused(tmp_path):
    shards(tmp_path)
    assert "one of 2 shards; give their folder" in refused(tmp_path / "model-00001-of-00002.safetensors")
    write_state(tmp_path / "model-00001-of-00001.safetensors", STATE)
    assert_same(read_state(tmp_path / "model-00001-of-00001.safetensors"), STATE)


def test_shards_that_are_missing_are_named(tmp_path):
    shards(tmp_path, count=3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    assert "1 of 3 shards are not beside the index: model-00002-of-00003.safetensors" in refused(tmp_path)


def test_shards_that_are_not_those_of_the_index(tmp_path):
    shards(tmp_path)
    write_state(tmp_path / "model-00002-of-00002.safetensors", {"other": np.zeros(1, np.float32)})
    with pytest.raises(StateFileError, match=r"model-00002-of-00002\.safetensors: not what .*index\.json says of it"):
        read_state(tmp_path)


@pytest.mark.parametrize("file", ["../secret.safetensors", "/etc/passwd", "sub/model.safetensors", "", ".."])
def test_an_index_does_not_leave_its_folder(tmp_path, file):
    shards(tmp_path / "model", **{"layer.0.weight": file})
    write_state(tmp_path / "secret.safetensors", STATE)
    assert "is no file beside it" in refused(tmp_path / "model")


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 3}}', '{"weight_map": ["a"]}', "[" * 200_000],
)
def test_a_damaged_index_is_refused(tmp_path, content):
    (tmp_path / INDEX).write_text(content)
    assert "damaged" in refused(tmp_path)
    assert "damaged" in refused(tmp_path / INDEX)


def test_an_index_that_is_not_there(tmp_path):
    assert "no such file" in refused(tmp_path / INDEX)
