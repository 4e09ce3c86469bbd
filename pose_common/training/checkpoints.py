"""Checkpoints of a run: what inference needs apart from what only training needs.

A step's folder holds three items: `weights` (params, batch_stats, prototypes), `training` (step, opt_state, rng) and
`info` (JSON: position of the data iterator, stage, config). Orbax writes to a temporary folder and renames it, so a
folder that is there was whole. What happened to it later is found out by reading: `info` holds its own checksum and a
fingerprint of every array. An older checkpoint is deleted only after a newer one is there.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from data_pipelines.paths import absolute, as_path, is_remote, writable
from pose_common.training.fingerprints import named_leaves, summarise
from pose_common.training.state import TrainState
from pose_common.weights.folder import read_arrays

WEIGHTS, TRAINING, INFO = "weights", "training", "info"
ARRAYS, CHECKSUM = "arrays", "checksum"
"""Of `info`: [fingerprint, *shape] of every array, and the checksum of all else."""

COMMITTED = "commit_success.txt"
"""What Orbax writes last of a checkpoint in a bucket."""

# Orbax has copies of an array written by slices, one a device, and compiles a program for each slice of each shape.
# That is worth it for large arrays; of smaller ones the first copy is written.
_LARGE = 2**20
"""Bytes of a slice."""

_UNREACHABLE = re.compile(r"\b(UNAVAILABLE|DEADLINE_EXCEEDED|UNAUTHENTICATED|PERMISSION_DENIED)\b")
"""In TensorStore's errors, of a network or of rights: the checkpoint may be whole."""

T = TypeVar("T")


class DamagedCheckpointError(ValueError):
    """A checkpoint that cannot be read as it was written; names the folder and the damage."""


class NonFiniteStateError(ValueError):
    """A state with NaN or infinity, which is not saved.

    Attributes:
      names: the arrays that have one, such as "weights/params/heads/coco/kernel".
    """

    def __init__(self, names: Sequence[str]):
        super().__init__(f"not finite: {', '.join(names)}")
        self.names = tuple(names)


class Checkpoints:
    """The checkpoints of one working directory. Steps are numbered by `TrainState.step`."""

    def __init__(
        self,
        directory: str | pathlib.Path,
        *,
        keep: int = 3,
        keep_every: int | None = None,
        read_only: bool = False,
    ):
        """
        Args:
          directory: made if absent.
          keep: how many of the newest to keep.
          keep_every: also keep every step that is a multiple of this, for ever.
          read_only: changes nothing; otherwise this is the only one that writes here, and what an earlier one left half
            written goes.

        Raises:
          ValueError: a folder to write that is not `paths.writable`.
        """
        # Several of these may be writing at the same time; where there are several processes, they meet by these names.
        processes = ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=pathlib.Path(directory).name)
        if read_only:
            options = ocp.CheckpointManagerOptions(
                read_only=True, create=False, save_interval_steps=0, multiprocessing_options=processes
            )
        else:
            options = ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                keep_period=keep_every,
                create=True,
                cleanup_tmp_directories=True,
                multiprocessing_options=processes,
            )
        arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_LARGE)
        registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
        handler = functools.partial(
            ocp.PyTreeCheckpointHandler, type_handler_registry=registry, multiprocessing_options=processes
        )
        with _without_line("Given directory is read only"):  # Orbax warns of what it was asked for
            self._manager = ocp.CheckpointManager(
                absolute(directory) if read_only else writable(directory),
                item_handlers={WEIGHTS: handler(), TRAINING: handler(), INFO: ocp.JsonCheckpointHandler()},
                options=options,
            )

    @property
    def directory(self) -> pathlib.Path:
        """Where the steps' folders are."""
        return as_path(self._manager.directory)

    @property
    def steps(self) -> tuple[int, ...]:
        """Of all checkpoints, the newest first."""
        return tuple(sorted(self._manager.all_steps(), reverse=True))

    @property
    def latest_step(self) -> int | None:
        """The newest checkpoint, or None."""
        return max(self.steps, default=None)

    def save(self, step: int, state: TrainState, info: dict[str, Any]) -> None:
        """Starts writing; a step that is already there is left alone.

        Raises:
          NonFiniteStateError: nothing is written.
          OSError: the checkpoint before this one could not be written (a full disk, say).
        """
        training = {"step": state.step, "opt_state": state.opt_state, "rng": state.rng}
        self._save(step, {WEIGHTS: state.weights, TRAINING: training}, info)

    def save_weights(self, step: int, weights: dict[str, Any], info: dict[str, Any]) -> None:
        """What inference needs alone; see `save`."""
        self._save(step, {WEIGHTS: weights}, info)

    def _save(self, step: int, trees: dict[str, Any], info: dict[str, Any]) -> None:
        if step in self._manager.all_steps():
            return
        summaries = summarise(trees)
        if bad := [name for name, summary in summaries.items() if not summary.finite]:
            raise NonFiniteStateError(bad)
        arrays = {name: [summary.fingerprint, *summary.shape] for name, summary in summaries.items()}
        info = {**info, ARRAYS: arrays}
        items = {name: ocp.args.PyTreeSave(tree) for name, tree in trees.items()}
        items[INFO] = ocp.args.JsonSave({**info, CHECKSUM: _checksum(info)})
        self._guarded(lambda: self._manager.save(step, args=ocp.args.Composite(**items)))

    def require_written(self) -> None:
        """Raises OSError if writing failed in the meantime; does not wait."""
        self._guarded(self._manager.check_for_errors)

    def close(self) -> None:
        """Waits until everything is on disk; raises OSError where it could not be written."""
        self._guarded(self._manager.close)

    def _guarded(self, write: Callable[[], Any]) -> None:
        try:
            write()
        except Exception as error:  # of Orbax, TensorStore or the file system, in the thread that writes
            there = find_checkpoints(self.directory)
            raise OSError(
                f"a checkpoint could not be written to {self.directory}: {_reason(error)}; the newest that is whole: "
                f"{self.directory / str(there.steps[0]) if there else 'none'}"
            ) from error

    def newest(self, read: Callable[[int], T], steps: Sequence[int] | None = None) -> tuple[int, T] | None:
        """The newest checkpoint that can be read, and what `read` made of it; damaged ones are warned of.

        Args:
          read: step -> anything, by the methods of this object.
          steps: which to try, all by default.

        Returns:
          None where there is no checkpoint at all.

        Raises:
          DamagedCheckpointError: there are some, and none can be read.
        """
        problems = []
        for step in self.steps if steps is None else steps:
            try:
                return step, read(step)
            except DamagedCheckpointError as error:
                logging.warning("%s", error)
                problems.append(str(error))
        if problems:
            tried = "" if len(problems) == 1 else f"none of the {len(problems)} checkpoints can be read: "
            raise DamagedCheckpointError(f"{tried}{'; '.join(problems)}")
        return None

    def set_aside_after(self, step: int) -> None:
        """Renames the (damaged) folders of newer steps to `<step>.damaged`, so that their steps can be saved again."""
        for other in self.steps:
            if other > step and jax.process_index() == 0:
                folder = epath.Path(self._manager.directory) / str(other)
                aside = folder.parent / f"{other}.damaged"
                if aside.exists():
                    aside.rmtree()
                # A bucket renames object by object: without this one, what a kill may leave is no checkpoint.
                (folder / COMMITTED).unlink(missing_ok=True)
                folder.rename(aside)
                logging.warning("%s is kept as %s", folder, aside.name)
        multihost_utils.sync_global_devices("damaged checkpoints set aside")
        self._manager.reload()

    def read_info(self, step: int) -> dict[str, Any]:
        """The `info` that was saved with a step.

        Raises:
          DamagedCheckpointError: it is not there, or damaged.
        """
        return {name: value for name, value in self._info(step).items() if name not in (ARRAYS, CHECKSUM)}

    def restore(self, step: int, shapes: TrainState, shardings: TrainState) -> TrainState:
        """The state saved at `step`, laid out by `shardings`, whatever number of devices wrote it.

        Raises:
          DamagedCheckpointError: files are missing or damaged.
          ValueError: the saved arrays' names or shapes are not those of `shapes`; nothing is restored then.
        """
        abstract = _abstract(shapes, shardings)
        training = {"step": abstract.step, "opt_state": abstract.opt_state, "rng": abstract.rng}
        saved = self._restore(step, {WEIGHTS: abstract.weights, TRAINING: training})
        empty = TrainState(params={}, batch_stats={}, method_state={}, **saved[TRAINING])
        return empty.with_weights(saved[WEIGHTS])

    def read_weights(self, step: int) -> dict[str, Any]:
        """The weights alone, as numpy arrays, in whatever shapes they were saved.

        Raises:
          DamagedCheckpointError: files are missing or damaged.
        """
        folder = self._folder(step) / WEIGHTS
        read = functools.partial(_read_as_saved, folder)
        return self._unchanged(step, {WEIGHTS: self._attempt(step, read)})[WEIGHTS]

    def _restore(self, step: int, items: dict[str, Any]) -> dict[str, Any]:
        arrays = self._info(step).get(ARRAYS)
        if misfits := _misfits(self._stored_shapes(step, items, arrays), items):
            raise ValueError(f"{self._title(step)} does not fit this configuration: {'; '.join(misfits)}.")

        def read() -> dict[str, Any]:
            handler = ocp.StandardCheckpointHandler()
            return {
                name: handler.restore(self._folder(step) / name, args=ocp.args.StandardRestore(item))
                for name, item in items.items()
            }

        return self._unchanged(step, self._attempt(step, read))

    def _unchanged(self, step: int, found: dict[str, Any]) -> dict[str, Any]:
        """The items as they were read, if their arrays have the fingerprints of those that were saved."""
        arrays = self._info(step).get(ARRAYS)
        if arrays is not None:  # checkpoints of earlier versions have no fingerprints
            read = {name: value.fingerprint for name, value in summarise(found).items()}
            saved = {name: value[0] for name, value in arrays.items() if name.split("/")[0] in found}
            changed = sorted(name for name in read.keys() | saved.keys() if read.get(name) != saved.get(name))
            if changed:
                raise self._damaged(step, f"{', '.join(changed[:3])} of {len(arrays)} arrays have other values")
        return found

    def _info(self, step: int) -> dict[str, Any]:
        def read() -> dict[str, Any]:
            info = ocp.JsonCheckpointHandler().restore(self._folder(step) / INFO, args=ocp.args.JsonRestore())
            content = {name: value for name, value in info.items() if name != CHECKSUM}
            if not content or info.get(CHECKSUM, _checksum(content)) != _checksum(content):
                raise ValueError(f"{INFO}/metadata was changed")
            return info

        return self._attempt(step, read)

    def _stored_shapes(
        self, step: int, items: dict[str, Any], arrays: dict[str, list[int]] | None
    ) -> dict[str, tuple[int, ...]] | None:
        """{name: shape} of the saved arrays of `items`; None where it cannot be told."""
        if arrays is not None:
            return {name: tuple(shape) for name, (_, *shape) in arrays.items() if name.split("/")[0] in items}
        try:
            handler, folder = ocp.StandardCheckpointHandler(), self._folder(step)
            trees = {name: handler.metadata(folder / name).tree for name in items}
        except Exception:  # what a damaged file makes Orbax do
            return None
        return {name: tuple(leaf.shape) for name, leaf in named_leaves(trees).items()}

    def _attempt(self, step: int, read: Callable[[], T]) -> T:
        """What `read` returns, in all processes or in none: it must not wait for other processes itself.

        Raises:
          DamagedCheckpointError: it failed in one of them.
          OSError: here, because it could not be reached, which says nothing about it.
        """
        found, problem = None, ""
        try:
            found = read()
        except Exception as error:  # what a damaged file makes Orbax do
            problem = _reason(error)
            if _UNREACHABLE.search(problem) or isinstance(error, (ConnectionError, TimeoutError, PermissionError)):
                raise OSError(f"{self._title(step)} cannot be read now: {problem}") from error
        if jax.process_count() > 1:
            failed = np.flatnonzero(multihost_utils.process_allgather(np.array(bool(problem))))
            if len(failed):
                problem = problem or f"process {failed[0]} cannot read it"
        if problem:
            raise self._damaged(step, problem)
        return found  # type: ignore[return-value]

    def _damaged(self, step: int, damage: str) -> DamagedCheckpointError:
        before = [other for other in self.steps if other < step]
        return DamagedCheckpointError(
            f"{self._title(step)} is damaged: {damage}" + (f". Before it there is {max(before)}" if before else "")
        )

    def _folder(self, step: int) -> epath.Path:
        return epath.Path(self._manager.directory) / str(step)

    def _title(self, step: int) -> str:
        return f"the checkpoint {self.directory / str(step)}"


@contextlib.contextmanager
def _without_line(beginning: str) -> Iterator[None]:
    """Inside its block absl's logger, which is Orbax's, leaves out lines that begin so."""
    logger = logging.getLogger("absl")

    def is_other(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(beginning)

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def _read_as_saved(folder: epath.Path) -> Any:
    return read_arrays(folder, ocp.StandardCheckpointHandler().metadata(folder).tree)


def _reason(error: Exception) -> str:
    """The beginning of an error's text; TensorStore's goes on with the whole specification of the array."""
    text = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    if "RESOURCE_EXHAUSTED" in text or "No space left" in text:
        return "No space left on the device"
    text = " ".join(text.split(" [tensorstore_spec=")[0].split())
    return (text if len(text) <= 300 else f"{text[:300]}...") or type(error).__name__


def _checksum(info: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(info, sort_keys=True).encode())


def _misfits(stored: dict[str, tuple[int, ...]] | None, items: dict[str, Any]) -> list[str]:
    """The first arrays that a checkpoint has otherwise than they are asked for."""
    if stored is None:
        return []
    wanted = {name: tuple(leaf.shape) for name, leaf in named_leaves(items).items()}
    lines = []
    for name in sorted(wanted.keys() | stored.keys()):
        here, there = wanted.get(name, "nothing"), stored.get(name, "nothing")
        if here != there:
            lines.append(f"{name.partition('/')[2]} is {there} in the checkpoint, {here} here")
    return lines[:5] + ["..."] * (len(lines) > 5)


def _abstract(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


class Found(NamedTuple):
    """Checkpoints on disk: their folder, and the steps that a path means, the newest first."""

    directory: pathlib.Path
    steps: tuple[int, ...]


def find_checkpoints(path: str | pathlib.Path) -> Found | None:
    """The checkpoints that `path` means: all of a working directory or of its `checkpoints` folder, the one in its
    `checkpoints/best`, or the one whose folder, or item, it is.

    Returns:
      None where `path` is something else.
    """
    path = as_path(path)
    if path.name in (WEIGHTS, TRAINING, INFO) and _is_step(path.parent):
        path = path.parent
    if _is_step(path):
        return Found(path.parent, (int(path.name),))
    for folder in (path / "checkpoints", path):
        if steps := sorted((int(child.name) for child in folder.glob("*") if _is_step(child)), reverse=True):
            return Found(folder, tuple(steps))
    return None


def _is_step(folder: pathlib.Path) -> bool:
    """Whether it is a step's folder, however damaged."""
    known = folder.parent.name == "checkpoints" or any((folder / item).is_dir() for item in (WEIGHTS, TRAINING, INFO))
    whole = not is_remote(folder) or ocp.utils.is_checkpoint_finalized(folder)  # a bucket cannot rename folders
    return folder.name.isdigit() and folder.is_dir() and known and whole
