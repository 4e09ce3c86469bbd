from __future__ import annotations

import json
import os
import pickle
import sys
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest

from pose_common.weights.torch_files import StateFileError, TorchMissing, read_state, write_state
from pose_common.weights.zip_integrity import verify_zip

STATE = {
    "blocks.0.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "blocks.0.bias": np.linspace(0, 1, 5, dtype=np.float16),
    "norm.num_batches_tracked": np.asarray(7, np.int64),
    "half": np.asarray([1.5, -2.0], ml_dtypes.bfloat16),
}


def assert_same(state):
    assert state.keys() == STATE.keys()
    for name, value in STATE.items():
        assert state[name].dtype == value.dtype and state[name].shape == value.shape
        np.testing.assert_array_equal(state[name], value)


@pytest.fixture
def safetensors_file(tmp_path):
    path = tmp_path / "weights.safetensors"
    write_state(path, STATE)
    return path


def with_header(path, change) -> None:
    """Rewrites a file with `change` applied to its header."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def test_safetensors_there_and_back(safetensors_file):
    assert_same(read_state(safetensors_file))
    assert not list(safetensors_file.parent.glob("*.partial"))


def test_a_header_whose_length_looks_like_a_pickle(tmp_path):
    """The first byte of a pickle is 0x80, which a header's length may start with too."""
    names = ("x" * n for n in range(200))
    path = tmp_path / "w.safetensors"
    for name in names:
        write_state(path, {name: np.ones(2, np.float32)})
        if path.read_bytes()[0] == 0x80:
            break
    assert list(read_state(path)) == [name]


def test_every_cut_of_a_safetensors_file_is_noticed(safetensors_file):
    raw = safetensors_file.read_bytes()
    for length in range(len(raw)):
        safetensors_file.write_bytes(raw[:length])
        with pytest.raises(StateFileError, match=r"weights\.safetensors: "):
            read_state(safetensors_file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h["half"].update(shape=[3]), "'half': 4 bytes for shape"),
        (lambda h: h["half"].update(dtype="F31"), "'half': unknown type 'F31'"),
        (lambda h: h["half"].update(shape=[-2]), "'half': the header's entry is damaged"),
        (lambda h: h["half"].update(data_offsets=[0, 4]), "starts at byte"),
        (lambda h: h["half"].pop("dtype"), "'half': the header's entry is damaged"),
        (lambda h: h.pop("half"), "cut or damaged"),
        (lambda h: h.update(half=3), "'half': the header's entry is damaged"),
        (lambda h: h.update(__metadata__=[1]), "metadata is damaged"),
        (lambda h: h.clear(), "holds no arrays"),
    ],
)
def test_damaged_safetensors_headers_are_explained(safetensors_file, change, message):
    with_header(safetensors_file, change)
    with pytest.raises(StateFileError, match=message):
        read_state(safetensors_file)


def test_a_name_given_twice_is_refused(tmp_path):
    entry = '{"dtype": "F32", "shape": [], "data_offsets": [0, 4]}'
    text = f'{{"a": {entry}, "a": {entry}}}'.encode()
    path = tmp_path / "twice.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(StateFileError, match="names 'a' twice"):
        read_state(path)


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff\xe0 a picture", b"<html>404</html>", b"PK", b"{}"])
def test_foreign_files_are_refused(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(StateFileError, match="the file is empty|neither a PyTorch nor a safetensors file"):
        read_state(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(StateFileError, match="no such file"):
        read_state(tmp_path / "absent.pth")


def test_other_suffixes_are_not_written(tmp_path):
    with pytest.raises(StateFileError, match=r"written as \.pth, \.pth\.tar, \.safetensors"):
        write_state(tmp_path / "weights.bin", STATE)


def test_without_torch_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    with pytest.raises(TorchMissing, match=r"\[torch\]"):
        read_state(path)
    with pytest.raises(TorchMissing, match=r"\[torch\]"):
        write_state(tmp_path / "new.pth", STATE)
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "archive.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name in ("one", "two"):
            info = zipfile.ZipInfo(name, (2024, 5, 17, 12, 30, 2))
            file.writestr(info, name.encode() * 50)
    return path


def test_a_whole_archive_passes(archive):
    verify_zip(archive)


def test_every_damaged_byte_of_an_archive_is_noticed(archive):
    raw = archive.read_bytes()
    verify_zip(archive)
    for position in range(len(raw)):
        damaged = bytearray(raw)
        damaged[position] ^= 0x15
        archive.write_bytes(damaged)
        with pytest.raises(ValueError, match="archive"):
            verify_zip(archive)


class Malicious:
    """An object whose unpickling creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed (the `torch` extra)")


def tensors(torch, state=STATE):
    return OrderedDict(
        (
            name,
            torch.from_numpy(v) if v.dtype != ml_dtypes.bfloat16 else torch.tensor(v.tolist(), dtype=torch.bfloat16),
        )
        for name, v in state.items()
    )


@pytest.mark.torch
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_files_of_torch_are_read(torch, tmp_path, wrapper, legacy):
    content = {"module." + name: value for name, value in tensors(torch).items()}
    content = {wrapper: content, "meta": {"epoch": 3, "classes": None}, "optimizer": {}} if wrapper else content
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    assert_same(read_state(tmp_path / "w.pth"))


@pytest.mark.torch
def test_torch_reads_what_we_write(torch, tmp_path):
    state = {name: value for name, value in STATE.items() if name != "half"}
    write_state(tmp_path / "w.pth", state)
    loaded = torch.load(tmp_path / "w.pth", weights_only=True)["state_dict"]
    assert loaded.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(loaded[name].numpy(), value)


@pytest.mark.torch
def test_the_safetensors_package_agrees(torch, tmp_path):
    package = pytest.importorskip("safetensors.torch", reason="safetensors is not installed (the `torch` extra)")
    package.save_file(dict(tensors(torch)), tmp_path / "theirs.safetensors")
    assert_same(read_state(tmp_path / "theirs.safetensors"))
    write_state(tmp_path / "ours.safetensors", STATE)
    for name, value in package.load_file(tmp_path / "ours.safetensors").items():
        assert torch.equal(value, tensors(torch)[name])


@pytest.mark.torch
@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_file_does_nothing(torch, tmp_path, legacy):
    trap, path = tmp_path / "trap", tmp_path / "w.pth"
    torch.save(
        {"state_dict": tensors(torch), "meta": Malicious(trap)},
        path,
        _use_new_zipfile_serialization=not legacy,
    )
    with pytest.raises(StateFileError, match="refused: .* could run code"):
        read_state(path)
    path.write_bytes(pickle.dumps(Malicious(trap)))
    with pytest.raises(StateFileError):
        read_state(path)
    assert not trap.exists()


@pytest.mark.torch
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds no state dict but a list"),
        ({}, "holds no state dict but a dict"),
        ({"a": "text"}, "entry 'a' is no tensor but a str"),
        ({1: 2}, "keys are not names"),
    ],
)
def test_files_of_torch_without_weights_are_refused(torch, tmp_path, content, message):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(StateFileError, match=message):
        read_state(tmp_path / "w.pth")


@pytest.mark.torch
def test_every_damaged_byte_of_a_torch_file_is_noticed(torch, tmp_path):
    """Each byte once, in steps through the file: headers, padding, pickle, data, directory."""
    path = tmp_path / "w.pth"
    torch.save({"state_dict": tensors(torch)}, path)
    raw = path.read_bytes()
    for position in range(0, len(raw), 3):
        damaged = bytearray(raw)
        damaged[position] ^= 0x15
        path.write_bytes(damaged)
        with pytest.raises(StateFileError, match=r"w\.pth: "):
            read_state(path)
        path.write_bytes(raw[:position])
        with pytest.raises(StateFileError, match=r"w\.pth: "):
            read_state(path)
