from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pose_common.weights.keys import ConversionError
from posebh_jax.weights.convert import read_weights
from posebh_jax.weights.manifest import model_of

pytestmark = pytest.mark.torch


def hugging_face(folder, *, num_experts: int = 1, use_simple_decoder: bool = False):
    """(torch, their model with random weights and statistics), saved to `folder`."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (the `torch` extra)")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    backbone = transformers.VitPoseBackboneConfig(
        image_size=[64, 48],
        patch_size=[16, 16],
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_experts=num_experts,
        part_features=8 if num_experts > 1 else 0,
        out_features=["stage2"],
    )
    config = transformers.VitPoseConfig(backbone_config=backbone, num_labels=17, use_simple_decoder=use_simple_decoder)
    model = transformers.VitPoseForPoseEstimation(config).eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) * 0.4 + (0.3 if tensor.ndim < 2 else -0.2))
    model.save_pretrained(folder)
    return torch, model


@pytest.mark.parametrize("num_experts", [1, 6])
def test_hugging_face_models_give_their_heatmaps(tmp_path, num_experts):
    torch, model = hugging_face(tmp_path, num_experts=num_experts)
    conversion = read_weights(tmp_path / "model.safetensors")
    assert conversion.title.startswith("Hugging Face VitPose-plus" if num_experts > 1 else "Hugging Face VitPose,")
    assert conversion.manifest["backbone"]["num_heads"] == 3  # from the config beside the weights
    assert conversion.manifest["num_experts"] == (num_experts if num_experts > 1 else 0)
    assert not conversion.converted.initialised

    rng = np.random.default_rng(0)
    images, dataset = rng.normal(size=(3, 64, 48, 3)).astype(np.float32), np.asarray([4, 0, 2])
    with torch.no_grad():
        pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        index = {"dataset_index": torch.from_numpy(dataset)} if num_experts > 1 else {}
        expected = model(pixel_values=pixels, **index).heatmaps.numpy()
    output = jax.jit(model_of(conversion.manifest).apply)(conversion.weights, images, jnp.asarray(dataset))
    # Theirs adds 1e-12 to a variance where the original adds 1e-6.
    np.testing.assert_allclose(output, np.moveaxis(expected, 1, -1), atol=1e-4 * np.abs(expected).max())


def test_the_simple_decoder_is_refused(tmp_path):
    hugging_face(tmp_path, use_simple_decoder=True)
    with pytest.raises(ConversionError, match="its decoder is the simple one"):
        read_weights(tmp_path / "model.safetensors")
