"""The pod's launcher against a `gcloud` that runs what it is given in a home folder for each worker."""

from __future__ import annotations

import os
import pathlib
import re
import shlex
import signal
import stat
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "launch_tpu_pod.sh"
GCLOUD = """#!/usr/bin/env bash
echo "$*" >> "$FAKE/calls"
for argument in "$@"; do
    case $argument in --command=*) command=${argument#--command=};; --worker=*) worker=${argument#--worker=};; esac
done
[[ $worker == all ]] && workers="0 1" || workers=$worker
for number in $workers; do
    home=$FAKE/worker_$number
    mkdir -p "$home"
    if [[ $4 == scp && $5 == *:* ]]; then cp "$home/${5#*:}" "$6"; elif [[ $4 == scp ]]; then cp "$5" "$home/${6#*:}"
    else (cd "$home" && HOME=$home bash -c "$command") || exit; fi
done
"""
TMUX = """#!/usr/bin/env bash
[[ $1 == new-session ]] || exit 1
sh -c "$5"
exit 0  # it does not wait
"""
SUDO = """#!/usr/bin/env bash
echo "sudo $*" >> "$FAKE/calls"
"""
SYSTEM_PYTHON = """#!/usr/bin/env bash
[[ $1 == -c ]] && exit "${OLD:-0}"
echo "$(basename "$0") $*" >> "$FAKE/calls"
mkdir -p .venv/bin && : > .venv/bin/activate
"""
PYTHON = """#!/usr/bin/env bash
printf '%s\\n' "$@"
exit "${STATUS:-0}"
"""


@pytest.fixture
def launch(tmp_path):
    """launch(*arguments, **environment) -> (output, calls of gcloud)."""
    programs = tmp_path / "bin"
    programs.mkdir()
    texts = {"gcloud": GCLOUD, "tmux": TMUX, "sudo": SUDO, "python": PYTHON, "pip": "#!/bin/sh\n"}
    for name, text in {**texts, "python3": SYSTEM_PYTHON, "python3.11": SYSTEM_PYTHON}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(stat.S_IRWXU)

    def run(*arguments, **environment):
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "FAKE": str(tmp_path), **environment}
        done = subprocess.run(
            ["bash", SCRIPT, *arguments], env=environment, capture_output=True, text=True, check=False
        )
        calls = tmp_path / "calls"
        return done.stdout + done.stderr, calls.read_text() if calls.exists() else ""

    return run


def readme_command() -> list[str]:
    (line,) = re.findall(r"`(scripts/launch_tpu_pod\.sh start [^`]+)`", (ROOT / "README.md").read_text("utf8"))
    return shlex.split(line)[1:]


def test_the_command_of_the_readme_runs_on_every_worker(launch, tmp_path):
    command = readme_command()
    text, calls = launch(*command)
    assert text.count("started; its log is") == 2, text
    assert calls.count("--worker=all") == 2
    for worker in range(2):
        folder = tmp_path / f"worker_{worker}" / "posebh_boir_jax"
        assert (folder / "run.log").read_text().splitlines() == command[command.index("python") + 1 :]
        assert (folder / "run.pid").read_text().strip().isdigit() and (folder / "constraints.txt").exists()


def test_quotes_restarts_and_logs(launch, tmp_path):
    argument = "--config.datasets=('synthetic_coco', \"a$b\")"
    launch("start", "pod", "zone", "python", argument, RESTARTS="2", STATUS="1")
    assert (tmp_path / "worker_1/posebh_boir_jax/run.log").read_text().splitlines() == [argument] * 3
    text, _ = launch("logs", "pod", "zone", "1")
    assert text.count(argument) == 2 and text.count("(ended)") == 2
    launch("collect", "pod", "zone", str(tmp_path / "logs"))
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["worker_0.log", "worker_1.log"]


def test_a_stop_is_not_undone_by_a_restart(launch, tmp_path):
    """As of a program that is stopped before it can save, whose status is that of an error."""
    stopping = ["sh", "-c", "echo tried; touch run.stopped; exit 143"]
    launch("start", "pod", "zone", *stopping, RESTARTS="3")
    folder = tmp_path / "worker_0" / "posebh_boir_jax"
    assert (folder / "run.log").read_text() == "tried\n"
    launch("start", "pod", "zone", "sh", "-c", "echo again; exit 1", RESTARTS="1")
    assert (folder / "run.log").read_text() == "tried\nagain\nagain\n", "a new start forgets the stop"
    with subprocess.Popen(["sleep", "60"]) as program:
        (folder / "run.pid").write_text(str(program.pid))
        launch("stop", "pod", "zone")
        assert program.wait(10) == -signal.SIGTERM
    assert (folder / "run.stopped").exists() and (tmp_path / "worker_1/posebh_boir_jax/run.stopped").exists()


def test_an_image_whose_python_is_too_old(launch):
    calls = launch("start", "pod", "zone", "python", "a", OLD="1")[1]
    assert calls.count("sudo apt-get install -qq -y python3.11-venv\npython3.11 -m venv .venv\n") == 2
    again = launch("start", "pod", "zone", "python", "a", OLD="1")[1].removeprefix(calls)
    assert not re.findall(r"^(?:sudo|python3)", again, re.MULTILINE), "made once"


def test_a_dry_run_calls_nothing(launch):
    text, calls = launch("start", "pod", "zone", "python", "-m", "x", DRY_RUN="1")
    assert not calls and text.count("gcloud compute tpus tpu-vm") == 2
    assert "scripts/launch_tpu_pod.sh stop" in launch("start")[0]
    text, _ = launch("stop", "pod", "zone", DRY_RUN="1")
    assert "kill\\ -TERM" in text and "--worker=0" in text
