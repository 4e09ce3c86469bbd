"""The file that the package carries is told from others."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

import boir_jax.pose_model
import boir_jax.predict
import posebh_jax.pose_model
import posebh_jax.predict
from pose_common.weights.embedded import is_embedded, read_embedded, write_embedded
from posebh_jax.weights.convert import read_weights


def test_what_is_embedded_is_told_from_other_files(tmp_path):
    assert is_embedded(posebh_jax.pose_model.EMBEDDED) and is_embedded(str(boir_jax.pose_model.EMBEDDED))
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "other.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"damaged")
    for number, manifest in enumerate(("hello", "{}", "[1]", '{"version": "1.0"}')):
        foreign = tmp_path / f"foreign_{number}.safetensors"
        save_file({"a": np.zeros(1, np.float32)}, foreign, metadata={"manifest": manifest})
        assert not is_embedded(foreign)
        with pytest.raises(ValueError, match=foreign.name):
            read_embedded(foreign)
        with pytest.raises(ValueError, match=f"{foreign.name} holds no weights of PoseBH"):
            read_weights(foreign)
    for name in ("other.safetensors", "damaged.safetensors", "absent.safetensors", ""):
        assert not is_embedded(tmp_path / name), name


def test_weights_are_what_was_written_in_half_precision(tmp_path):
    given = read_embedded(boir_jax.pose_model.EMBEDDED)
    write_embedded(given, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == boir_jax.pose_model.EMBEDDED.read_bytes()
