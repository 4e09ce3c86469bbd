"""A run whose working directory and data are in a bucket: prepared, trained, killed, stopped, resumed, evaluated.

POD_PROCESSES=4 begins it with four processes instead of two.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest

from data_pipelines.paths import as_path
from pose_common.training.checkpoints import COMMITTED
from pose_common.training.writers import read_metrics
from tests.bucket import NAME, emulator
from tests.data_pipelines import tiny_sets
from tests.distribution import ROOT, child_environment

pytestmark = pytest.mark.slow  # trains and evaluates in processes of their own
PROCESSES = int(os.environ.get("POD_PROCESSES", "2"))
SECONDS = 180
"""After which a program is killed and the test fails."""
STEPS = 10
MAIN = "posebh_jax.main"
ARGUMENTS = (
    f"--config={ROOT / 'configs' / 'multi_head.py'}:demo",
    *("--config.datasets=('coco',)", "--config.train_splits.coco=val", "--config.input_size=(48,64)"),
    *("--config.head_filters=(8,8)", "--config.batch_size=4", "--config.eval_batch_size=4", "--config.pictures=0"),
    *("--config.warmup_steps=0", f"--config.steps_per_epoch={STEPS}", "--config.stages[0].epochs=1"),
    *("--config.log_every=1", "--config.evaluate_every=100"),
    "--config.evaluate_stages=False",
)


class Program:
    """One of the project's commands in a process of its own, which cannot outlive its time."""

    def __init__(self, environment, module, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", module, *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def said(self) -> str:
        """What it says until its end; where it does not come to one, where its threads were."""
        try:
            return self.process.communicate(timeout=SECONDS)[0]
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                pytest.fail(f"no end in {SECONDS} s: {self.process.communicate(timeout=10)[0]}")
            raise
        finally:
            self.process.kill()


@contextlib.contextmanager
def pod(environment, *arguments):
    """The training program in `PROCESSES` processes with a device each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"--coordinator=127.0.0.1:{probe.getsockname()[1]}"
    programs = [
        Program(environment, MAIN, *arguments, coordinator, f"--num_processes={PROCESSES}", own)
        for own in (f"--process_id={process}" for process in range(PROCESSES))
    ]
    try:
        yield programs
    finally:
        for program in programs:
            program.process.kill()


def wait_until(there, programs):
    """Until `there()` is true, while all of the programs run."""
    until = time.monotonic() + SECONDS
    while not there():
        ended = [program.said() for program in programs if program.process.poll() is not None]
        assert time.monotonic() < until and not ended, "\n".join(ended) or f"nothing in {SECONDS} s"
        time.sleep(0.2)


def checkpoints(names, run):
    """Steps of the checkpoints that are whole."""
    found = (re.fullmatch(rf"{run}/checkpoints/(\d+)/commit_success.txt", name) for name in names())
    return {int(match[1]) for match in found if match}


def losses(rows):
    return {row["step"]: row["loss"] for row in rows if row["split"] == "train"}


def reference(environment, folder, *arguments):
    """{step: loss} of one process that is left alone, on this machine; it has no need to evaluate."""
    program = Program(environment, MAIN, *arguments, f"--workdir={folder}")
    file = folder / "metrics.jsonl"
    wait_until(lambda: file.exists() and file.read_text().count("\n") >= STEPS, [program])
    program.process.kill()
    return losses(read_metrics(file))


@pytest.mark.slow(minutes=1)
def test_a_run_lives_in_a_bucket(tmp_path):
    """Begun by a pod, one of whose processes is killed, and ended by one process."""
    tiny_sets.write_coco(tmp_path / "raw", tiny_sets.document())
    data = "gs://bucket/data"
    common = (*ARGUMENTS, f"--config.data_dir={data}", f"--config.compilation_cache={tmp_path / 'cache'}")
    with emulator() as (bucket, names):
        alone = {**child_environment(PROCESSES), **bucket}
        raw = ("coco", f"--raw_dir={tmp_path / 'raw'}", "--split=val")
        prepared = Program(alone, "scripts.prepare_data", *raw, f"--data_dir={data}").said()
        assert "data/coco/val/1.0.0/summary.json" in names(), prepared
        run = (*common, "--workdir=gs://bucket/run")
        own = ("--config.checkpoint_every=2", f"--config.data_cache={tmp_path / 'ssd'}")
        with pod({**child_environment(1), **bucket}, *run, *own) as programs:
            wait_until(lambda: checkpoints(names, "run"), programs)
            programs[-1].process.kill()
            # While the other one waits for a sign of it.
            whole = reference(alone, tmp_path / "whole", *common)
            ends = [program.said() for program in programs]
        assert "is silent for" in ends[0] and "all processes end" in ends[0], ends[0]
        assert "".join(ends).count("gs://bucket/data/coco/val/1.0.0 copied to ") == 1
        saved = max(checkpoints(names, "run"))
        assert saved < STEPS, "it was killed too late to prove anything"
        ended = Program(alone, MAIN, *run).said()
        assert f"resumed from step {saved} " in ended, ended
        there = {name.removeprefix("run/") for name in names()}
        expected = {"metrics.jsonl", "curves.png", "report.html", f"results/step_{STEPS}/table.json"}
        assert expected | {f"logs/host_{process}.log" for process in range(PROCESSES)} <= there, ended
        assert any(name.startswith("tensorboard/events") for name in there)
        evaluated = (
            "--workdir=gs://bucket/evaluated",
            f"--config.data_dir={data}",
            "--config.checkpoint=gs://bucket/run",
        )
        table = Program(alone, MAIN, *evaluated, "--config.mode=evaluate", "--config.pictures=0").said()
        assert "AP / AR" in table, table
        found = losses(rows(bucket, "run/metrics.jsonl", tmp_path))
    assert sorted(found) == list(range(1, STEPS + 1)) == sorted(whole)
    # The sums over devices and processes are added in other orders.
    np.testing.assert_allclose([found[step] for step in whole], list(whole.values()), rtol=1e-5)
    assert not os.path.exists(ROOT / "gs:"), "a bucket was taken for a folder"


def test_a_run_that_is_asked_to_stop_saves_in_the_bucket_and_goes_on_before_what_is_damaged(tmp_path):
    toy, workdir = "tests.pose_common.training.pod_program", "--workdir=gs://bucket/toy"
    with emulator() as (bucket, names):
        environment = {**child_environment(1), **bucket}
        program = Program(environment, toy, workdir, "--config.steps=100000")
        wait_until(lambda: checkpoints(names, "toy"), [program])
        program.process.send_signal(signal.SIGTERM)
        stopped = program.said()
        assert program.process.returncode == 0, stopped
        saved = max(checkpoints(names, "toy"))
        before = sorted(checkpoints(names, "toy"))[-2]
        delete(bucket, f"toy/checkpoints/{saved}/training/manifest.ocdbt")
        again = Program(environment, toy, workdir, f"--config.steps={saved // 4 + 1}", "--accept_changes").said()
        assert f"resumed from step {before} " in again, again
        aside = {name for name in names() if name.startswith(f"toy/checkpoints/{saved}.damaged/")}
        assert len(aside) > 10 and f"toy/checkpoints/{saved}.damaged/{COMMITTED}" not in aside
        assert max(row["step"] for row in rows(bucket, "toy/metrics.jsonl", tmp_path)) == 4 * (saved // 4 + 1)


def address(bucket, name):
    return f"{bucket['STORAGE_EMULATOR_HOST']}/storage/v1/b/{NAME}/o/{name.replace('/', '%2F')}"


def delete(bucket, name):
    with urllib.request.urlopen(urllib.request.Request(address(bucket, name), method="DELETE"), timeout=10):
        pass


def rows(bucket, name, folder):
    """Of the metrics in the bucket."""
    with urllib.request.urlopen(f"{address(bucket, name)}?alt=media", timeout=10) as found:
        (folder / "copied.jsonl").write_bytes(found.read())
    return read_metrics(folder / "copied.jsonl")


def test_a_mistaken_address_is_named():
    with pytest.raises(ValueError, match="gs:/bucket/run is no path: write gs://bucket/folder"):
        as_path("gs:/bucket/run")
    for other in ("s3://bucket/run", "memory://run", "https://host/run"):  # which would be folders here
        with pytest.raises(ValueError, match=f"{other} is no path: of addresses, those of buckets"):
            as_path(other)
    with pytest.raises(ValueError, match="file:///run is no path: leave out file://"):
        as_path("file:///run")


def test_what_gcsfs_raises_is_not_logged_as_well(caplog):
    """Without a network its traceback came before the command's line."""
    retry = pytest.importorskip("gcsfs.retry")

    @retry.retry_request(retries=1)
    async def request():
        raise ConnectionError("no network")

    as_path("gs://bucket/run")
    with pytest.raises(ConnectionError, match="no network"):
        asyncio.run(request())
    logging.getLogger("gcsfs").warning("Could not determine bucket type for bucket name bucket: no credentials")
    logging.getLogger("gcsfs").warning("another")
    assert caplog.messages == ["another"]
