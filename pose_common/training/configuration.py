"""Configurations: read by name, changed on the command line, compared.

A configuration is a `ConfigDict` of plain values (bool, int, float, str and tuples of them), of tables, and of the list
of stages.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pathlib
import re
import runpy
from collections.abc import Callable, Collection, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from ml_collections import ConfigDict

from pose_common.training.checks import ConfigError, leaves, nearest

CHECKOUT = "configs"
PACKAGES = (CHECKOUT, "posebh_jax.configs")
"""Where the project's own configurations are: in a checkout, and as installed."""
FREE = frozenset(
    {
        "mode",
        "checkpoint",
        "data_dir",
        "data_cache",
        "loader_threads",
        "loader_workers",
        "parallel",
        "fsdp",
        "fsdp_min_size",
        "compilation_cache",
        "log_every",
        "checkpoint_every",
        "best_metric",
        "evaluate_every",
        "evaluate_stages",
        "keep_checkpoints",
        "keep_checkpoints_every",
        "pictures",
        "profile_steps",
        "eval_batch_size",
        "eval_dtype",
        "eval_also",
        "remat",
        "tpu_kernels",
    }
)
"""Settings of every method that change neither data order, nor model, nor schedule."""


Override = tuple[str, str]


def read(source: str) -> ConfigDict:
    """The configuration that `source`, `path[:argument]` or `name[:argument]`, stands for.

    Args:
      source: a Python file with `get_config(argument)` and, where those are few, `ARGUMENTS`; `mdt` is the project's
        own configs/mdt.py from any folder.

    Raises:
      ConfigError: no such file, an argument that it does not know, or a file that makes no configuration.
    """
    path, argument = split_source(source)
    module = _module(path)
    known = getattr(module, "ARGUMENTS", ())
    if argument and known and argument not in known:
        raise ConfigError(f"--config={source}: expected one of {', '.join(known)}{nearest(argument, known)}")
    if not hasattr(module, "get_config"):
        raise ConfigError(f"--config={source}: expected a Python file with get_config()")
    try:
        found = module.get_config(argument) if argument else module.get_config()
    except Exception as error:  # a file of the user's can fail in any way
        kind = "" if isinstance(error, (ValueError, KeyError)) else f"{type(error).__name__}: "
        raise ConfigError(f"--config={source}: {kind}{error}") from error
    if not isinstance(found, ConfigDict):
        raise ConfigError(f"--config={source}: get_config() returns a {type(found).__name__}, not a ConfigDict")
    return found


def split_source(source: str) -> tuple[str, str]:
    """(path or name, argument or ""); a folder of the path may have a colon in its name, as `C:` of Windows has."""
    found = re.fullmatch(r"(.*?\.py|[^:]*)(?::(.*))?", source, re.DOTALL)
    return (found[1], found[2] or "") if found else (source, "")


def _module(path: str) -> Any:
    name, file = pathlib.PurePath(path).stem, pathlib.Path(path).expanduser()
    folders = _own_folders()
    package = next(iter(folders.values()), "")
    if file.suffix == ".py" and file.is_file():
        folder = file.resolve().parent
        if folder not in folders:
            try:
                return SimpleNamespace(**runpy.run_path(str(file)))
            except Exception as error:  # a file of the user's can fail in any way
                raise ConfigError(f"--config={path}: {type(error).__name__}: {error}") from error
        package = folders[folder]
    shipped = sorted({found.stem for folder in folders for found in folder.glob("[a-z]*.py")} - {"common"})
    if name in shipped and file.suffix in ("", ".py"):
        return importlib.import_module(f"{package}.{name}")
    if file.exists():
        raise ConfigError(
            f"--config={path}: expected a Python file with get_config(), or one of {', '.join(shipped)}; a run goes on "
            "with its own settings where --workdir is given and --config left out"
        )
    raise ConfigError(
        f"--config={path}: there is no such file; shipped are {', '.join(shipped)}{nearest(name, shipped)}"
    )


def _own_folders() -> dict[pathlib.Path, str]:
    """{folder: package} of the project's configurations; a package `configs` of another project is none."""
    root, found = pathlib.Path(__file__).resolve().parents[2], {}
    for package in PACKAGES:
        try:
            spec = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            continue
        for folder in map(pathlib.Path, (spec and spec.submodule_search_locations) or ()):
            if package != CHECKOUT or folder.resolve() == root / CHECKOUT:
                found.setdefault(folder.resolve(), package)
    return found


def own_files(*names: str) -> list[pathlib.Path]:
    """The project's own configuration files of these names."""
    files = (folder / f"{name}.py" for name in names for folder in _own_folders())
    return [file for file in files if file.is_file()]


def split_arguments(arguments: Sequence[str]) -> tuple[str, list[Override], list[str]]:
    """Command-line arguments -> (the value of --config or "", [(leaf, text)] of --config.<leaf>, all others).

    `--config.remat` alone is true and `--noconfig.remat` false, as absl's flags have it.
    """
    source, overrides, others = "", [], []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        found = re.fullmatch(r"--?(no)?config(?:\.([^=]+))?(?:=(.*))?", argument, re.DOTALL)
        if not found or (found[1] and not found[2]):
            others.append(argument)
            continue
        negated, leaf, text = found.groups()
        if text is None and not negated and waiting and not re.match(r"-(?!\.?\d)", waiting[0]):  # -1 is a value
            text = waiting.pop(0)
        if leaf is None:
            source = text or ""
        else:
            overrides.append((leaf, text if text is not None else str(not negated)))
    return source, overrides, others


def set_leaves(config: ConfigDict, overrides: Sequence[Override]) -> None:
    """Sets leaves from texts, each as a value of the type that it has.

    Raises:
      ConfigError: no such leaf, or a text that is no such value.
    """
    for name, text in overrides:
        holder, key = _place(config, name)
        holder[key] = _value(name, text, holder[key])


def _place(config: ConfigDict, name: str) -> tuple[Any, Any]:
    holder, key = None, None
    here: Any = config
    for part in re.findall(r"[^.\[\]]+|\[\d+\]", name):
        key = int(part[1:-1]) if part[0] == "[" else part
        fits = key < len(here) if isinstance(here, list) and isinstance(key, int) else key in _names(here)
        if not fits:
            known = [leaf for leaf, _ in leaves(config)]
            inside = _names(here)
            expected = (
                f"expected one of {', '.join(inside)}" if here is not config and inside else "there is no such field"
            )
            raise ConfigError(f"--config.{name}: {expected}{nearest(name, known)}")
        holder, here = here, here[key]
    if isinstance(here, (ConfigDict, list)):
        first = next((leaf for leaf, _ in leaves(here, name)), None)
        raise ConfigError(
            f"--config.{name} is a table; set one of its fields" + (f", such as --config.{first}=..." if first else "")
        )
    return holder, key


def _names(table: Any) -> list[str]:
    return list(table) if isinstance(table, ConfigDict) else []


def _value(name: str, text: str, old: Any) -> Any:
    """`text` as a value of the type of `old`."""
    readers: dict[type, tuple[Callable[[str], Any], str]] = {
        bool: (_boolean, "true or false"),
        int: (lambda text: int(text, 0), "a whole number"),
        float: (float, "a number"),
        tuple: (lambda text: _items(text, old), "values separated by commas, or a tuple"),
        str: (str, "a text"),
    }
    reader, expected = readers[type(old)]
    try:
        return reader(text.strip() if type(old) is not str else text)
    except (ValueError, KeyError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ConfigError(f"--config.{name}={text!r}: expected {expected}, such as {old!r}") from None


def _boolean(text: str) -> bool:
    return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]


def _items(text: str, old: tuple) -> tuple:
    """Of a literal such as ('coco', 'mpii') or [1, 2]; or of plain words: coco,mpii. One value makes a tuple of one."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        if re.search(r"[()\[\]'\"]", text):
            raise
        value = tuple(word.strip() for word in text.split(",") if word.strip())
    value = _tuples(value)
    value = value if isinstance(value, tuple) else (value,)
    if old and value and not isinstance(value[0], type(old[0])) and not _both_numbers(value[0], old[0]):
        raise ValueError(text)
    return value


def _both_numbers(*values: Any) -> bool:
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def evaluated(overrides: Sequence[Override]) -> str:
    """The checkpoint that the command line asks to evaluate; "" where it asks for something else."""
    given = dict(overrides)
    return given.get("checkpoint", "") if given.get("mode") == "evaluate" else ""


def completed(saved: Mapping[str, Any], defaults: ConfigDict) -> ConfigDict:
    """A saved configuration; fields that it does not have, because it is older, are those of `defaults`.

    Lists of JSON become tuples again where the default is one. `synthetic`, which is empty where nothing is rendered,
    stays as it was saved.
    """
    config = defaults.copy_and_resolve_references()
    for name, value in saved.items():
        old = config.get(name)
        if isinstance(old, ConfigDict) and isinstance(value, Mapping) and name != "synthetic":
            config[name] = completed(value, old)
            continue
        with config.unlocked(), config.ignore_type():
            config[name] = _like(value, old)
    return config


def _like(value: Any, old: Any) -> Any:
    if isinstance(value, list) and not (value and isinstance(value[0], Mapping)):
        return _tuples(value)
    if isinstance(value, list):
        return [ConfigDict({key: _like(item, None) for key, item in row.items()}) for row in value]
    return float(value) if type(old) is float and type(value) is int else value


def require_same_run(
    saved: Mapping[str, Any], given: ConfigDict, free: Collection[str], accept: bool = False
) -> list[str]:
    """Compares a resumed run's configuration with the one given now.

    Args:
      saved: with the checkpoint. Fields that it does not have, because it is older, count as unchanged.
      given: now. Entries of datasets that are only evaluated, in whatever table, are free.
      free: first parts of the names of settings that change neither data order, nor model, nor schedule.
      accept: whether the others may differ, too.

    Returns:
      The differences.

    Raises:
      ConfigError: differences that are neither free nor accepted; lists them all.
    """
    old, new = (dict(leaves(_plain(config))) for config in (completed(saved, given), given))
    rows = [*saved.get("eval_also", ()), *given.get("eval_also", ())]
    judged = {row[0] for row in rows if row} - set(given.get("datasets", ()))
    noted: list[str] = []
    refused: list[str] = []
    for name in sorted(old.keys() | new.keys()):
        if name in old and name in new and old[name] == new[name]:
            continue
        line = f"config.{name}: {old.get(name, 'absent')!r} -> {new.get(name, 'absent')!r}"
        is_free = re.split(r"[.\[]", name)[0] in free or name.rpartition(".")[2] in judged
        (noted if is_free else refused).append(line)
    if refused and not accept:
        raise ConfigError(
            f"the run was started with other settings: {'; '.join(refused)}. Start another run from its weights, with a"
            " new --workdir and --config.init_from=<its workdir>, or go on with the changed settings by"
            " --accept_changes"
        )
    return noted + refused


def _plain(value: Any) -> Any:
    """As it comes back from JSON, but for tuples, which compare as such."""
    if isinstance(value, (ConfigDict, Mapping)):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        rows = any(isinstance(item, (ConfigDict, Mapping)) for item in value)
        return [_plain(item) for item in value] if rows else tuple(map(_plain, value))
    return value


def shown(config: ConfigDict | Mapping[str, Any]) -> str:
    """One leaf a line, in order, so that two configurations can be compared line by line."""
    return "\n".join(f"{name} = {value!r}" for name, value in leaves(_plain(config)))
