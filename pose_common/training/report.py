"""What a run says of itself: parameter table, first batch, and its figures between two log lines."""

from __future__ import annotations

import logging
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from pose_common.training.fingerprints import named_leaves
from pose_common.training.flops import peak_flops
from pose_common.training.nonfinite import NonFiniteStep
from pose_common.training.step import ABSENT, FINITE


def parameter_table(params: Mapping[str, Any]) -> str:
    """One line a parameter (name, shape, dtype, count, sharding) and a line of totals a group."""
    lines, totals = [], {}
    for name, leaf in named_leaves(params).items():
        spec = getattr(getattr(leaf, "sharding", None), "spec", "")
        lines.append(f"{name:<64} {str(leaf.shape):<22} {str(leaf.dtype):<9} {leaf.size:>12,} {spec}")
        group = name.split("/")[0]
        totals[group] = totals.get(group, 0) + leaf.size
    lines += [f"{group:<64} {'':<22} {'':<9} {count:>12,}" for group, count in totals.items()]
    lines.append(f"{'all':<64} {'':<22} {'':<9} {sum(totals.values()):>12,}")
    return "\n".join(lines)


def log_parameters(params: Mapping[str, Any], workdir: pathlib.Path) -> None:
    """Writes the table to `parameters.txt` and its totals to the log."""
    if jax.process_index() != 0:
        return
    table = parameter_table(params)
    (workdir / "parameters.txt").write_text(table + "\n", encoding="utf8")
    totals = table.splitlines()[-len(params) - 1 :]  # of every group, and of all
    logging.info("parameters (whole table in %s):\n%s", workdir / "parameters.txt", "\n".join(totals))


def log_batch(rows: dict[str, np.ndarray]) -> None:
    """Shapes, dtypes and ranges of the first batch: the cheapest check that a pipeline is right."""
    for name, value in rows.items():
        value = np.asarray(value)
        extent = f"{value.min():.4g} .. {value.max():.4g}" if value.size and value.dtype.kind in "biuf" else ""
        logging.info("first batch %-14s %-22s %-8s %s", name, value.shape, value.dtype, extent)


class Metrics:
    """Metrics of the steps since the last log line. They stay on the device until asked for.

    Attributes:
      flops: operations of a step, of all devices together; None where it is not known.
    """

    def __init__(self):
        self.images_seen, self.flops = 0, None
        self._pending: list[tuple[int, dict, dict]] = []
        self._checked: list[dict[str, float]] = []
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leaves out the time spent on something other than training."""
        self._began, self._images, self._steps, self._waited = time.perf_counter(), 0, 0, 0.0

    def leave_out(self, seconds: float) -> None:
        """The same for so many seconds that just passed."""
        self._began += seconds

    def add(
        self, step: int, metrics: dict[str, jax.Array], position: dict[str, Any], *, images: int, waited: float
    ) -> None:
        """Notes one step of `images` local images from `position` of the data; it waited `waited` seconds for them."""
        if len(self._pending) > 1:
            # Keeps the host at most two steps ahead, so that queued batches do not fill the memory.
            jax.block_until_ready(self._pending[-2][1])
        self._pending.append((step, metrics, position))
        self.images_seen += images
        self._images += images
        self._steps += 1
        self._waited += waited

    def check(self) -> NonFiniteStep | None:
        """Fetches what is pending; returns the first step with a value that is not finite."""
        pending, self._pending = self._pending, []
        fetched = jax.device_get([metrics for _, metrics, _ in pending])
        for (step, _, position), metrics in zip(pending, fetched, strict=True):
            finite = metrics.pop(FINITE)
            bad = sorted(name for name, value in metrics.items() if not np.isfinite(value))
            if bad or not all(values.all() for values in finite.values()):
                return NonFiniteStep(step, position, tuple(bad), finite)
            self._checked.append(metrics)
        return None

    def collect(self) -> dict[str, float]:
        """Means of what was checked since the last call, where it exists; seconds a step, images a second a device,
        the share of time spent waiting for data, and that of the devices' peak that the steps' operations are.
        """
        if not self._checked:
            return {}
        means = {}
        for name in self._checked[-1]:
            values = [metrics[name] for metrics in self._checked if metrics[name] != ABSENT]
            if values:
                means[name] = float(np.mean(values))
        means["learning_rate"] = float(self._checked[-1].get("learning_rate", np.nan))
        seconds = time.perf_counter() - self._began
        if self._images:
            means["seconds_per_step"] = seconds / self._steps
            means["images_per_second_per_device"] = self._images / seconds / jax.local_device_count()
            means["data_wait_share"] = self._waited / seconds
            peak = peak_flops(jax.local_devices()[0].device_kind)
            if peak and self.flops:
                means["mfu"] = self.flops * self._steps / seconds / peak / jax.device_count()
        self._checked = []
        self.restart_clock()
        return means


def summary_line(values: Mapping[str, float]) -> str:
    """The few figures that tell whether a run goes well: loss, mean accuracy, rate, speed, waiting, utilisation."""
    parts = [f"loss {values['loss']:.4g}"]
    accuracies = [value for name, value in values.items() if name.split("/")[0] == "accuracy"]
    if accuracies:
        parts.append(f"accuracy {np.mean(accuracies):.3f}")
    parts.append(f"rate {values['learning_rate']:.2e}")
    if "images_per_second_per_device" in values:
        parts.append(f"{values['seconds_per_step']:.3g} s/step")
        parts.append(f"{values['images_per_second_per_device'] * jax.device_count():.3g} images/s")
        parts.append(f"waiting {100 * values['data_wait_share']:.0f}%")
    if "mfu" in values:
        parts.append(f"MFU {100 * values['mfu']:.1f}%")
    return ", ".join(parts)
