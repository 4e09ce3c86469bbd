"""What `--help` of the commands says."""

from __future__ import annotations

import importlib

import pytest

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
)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_how_the_command_is_started(command, capsys):
    with pytest.raises(SystemExit):
        importlib.import_module(command).main(["--help"])
    assert capsys.readouterr().out.startswith(f"usage: python -m {command} ")
