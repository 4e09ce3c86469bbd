"""Checkpoints of a run: what inference needs apart from what only training needs.

A step's folder holds three items: `weights` (params, batch_stats, prototypes), `training` (step, opt_state, rng) and
`info` (JSON: position of the data iterator, stage, config). Orbax writes to a temporary folder and renames it, so a
folder that is there is whole.
"""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from pose_common.training.state import TrainState
from pose_common.weights.folder import read_arrays

WEIGHTS, TRAINING, INFO = "weights", "training", "info"


class Checkpoints:
    """The checkpoints of one working directory. Steps are numbered by `TrainState.step`."""

    def __init__(self, directory: str | pathlib.Path, *, keep: int = 3, keep_every: int | None = None):
        """
        Args:
          directory: made if absent.
          keep: how many of the newest to keep.
          keep_every: also keep every step that is a multiple of this, for ever.
        """
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, keep_period=keep_every, create=True)
        self._manager = ocp.CheckpointManager(
            epath.Path(directory).absolute(), item_names=(WEIGHTS, TRAINING, INFO), options=options
        )

    @property
    def directory(self) -> pathlib.Path:
        """Where the steps' folders are."""
        return pathlib.Path(self._manager.directory)

    @property
    def latest_step(self) -> int | None:
        """The newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, info: dict[str, Any]) -> None:
        """Starts writing; a step that is already there is left alone."""
        if step in self._manager.all_steps():
            return
        training = {"step": state.step, "opt_state": state.opt_state, "rng": state.rng}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                **{
                    WEIGHTS: ocp.args.StandardSave(state.weights),
                    TRAINING: ocp.args.StandardSave(training),
                    INFO: ocp.args.JsonSave(info),
                }
            ),
        )

    def read_info(self, step: int) -> dict[str, Any]:
        """The `info` that was saved with a step.

        Raises:
          ValueError: it is not there, or damaged.
        """
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**{INFO: ocp.args.JsonRestore()}))[INFO]
        except (ValueError, KeyError, OSError) as error:
            raise ValueError(f"{self._title(step)} is damaged: {error}.{self._way_out(step)}") from error

    def restore(self, step: int, shapes: TrainState, shardings: TrainState) -> TrainState:
        """The state saved at `step`, laid out by `shardings`, whatever number of devices wrote it.

        Raises:
          ValueError: files are missing or damaged, or the saved arrays' names or shapes are not those of `shapes`;
            nothing is restored then.
        """
        abstract = _abstract(shapes, shardings)
        training = {"step": abstract.step, "opt_state": abstract.opt_state, "rng": abstract.rng}
        saved = self._restore(step, {WEIGHTS: abstract.weights, TRAINING: training})
        empty = TrainState(params={}, batch_stats={}, method_state={}, **saved[TRAINING])
        return empty.with_weights(saved[WEIGHTS])

    def read_weights(self, step: int) -> dict[str, Any]:
        """The weights alone, as numpy arrays, in whatever shapes they were saved.

        Raises:
          ValueError: files are missing or damaged.
        """
        folder = self._manager.directory / str(step) / WEIGHTS
        try:
            return read_arrays(folder, ocp.StandardCheckpointHandler().metadata(folder).tree)
        except Exception as error:  # what a damaged file makes Orbax do
            raise ValueError(f"{self._title(step)} is damaged: {error}.{self._way_out(step)}") from error

    def _restore(self, step: int, items: dict[str, Any]) -> dict[str, Any]:
        arguments = {name: ocp.args.StandardRestore(item) for name, item in items.items()}
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**arguments))
        except (ValueError, KeyError, TypeError, OSError) as error:
            misfits = self._misfits(step, items)
            if misfits:
                problem = f"does not fit this configuration: {'; '.join(misfits)}."
            else:
                problem = f"is damaged: {error}.{self._way_out(step)}"
            raise ValueError(f"{self._title(step)} {problem}") from error

    def _misfits(self, step: int, items: dict[str, Any]) -> list[str]:
        """The first arrays that a checkpoint has otherwise than they are asked for; none where it cannot be told."""
        try:
            handler, folder = ocp.StandardCheckpointHandler(), self._manager.directory / str(step)
            stored = {name: _named_shapes(handler.metadata(folder / name).tree) for name in items}
        except Exception:  # what a damaged file makes Orbax do
            return []
        lines = []
        for item, tree in items.items():
            wanted = _named_shapes(tree)
            for name in sorted(wanted.keys() | stored[item].keys()):
                here, there = wanted.get(name, "nothing"), stored[item].get(name, "nothing")
                if here != there:
                    lines.append(f"{name} is {there} in the checkpoint, {here} here")
        return lines[:5] + ["..."] * (len(lines) > 5)

    def _title(self, step: int) -> str:
        return f"the checkpoint {self.directory / str(step)}"

    def _way_out(self, step: int) -> str:
        """What else there is to go on from."""
        before = [other for other in self._manager.all_steps() if other < step]
        return (
            f" Before it there is {max(before)}, from which a run resumes once {step} is moved away." if before else ""
        )

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def _named_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """{"params/head/kernel": shape} of a tree whose leaves have shapes."""

    def part(key: Any) -> str:
        return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))

    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda leaf: hasattr(leaf, "shape"))
    return {"/".join(map(part, path)): tuple(leaf.shape) for path, leaf in leaves}


def _abstract(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def find_checkpoint(path: str | pathlib.Path) -> tuple[pathlib.Path, int] | None:
    """The checkpoint that `path` means: a working directory (its newest), its `checkpoints` folder, or one step's
    folder.

    Returns:
      (folder of the checkpoints, step), or None where `path` is something else.
    """
    path = pathlib.Path(path)
    if path.name.isdigit() and (path / WEIGHTS).is_dir():
        return path.parent, int(path.name)
    for folder in (path / "checkpoints", path):
        steps = [int(child.name) for child in folder.glob("*") if child.name.isdigit() and (child / WEIGHTS).is_dir()]
        if steps:
            return folder, max(steps)
    return None
