"""Files of weights told by their content, and what the training codes put around weights."""

from __future__ import annotations

import argparse
import pathlib
import sys
import types
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest

from pose_common.weights.torch_files import StateFileError, TorchMissing, read_state, write_state

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


def test_safetensors_there_and_back(safetensors_file):
    assert_same(read_state(safetensors_file))
    assert not list(safetensors_file.parent.glob("*.partial"))


def test_the_folder_of_a_file_is_made(tmp_path):
    write_state(tmp_path / "new" / "folder" / "weights.safetensors", STATE)
    assert_same(read_state(tmp_path / "new" / "folder" / "weights.safetensors"))


def test_a_header_whose_length_looks_like_a_pickle(tmp_path):
    """The first byte of a pickle is 0x80, which a header's length may start with too."""
    names = ("x" * n for n in range(200))
    path = tmp_path / "w.safetensors"
    for name in names:
        write_state(path, {name: np.ones(2, np.float32)})
        if path.read_bytes()[0] == 0x80:
            break
    assert list(read_state(path)) == [name]


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff\xe0 a picture", b"<html>404</html>", b"PK", b"{}"])
def test_foreign_files_are_refused(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(StateFileError, match="the file is empty|neither a PyTorch nor a safetensors file"):
        read_state(path)


@pytest.mark.parametrize(
    ("content", "look"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\x89HDF\r\n\x1a\n" + bytes(20), "an HDF5 file"),
        (b"\x1f\x8b\x08" + bytes(20), "a gzip archive"),
        (b'{"weight_map": {}}', "only an index of shards"),
        (b"\x08\x08\x12\x07pytorch" + bytes(40), "an ONNX program"),
        (bytes(40), "it starts with"),
    ],
)
@pytest.mark.parametrize("name", ["weights.pth", "model.safetensors"])
def test_what_a_foreign_file_looks_like_is_said(tmp_path, name, content, look):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(StateFileError, match=f"{name}: .*{look}.*accepted are"):
        read_state(path)


def test_an_archive_that_is_not_pytorchs(tmp_path):
    np.savez(tmp_path / "weights.npz", a=np.ones(3))
    with pytest.raises(StateFileError, match=r"weights\.npz: .*PyTorch did not write it.*a\.npy"):
        read_state(tmp_path / "weights.npz")


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "module.model."])
def test_what_is_before_every_name_is_taken_off(tmp_path, prefix):
    path = tmp_path / "w.safetensors"
    write_state(path, {prefix + name: value for name, value in STATE.items()})
    assert_same(read_state(path))
    write_state(path, {prefix + name: value for name, value in STATE.items()} | {"n_averaged": np.asarray(4)})
    assert set(read_state(path)) == {*STATE, "n_averaged"}


@pytest.mark.parametrize("prefix", ["net.", "module.pose_model.", "model_ema.module.", "base_model.model."])
def test_a_pose_model_in_a_field_of_any_name(tmp_path, prefix):
    state = {name: np.ones(2, np.float32) for name in ("head.a", "backbone.a")}
    write_state(tmp_path / "w.safetensors", {prefix + name: value for name, value in state.items()})
    assert set(read_state(tmp_path / "w.safetensors")) == set(state)


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module._orig_mod."])
def test_a_wrapped_part_of_a_model(tmp_path, wrapper):
    """Compiled, with checkpointed activations, or sharded by itself: PyTorch's wrappers are within names."""
    names = "backbone.{}blocks.0.{}fc.weight", "head.{}a", "backbone.b_orig_mod.c"
    write_state(tmp_path / "w.safetensors", {name.replace("{}", wrapper): np.ones(2, np.float32) for name in names})
    assert set(read_state(tmp_path / "w.safetensors")) == {name.replace("{}", "") for name in names}


def test_of_two_parts_none_is_taken_for_the_other(tmp_path):
    """A model beside the compiled one of the same names."""
    names = {"backbone.a", "backbone._orig_mod.a"}
    write_state(tmp_path / "w.safetensors", {name: np.ones(2, np.float32) for name in names})
    assert set(read_state(tmp_path / "w.safetensors")) == names


def test_what_is_before_some_names_stays(tmp_path):
    for names in (("model.a", "b"), ("backbone.a", "backbone.b"), ("net.a", "net.b")):
        state = {name: np.ones(2, np.float32) for name in names}
        write_state(tmp_path / "w.safetensors", state)
        assert set(read_state(tmp_path / "w.safetensors")) == set(state)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(StateFileError, match="no such file or folder; names of the Hugging Face hub begin with hf://"):
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
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model", "ema", "net"])
def test_files_of_torch_are_read(torch, tmp_path, wrapper, legacy):
    content = {"module." + name: value for name, value in tensors(torch).items()}
    content = {wrapper: content, "meta": {"epoch": 3, "classes": None}, "optimizer": {}} if wrapper else content
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    assert_same(read_state(tmp_path / "w.pth"))


class HistoryBuffer:
    """As MMEngine's logs: arrays, and functions by their names."""

    def __init__(self):
        self._log_history, self.methods = np.arange(3.0), {"mean": self.mean}

    def mean(self):
        return self._log_history.mean()


BESIDE = {
    "NumPy's numbers": {"best_score": np.float64(0.75), "epoch": np.int64(3), "sigmas": np.full(17, 0.1)},
    "MMEngine's logs": {"train/lr": HistoryBuffer()},
    "arguments and paths": argparse.Namespace(lr=0.1, folder=pathlib.Path("work_dirs")),
}


@pytest.mark.torch
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("what", BESIDE)
def test_what_trainers_keep_beside_weights_is_passed_over(torch, tmp_path, monkeypatch, what, legacy):
    module = types.ModuleType("mmengine.logging.history_buffer")
    module.HistoryBuffer = HistoryBuffer
    monkeypatch.setattr(HistoryBuffer, "__module__", module.__name__)
    contents = {"w.pth": {"state_dict": tensors(torch), "beside": BESIDE[what]}, "no_weights.pth": BESIDE[what]}
    with monkeypatch.context() as there:
        for name in ("mmengine", "mmengine.logging", module.__name__):
            there.setitem(sys.modules, name, module)
        for name, content in contents.items():
            torch.save(content, tmp_path / name, _use_new_zipfile_serialization=not legacy)
    elsewhere = torch.serialization.get_safe_globals()
    assert_same(read_state(tmp_path / "w.pth"))
    with pytest.raises(StateFileError, match="no tensor but|no state dict but"):
        read_state(tmp_path / "no_weights.pth")
    assert torch.serialization.get_safe_globals() == elsewhere, "others read no more than before"


@pytest.mark.torch
def test_what_is_refused_is_named(torch, tmp_path):
    torch.save({"state_dict": tensors(torch), "beside": ValueError("x")}, tmp_path / "w.pth")
    with pytest.raises(
        StateFileError, match=r"more than weights \(exceptions\.ValueError\), .* torch.save\(model.state_dict\(\)"
    ) as error:
        read_state(tmp_path / "w.pth")
    assert "\x1b" not in str(error.value)


@pytest.mark.torch
def test_weights_go_before_their_running_means(torch, tmp_path, caplog):
    """Which is said: they may be the worse ones."""
    means = {name: tensor * 0 for name, tensor in tensors(torch).items()}
    saved = {"ema": means, "ema_state_dict": means, "optimizer": {"state": {}}, "state_dict": tensors(torch)}
    torch.save(saved, tmp_path / "w.pth")
    assert_same(read_state(tmp_path / "w.pth"))
    assert "the weights under 'state_dict' are taken, not those under 'ema_state_dict' or 'ema'" in caplog.text
    caplog.clear()
    torch.save({"state_dict_ema": tensors(torch), "epoch": 3}, tmp_path / "w.pth")
    assert_same(read_state(tmp_path / "w.pth"))
    assert not caplog.messages


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
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds no state dict but a list"),
        ({}, "holds no state dict but a dict"),
        ({"a": "text"}, "entry 'a' is no tensor but a str"),
        ({1: 2}, "keys are not names"),
        ({"optimizer": {}, "epoch": 3}, "a dictionary of 'optimizer', 'epoch'; .* looked for under state_dict"),
    ],
)
def test_files_of_torch_without_weights_are_refused(torch, tmp_path, content, message):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(StateFileError, match=message):
        read_state(tmp_path / "w.pth")


@pytest.mark.torch
def test_of_two_models_none_is_taken_for_the_other(torch, tmp_path):
    torch.save({"student": tensors(torch), "teacher": tensors(torch)}, tmp_path / "w.pth")
    with pytest.raises(StateFileError, match="a dictionary of 'student', 'teacher'; .* looked for under state_dict"):
        read_state(tmp_path / "w.pth")


@pytest.mark.torch
def test_a_few_bytes_repeated_are_no_weights(torch, tmp_path):
    torch.save({"a": torch.zeros(1).expand(2**40)}, tmp_path / "w.pth")
    with pytest.raises(StateFileError, match=r"w\.pth: entry 'a' of shape \[1099511627776\] has only 4 bytes"):
        read_state(tmp_path / "w.pth")
