"""The one training loop: stages, steps, metrics, checkpoints, evaluation, stops and resumes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import logging
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np
import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from data_pipelines.paths import as_path
from pose_common.evaluation.best import BestMetric
from pose_common.training import flops, goodput, logs, nonfinite, parallel, processes, report
from pose_common.training.best import BestCheckpoint
from pose_common.training.checkpoints import Checkpoints, NonFiniteStateError
from pose_common.training.curves import STAGE, draw_curves
from pose_common.training.distributed import StopSignal
from pose_common.training.fingerprints import named_leaves, summarise
from pose_common.training.profiling import Profiler
from pose_common.training.stages import Stage, evaluation_steps, require_same_place, stage_index
from pose_common.training.state import STATE_TRAINED, TrainState, to_evaluate
from pose_common.training.step import Differentiable, train_step
from pose_common.training.workdir import alone, record_configuration, require_space
from pose_common.training.writers import TRAIN, MetricWriter, Scores, set_aside_metrics, steps_done


class Method(Differentiable, Protocol):
    """What the loop needs to know of a method, beside what a step needs."""

    @property
    def stages(self) -> tuple[Stage, ...]: ...

    def init(self, key: jax.Array) -> TrainState:
        """A newly initialised state for the first stage; traceable."""

    def enter_stage(self, state: TrainState, stage: Stage) -> tuple[Callable[[TrainState], TrainState], dict]:
        """How a (global) state changes when `stage` begins: a traceable function, and notes for the checkpoint."""

    def shapes(self, stage: Stage, notes: dict) -> TrainState:
        """Shapes of a state inside `stage`, given the notes of the `enter_stage` calls so far."""


class DataIterator(Protocol):
    """A resumable stream of this process's rows of every global batch (Grain's iterators are such)."""

    def __next__(self) -> dict[str, np.ndarray]: ...

    def get_state(self) -> dict[str, Any]: ...

    def set_state(self, state: dict[str, Any]) -> None: ...

    def rows_at(self, state: dict[str, Any]) -> Iterable[nonfinite.Row]:
        """The rows of the global batch at a state, read again."""


Evaluate = Callable[[dict[str, Any], int], dict[str, Mapping[str, float]]]
"""evaluate(weights, step) -> {split: {metric: value}}."""


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """How often the loop does what. Epochs and steps count from 0 and are global.

    `checkpoint_every` and `log_every` are in steps, `evaluate_every` in epochs; 0 means only at the end, but for
    `evaluate_every` about ten times a run, the first time early. `evaluate_stages` adds an evaluation of the newly
    initialised state and one at the end of each stage. `profile_steps` are the first and the last step to be traced.
    """

    steps_per_epoch: int
    log_every: int = 50
    checkpoint_every: int = 1000
    evaluate_every: int = 10
    evaluate_stages: bool = False
    keep: int = 3
    keep_every: int | None = None
    profile_steps: tuple[int, ...] = ()
    config: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class _Run:
    """The loop's own state; `state` is laid out by the strategy."""

    state: Any
    step: int
    stage: int
    notes: dict[str, Any]


def train(
    method: Method,
    data: DataIterator,
    strategy: parallel.Strategy,
    settings: LoopSettings,
    workdir: str | pathlib.Path,
    *,
    evaluate: Evaluate | None = None,
    best: BestMetric | None = None,
    key: jax.Array,
    prepare: Callable[[TrainState], TrainState] | None = None,
) -> tuple[TrainState, bool]:
    """Trains to the end of the last stage, or to a stop signal, from the newest checkpoint in `workdir` if any.

    Args:
      best: by which evaluations decide what is kept in `checkpoints/best`; None keeps none.
      prepare: applied to a newly initialised state's global form (loading converted weights, say); not on a resume.

    Returns:
      (the final state in its global form, whether the run is complete).

    Raises:
      NonFiniteError: NaN or infinity in a loss, a gradient or the state; says where and from which pictures. The last
        checkpoint is from before.
      ConfigError: another run is going on in `workdir`.
      OSError: a checkpoint cannot be written.
    """
    workdir, clock = as_path(workdir), goodput.Clock()
    workdir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(alone(workdir))
        checkpoints = Checkpoints(workdir / "checkpoints", keep=settings.keep, keep_every=settings.keep_every)
        if fresh := checkpoints.latest_step is None:
            set_aside_metrics(workdir)
        writer = MetricWriter(workdir, enabled=jax.process_index() == 0)
        stack.callback(writer.close)
        stack.push(_closing(checkpoints))
        keeper = BestCheckpoint(checkpoints.directory, best) if best else None
        if keeper:
            stack.push(_closing(keeper))
            if fresh:
                keeper.forget()
        run = _resume(method, data, strategy, checkpoints, settings) or _start(method, strategy, key, prepare)
        record_configuration(settings.config, workdir)  # now that the run is known to go on with it
        whole = strategy.to_global(run.state)
        require_space(workdir, whole, settings.keep, len(checkpoints.steps), best is not None)
        report.log_parameters(whole.params, workdir)
        del whole
        with StopSignal() as stop, logging_redirect_tqdm():
            loop = _Loop(method, data, strategy, settings, workdir, evaluate, checkpoints, keeper, writer, stop, clock)
            complete = loop.run(run)
            loop.profiler.close()
            clock.enter(goodput.CHECKPOINT)
            stack.close()  # a first signal does not end what is still being written either
    logging.info("%s", clock.line())
    return strategy.to_global(run.state), complete


def _closing(checkpoints: Checkpoints | BestCheckpoint) -> Callable[..., None]:
    """Closes at the end of a block; not on an error of one of several processes, where it would wait for the others."""

    def leave(kind, error, trace) -> None:
        if error is None or not processes.several():
            checkpoints.close()

    return leave


def _start(method: Method, strategy: parallel.Strategy, key: jax.Array, prepare) -> _Run:
    state = strategy.create(method.init, key)
    trained = False
    if prepare is not None:
        initial = strategy.to_global(state)
        prepared = prepare(initial)
        trained = summarise(prepared.method_state) != summarise(initial.method_state)
        state = strategy.from_global(prepared)
    return _Run(state=state, step=0, stage=-1, notes={STATE_TRAINED: trained})


def _resume(
    method: Method, data: DataIterator, strategy: parallel.Strategy, checkpoints: Checkpoints, settings: LoopSettings
) -> _Run | None:
    def read(step: int) -> tuple[dict[str, Any], TrainState]:
        info = checkpoints.read_info(step)
        by_data = settings.config.get("steps_per_epoch") == 0  # one pass over the data; else it is a setting
        require_same_place(method.stages, settings.steps_per_epoch, step, info, by_data)
        shapes = method.shapes(method.stages[info["stage"]], info["notes"])
        return info, checkpoints.restore(step, shapes, strategy.shardings(shapes))

    found = checkpoints.newest(read)
    if found is None:
        return None
    step, (info, state) = found
    checkpoints.set_aside_after(step)
    data.set_state(info["data"])
    logging.info("resumed from step %d (stage %s)", step, method.stages[info["stage"]].name)
    return _Run(state=strategy.from_global(state), step=step, stage=info["stage"], notes=info["notes"])


@dataclasses.dataclass(eq=False)
class _Loop:
    """Step after step; everything that happens between steps is a method of its own.

    Attributes:
      method, data, strategy, settings, workdir, evaluate: see `train`.
      checkpoints: where states are saved.
      best: keeps the best weights; None keeps none.
      writer: of the figures.
      stop: says when a signal asked for the end.
      clock: where the time goes.
    """

    method: Method
    data: DataIterator
    strategy: parallel.Strategy
    settings: LoopSettings
    workdir: pathlib.Path
    evaluate: Evaluate | None
    checkpoints: Checkpoints
    best: BestCheckpoint | None
    writer: MetricWriter
    stop: StopSignal
    clock: goodput.Clock

    def __post_init__(self) -> None:
        steps = self.settings.steps_per_epoch
        ends = tuple(itertools.accumulate(stage.epochs * steps for stage in self.method.stages))
        self.total_steps = ends[-1]
        every = self.settings.evaluate_every * steps
        self.evaluation_steps = evaluation_steps(ends, every, self.settings.evaluate_stages)
        self.metrics, self.done_before = report.Metrics(), steps_done(self.workdir)
        self.profiler = Profiler(self.settings.profile_steps, self.workdir)

    def run(self, run: _Run) -> bool:
        """Trains `run` in place; False when a signal stopped it first."""
        bar = tqdm.tqdm(
            total=self.total_steps,
            initial=run.step,
            unit="step",
            disable=jax.process_index() != 0,
            mininterval=1.0,
            dynamic_ncols=True,
        )
        step_function: Callable | None = None
        self._warn_of_trace(run)
        with bar:
            # The evaluation of the first state; and one that a run missed which was killed after its checkpoint.
            if run.step in self.evaluation_steps:
                if (scores := self.writer.evaluation(run.step)) is None:
                    self._evaluate(run)
                else:  # its figures were written; its weights may not have been
                    self._offer(run, scores)
            while run.step < self.total_steps:
                index = stage_index(self.method.stages, run.step // self.settings.steps_per_epoch)
                if index != run.stage:
                    self._log(run)  # the next stage's figures are others
                    if self.method.stages[index].program != self.method.stages[run.stage].program:
                        step_function = None
                    self._enter_stage(run, index)
                bar.set_description(self.method.stages[index].name, refresh=False)
                step_function = step_function or self._compile(run)
                self._step(run, step_function)
                bar.update()
                self._between_steps(run)
                if self.stop.reached(run.step):
                    self._log(run)
                    self._save(run)
                    return run.step >= self.total_steps
        return True

    def _warn_of_trace(self, run: _Run) -> None:
        """Warns of a trace that will not be made."""
        if (asked := self.settings.profile_steps) and not run.step < asked[1] <= self.total_steps:
            logging.warning(
                "config.profile_steps=%d,%d: this run does steps %d to %d", *asked, run.step + 1, self.total_steps
            )

    def _enter_stage(self, run: _Run, index: int) -> None:
        # Stages in between have no epochs (now, if the run goes on with others): what they would change must not be.
        stage = self.method.stages[index]
        change, notes = self.method.enter_stage(self.strategy.to_global(run.state), stage)
        run.state = self.strategy.transform(change, run.state)
        run.notes, run.stage = {**run.notes, **notes}, index
        logging.info("step %d: stage %s trains %s on %s", run.step, stage.name, stage.train, stage.losses)

    def _compile(self, run: _Run) -> Callable:
        stage = self.method.stages[run.stage]
        step = self.strategy.compile(functools.partial(train_step, method=self.method, stage=stage), run.state)
        calls = itertools.count()

        def call(state: Any, batch: Any) -> tuple[Any, Any]:
            return step(state, batch) if next(calls) else self._first_call(step, state, batch)

        return call

    def _step(self, run: _Run, step_function: Callable) -> None:
        self.clock.enter(goodput.LOST if run.step < self.done_before else goodput.STEP)
        self.profiler.before(run.step + 1)
        self.position = self.data.get_state()
        began = time.perf_counter()
        with self.clock.part(goodput.DATA):
            rows = next(self.data)
        waited = time.perf_counter() - began
        if not self.metrics.images_seen:
            report.log_batch(rows)
        run.state, metrics = step_function(run.state, self.strategy.put(rows))
        self.profiler.after(run.step + 1, metrics)
        self.metrics.add(run.step, metrics, self.position, images=len(rows["image"]), waited=waited)
        run.step += 1

    def _first_call(self, step_function: Callable, state: Any, batch: Any) -> tuple[Any, Any]:
        """The call that compiles; the step itself is on its way when it returns."""
        before = self.clock.seconds(goodput.COMPILE)
        with self.clock.part(goodput.COMPILE):
            self.metrics.flops = flops.step_flops(step_function, state, batch)
            found = step_function(state, batch)
        seconds = self.clock.seconds(goodput.COMPILE) - before
        self.metrics.leave_out(seconds)
        counted = f"{self.metrics.flops / 1e9:,.1f} GFLOP a step" if self.metrics.flops else "operations not counted"
        logging.info("compiled in %.1f s: %s", seconds, counted)
        return found

    def _between_steps(self, run: _Run) -> None:
        settings = self.settings
        last = run.step == self.total_steps

        def due(every: int) -> bool:
            return last or (every > 0 and run.step % every == 0)

        if due(settings.log_every):
            self._log(run)
            self.checkpoints.require_written()
            if self.best:
                self.best.require_written()
        if run.step % settings.steps_per_epoch == 0 and not last:
            logging.info("%s", self.clock.line())
        if due(settings.checkpoint_every):
            self._save(run)
        if run.step in self.evaluation_steps:
            self._evaluate(run)

    def _evaluate(self, run: _Run) -> None:
        if self.evaluate is None:
            return
        self._check(run)
        weights = self.strategy.to_global(run.state).weights
        with self.clock.part(goodput.EVALUATION):
            scores = self.evaluate(to_evaluate(weights, run.notes), run.step)
            self.writer.write_evaluation(run.step, scores)
            if jax.process_index() == 0:
                self.writer.flush()
                if run.step < self.total_steps:  # those of the end are drawn by the program
                    draw_curves(self.writer.path, self.writer.path.with_name("curves.png"))
        self._offer(run, scores)
        self.metrics.restart_clock()

    def _offer(self, run: _Run, scores: Scores) -> None:
        """For the best weights so far."""
        if self.best and run.step:
            weights = self.strategy.to_global(run.state).weights
            with self.clock.part(goodput.CHECKPOINT), self._finite_state(run):
                self.best.offer(run.step, scores, weights, self._info(run))

    def _log(self, run: _Run) -> None:
        self._check(run)
        values = self.metrics.collect()
        if values:
            self.writer.write(run.step, TRAIN, {**values, STAGE: run.stage})
            logging.info("step %d of %d: %s", run.step, self.total_steps, report.summary_line(values))

    def _save(self, run: _Run) -> None:
        # A checkpoint is good only if every step before it was: look at the figures still on their way first.
        self._check(run)
        with self.clock.part(goodput.CHECKPOINT), self._finite_state(run):
            self.writer.flush()
            logs.put()
            self.checkpoints.save(run.step, self.strategy.to_global(run.state), self._info(run))

    def _info(self, run: _Run) -> dict[str, Any]:
        steps, config = self.settings.steps_per_epoch, self.settings.config
        position = {"stage": run.stage, "steps_per_epoch": steps, "data": self.data.get_state()}
        return {**position, "notes": run.notes, "config": config}

    @contextlib.contextmanager
    def _finite_state(self, run: _Run) -> Iterator[None]:
        """Explains it where a state is not saved because it is not finite."""
        try:
            yield
        except NonFiniteStateError as error:
            last = nonfinite.NonFiniteStep(run.step - 1, self.position, (), {}, error.names)
            raise self._explained(run, last) from error

    def _check(self, run: _Run) -> None:
        if (bad := self.metrics.check()) is not None:
            raise self._explained(run, bad)

    def _explained(self, run: _Run, bad: nonfinite.NonFiniteStep) -> nonfinite.NonFiniteError:
        trained = {group: run.state.params[group] for group in self.method.stages[run.stage].train}
        step = self.checkpoints.latest_step
        last_good = "none was saved yet" if step is None else f"{self.checkpoints.directory / str(step)}"
        return nonfinite.explain(bad, list(named_leaves(trained)), self.data, self.workdir, last_good)
