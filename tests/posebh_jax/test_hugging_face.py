from __future__ import annotations

import shutil

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import posebh_jax
from pose_common.training.mesh import make_mesh
from pose_common.weights.keys import ConversionError, flatten
from posebh_jax import sources
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


def in_the_cache(root, name, model_folder):
    """A repository as the hub's own cache has it."""
    folder = root / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    shutil.copytree(model_folder, folder / "snapshots" / ("0" * 40))


@pytest.mark.parametrize("num_experts", [1, 6])
def test_poses_through_the_hubs_cache_are_those_of_transformers(tmp_path, monkeypatch, num_experts):
    torch, model = hugging_face(tmp_path / "model", num_experts=num_experts)
    transformers = pytest.importorskip("transformers")
    in_the_cache(tmp_path / "hub", "someone/tiny-pose", tmp_path / "model")
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    rng = np.random.default_rng(3)
    image = cv2.resize(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8), (320, 240), interpolation=cv2.INTER_CUBIC)
    boxes = np.array([[30.0, 20.0, 90.0, 150.0], [150.0, 40.0, 120.0, 160.0]])

    processor = transformers.VitPoseImageProcessor(size={"height": 64, "width": 48})
    pixels = processor(Image.fromarray(image), boxes=[boxes.tolist()], return_tensors="pt")["pixel_values"]
    index = {"dataset_index": torch.zeros(2, dtype=torch.int64)} if num_experts > 1 else {}
    with torch.no_grad():
        outputs = model(pixel_values=pixels, **index)
    (people,) = processor.post_process_pose_estimation(outputs, boxes=[boxes.tolist()], threshold=0)
    expected = np.stack([person["keypoints"].numpy() for person in people])

    pose = posebh_jax.load("hf://someone/tiny-pose", datasets=["coco"])
    found = pose(image, boxes=boxes, flip=False)
    errors = np.abs(found.keypoints[..., :2] - expected).max(axis=-1)
    # 0.05 pixels are far above what their interpolation by SciPy changes (0.002). Random maps have a flat top now and
    # then, where the step of DARK divides rounding by almost no curvature: 2 of the 34 may.
    assert np.sort(errors.ravel())[-3] < 0.05
    np.testing.assert_allclose(found.keypoints[..., 2], np.stack([p["scores"].numpy() for p in people]), rtol=1e-3)

    # The same weights as PyTorch's file, and by way of evaluation, which needs nothing but the name.
    torch.save(model.state_dict(), tmp_path / "model" / "pytorch_model.bin")
    (tmp_path / "model" / "model.safetensors").unlink()
    again = posebh_jax.load(tmp_path / "model", datasets=["coco"])(image, boxes=boxes, flip=False)
    np.testing.assert_array_equal(again.keypoints, found.keypoints)
    config = sources.read_configuration("", [("mode", "evaluate"), ("checkpoint", "hf://someone/tiny-pose")])
    assert (config.datasets, config.size, config.dark_blur) == (("coco",), "", "transformers")
    loaded = sources.load(config, make_mesh())
    assert loaded.model.num_experts == (num_experts if num_experts > 1 else 0)
    for name, value in flatten(jax.device_get(loaded.weights)).items():
        np.testing.assert_array_equal(value, flatten(pose.weights)[name], err_msg=name)
