"""What the training programs of both methods have in common."""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
import subprocess
import sys
import types

import pytest
from ml_collections import ConfigDict

from pose_common.training import cli, configuration, distributed, logs, processes, workdir


def test_evaluations_of_different_weights_have_folders_of_their_own():
    checkpoints = [
        "workdir/transfer",
        "w1/checkpoints/best",
        "w1/checkpoints/1",
        "base.pth",
        "../base.pth",
        "hf://owner/base",
    ]
    folders = [cli.evaluation_workdir(checkpoint) for checkpoint in checkpoints]
    assert folders[0] == "workdir/evaluated/workdir_transfer" and len(set(folders)) == len(folders)
    assert all(folder.count("/") == 2 for folder in folders)
    assert cli.evaluation_workdir(".") == f"workdir/evaluated/{pathlib.Path.cwd().name}"
    assert ".." not in cli.evaluation_workdir("..")


@pytest.mark.parametrize(("examples", "configured", "steps"), [(96, 0, 3), (97, 0, 4), (5, 0, 1), (97, 7, 7)])
def test_an_epoch_counts_its_last_batch(examples, configured, steps):
    config = ConfigDict({"batch_size": 32, "steps_per_epoch": configured})
    assert cli.steps_per_epoch(config, types.SimpleNamespace(num_examples=examples)) == steps


def test_processes_train_on_the_same_data(monkeypatch, tmp_path):
    """Copies of hosts' own may be of two preparations: as many people, other pictures."""

    def gather(name, text):
        return [text, text.replace("1a2b", "3c4d")]

    data = types.SimpleNamespace(num_examples=5, contents={"mine (train)": "1a2b"})
    build = types.SimpleNamespace(make_loader=lambda config: data)
    config = configuration.read("mdt:demo")
    monkeypatch.setattr(processes, "gather", gather)
    message = r"process 1.* has digests of its data .*'3c4d'.*; process 0.* has .*'1a2b'"
    with pytest.raises(processes.Disagreement, match=message):
        cli.train(config, tmp_path, build, make_start=None)


def test_processes_evaluate_into_the_same_folder(monkeypatch, tmp_path):
    """Only process 0 would write into its own; that a run's is shared is found out by writing there."""
    monkeypatch.setattr(processes, "gather", lambda name, text: [text, text.replace("/one", "/two")])
    config = ConfigDict({"mode": "evaluate", "checkpoint": "base.pth"})
    program = cli.Program(lambda *_: config, run=lambda *_: None, default="", workdir="", methods=(), free=())
    given = types.SimpleNamespace(workdir=types.SimpleNamespace(value=f"{tmp_path}/one"))
    message = rf"process 1.* has --workdir {tmp_path}/two; process 0.* has --workdir {tmp_path}/one$"
    with pytest.raises(processes.Disagreement, match=message):
        cli._start(program, "mdt", [("mode", "evaluate"), ("checkpoint", "base.pth")], given)
    assert not list(tmp_path.iterdir())


def test_tasks_that_orbax_abandons_are_not_told(monkeypatch):
    """Pages of specifications, behind the line that names the damaged checkpoint; other errors are told."""
    told = []
    hook = logs._without_abandoned_tasks(lambda unraisable: told.append(str(unraisable.exc_value)))
    monkeypatch.setattr(sys, "unraisablehook", hook)

    async def read():
        try:
            await asyncio.sleep(0)
        finally:
            raise ValueError("the specification of the array")

    class Other:
        def __init__(self, error):
            self.error = error

        def __del__(self):
            raise RuntimeError(self.error)

    task = read()
    task.send(None)
    del task
    for error in ("Event loop is closed", "another"):
        Other(error)
    assert told == ["another"]


@pytest.mark.parametrize("error", [ValueError("there is\nno room"), TypeError("wrong")])
def test_why_a_run_ended_is_in_its_log(tmp_path, error):
    """The console may be gone by then. Of what says all in one line there is no traceback, as on the console."""
    with pytest.raises(type(error)), logs.written_to(tmp_path):
        raise error
    log = (tmp_path / "logs" / "host_0.log").read_text()
    assert f"error: {' '.join(str(error).split())}\n" in log
    assert ("Traceback" in log) == isinstance(error, TypeError)


def test_who_has_no_home_has_no_cache_of_compiled_programs(monkeypatch, caplog):
    """As the users that containers are run by."""

    def unknown(user):
        raise KeyError(user)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    distributed.use_compilation_cache("~/.cache/posebh_jax/jax")
    assert "is not used" in caplog.text


@pytest.mark.parametrize(
    ("several", "backend", "kept"), [(True, "cpu", False), (True, "tpu", True), (False, "cpu", True)]
)
def test_several_processes_of_cpus_keep_no_compiled_programs(several, backend, kept, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed.processes, "several", lambda: several)
    monkeypatch.setattr("jax.default_backend", lambda: backend)
    changed = {}
    monkeypatch.setattr("jax.config.update", changed.__setitem__)
    distributed.use_compilation_cache(str(tmp_path / "cache"))
    assert (changed.get("jax_compilation_cache_dir") == str(tmp_path / "cache")) == bool(changed) == kept


def test_a_configuration_is_replaced_as_a_whole(tmp_path, monkeypatch):
    """The kill comes when the new file is written, and not yet in the old one's place."""

    def killed(*_):
        raise InterruptedError

    workdir.record_configuration({"seed": 1}, tmp_path)
    monkeypatch.setattr(pathlib.Path, "replace", killed)
    with pytest.raises(OSError, match=r"config\.json cannot be written"):
        workdir.record_configuration({"seed": 2}, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == {"seed": 1}


def test_a_run_outlives_its_console(tmp_path):
    """Progress, messages and a table: letters that the encoding has not, and pipes whose readers have ended."""
    program = """
import logging, pathlib, sys, tqdm
from pose_common.evaluation import result_table
from pose_common.training import logs

logs.start_logging()
bar = tqdm.tqdm(total=2, mininterval=0)
for attempt in range(2):
    logging.info("m\u00e4use")
    result_table.show([{"dataset": "m\u00e4use"}], "\u732b")
    bar.update()
    bar.refresh()
    while not attempt and sys.stdin.readline():
        pass  # until the readers are gone
pathlib.Path(sys.argv[1]).write_text("done")
"""
    run = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path / "end"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert run.stdin and run.stdout and run.stderr
    shown = b"".join(run.stdout.readline() for _ in range(5))
    run.stdout.close()
    run.stderr.close()
    run.stdin.close()
    assert run.wait(timeout=60) == 0 and (tmp_path / "end").read_text() == "done"
    assert b"m\\xe4use" in shown and b"\\u732b" in shown


def test_a_run_needs_no_console(tmp_path):
    """Closed, its numbers are free, and a file that is opened next would get all that is written to it."""
    program = """
import pathlib, sys, tqdm
from pose_common.training import logs

logs.start_logging()
with pathlib.Path(sys.argv[1]).open("w") as file:
    for _ in tqdm.tqdm(range(2)):
        print("step")
    file.write("done")
"""
    command = ["sh", "-c", '"$0" "$@" >&- 2>&-', sys.executable, "-c", program, str(tmp_path / "end")]
    assert subprocess.run(command, check=False).returncode == 0 and (tmp_path / "end").read_text() == "done"
