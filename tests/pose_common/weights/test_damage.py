"""Damaged and hostile files of weights: an error that names the file, no code of theirs run, memory bounded."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Mapping

import numpy as np
import pytest

from boir_jax.weights.convert import read_weights as boir_weights
from pose_common.weights.folder import WeightsError, load_weights
from pose_common.weights.keys import ConversionError, Rule, to_flax
from pose_common.weights.torch_files import StateFileError, TorchMissing, read_state, write_state
from posebh_jax.weights.convert import read_weights as posebh_weights
from tests.weight_files import DAMAGES, assert_same, damage

STATE = {
    "blocks.0.weight": np.arange(1, 13, dtype=np.float32).reshape(3, 4),
    "blocks.0.bias": np.linspace(1, 2, 5, dtype=np.float32),
    "norm.scale": np.asarray([7], np.float32),
}
RULES = [Rule(name, f"params/{name}") for name in STATE]
TARGETS = {f"params/{name}": value for name, value in STATE.items()}
SEEDS = range(200)


@pytest.fixture
def path(tmp_path):
    write_state(tmp_path / "weights.safetensors", STATE)
    return tmp_path / "weights.safetensors"


def refused(path) -> str:
    """The message with which a file or folder is refused."""
    with pytest.raises(StateFileError) as caught:
        read_state(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def convert(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return to_flax(dict(state), RULES, TARGETS).tree


def header_length(raw: bytes) -> int:
    return 8 + int.from_bytes(raw[:8], "little")


def with_header(path: pathlib.Path, header: bytes, data: bytes = b"") -> pathlib.Path:
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def test_every_cut_is_noticed(path):
    raw = path.read_bytes()
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        refused(path)


def test_appended_bytes_are_noticed(path):
    path.write_bytes(path.read_bytes() + b"\0")
    refused(path)


def test_flipped_bits_of_a_header_are_refused_or_harmless(path):
    """What they can still do, a renamed entry, is refused by its name when the weights are converted."""
    raw = path.read_bytes()
    outcomes = {"read": 0, "converted": 0, "harmless": 0}
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        flipped = bytearray(raw)
        flipped[rng.integers(header_length(raw))] ^= 1 << rng.integers(8)
        path.write_bytes(flipped)
        try:
            state = read_state(path)
        except StateFileError as error:
            assert str(path) in str(error)
            outcomes["read"] += 1
            continue
        try:
            tree = convert(state)
        except ConversionError as error:
            assert any(name in str(error) for name in set(STATE) - set(state))
            outcomes["converted"] += 1
        else:
            assert_same(tree, TARGETS)
            outcomes["harmless"] += 1
    assert outcomes["read"] > outcomes["converted"] > 0, outcomes


def test_flipped_bits_of_numbers_change_one_number_or_are_named(path):
    """The format has no checksum: what is no number any more is noticed, the others are one entry's."""
    raw = path.read_bytes()
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        flipped = bytearray(raw)
        flipped[rng.integers(header_length(raw), len(raw))] ^= 1 << rng.integers(8)
        path.write_bytes(flipped)
        state = read_state(path)
        odd = [name for name, value in state.items() if not np.isfinite(value).all()]
        if odd:
            with pytest.raises(ConversionError, match=f"{odd[0]} has 1 of"):
                convert(state)
        else:
            assert sum(int((state[name] != value).sum()) for name, value in STATE.items()) == 1


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_entry_is_named(path, kind):
    for seed in range(20):
        state = dict(STATE)
        name = damage(state, kind, np.random.default_rng(seed))
        write_state(path, state)
        with pytest.raises(ConversionError, match=name):
            convert(read_state(path))


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.uint8, np.bool_])
def test_an_entry_of_another_type_is_named(path, dtype):
    write_state(path, STATE | {"blocks.0.bias": STATE["blocks.0.bias"].astype(dtype)})
    with pytest.raises(ConversionError, match=f"blocks.0.bias has type {np.dtype(dtype)}, expected a floating one"):
        convert(read_state(path))


@pytest.mark.parametrize("length", [2**26, 10**8 + 1, 2**31, 2**32 + 5, 2**40, 2**63, 2**64 - 1])
def test_absurd_lengths_of_a_header_are_said(path, length):
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    assert f"a header of {length} bytes in a file of" in refused(path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]},
        {"dtype": "F32", "shape": [2**32, 2**32], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1] * 10_000 + [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**64]},
        {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": {"a": 1}, "data_offsets": "04"},
        {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]},
        [],
        None,
    ],
)
def test_absurd_entries_are_refused(path, entry):
    header = json.dumps({"odd": entry}).encode()
    message = refused(with_header(path, header, bytes(4)))
    assert len(message) < 1000 and "'odd'" in message


def test_more_axes_than_arrays_have(path):
    header = json.dumps({"odd": {"dtype": "F32", "shape": [1] * 100, "data_offsets": [0, 4]}}).encode()
    refused(with_header(path, header, bytes(4)))


@pytest.mark.parametrize("opening", [b'{"a":', b"["])
def test_deep_nesting_is_refused(path, tmp_path, opening):
    refused(with_header(path, b'{"a":' + opening * 300_000))
    hub, own = tmp_path / "hub", tmp_path / "own"
    hub.mkdir()
    (hub / "model.safetensors.index.json").write_bytes(opening * 300_000)
    refused(hub)
    own.mkdir()
    (own / "manifest.json").write_bytes(opening * 300_000)
    with pytest.raises(WeightsError, match="manifest.json is damaged"):
        load_weights(own)


@pytest.mark.parametrize(
    "change",
    [
        {"arrays": []},
        {"arrays": {"params/a": 3}},
        {"arrays": {"params/a": {"shape": "ab", "dtype": "float32"}}},
        {"arrays": {"params/a": {"shape": [-1], "dtype": "float32"}}},
        {"arrays": {"params/a": {"shape": [1], "dtype": "float31"}}},
        {"model": "text"},
        {"format": ["posebh"]},
    ],
)
def test_damaged_manifests_are_refused(tmp_path, change):
    content = {"format": "posebh-boir-jax weights 1", "model": {}, "arrays": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(content | change))
    with pytest.raises(WeightsError, match=str(tmp_path)):
        load_weights(tmp_path)


def zip_bomb(path: pathlib.Path, megabytes: int) -> pathlib.Path:
    """An archive that looks like PyTorch's and unpacks to a thousand times its size."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("w/data.pkl", b"x")
        with archive.open("w/data/0", "w") as entry:
            for _ in range(megabytes):
                entry.write(bytes(1 << 20))
    return path


def test_memory_stays_bounded(tmp_path):
    """Files that claim, or unpack to, far more than the reader may take: 64 MB beyond what its imports take."""
    absurd = {"odd": {"dtype": "F32", "shape": [2**33], "data_offsets": [0, 2**35]}}
    paths = [
        zip_bomb(tmp_path / "bomb.pth", 300),
        with_header(tmp_path / "claims.safetensors", json.dumps(absurd).encode(), bytes(4)),
        with_header(tmp_path / "deep.safetensors", b'{"a":' + b"[" * 2_000_000),
    ]
    sparse = tmp_path / "sparse.safetensors"  # as long as it says, but empty
    with sparse.open("wb") as file:
        file.write((2**32 - 1).to_bytes(8, "little") + b"{")
        file.truncate(2**33)
    program = (
        "import resource, sys\n"
        "from pose_common.weights.torch_files import StateFileError, read_state\n"
        "pages = int(open('/proc/self/statm').read().split()[5])\n"  # of data; maps of files take none
        "limit = pages * resource.getpagesize() + 2**26\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        read_state(path)\n"
        "    except StateFileError as error:\n"
        "        print(path in str(error))\n"
    )
    command = [sys.executable, "-c", program, *map(str, [*paths, sparse])]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OPENBLAS_NUM_THREADS": "1"})
    assert done.stdout.split() == ["True"] * 4, done.stderr


class Hostile:
    """An object whose unpickling creates a file."""

    def __init__(self, trap: pathlib.Path):
        self.trap = trap

    def __reduce__(self):
        return os.system, (f"touch {self.trap}",)


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("packed", [False, True], ids=["bare", "archive"])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "pytorch_model.bin", "deep/w.pth.tar"])
def test_code_in_a_pickle_is_not_run(tmp_path, name, packed, protocol):
    trap, path = tmp_path / "trap", tmp_path / "given" / name
    path.parent.mkdir(parents=True)
    content = pickle.dumps({"state_dict": Hostile(trap)}, protocol)
    if packed:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("w/data.pkl", content)
            archive.writestr("w/version", b"3\n")
    else:
        path.write_bytes(content)
    for given in (path, path.parent):
        with pytest.raises((StateFileError, TorchMissing)):  # the latter before the pickle is touched
            read_state(given)
    assert not trap.exists()


def test_without_torch_the_commands_name_the_file(tmp_path, monkeypatch, capsys):
    from posebh_jax import predict

    monkeypatch.setitem(sys.modules, "torch", None)  # importing it fails
    path = tmp_path / "w.pth"
    path.write_bytes(pickle.dumps({"a": 1}, 2))
    picture = tmp_path / "picture.jpg"
    picture.touch()  # it has to be there; it is read after the weights
    assert predict.main([str(picture), f"--checkpoint={path}", f"--out={tmp_path / 'out'}"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}: .pth files need PyTorch")


def test_weights_that_do_not_fit_name_their_file(path):
    write_state(path, STATE | {"backbone.patch_embed.proj.weight": np.ones((4, 3, 16, 16), np.float32)})
    for read in (posebh_weights, boir_weights):
        with pytest.raises(ConversionError, match=str(path)):
            read(path)


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed (the `torch` extra)")


class Fetched:
    """A function that unpickling fetches by `getattr`, which is among what trainers keep beside weights."""

    def __reduce__(self):
        return getattr, (argparse.Namespace, "mro")

    def __call__(self):
        raise AssertionError("never called")


class Called:
    def __reduce__(self):
        return Fetched(), ()


@pytest.mark.torch
@pytest.mark.parametrize("legacy", [False, True])
def test_what_is_fetched_is_not_called(torch, tmp_path, legacy):
    path = tmp_path / "w.pth"
    torch.save({"state_dict": {"a": torch.ones(2)}, "meta": Called()}, path, _use_new_zipfile_serialization=not legacy)
    assert "unrecognized function" in refused(path)


@pytest.mark.torch
@pytest.mark.parametrize("legacy", [False, True])
def test_a_hostile_file_of_torch_does_nothing(torch, tmp_path, legacy):
    trap, path = tmp_path / "trap", tmp_path / "w.pth"
    saved = {"state_dict": {"a": torch.ones(2)}, "meta": Hostile(trap)}
    torch.save(saved, path, _use_new_zipfile_serialization=not legacy)
    assert "could run code" in refused(path)
    path.write_bytes(pickle.dumps(Hostile(trap)))
    refused(path)
    assert not trap.exists()


@pytest.mark.torch
def test_damage_of_a_torch_file_is_refused_or_harmless(torch, tmp_path):
    """In steps through the file: headers, padding, pickle, data, directory."""
    path = tmp_path / "w.pth"
    write_state(path, STATE)
    raw, harmless = path.read_bytes(), 0
    for position in range(0, len(raw), 3):
        path.write_bytes(raw[:position])
        refused(path)
        damaged = bytearray(raw)
        damaged[position] ^= 0x15
        path.write_bytes(damaged)
        try:
            state = read_state(path)
        except StateFileError as error:
            assert str(path) in str(error)
        else:
            assert_same(state, STATE)
            harmless += 1
    assert harmless < len(raw) / 3 * 0.6  # dates and padding, which are much of so small a file
