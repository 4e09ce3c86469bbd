"""Prints the configuration of a run, one setting a line; of two runs, the settings that differ.

    python -m scripts.show_config workdir/base
    python -m scripts.show_config workdir/base/checkpoints/2000 workdir/huge
    python -m scripts.show_config workdir/base configs/mdt.py:base

Each argument is a working directory, one of its checkpoints, a `config.json`, or what `--config` takes.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from boir_jax import configuration as boir_configuration
from data_pipelines.paths import as_path
from pose_common.console import outlive_console
from pose_common.training import configuration, restore
from posebh_jax import configuration as posebh_configuration

METHODS = posebh_configuration.METHODS + boir_configuration.METHODS


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status: 1 for an error, or where two configurations differ."""
    outlive_console()
    parser = argparse.ArgumentParser(
        "python -m scripts.show_config", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="a working directory, a checkpoint, a config.json, or what --config takes")
    parser.add_argument("other", nargs="?", help="what to compare it with")
    args = parser.parse_args(argv)
    try:
        found = [_lines(source) for source in (args.source, args.other) if source]
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if len(found) == 1:
        print("\n".join(f"{name} = {value}" for name, value in found[0].items()))
        return 0
    first, second = found
    different = [name for name in sorted(first | second) if first.get(name) != second.get(name)]
    for name in different:
        print(f"{name}: {first.get(name, '(absent)')} -> {second.get(name, '(absent)')}")
    if not different:
        print(f"the same {len(first)} settings")
    return int(bool(different))


def _lines(source: str) -> dict[str, str]:
    return dict(line.split(" = ", 1) for line in configuration.shown(_configuration(source)).splitlines())


def _configuration(source: str) -> Mapping[str, Any]:
    path = as_path(source)
    if path.suffix == ".json" and path.is_file():
        return _recorded(path)
    run = restore.find_run(path)
    if run:
        return run.config
    if path.is_dir():
        if (path / "config.json").is_file():
            return _recorded(path / "config.json")
        raise ValueError(f"{path} is neither a working directory nor a checkpoint")
    return configuration.read(source)


def _recorded(path: pathlib.Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf8"))
    except ValueError as error:
        raise ValueError(f"{path} is no configuration: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no configuration: {type(found).__name__} where its settings would be")
    return found


if __name__ == "__main__":
    sys.exit(main())
