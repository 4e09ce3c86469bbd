"""Files of the safetensors format: there and back, and what is said about damaged ones."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as package

from pose_common.weights.safetensors_files import DTYPES, read_safetensors, write_safetensors
from tests.weight_files import assert_same

STATE = {
    "blocks.0.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "blocks.0.bias": np.linspace(0, 1, 5, dtype=np.float16),
    "norm.num_batches_tracked": np.asarray(7, np.int64),
    "half": np.asarray([1.5, -2.0], ml_dtypes.bfloat16),
}


@pytest.fixture
def path(tmp_path):
    write_safetensors(tmp_path / "weights.safetensors", STATE)
    return tmp_path / "weights.safetensors"


def rewrite_header(path, change) -> None:
    """Rewrites a file with `change` applied to its header."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def test_there_and_back(path):
    assert_same(read_safetensors(path), STATE)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_type_and_layout(tmp_path, dtype):
    values = np.arange(6).reshape(2, 3).astype(dtype)
    state = {
        "plain": values,
        "transposed": values.T,
        "number": values[1, 2],
        "broadcast": np.broadcast_to(values[0], (4, 3)),
        "empty": values[:0],
    }
    state = {name: np.asarray(value) for name, value in state.items()}
    write_safetensors(tmp_path / "w", state)
    assert_same(read_safetensors(tmp_path / "w"), state)


@pytest.mark.parametrize("dtype", [np.complex64, "datetime64[s]", ">f4", object])
def test_other_types_are_not_written(tmp_path, dtype):
    with pytest.raises(ValueError, match="'odd' has type .*, which weights never have"):
        write_safetensors(tmp_path / "w", {"odd": np.zeros(2, dtype)})
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_named(tmp_path):
    with pytest.raises(OSError, match="absent/w cannot be written: .*No such file"):
        write_safetensors(tmp_path / "absent" / "w", {"fine": np.zeros(2, np.float32)})


def test_other_types_are_not_read(tmp_path):
    package.save_file({"fine": np.zeros(2, np.float32), "odd": np.zeros(2, np.uint16)}, tmp_path / "w")
    with pytest.raises(ValueError, match="'odd' has type U16, which weights never have"):
        read_safetensors(tmp_path / "w")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h["half"].update(shape=[3]), "'half': 4 bytes for shape"),
        (lambda h: h["half"].update(dtype="F31"), "'half': the header's entry .* is damaged"),
        (lambda h: h["half"].update(dtype="F8_E4M3", shape=[4]), "'half' has type F8_E4M3"),
        (lambda h: h["half"].update(shape=[-2]), "'half': 4 bytes for shape"),
        (lambda h: h["half"].update(shape=[2**62, 4]), "'half': 4 bytes for shape"),
        (lambda h: h["half"].update(data_offsets=[0, 4]), "(?i)cut or damaged: .*offset"),
        (lambda h: h["half"].pop("dtype"), "'half': the header's entry .* is damaged"),
        (lambda h: h.pop("half"), "cut or damaged"),
        (lambda h: h.update(half=3), "'half': the header's entry 3 is damaged"),
        (lambda h: h.update(__metadata__=[1]), "cut or damaged"),
        (lambda h: h.clear(), "cut or damaged"),
    ],
)
def test_damaged_headers_are_explained(path, change, message):
    rewrite_header(path, change)
    with pytest.raises(ValueError, match=message):
        read_safetensors(path)


def test_a_file_without_arrays_is_refused(tmp_path):
    write_safetensors(tmp_path / "w", {})
    with pytest.raises(ValueError, match="holds no arrays"):
        read_safetensors(tmp_path / "w")


def test_a_name_given_twice_is_refused(tmp_path):
    entry = '{"dtype": "F32", "shape": [], "data_offsets": [0, 4]}'
    text = f'{{"a": {entry}, "a": {entry}}}'.encode()
    path = tmp_path / "twice.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(ValueError, match="names 'a' twice"):
        read_safetensors(path)
