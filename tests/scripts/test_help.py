"""What `--help` of the commands says."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

import posebh_jax.predict
from data_pipelines.builders.synthetic import prepare_synthetic
from scripts import browse, convert_weights, export, prepare_data, report, tpu_compile_check

COMMANDS = (
    "boir_jax.predict",
    "posebh_jax.predict",
    "scripts.browse",
    "scripts.check_weights",
    "scripts.convert_weights",
    "scripts.embed_models",
    "scripts.export",
    "scripts.prepare_data",
    "scripts.report",
    "scripts.show_config",
    "scripts.tpu_compile_check",
)


@pytest.mark.parametrize("arguments", [["--config=mdt:dmo"], ["--config=mdt:demo", "--topology=v5e:2x2"]])
def test_what_cannot_be_compiled_for_a_slice_is_said(arguments, monkeypatch, capsys):
    """A mistaken configuration; a machine without the compiler."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "libtpu" else find(name))
    with pytest.raises(SystemExit):
        tpu_compile_check.main(arguments)
    expected = {1: "did you mean 'demo'?", 2: "the TPU compiler is not installed: pip install '.[tpu]'"}
    assert capsys.readouterr().err.endswith(f"{expected[len(arguments)]}\n")


@pytest.mark.parametrize("flag", ["--out", "--to", "--data_dir"])
def test_an_address_that_is_no_path_is_said_of_its_flag(flag, capsys):
    command = {
        "--out": (posebh_jax.predict, ["photo.jpg"]),
        "--to": (convert_weights, ["weights"]),
        "--data_dir": (prepare_data, ["synthetic_coco"]),
    }
    module, arguments = command[flag]
    with pytest.raises(SystemExit):
        module.main([*arguments, f"{flag}=s3://bucket/folder"])
    assert f"error: argument {flag}: s3://bucket/folder is no path: " in capsys.readouterr().err


@pytest.mark.parametrize("module, arguments", [(report, ["no_run"]), (export, ["no_weights", "--format=onnx"])])
def test_a_folder_in_place_of_a_file_is_told_before_anything_is_read(module, arguments, tmp_path, capsys):
    with pytest.raises(SystemExit):
        module.main([*arguments, f"--out={tmp_path}"])
    advice = f"error: argument --out: {tmp_path} is a folder; name a file, which may be in it\n"
    assert capsys.readouterr().err.endswith(advice)


@pytest.mark.parametrize(
    "module, arguments, flag",
    [
        (posebh_jax.predict, ["--demo"], "--out"),
        (browse, ["coco"], "--out"),
        (prepare_data, ["synthetic_coco"], "--data_dir"),
    ],
)
def test_a_file_in_place_of_a_folder_is_told_of_its_flag(module, arguments, flag, tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SystemExit):
        module.main([*arguments, f"{flag}={file}"])
    assert f"error: argument {flag}: {file} is a file; name a folder\n" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        module.main([*arguments, f"{flag}={'x' * 300}"])
    assert f"{'x' * 300} cannot be reached: File name too long\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    "module, arguments, message",
    [
        (browse, ["coco", "--seed=-1"], "argument --seed: -1 is below 0"),
        (prepare_data, ["synthetic_coco", "--seed=-1"], "--seed=-1: pictures are rendered by a number from 0"),
    ],
)
def test_a_seed_that_cannot_be_is_told_of_its_flag(module, arguments, message, capsys):
    with pytest.raises(SystemExit):
        module.main(arguments)
    assert capsys.readouterr().err.endswith(f"error: {message}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["posebh_jax.main", "--help"],
        ["scripts.check_weights", "posebh_jax/embedded.safetensors"],
        ["scripts.prepare_data", "synthetic_coco", "--split=val", "--data_dir={data}"],
        ["scripts.show_config", "mdt:demo"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_command_whose_output_nobody_reads_ends_as_always(arguments, tmp_path):
    """As of `| head`, which leaves when it has its lines: no traceback, and the exit status is of what was done."""
    prepare_synthetic(tmp_path, ["synthetic_coco"], num_train=0, num_val=1)
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", *(argument.format(data=tmp_path) for argument in arguments)]
    root = pathlib.Path(__file__).resolve().parents[2]
    run = subprocess.run(command, cwd=root, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (run.returncode, run.stderr) == (0, b"")


def test_a_warning_beside_a_bar_is_told_once():
    """By tqdm, which takes the place of the handler that importing Orbax leaves."""
    code = """
        import logging
        from tqdm.contrib.logging import logging_redirect_tqdm
        from pose_common.console import outlive_console
        logging.basicConfig()
        outlive_console()
        with logging_redirect_tqdm():
            logging.warning("there is no box")
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert (run.stdout + run.stderr).count("there is no box") == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_how_the_command_is_started(command, capsys):
    with pytest.raises(SystemExit):
        importlib.import_module(command).main(["--help"])
    assert capsys.readouterr().out.startswith(f"usage: python -m {command} ")
