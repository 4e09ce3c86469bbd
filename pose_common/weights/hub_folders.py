"""Folders of weights as the Hugging Face hub lays them out, and which files they mean.

A folder has `model.safetensors` or `pytorch_model.bin`, with `config.json` beside it. Large weights are in several
files, the shards; an index, {"weight_map": {name: file}}, says what is where.
"""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

from data_pipelines.paths import as_path

INDEX = ".index.json"
HUB_NAMES = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")
"""In the order in which they are taken where a folder has several."""
OTHER_SUFFIXES = (".safetensors", ".pth", ".pth.tar", ".pt", ".bin", ".ckpt")
HUB = "hf://"
"""Before owner/name of a repository of the hub."""
MAX_JSON = 100_000_000
"""Bytes of an index or a config; published ones have some thousands."""


def local_path(source: str | pathlib.Path) -> str:
    """`source` (~ is one's home), or the folder into which the files of hf://owner/name of the Hugging Face hub were
    brought.

    Raises:
      ValueError: an empty name, an address of the web, what reads a bucket or the hub is not installed, or there is no
        such repository within reach.
    """
    text = str(source)
    if not text:
        raise ValueError("weights: the name is empty; give a run, a checkpoint, a folder or file of weights")
    if text.startswith(("http://", "https://")):
        raise ValueError(f"{text}: download it first, or give {HUB}owner/name for weights of the Hugging Face hub")
    if not text.startswith(HUB):
        return str(as_path(text))
    try:
        import huggingface_hub
    except ImportError as error:
        raise ValueError(f"{text}: weights of the hub need huggingface_hub: pip install huggingface_hub") from error
    name = text[len(HUB) :]
    try:
        return huggingface_hub.snapshot_download(name, allow_patterns=["*.json", "*.safetensors"])
    except Exception as error:  # of the hub, the network or the disk
        raise ValueError(f"{text}: not in the cache, and could not be downloaded: {error}") from error


def find_weights(path: pathlib.Path) -> pathlib.Path:
    """The file of weights, or the index of shards, that a path means; a file means itself.

    Raises:
      ValueError: a folder without weights, or with several files of weights of other names.
    """
    if not path.is_dir():
        return path
    snapshots = [child for child in path.glob("snapshots/*") if child.is_dir()]  # the hub's cache of one model
    folder = snapshots[0] if len(snapshots) == 1 else path
    known = [folder / name for name in HUB_NAMES if (folder / name).is_file()]
    others = sorted(child for child in folder.iterdir() if child.name.endswith(OTHER_SUFFIXES) and child.is_file())
    if known:
        return known[0]
    if len(others) == 1:
        return others[0]
    if others:
        raise ValueError(f"a folder with several files of weights; name one of them: {_listed(others)}")
    raise ValueError(
        f"a folder without weights: neither a finished folder of this project nor one with any of "
        f"{', '.join(HUB_NAMES)}; it holds {_listed(sorted(folder.iterdir())) or 'nothing'}"
    )


def read_index(path: pathlib.Path) -> dict[pathlib.Path, list[str]]:
    """Shard -> names of its arrays.

    Raises:
      ValueError: a damaged index, one that leaves its folder, or shards that are not there.
    """
    content = read_json(path)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(file, str) for file in places.values()):
        raise ValueError('the index is damaged: it has no {"weight_map": {name: file}}')
    shards: dict[pathlib.Path, list[str]] = {}
    for name, file in places.items():
        if file in ("", ".", "..") or pathlib.PurePath(file).name != file:
            raise ValueError(f"the index names {file!r}, which is no file beside it")
        shards.setdefault(path.with_name(file), []).append(name)
    absent = sorted(shard for shard in shards if not shard.is_file())
    if absent:
        raise ValueError(f"{len(absent)} of {len(shards)} shards are not beside the index: {_listed(absent)}")
    return shards


def refuse_lone_shard(path: pathlib.Path) -> None:
    """Raises ValueError where a file is one of several shards by its name."""
    match = re.search(r"-(\d{5})-of-(\d{5})\.\w+$", path.name)
    if match and int(match[2]) > 1:
        raise ValueError(
            f"one of {int(match[2])} shards; give their folder, or the index beside them (its name ends in {INDEX})"
        )


def read_json(path: pathlib.Path) -> Any:
    """The content of a JSON file.

    Raises:
      ValueError: it is none, or absurdly long or deep.
    """
    if path.stat().st_size > MAX_JSON:
        raise ValueError(f"{path.stat().st_size} bytes are no index or config")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the JSON is damaged ({error})") from error


def _listed(paths: list[pathlib.Path], most: int = 6) -> str:
    return ", ".join([path.name for path in paths[:most]] + ["..."] * (len(paths) > most))
