"""What is committed is never skipped, what is optional is."""

from __future__ import annotations

import pytest

from tests.golden_files import golden, golden_path, shared_path


@pytest.mark.parametrize("read", [golden, golden_path])
def test_a_recording_that_is_not_there_is_an_error(read):
    with pytest.raises((FileNotFoundError, pytest.skip.Exception)) as caught:
        read("posebh/absent.npz")
    assert caught.type is FileNotFoundError and "posebh/absent.npz" in str(caught.value)


def test_a_sample_that_is_not_there_is_skipped():
    with pytest.raises(pytest.skip.Exception, match="samples/absent"):
        shared_path("samples/absent")
