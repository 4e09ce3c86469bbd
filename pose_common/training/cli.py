"""What the programs of both methods have in common: the command line, and a run from its parts."""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import json
import logging
import os
import pathlib
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
from absl import app, flags
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines.builders.synthetic import SYNTHETIC, prepare_synthetic
from data_pipelines.paths import as_path
from data_pipelines.reading import Reading
from data_pipelines.top_down.loader import TrainIterator
from pose_common import host_memory
from pose_common.console import outlive_console
from pose_common.report.ending import conclude
from pose_common.training import checks, configuration, distributed, logs, loop, parallel, processes, restore
from pose_common.training.checkpoints import find_checkpoints
from pose_common.training.configuration import Override
from pose_common.training.curves import draw_curves
from pose_common.training.mesh import make_mesh
from pose_common.training.state import TrainState
from pose_common.training.usage import usage
from pose_common.training.workdir import make_workdir, record_configuration, require_shared

HELP = frozenset({"--help", "-h", "-help", "--helpfull", "--helpshort"})
EVALUATED = "workdir/evaluated"
"""Where evaluations go without --workdir."""
Metrics = dict[str, Mapping[str, float]]
Read = Callable[[str, Sequence[Override], str], ConfigDict]
"""read(source, overrides, workdir) -> the checked configuration of a method."""
MakeStart = Callable[[Any], Callable[[TrainState], TrainState] | None]


class Build(Protocol):
    """From a configuration to the parts of a run: a method's module `build`."""

    def make_loader(self, config: ConfigDict) -> TrainIterator:
        """This process's training batches."""

    def make_method(self, config: ConfigDict, steps_per_epoch: int) -> Any:
        """A `loop.Method` with its network, `model`."""

    def make_evaluator(self, config: ConfigDict, model: Any, mesh: Mesh, workdir: pathlib.Path) -> Any:
        """A `loop.Evaluate` that gives `tasks.Figures`, checks its tasks and chooses the figure of the best weights."""


class Program(NamedTuple):
    """What a method's program is, beside what both have in common.

    Attributes:
      read: makes the method's configuration of the flags --config ('' where it is not given: that of the run in the
        working directory) and --config.<leaf>.
      run: does what a configuration says, in a working directory that is there.
      default: name of the method's own configuration file, whose comments explain its settings.
      workdir: default of the flag where something is trained.
      methods: whose runs can go on.
      free: settings that may change when a run goes on.
    """

    read: Read
    run: Callable[[ConfigDict, pathlib.Path], None]
    default: str
    workdir: str
    methods: Sequence[str]
    free: Collection[str]


def make_reading(config: ConfigDict) -> Reading:
    """How this process reads ahead."""
    return Reading(config.loader_threads, config.loader_workers, cache=config.data_cache)


def steps_per_epoch(config: ConfigDict, data: TrainIterator) -> int:
    """As configured, or one pass over the examples, its last batch counting whole: PyTorch's samplers fill it up."""
    return config.steps_per_epoch or -(-data.num_examples // config.batch_size)


def make_strategy(config: ConfigDict) -> parallel.Strategy:
    """How the step is spread over the devices. Raises ValueError for a batch that they cannot share."""
    checks.check_batch(config)
    return parallel.make_strategy(config.parallel, config.fsdp, config.fsdp_min_size)


def render(config: ConfigDict, datasets: Sequence[str]) -> None:
    """Renders those of the datasets that are synthetic, once for all processes."""
    if not config.synthetic:
        return
    if jax.process_index() == 0:
        rendered = [name for name in datasets if name in SYNTHETIC]
        prepare_synthetic(config.data_dir, rendered, progress=True, **config.synthetic)
    multihost_utils.sync_global_devices("synthetic data")


def train(config: ConfigDict, workdir: pathlib.Path, build: Build, make_start: MakeStart) -> bool:
    """Trains from the newest checkpoint in `workdir`, or from the start; False when a signal stopped it before the end.

    Args:
      build: makes the parts of the run.
      make_start: network -> what fills a newly initialised state with the weights to start from; see `loop.train`.
    """
    strategy = make_strategy(config)
    data = build.make_loader(config)
    steps = steps_per_epoch(config, data)
    facts = {"examples": data.num_examples, "steps an epoch": steps, "digests of its data": data.contents}
    processes.require_alike("data", facts)
    method = build.make_method(config, steps)
    evaluate = build.make_evaluator(config, method.model, strategy.mesh, workdir)
    evaluate.check()
    best, prepare = evaluate.best_metric(config.best_metric), make_start(method.model)
    logging.info("%d examples, %d steps an epoch", data.num_examples, steps)
    settings, key = _loop_settings(config, steps), jax.random.PRNGKey(config.seed)
    with contextlib.closing(data):  # workers that are not ended leave shared memory to be cleaned up, with a warning
        _, complete = loop.train(
            method, data, strategy, settings, workdir, evaluate=evaluate, best=best, key=key, prepare=prepare
        )
    if jax.process_index() == 0:
        draw_curves(workdir / "metrics.jsonl", workdir / "curves.png")
        if complete:
            package = type(method).__module__.partition(".")[0]
            conclude(config, workdir, package)
    if not complete:
        logging.warning("stopped before the end; the same command goes on from the checkpoint in %s", workdir)
    return complete


def _loop_settings(config: ConfigDict, steps: int) -> loop.LoopSettings:
    return loop.LoopSettings(
        steps_per_epoch=steps,
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
        evaluate_every=config.evaluate_every,
        evaluate_stages=config.evaluate_stages,
        keep=config.keep_checkpoints,
        keep_every=config.keep_checkpoints_every or None,
        profile_steps=tuple(config.profile_steps),
        config=json.loads(config.to_json()),
    )


def evaluate(
    config: ConfigDict,
    workdir: pathlib.Path,
    build: Build,
    load: Callable[[ConfigDict, Mesh], restore.Loaded],
    datasets: Sequence[str] = (),
) -> Metrics:
    """Evaluates `config.checkpoint` on everything that is prepared; prints and saves the table, and says where.

    Args:
      build: makes the evaluator.
      load: reads the model.
      datasets: those that `render` makes, once the weights are found to be such as can be evaluated.

    Raises:
      ValueError: there is no such model, not a single row, or a row that failed: the others are printed and saved.
    """
    mesh = make_mesh()
    model, weights, step = load(config, mesh)
    render(config, datasets)
    figures = build.make_evaluator(config, model, mesh, workdir)(weights, step)
    conclude_evaluation(config, workdir, figures, step)
    if figures.failed:  # a script that asked for them must not take the rest for everything
        first, *others = figures.failed
        more = f" (and {len(others)} more, see above)" if others else ""
        raise ValueError(f"not everything was evaluated: {first}{more}")
    return figures


def conclude_evaluation(config: ConfigDict, workdir: pathlib.Path, figures: Metrics, step: int) -> None:
    """Says where the results of an evaluation are, of which `step` names the folder.

    Its configuration is recorded for its report; that of a training run stays.

    Raises:
      ValueError: there is not a single row.
    """
    if not figures:
        raise ValueError("nothing was evaluated, for the reasons above")
    if not (workdir / "checkpoints").is_dir():
        record_configuration(json.loads(config.to_json()), workdir)
    if jax.process_index() == 0:
        print(f"results: {workdir / 'results' / f'step_{step}'}")


def evaluation_workdir(checkpoint: str) -> str:
    """Where `checkpoint` is evaluated unless --workdir says it: what is of no run has no step to tell it by."""
    name = re.sub(r"[^\w.-]+", "_", checkpoint).strip("_")
    if not name.strip("._"):  # "." or ".."
        name = pathlib.Path(os.path.abspath(checkpoint)).name or "root"
    return f"{EVALUATED}/{name}"


def follow_run(
    config: ConfigDict, workdir: pathlib.Path, methods: Sequence[str], free: Collection[str], accept_changes: bool
) -> None:
    """Compares with the training run that `workdir` holds, if any, and sets `init_from` to what that started from.

    Args:
      methods: whose runs can go on.
      free: see `configuration.require_same_run`.
      accept_changes: go on whatever has changed.

    Raises:
      ValueError: the run is of another method, or was started with other settings; or a new one is to start from what
        is not there.
    """
    run = restore.run_of(workdir, methods)
    if run is None:
        if config.init_from:
            checks.require_weights("init_from", config)
        return
    started_from = run.config.get("init_from", config.init_from)
    if config.init_from not in ("", started_from):
        logging.warning("config.init_from=%s: ignored, the run started from %r", config.init_from, started_from)
    config.init_from = started_from
    for change in configuration.require_same_run(run.config, config, free, accept_changes):
        logging.info("changed since the run was started: %s", change)


def main(program: Program) -> None:
    """Runs a method's program on the command line."""
    outlive_console()
    given = _define_flags(program.workdir)
    source, overrides, others = configuration.split_arguments(sys.argv[1:])
    if HELP & set(others):
        _print_usage(source, program.read(source, overrides, ""), program.default)
        return

    def start(argv: list[str]) -> None:
        if len(argv) > 1:
            sys.exit(f"error: {argv[1]!r} is no flag; see --help")
        logs.start_logging()
        # Traced programs are many objects that stay: Python would look through them for garbage again and again.
        gc.set_threshold(10_000)
        host_memory.keep()
        try:
            distributed.start(given.coordinator.value, given.num_processes.value, given.process_id.value)
            logs.name_host()
            with processes.leaving_together(given.debug.value):
                _start(program, source, overrides, given)
        except processes.KNOWN as error:
            if given.debug.value:
                raise
            # Said in full already: a traceback would only hide the advice.
            sys.exit(f"error: {processes.one_line(error)}")

    app.run(start, argv=[sys.argv[0], *others])


def _start(program: Program, source: str, overrides: Sequence[Override], given: _Flags) -> None:
    """Finds the settings and the working directory, makes sure that all processes have the same, and runs."""
    holder = given.workdir.value or program.workdir
    if not source and not configuration.evaluated(overrides):  # all read the run that is there, or none
        there = find_checkpoints(holder)
        processes.require_alike("run", {"checkpoints in --workdir": list(there.steps) if there else []})
    settings = program.read(source, overrides, holder)
    evaluates = settings.mode == "evaluate"
    if evaluates and not given.workdir.value:
        holder = evaluation_workdir(settings.checkpoint)
    # The folder itself may be each host's own: process 0 writes the results, and the others nothing but their log.
    processes.require_alike("start", _identity(settings) | ({"--workdir": holder} if evaluates else {}))
    workdir = as_path(holder)
    make_workdir(workdir)
    if not evaluates:
        require_shared(workdir)
    distributed.use_compilation_cache(settings.compilation_cache)
    with logs.written_to(workdir):
        if not evaluates:
            follow_run(settings, workdir, program.methods, program.free, given.accept_changes.value)
        program.run(settings, workdir)


class _Flags(NamedTuple):
    """The program's flags, to be read when they are parsed; those of the configuration are taken out before."""

    workdir: flags.FlagHolder
    coordinator: flags.FlagHolder
    num_processes: flags.FlagHolder
    process_id: flags.FlagHolder
    accept_changes: flags.FlagHolder
    debug: flags.FlagHolder


def _define_flags(workdir: str) -> _Flags:
    flags.DEFINE_string(  # for --help alone
        "config",
        "",
        "Configuration, `path[:argument]` or `name[:argument]`; by default that of the run in --workdir. "
        "--config.<field>=... sets a field.",
    )
    return _Flags(
        flags.DEFINE_string(
            "workdir",
            None,
            f"Checkpoints, figures, results and pictures go here; by default to {workdir}, those of an evaluation to "
            f"{EVALUATED}/<name of the checkpoint>.",
        ),
        flags.DEFINE_string("coordinator", None, "address:port of process 0, where JAX cannot find it."),
        flags.DEFINE_integer("num_processes", None, "Number of processes, with --coordinator."),
        flags.DEFINE_integer("process_id", None, "This process, with --coordinator."),
        flags.DEFINE_bool("accept_changes", False, "Go on with a run although its settings have changed."),
        flags.DEFINE_bool("debug", False, "Show errors with their traceback."),
    )


def _print_usage(source: str, config: ConfigDict, default: str) -> None:
    """Settings are explained by the configuration's own file, then by that of its method."""
    own = pathlib.PurePath(configuration.split_source(source)[0]).stem
    files = configuration.own_files(own, default, "common")
    print(usage(sys.modules["__main__"].__doc__ or "", __name__, config, files))


def _identity(config: ConfigDict) -> dict[str, Any]:
    """What must be the same in all processes, before they share a step."""
    settings = {f"config.{name}": value for name, value in checks.leaves(config)}
    versions = {
        name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
    }
    devices = {"devices": jax.local_device_count(), "kind of device": jax.local_devices()[0].device_kind}
    return {**settings, **versions, **devices}
