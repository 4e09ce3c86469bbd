"""A small model's weights in every form that is read, and ways to damage them."""

from __future__ import annotations

import collections
import json
import pathlib
import pickle
import shutil
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from configs import mdt
from pose_common.training.checkpoints import Checkpoints
from pose_common.training.state import METHOD_STATE, TrainState
from pose_common.weights.folder import save_weights
from pose_common.weights.keys import flatten, unflatten
from posebh_jax import configuration
from posebh_jax.build import make_model
from posebh_jax.method import weight_shapes
from posebh_jax.weights.convert import to_torch
from posebh_jax.weights.manifest import Options, manifest_of
from scripts.reliability import torch_format
from scripts.reliability.torch_format import Global

INPUT_SIZE = (48, 64)
OPTIONS = Options(datasets=("synthetic_coco", "synthetic_ap10k"), num_heads=4, input_size=INPUT_SIZE)
State = dict[str, np.ndarray]


def small_run() -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """(configuration, weights, manifest) of a model with two heads, embedding and prototypes."""
    config = mdt.get_config("demo")
    config.datasets, config.input_size = OPTIONS.datasets, INPUT_SIZE
    config.head_filters, config.embedding_width, config.embedding_dim = (8, 8), 8, 8
    config.num_clusters = 4
    configuration.fill_tables(config)
    model = make_model(config)
    rng = np.random.default_rng(0)
    shapes = weight_shapes(model, INPUT_SIZE, config.prototypes_per_keypoint, config.num_clusters)
    weights = {
        name: rng.standard_normal(value.shape, np.float32)
        if value.dtype == np.float32
        else np.arange(value.size, dtype=value.dtype).reshape(value.shape)
        for name, value in flatten(shapes).items()
    }
    return config, unflatten(weights), manifest_of(model, INPUT_SIZE, "posebh")


def write_checkpoint(folder: pathlib.Path, config: Any, weights: Mapping[str, Any]) -> None:
    """A run's folder with one checkpoint."""
    weights = jax.tree.map(jnp.asarray, dict(weights))
    state = TrainState(
        step=jnp.int32(7),
        params=weights["params"],
        batch_stats=weights["batch_stats"],
        method_state=weights[METHOD_STATE],
        opt_state={"heads": {"mu": weights["params"]["heads"]}},
        rng=jax.random.PRNGKey(0),
    )
    checkpoints = Checkpoints(folder / "checkpoints")
    notes = {"num_clusters": config.num_clusters}
    checkpoints.save(7, state, {"stage": 0, "notes": notes, "data": {}, "config": json.loads(config.to_json())})
    checkpoints.close()


def write_sharded(folder: pathlib.Path, state: State) -> None:
    """Two shards and their index, as the Hugging Face hub has them."""
    folder.mkdir()
    names = sorted(state)
    shards = {f"model-0000{part}-of-00002.safetensors": names[part - 1 :: 2] for part in (1, 2)}
    for file, part in shards.items():
        save_file({name: np.asarray(state[name], order="C") for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


FORMS: dict[str, Callable[[pathlib.Path, State], None]] = {
    "safetensors": lambda path, state: save_file(
        {name: np.asarray(value, order="C") for name, value in state.items()}, path
    ),
    "pth": lambda path, state: torch_format.write_archive(path, {"state_dict": collections.OrderedDict(state)}),
    "pth, legacy": lambda path, state: torch_format.write_legacy(path, {"state_dict": collections.OrderedDict(state)}),
    "shards": write_sharded,
}
SUFFIXES = {"safetensors": ".safetensors", "pth": ".pth", "pth, legacy": ".pth", "shards": ""}


def make_all(folder: pathlib.Path) -> State:
    """Writes undamaged ones of every form, once; the state dict."""
    config, weights, manifest = small_run()
    state = to_torch(weights, manifest)
    if not (folder / "run").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for form, write in FORMS.items():
            write(folder / f"{form.replace(', ', '_')}{SUFFIXES[form]}", state)
        save_weights(folder / "own", weights, manifest)
        write_checkpoint(folder / "run", config, weights)
    return state


# Of a whole state dict: one entry becomes another one.


def change_entry(state: State, kind: str, rng: np.random.Generator) -> str:
    """Damages an entry in place; returns its name."""
    floats = [name for name, value in state.items() if value.dtype == np.float32 and value.size > 1]
    name = floats[rng.integers(len(floats))]
    value = state.pop(name)
    if kind == "renamed":
        state[str(rng.choice([f"{name}x", name.replace(".", "_", 1), f"x.{name}", name.upper()]))] = value
    elif kind == "reshaped":
        others = [value[..., None], np.stack([value] * 2), value.reshape(-1)[:-1], value.reshape(1, -1)[:0]]
        state[name] = others[rng.integers(len(others))]
    elif kind == "other type":
        state[name] = value.astype(np.int64)
    elif kind == "not finite":
        value = value.copy()
        value.reshape(-1)[rng.integers(value.size)] = rng.choice([np.nan, np.inf, -np.inf])
        state[name] = value
    return name


ENTRY_KINDS = ("renamed", "missing", "reshaped", "other type", "not finite")


# Of a file's bytes.


def change_bytes(path: pathlib.Path, kind: str, rng: np.random.Generator) -> None:
    """Damages a file in place."""
    raw = bytearray(path.read_bytes())
    place = int(rng.integers(max(1, len(raw))))
    if rng.random() < 0.4:  # where formats keep what they say of themselves
        place = (
            place % min(4096, max(1, len(raw))) if rng.random() < 0.5 else len(raw) - 1 - place % min(4096, len(raw))
        )
    if kind == "cut":
        raw = raw[:place]
    elif kind == "flipped bit" and raw:
        raw[place] ^= 1 << int(rng.integers(8))
    elif kind == "zeroed" and raw:
        end = min(len(raw), place + int(rng.integers(1, 4096)))
        if not any(raw[place:end]):
            raw[place:end] = b"\xff" * (end - place)
        else:
            raw[place:end] = bytes(end - place)
    elif kind == "longer":
        raw += rng.bytes(int(rng.integers(1, 4096)))
    path.write_bytes(raw)


BYTE_KINDS = ("cut", "flipped bit", "zeroed", "longer")


def change_folder(folder: pathlib.Path, rng: np.random.Generator) -> str:
    """Damages one file of a folder in place, or removes or renames one; says what."""
    # By size: Orbax's names are random. Most files are small metadata; the one with the numbers should have its turn.
    files = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    path = files[-1] if rng.random() < 0.3 else files[rng.integers(len(files))]
    kind = str(rng.choice([*BYTE_KINDS, "removed", "name changed"]))
    if kind == "removed":
        path.unlink()
    elif kind == "name changed":
        path.rename(path.with_name(path.name + "x"))
    else:
        change_bytes(path, kind, rng)
    return f"{kind}: {path.relative_to(folder)}"


# Files made to harm.


def hostile_calls(trap: pathlib.Path) -> list[Global]:
    """Calls that leave a file at `trap` if an unpickler makes them."""
    program = f"open({str(trap)!r}, 'w').close()"
    return [
        Global("os", "system", (f"touch {trap}",)),
        Global("posix", "system", (f"touch {trap}",)),
        Global("builtins", "exec", (program,)),
        Global("builtins", "eval", (program,)),
        Global("subprocess", "check_output", (["touch", str(trap)],)),
        Global("builtins", "open", (str(trap), "w")),
        Global("pathlib", "Path.touch", (Global("pathlib", "Path", (str(trap),)),)),
        Global("runpy", "_run_code", (program, {})),
        Global("torch.serialization", "load", (str(trap),)),
        Global("torch.hub", "load", (str(trap.parent), "model")),
        Global("numpy", "load", (str(trap), None, True)),
        Global("shutil", "rmtree", (str(trap.parent / "undamaged"),)),
    ]


def _nested(opening: bytes, closing: bytes, depth: int) -> bytes:
    return b"\x80\x02" + opening * depth + closing * depth + b"."


def write_hostile(path: pathlib.Path, trap: pathlib.Path, number: int, state: State) -> str:
    """Writes file `number` of those that are made to harm; says what it is."""
    calls = [(f"calls {call.module}.{call.name}", call) for call in hostile_calls(trap)]
    makers = [
        *((f"{name}, archive", torch_format.write_archive, {"state_dict": state, "x": call}) for name, call in calls),
        *((f"{name}, legacy", torch_format.write_legacy, {"x": call, "state_dict": state}) for name, call in calls),
        *((f"{name}, bare", _bare, call) for name, call in calls[:4]),
    ]
    if number < len(makers):
        title, write, content = makers[number]
        write(path, content)
        return title
    others = list(OTHER_HOSTILE.items())
    title, make = others[(number - len(makers)) % len(others)]
    make(path, state)
    return title


def _bare(path: pathlib.Path, content: Any) -> None:
    path.write_bytes(torch_format.bare_pickle(content))


def _zip_bomb(path: pathlib.Path, state: State) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("w/data.pkl", torch_format.bare_pickle({}))
        with archive.open("w/data/0", "w", force_zip64=True) as entry:
            for _ in range(2048):
                entry.write(bytes(1 << 20))


def _pickle_bomb(path: pathlib.Path, state: State) -> None:
    """The pickle itself unpacks to much."""
    torch_format.write_entries(path, {"data.pkl": b"\x80\x02" + b"(lp0\n" * 10 + bytes(1 << 20)}, zipfile.ZIP_DEFLATED)


def _overlapping(path: pathlib.Path, state: State) -> None:
    """Many entries of the directory that mean the same bytes."""
    torch_format.write_entries(path, {"data.pkl": torch_format.bare_pickle({}), "data/0": bytes(1 << 20)})
    raw = path.read_bytes()
    start = raw.index(b"PK\x01\x02")
    end = raw.rindex(b"PK\x05\x06")
    entries = raw[start:end]
    tail = bytearray(raw[end:])
    directory = entries * 1000
    tail[8:12] = (4000 % 65536).to_bytes(2, "little") * 2
    tail[12:16] = len(directory).to_bytes(4, "little")
    path.write_bytes(raw[:start] + directory + tail)


def _claiming_tensor(path: pathlib.Path, state: State) -> None:
    """A tensor of a shape far larger than what is stored."""
    storage = torch_format._Storage("0", "FloatStorage", 1, False)
    tensor = Global("torch._utils", "_rebuild_tensor_v2", (storage, 0, (2**20, 2**20), (0, 0), False, {}))
    entries = {"data.pkl": torch_format.bare_pickle({"a": tensor}), "data/0": bytes(4)}
    torch_format.write_entries(path, entries)


def _claiming_storage(path: pathlib.Path, state: State) -> None:
    """The old form, with a storage that says it has 2^40 numbers."""
    torch_format.write_legacy(path, {"a": np.ones(4, np.float32)})
    raw = path.read_bytes()
    path.write_bytes(raw[:-24] + (2**40).to_bytes(8, "little") + raw[-16:])


def _header(length: int, header: bytes = b"", data: bytes = b"") -> Callable[[pathlib.Path, State], None]:
    def write(path: pathlib.Path, state: State) -> None:
        path.write_bytes((length or len(header)).to_bytes(8, "little") + (header or b"{}") + data)

    return write


def _entry(shape: Any, offsets: Any, dtype: Any = "F32") -> bytes:
    return json.dumps({"odd": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()


def _sparse(path: pathlib.Path, state: State) -> None:
    """As long as it says, 8 GB, but empty."""
    with path.open("wb") as file:
        file.write((2**32 - 1).to_bytes(8, "little") + b"{")
        file.truncate(2**33)


def _sparse_array(path: pathlib.Path, state: State) -> None:
    """One array of 64 MB of zeros, which takes no place on the disk; it is what it says it is."""
    header = _entry([2**24], [0, 2**26])
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2**26)


OTHER_HOSTILE: dict[str, Callable[[pathlib.Path, State], None]] = {
    "zip bomb": _zip_bomb,
    "pickle bomb": _pickle_bomb,
    "overlapping entries": _overlapping,
    "tensor larger than its storage": _claiming_tensor,
    "storage of 2^40 numbers": _claiming_storage,
    **{
        f"header of {length} bytes": _header(length)
        for length in (2**20, 10**8, 10**8 + 1, 2**31, 2**32, 2**40, 2**63, 2**64 - 1)
    },
    "shape beyond memory": _header(0, _entry([2**40], [0, 2**42]), bytes(4)),
    "shape that overflows": _header(0, _entry([2**32, 2**32], [0, 4]), bytes(4)),
    "ten thousand axes": _header(0, _entry([1] * 10_000, [0, 4]), bytes(4)),
    "offsets the wrong way": _header(0, _entry([1], [4, 0]), bytes(4)),
    "offset 2^64": _header(0, _entry([1], [0, 2**64]), bytes(4)),
    "unknown type": _header(0, _entry([1], [0, 4], "F99"), bytes(4)),
    "deep header": _header(0, b'{"a":' + b"[" * 1_000_000),
    "header of text": _header(0, b"{" + b"x" * 100_000),
    "sparse header of 4 GB": _sparse,
    "sparse array of 64 MB": _sparse_array,
    "nested lists": lambda path, state: path.write_bytes(_nested(b"](", b"e", 500_000)),
    "nested tuples": lambda path, state: path.write_bytes(_nested(b"(", b"t", 500_000)),
    "nested lists, archive": lambda path, state: torch_format.write_entries(
        path, {"data.pkl": _nested(b"](", b"e", 500_000)}
    ),
    "memo of 2^31": lambda path, state: path.write_bytes(b"\x80\x02]r\xff\xff\xff\x7f."),
    "bytes of 2^60": lambda path, state: path.write_bytes(b"\x80\x04\x8e" + (2**60).to_bytes(8, "little") + b"x."),
    "text of 2^31": lambda path, state: path.write_bytes(b"\x80\x02X\xff\xff\xff\x7fx."),
    "number of 2^31 bytes": lambda path, state: path.write_bytes(b"\x80\x02\x8b\xff\xff\xff\x7f\x01."),
    "extension code": lambda path, state: path.write_bytes(b"\x80\x02\x82\x01."),
    "persistent id": lambda path, state: path.write_bytes(b"\x80\x02Punknown\n."),
    "instance by INST": lambda path, state: path.write_bytes(b"\x80\x02(S'touch /dev/null'\nios\nsystem\n."),
    "no dictionary": lambda path, state: path.write_bytes(pickle.dumps(7, 2)),
}


def copied(source: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    """A file or folder, copied."""
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)
    return target
