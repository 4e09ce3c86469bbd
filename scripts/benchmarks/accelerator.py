"""Everything that is worth measuring on one GPU or TPU, in about ten minutes, as tables for docs/benchmarks.md.

    python -m scripts.benchmarks.accelerator --out=workdir/accelerator
    python -m scripts.benchmarks.accelerator --out=workdir/again --parts=parity,predict --sizes=base --minutes=5

Training steps of every stage with FLOPs, MFU and memory, prediction with decoding, the prototype and box losses alone,
the loader alone and under a step, bfloat16 and float32 against float32 on the CPU, backbones with a TPU's kernels and
without, a profile of the last stage, and, where PyTorch is installed, Hugging Face's VitPose-plus beside ours, eager
and by `torch.compile`. Rows go to `<out>/rows.jsonl` as they are measured; what failed (out of memory, say) is a row
that says why, and what the minutes did not suffice for is named at the end. Tables are in `<out>/tables.md`, the
profile (for xprof) in `<out>/profile`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import json
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from boir_jax import configuration as boir_configuration
from data_pipelines.paths import as_folder
from pose_common.evaluation import result_table as tables
from pose_common.training import cli, parallel
from pose_common.training.mesh import BATCH_AXES
from pose_common.training.step import train_step
from posebh_jax import build
from posebh_jax import configuration as posebh_configuration
from posebh_jax.heads import kernel_gradient, kernel_gradient_by_taps
from posebh_jax.vit import SIZES, ViT
from scripts.benchmarks import batches, boir_losses, inference, peer, prototypes
from scripts.benchmarks import train_step as training

POSEBH_CONFIGS = {name: f"mdt:{'demo' if name == 'tiny' else name}" for name in SIZES}
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
      sizes: of PoseBH's backbone; the first is that of parity, loader and profile.
      boir: configurations of BoIR.
      batch: crops of a training step on this device; BoIR's pictures are a quarter of it, at least one.
      inference_batches: sizes of a prediction's batch.
      steps: timed steps, rounds of prediction.
      out: the folder.
    """

    sizes: tuple[str, ...]
    boir: tuple[str, ...]
    batch: int
    inference_batches: tuple[int, ...]
    steps: int
    out: pathlib.Path

    def posebh(self, size: str, **changes: Any) -> ConfigDict:
        """A configuration of PoseBH with this batch."""
        config = posebh_configuration.read(POSEBH_CONFIGS[size])
        config.update({"batch_size": self.batch, "eval_batch_size": self.batch, "fsdp": 1} | changes)
        return config

    def of_boir(self, name: str) -> ConfigDict:
        """One of BoIR with its share of the batch."""
        config = boir_configuration.read(f"boir:{name}")
        config.update({"batch_size": max(1, self.batch // 4), "fsdp": 1})
        return config


def train(settings: Settings) -> Iterator[Callable[[], list[Row]]]:
    """A step of every stage and of every loss on top of the others, for each size and for BoIR."""
    for size in settings.sizes:
        yield lambda size=size: _labelled(
            training.run(settings.posebh(size), settings.steps, _one_device()), model=f"PoseBH {size}"
        )
    for name in settings.boir:
        yield lambda name=name: _labelled(
            training.run(settings.of_boir(name), settings.steps, _one_device()), model=f"BoIR {name}"
        )


def predict(settings: Settings) -> Iterator[Callable[[], list[Row]]]:
    """Prediction, flip test and decoding included."""

    def rows(config: ConfigDict, model: str) -> list[Row]:
        return _labelled(inference.run(config, list(settings.inference_batches), settings.steps), model=model)

    for size in settings.sizes:
        yield lambda size=size: rows(settings.posebh(size), f"PoseBH {size}")
    for name in settings.boir:
        yield lambda name=name: rows(settings.of_boir(name), f"BoIR {name}")


def losses(settings: Settings) -> Iterator[Callable[[], list[Row]]]:
    """The terms of both methods alone, at the paper's sizes: forward and backward."""
    yield lambda: prototypes.run(prototypes.PAPER_COUNTS, settings.batch, (48, 64), 96, settings.steps)

    def box_losses(background: str) -> list[Row]:
        images = max(1, settings.batch // 4)
        step = boir_losses.ours(boir_losses.make_batch(images, None, 30), background)
        return [{"terms": f"box losses, {background} background", "batch": images, "ms": _ms(step, settings.steps)}]

    for background in ("image", "instance"):
        yield functools.partial(box_losses, background)


def loader(settings: Settings) -> Iterator[Callable[[], list[Row]]]:
    """Crops a second of the loader alone, of the step alone, and of both; on rendered pictures."""

    def rows() -> list[Row]:
        size = settings.sizes[0]
        with tempfile.TemporaryDirectory() as folder:
            config = settings.posebh("tiny", data_dir=folder)
            config.update(_crops_of(settings.posebh(size)))
            cli.render(config, config.datasets)
            method = build.make_method(config, steps_per_epoch=1)
            step, state, _ = _make_step(method, config)
            data, put = build.make_loader(config), _one_device().put
            ready = put(next(data))
            rates = {}
            for name in ("loader", "step", "loader and step"):
                began = time.perf_counter()
                for _ in range(settings.steps):
                    batch = put(next(data)) if "loader" in name else ready
                    if "step" in name:
                        state, _ = step(state, batch)
                jax.block_until_ready(state if "step" in name else batch)
                rates[name] = round(settings.steps * config.batch_size / (time.perf_counter() - began), 1)
            data.close()
        return [{"what": name, "model": f"PoseBH {size}", "crops/s": rate} for name, rate in rates.items()]

    yield rows


def parity(settings: Settings) -> Iterator[Callable[[], list[Row]]]:
    """Figures of one step with all losses, in float32 and bfloat16 here, against float32 on the CPU."""
    size = settings.sizes[0]
    few = {"batch_size": min(settings.batch, 8), "eval_batch_size": min(settings.batch, 8)}

    def figures(dtype: str, device: jax.Device) -> dict[str, float]:
        config = settings.posebh(size, dtype=dtype, **few)
        method = build.make_method(config, steps_per_epoch=1)
        stage = method.stages[-1]
        # Whatever the stages froze, everything learns here: parity is of all gradients.
        stage = dataclasses.replace(stage, train=training.GROUPS)
        method = dataclasses.replace(method, stages=(stage,))
        with jax.default_device(device):
            state = jax.jit(method.init)(jax.random.PRNGKey(0))
            state = jax.jit(method.enter_stage(state, stage)[0])(state)
            batch = jax.tree.map(jnp.asarray, batches.random_batch(config, method))
            metrics = jax.jit(functools.partial(train_step, method=method, stage=stage))(state, batch)[1]
        flat = {name: np.asarray(value) for name, value in metrics.items() if not isinstance(value, dict)}
        return {name: float(value) for name, value in flat.items() if value.size == 1 and "accuracy" not in name}

    def rows() -> list[Row]:
        wanted = figures("float32", jax.devices("cpu")[0])
        found = {dtype: figures(dtype, jax.devices()[0]) for dtype in ("float32", "bfloat16")}

        def difference(dtype: str, name: str) -> str:
            return f"{abs(found[dtype][name] - wanted[name]) / max(abs(wanted[name]), 1e-12):.1e}"

        return [
            {"figure": name, "CPU": f"{value:.6g}"} | {f"{dtype}, relative": difference(dtype, name) for dtype in found}
            for name, value in wanted.items()
        ]

    yield rows


def kernels(settings: Settings) -> Iterator[Callable[[], list[Row]]]:
    """What runs on a TPU alone beside the plain form: backbones in bfloat16 with kernels, forward and backward, which
    elsewhere are the plain ones, not measured; and the gradient of a float32 head's second transposed convolution."""

    def row(model: str, on_tpu: Callable[[], Any], plain: Callable[[], Any]) -> list[Row]:
        # Without names, so that no gradient is kept in memory while others are timed.
        difference = jax.tree.map(lambda a, b: jnp.linalg.norm(a - b) / jnp.linalg.norm(b), on_tpu(), plain())
        kernels_ms, plain_ms = (
            _ms(lambda step=step: jax.block_until_ready(step()), settings.steps) for step in (on_tpu, plain)
        )
        return [
            {
                "model": model,
                "batch": settings.batch,
                "kernels ms": kernels_ms,
                "plain ms": plain_ms,
                "ratio": round(plain_ms / kernels_ms, 2),
                "largest relative difference of a gradient": f"{max(jax.tree.leaves(difference)):.1e}",
            }
        ]

    def backbone(size: str) -> list[Row]:
        if jax.default_backend() != "tpu":
            return [
                {"not measured": f"kernels of ViT {size}: they run on a TPU alone, here both sides are the plain form"}
            ]
        width, height = settings.posebh(size).input_size
        images = jax.random.normal(jax.random.key(0), (settings.batch, height, width, 3))
        dataset = jnp.arange(settings.batch, dtype=jnp.int32) % 6

        def gradient(used: bool) -> Callable[[], Any]:
            model = ViT(SIZES[size], num_experts=6, dtype=jnp.bfloat16, tpu_kernels=used)
            variables = jax.jit(model.init)(jax.random.key(1), images[:1], dataset[:1])

            def loss(variables):
                return jnp.square(model.apply(variables, images, dataset)).mean()

            return functools.partial(jax.jit(jax.grad(loss)), variables)

        return row(f"ViT {size}", gradient(True), gradient(False))

    def deconvolution(size: str) -> list[Row]:
        config = settings.posebh(size)
        (width, height), filters = (side // 8 for side in config.input_size), config.head_filters
        x = jax.random.normal(jax.random.key(0), (settings.batch, height, width, filters[0]))
        slope = jax.random.normal(jax.random.key(1), (4, *x.shape[:3], filters[1]))
        by_taps, by_convolutions = jax.jit(kernel_gradient_by_taps), jax.jit(kernel_gradient)
        return row("transposed convolution", lambda: by_taps(x, slope), lambda: by_convolutions(x, slope))

    for size in settings.sizes:
        yield functools.partial(backbone, size)
    yield functools.partial(deconvolution, settings.sizes[0])


def profile(settings: Settings) -> Iterator[Callable[[], list[Row]]]:
    """A trace of three steps of the last stage."""

    def rows() -> list[Row]:
        config = settings.posebh(settings.sizes[0])
        method = build.make_method(config, steps_per_epoch=1)
        step, state, batch = _make_step(method, config)
        state, _ = jax.block_until_ready(step(state, batch))
        folder = settings.out / "profile"
        with jax.profiler.trace(str(folder)):
            for _ in range(3):
                state, _ = step(state, batch)
            jax.block_until_ready(state)
        return [{"profile": str(folder), "MiB": sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) >> 20}]

    yield rows


def peers(settings: Settings) -> Iterator[Callable[[], list[Row]]]:
    """Hugging Face's model beside ours, where PyTorch is installed."""
    if not importlib.util.find_spec("torch"):
        return
    on_cpu = jax.default_backend() == "cpu"
    dtype, kinds = ("float32", ("eager",)) if on_cpu else ("bfloat16", ("eager", "compiled"))

    def rows(size: str, kind: str) -> list[Row]:
        found = peer.run(SIZES[size], settings.batch, settings.steps, dtype=dtype, compiled=kind == "compiled")
        return _labelled(found, model=f"ViT {size}, {dtype}, theirs {kind}")

    for size in settings.sizes:
        for kind in kinds:
            yield functools.partial(rows, size, kind)


PARTS: dict[str, Callable[[Settings], Iterator[Callable[[], list[Row]]]]] = {
    "parity": parity,
    "kernels": kernels,
    "train": train,
    "predict": predict,
    "losses": losses,
    "loader": loader,
    "peers": peers,
    "profile": profile,
}


def _one_device() -> parallel.ShardedStrategy:
    return parallel.ShardedStrategy(Mesh(np.array(jax.devices()[:1]).reshape(1, 1), BATCH_AXES))


def _make_step(method, config: ConfigDict):
    """(compiled step, state, batch) of a method's last stage, begun in it."""
    method = dataclasses.replace(method, stages=method.stages[-1:])
    strategy, stage = _one_device(), method.stages[0]
    state = strategy.create(method.init, jax.random.PRNGKey(0))
    state = strategy.transform(method.enter_stage(state, stage)[0], state)
    batch = strategy.put(batches.random_batch(config, method))
    step = strategy.compile(functools.partial(train_step, method=method, stage=stage), state)
    return step.lower(state, batch).compile(), state, batch


def _crops_of(config: ConfigDict) -> dict[str, Any]:
    """What makes the demo's small network that of a configuration, on the demo's rendered datasets."""
    return {name: config[name] for name in ("size", "input_size", "head_filters", "dtype", "drop_path", "layer_decay")}


def _ms(step: Callable[[], object], rounds: int) -> float:
    return round(1e3 * boir_losses.median_seconds(step, rounds), 2)


def _labelled(rows: list[Row], **labels: str) -> list[Row]:
    return [labels | row for row in rows]


def run(settings: Settings, parts: list[str], minutes: float) -> dict[str, list[Row]]:
    """{part: its rows}; a measurement that fails, and one that the time does not suffice for, are rows that say so."""
    began, found = time.monotonic(), {}
    settings.out.mkdir(parents=True, exist_ok=True)
    with (settings.out / "rows.jsonl").open("a") as file:
        for part in parts:
            found[part] = []
            for number, measure in enumerate(PARTS[part](settings)):
                over = time.monotonic() - began > 60 * minutes
                try:
                    rows = measure() if not over else [{"not measured": f"{part} {number}: out of time"}]
                except (jax.errors.JaxRuntimeError, RuntimeError, MemoryError) as error:
                    rows = [{"failed": f"{part} {number}: {str(error).strip().splitlines()[0][:200]}"}]
                found[part] += rows
                for row in rows:
                    file.write(json.dumps({"part": part, **row}) + "\n")
                file.flush()
                tables.show(rows, title=part)
    return found


def write_tables(found: dict[str, list[Row]], path: pathlib.Path) -> None:
    """All tables as Markdown, one heading a part; rows that have the same columns share a table."""
    lines = [f"Device: {jax.devices()[0].device_kind}, JAX {jax.__version__}.", ""]
    for part, rows in found.items():
        lines += [f"## {part}", ""]
        columns: tuple[str, ...] = ()
        for row in rows:
            if tuple(row) != columns:
                columns = tuple(row)
                lines += ["", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
            lines.append(f"| {' | '.join(str(value) for value in row.values())} |")
        lines.append("")
    path.write_text("\n".join(lines))


def main(argv: list[str] | None = None) -> dict[str, list[Row]]:
    """Measures, prints and writes; returns the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=as_folder, required=True)
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS), help=",".join(PARTS))
    parser.add_argument("--sizes", type=lambda text: tuple(text.split(",")), default=("base", "large", "huge"))
    parser.add_argument("--boir", type=lambda text: tuple(filter(None, text.split(","))), default=("coco_w32",))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--inference_batches", type=lambda text: tuple(map(int, text.split(","))), default=(1, 64))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=10.0, help="nothing is begun after so many")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.parts if name not in PARTS]:
        parser.error(f"--parts: there is no {unknown[0]!r}; known: {', '.join(PARTS)}")
    if unknown := [
        size for size in args.sizes if size not in SIZES
    ]:  # found out late, it would cost all that came before
        parser.error(f"--sizes: there is no {unknown[0]!r}; known: {', '.join(SIZES)}")
    try:
        for name in args.boir:
            boir_configuration.read(f"boir:{name}")
    except ValueError as error:
        parser.error(f"--boir: {error}")
    settings = Settings(args.sizes, args.boir, args.batch, args.inference_batches, args.steps, args.out)
    found = run(settings, args.parts, args.minutes)
    write_tables(found, args.out / "tables.md")
    return found


if __name__ == "__main__":
    main()
