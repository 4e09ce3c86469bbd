"""Memory that stays with the process."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from tests.pose_common import host_memory_program

PAGE = 4096


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library, of which nothing is asked")
def test_a_step_finds_the_memory_of_the_last_one():
    """Counted by the kernel; of temporaries of 64 MiB and more, a tenth allows for what else a step may ask for."""

    def new_pages(*arguments: str) -> int:
        command = [sys.executable, "-m", host_memory_program.__name__, *arguments]
        environment = {**os.environ, "XLA_FLAGS": ""}  # one device: several have threads of their own
        return int(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, timeout=300).stdout)

    pages = host_memory_program.BYTES // PAGE
    assert new_pages() > pages
    assert new_pages("kept") < 0.1 * pages
