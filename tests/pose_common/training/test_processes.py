"""Two processes as two hosts: they find each other, agree before they begin, and none is left behind."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import pytest

from pose_common.training import distributed, processes
from pose_common.training.writers import read_metrics
from tests.distribution import ROOT, child_environment

pytestmark = pytest.mark.slow  # every test starts two processes
PROGRAM = "tests.pose_common.training.pod_program"
LONG = "--config.steps=100000"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def started(*arguments, environments=({}, {})):
    """The toy's program twice, as `arguments` say of each; killed at the end."""
    programs = [
        subprocess.Popen(
            [sys.executable, "-m", PROGRAM, *own],
            cwd=ROOT,
            env={**child_environment(1), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for own, environment in zip(arguments, environments, strict=True)
    ]
    try:
        yield programs
    finally:
        for program in programs:
            program.kill()
            program.wait()


def pair(workdir, *more, others=()):
    """Arguments of two processes that are told of each other; `others` for the second alone."""
    common = (f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2", f"--workdir={workdir}", *more)
    return (*common, "--process_id=0"), (*common, "--process_id=1", *others)


def outputs(programs, seconds: float = 180) -> list[str]:
    """What they say until they have ended."""
    until = time.monotonic() + seconds
    return [program.communicate(timeout=max(1, until - time.monotonic()))[0] for program in programs]


def wait_for_steps(workdir):
    """Until a line of metrics is written, and a checkpoint is there: the first ones are deleted within a second."""
    until = time.monotonic() + 180
    folder = workdir / "checkpoints"
    while not ((workdir / "metrics.jsonl").exists() and any(path.name.isdigit() for path in folder.glob("*"))):
        assert time.monotonic() < until
        time.sleep(0.05)


def fail_together(programs, message):
    """Both end, and say the same one line last."""
    texts = outputs(programs)
    assert [program.returncode for program in programs] == [1, 1], "\n".join(texts)
    for text in texts:
        assert text.splitlines()[-1].endswith(f"{message}; all processes end"), text
        assert "Check failure stack trace" not in text and text.count("all processes end") == 1


HOST = socket.gethostname()


def test_what_differs_is_said_before_the_first_step(tmp_path):
    with started(*pair(tmp_path, others=["--config.seed=1"])) as programs:
        texts = outputs(programs)
    for text in texts:
        line = text.splitlines()[-1]
        assert f"process 1 ({HOST}) has config.seed 1; process 0 ({HOST}) has config.seed 0; all processes end" in line
    assert not list(tmp_path.glob("*"))


def test_a_working_directory_of_its_own_is_refused(tmp_path):
    arguments = pair(tmp_path / "one", others=[f"--workdir={tmp_path / 'two'}"])
    with started(*arguments) as programs:
        texts = outputs(programs)
    for text in texts:
        assert "is not shared by all processes: process 1 (" in text.splitlines()[-1]
        assert "use gs:// or a mount" in text.splitlines()[-1] and "Traceback" not in text
    assert not list((tmp_path / "one").glob("*"))


def test_data_that_is_missing_on_one_host_ends_all(tmp_path):
    with started(*pair(tmp_path), environments=({}, {"FAULT": "data"})) as programs:
        fail_together(programs, f"error: process 1 ({HOST}) failed: toy (train) is not prepared")


def test_an_error_in_a_step_of_one_ends_all(tmp_path):
    with started(*pair(tmp_path), environments=({"FAULT": "error:3"}, {})) as programs:
        fail_together(programs, f"error: process 0 ({HOST}) failed: records.array_record cannot be read at 3")
    for number in range(2):
        log = (tmp_path / "logs" / f"host_{number}.log").read_text()
        assert log.splitlines()[-1].endswith("cannot be read at 3; all processes end")


def test_a_killed_process_is_missed(tmp_path):
    """Its beats are, and the collective that it leaves fails here: `SUSPECT_SECONDS` and what a beat takes."""
    with started(*pair(tmp_path, LONG)) as programs:
        wait_for_steps(tmp_path)
        programs[1].kill()
        (text,) = outputs(programs[:1], processes.SILENT_SECONDS + 60)
    assert programs[0].returncode == 1
    assert f"error: process 1 ({HOST}) is silent for" in text.splitlines()[-1], text


def test_a_killed_process_is_missed_before_the_runtime_misses_it():
    """Which it does half of its time after the loss, at the earliest; a beat and a stall are ours to lose."""
    assert processes.HEARTBEAT_SECONDS / 2 >= processes.SILENT_SECONDS + 5 * processes.BEAT_SECONDS


def test_a_killed_process_0_is_missed(tmp_path):
    """JAX ends the others itself where it is faster, with a stack trace; the line is there all the same."""
    with started(*pair(tmp_path, LONG)) as programs:
        wait_for_steps(tmp_path)
        programs[0].kill()
        (text,) = outputs(programs[1:], 60)
    assert programs[1].returncode
    assert "error: process 0, which holds the others together, is gone" in text, text


def test_a_process_that_leaves_is_not_held_up():
    """By a call of the store that never returns, as one did when process 0 was gone."""
    code = """if True:
        import time
        from pose_common.training import processes
        processes.LEAVE_SECONDS, processes._own = 0.5, lambda: 1
        processes._client = lambda: time.sleep(600)
        processes._leave("why", wait=True)
    """
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 1 and "error: why; all processes end" in done.stderr


class Metadata(http.server.BaseHTTPRequestHandler):
    """The metadata server of worker `number` of two Cloud TPU VMs."""

    def __init__(self, number, *arguments):
        self.number = number
        super().__init__(*arguments)

    def do_GET(self):
        attributes = {
            "agent-worker-number": str(self.number),
            "worker-network-endpoints": "unknown:unknown:127.0.0.1,unknown:unknown:127.0.0.1",
            "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-16'\nZONE: 'us-west4-a'",
        }
        value = attributes.get(self.path.rsplit("/", 1)[1])
        self.send_response(404 if value is None else 200)
        self.end_headers()
        self.wfile.write((value or "").encode())

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def metadata_servers():
    """The environment of two workers, each with its own server."""
    servers = [
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Metadata, number)) for number in range(2)
    ]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    port = str(free_port())
    try:
        yield [
            {"TPU_VM": "1", "GCE_METADATA_IP": f"127.0.0.1:{server.server_port}", "JAX_COORDINATOR_PORT": port}
            for server in servers
        ]
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def test_tpu_workers_find_each_other_and_a_stop_asked_of_one_stops_all_in_order(tmp_path):
    """As one command on every worker starts them; one process then goes on from their checkpoint to the end."""
    arguments = (f"--workdir={tmp_path}", LONG)
    with metadata_servers() as environments, started(arguments, arguments, environments=environments) as programs:
        wait_for_steps(tmp_path)
        programs[1].send_signal(signal.SIGTERM)
        texts = outputs(programs)
    assert [program.returncode for program in programs] == [0, 0], "\n".join(texts)
    assert f"process 1 ({HOST}) of 2" in texts[1]
    for number, text in enumerate(texts):
        log = (tmp_path / "logs" / f"host_{number}.log").read_text()
        assert f"[{number} {HOST}] compiled in" in text and "compiled in" in log and "goodput" in log.splitlines()[-1]
    stopped = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    steps = stopped // 4 + 1
    alone = subprocess.run(
        [
            *(sys.executable, "-m", PROGRAM, "--accept_changes"),
            *(f"--workdir={tmp_path}", f"--config.steps={steps}"),
        ],
        cwd=ROOT,
        env=child_environment(1),
        capture_output=True,
        text=True,
        check=False,
    )
    assert alone.returncode == 0 and f"resumed from step {stopped}" in alone.stderr, alone.stderr
    assert max(row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")) == 4 * steps


def test_processes_that_are_told_of_others_and_cannot_find_them_stop(monkeypatch):
    for name in ("SLURM_STEP_NUM_TASKS", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "4")
            patch.setattr(distributed.importlib.util, "find_spec", lambda name: None)
            with pytest.raises(ValueError, match=f"{name}.* says that this is one of 4 .*--process_id=<0 ... 3>"):
                distributed.start()
            distributed.start(num_processes=1)
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    with pytest.raises(ValueError, match="TPU_WORKER_HOSTNAMES says that this is one of 2"):
        distributed.start()
    monkeypatch.delenv("TPU_WORKER_HOSTNAMES")
    distributed.start()
    monkeypatch.setattr(jax, "process_count", lambda: 8)
    with pytest.raises(ValueError, match="the accelerator says that this is one of 8"):
        distributed.start()
    with pytest.raises(ValueError, match="give all of --coordinator"):
        distributed.start(process_id=1)


def test_one_process_is_left_as_it_is():
    assert processes.gather("anything", "text") == ["text"] and not processes.several()
    processes.require_alike("anything", {"a": 1})
    with pytest.raises(KeyError), processes.leaving_together():
        raise KeyError("a")
    assert processes.title(0) == f"process 0 ({os.uname().nodename})"
