"""ViTPose under the names of MMPose 1.x and of Hugging Face, in files and folders as people have them."""

from __future__ import annotations

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pose_common.weights.keys import COUNTER, ConversionError, flatten
from pose_common.weights.torch_files import write_state
from posebh_jax.weights.convert import convert, read_weights
from posebh_jax.weights.manifest import Options, model_of
from scripts import convert_weights
from tests.golden_files import golden, golden_config
from tests.posebh_jax.conversion_cases import TOLERANCE, recorded_options
from tests.posebh_jax.golden_weights import golden_state, maps
from tests.weight_files import DAMAGES, damage

RECORDING = "posebh/flip_inference.npz"
CONFIG = golden_config(RECORDING)
POSITION = "backbone.pos_embed"
INDEX = "model.safetensors.index.json"

MMPOSE = {
    r"backbone\.blocks\.(\d+)\.norm(\d)\.": r"backbone.layers.\1.ln\2.",
    r"backbone\.blocks\.(\d+)\.mlp\.fc1\.": r"backbone.layers.\1.ffn.layers.0.0.",
    r"backbone\.blocks\.(\d+)\.mlp\.fc2\.": r"backbone.layers.\1.ffn.layers.1.",
    r"backbone\.blocks\.": "backbone.layers.",
    r"backbone\.last_norm\.": "backbone.ln1.",
    r"patch_embed\.proj\.": "patch_embed.projection.",
    r"keypoint_head\.": "head.",
}
HUGGING_FACE = {
    r"backbone\.pos_embed": "backbone.embeddings.position_embeddings",
    r"backbone\.patch_embed\.proj\.": "backbone.embeddings.patch_embeddings.projection.",
    r"backbone\.blocks\.": "backbone.encoder.layer.",
    r"\.norm1\.": ".layernorm_before.",
    r"\.norm2\.": ".layernorm_after.",
    r"\.attn\.proj\.": ".attention.output.dense.",
    r"backbone\.last_norm\.": "backbone.layernorm.",
    r"keypoint_head\.final_layer\.": "head.conv.",
    r"keypoint_head\.deconv_layers\.0\.": "head.deconv1.",
    r"keypoint_head\.deconv_layers\.1\.": "head.batchnorm1.",
    r"keypoint_head\.deconv_layers\.3\.": "head.deconv2.",
    r"keypoint_head\.deconv_layers\.4\.": "head.batchnorm2.",
}


@functools.cache
def original() -> dict[str, np.ndarray]:
    """The recorded network with the first dataset's expert in place, as a plain ViTPose."""
    state = golden_state(RECORDING)
    for name in [name for name in state if ".experts." in name]:
        head, index, leaf = re.fullmatch(r"(.*)\.experts\.(\d+)\.(\w+)", name).groups()
        expert = state.pop(name)
        if index == "0":
            state[f"{head}.fc2.{leaf}"] = np.concatenate([state[f"{head}.fc2.{leaf}"], expert])
    return state


def renamed(names: dict[str, str]) -> dict[str, np.ndarray]:
    state = {}
    for name, value in original().items():
        for pattern, replacement in names.items():
            name = re.sub(pattern, replacement, name)
        state[name] = value
    return state


def mmpose(class_token: bool = True) -> dict[str, np.ndarray]:
    """MMPose adds no class token's position to the patches': it is in them, and its row, if there, means nothing."""
    state = renamed(MMPOSE)
    patches = state[POSITION][:, 1:] + state[POSITION][:, :1]
    row = np.full_like(patches[:, :1], 9.0)
    return state | {POSITION: np.concatenate([row, patches], axis=1) if class_token else patches}


def hugging_face() -> dict[str, np.ndarray]:
    state = renamed(HUGGING_FACE)
    for name in [name for name in state if ".attn.qkv." in name]:
        value = state.pop(name)
        for part, share in zip(("query", "key", "value"), np.split(value, 3), strict=True):
            state[name.replace(".attn.qkv.", f".attention.attention.{part}.")] = share
    return state


def config_beside(folder, **changes):
    backbone = {"hidden_size": CONFIG["embed"], "num_attention_heads": CONFIG["heads"]} | changes
    (folder / "config.json").write_text(json.dumps({"model_type": "vitpose", "backbone_config": backbone}))


HF_OPTIONS = Options(input_size=recorded_options(RECORDING).input_size)


def assert_same_weights(found, expected):
    found, expected = flatten(found), flatten(expected)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.slow  # compiles a network
@pytest.mark.parametrize("class_token", [True, False])
def test_mmposes_weights_give_the_originals_heatmaps(class_token):
    conversion = convert(mmpose(class_token), recorded_options(RECORDING))
    width, depth = CONFIG["embed"], CONFIG["depth"]
    assert conversion.title.startswith(f"ViTPose of MMPose 1.x, width {width}, depth {depth}")
    arrays = golden(RECORDING)
    rows = arrays["dataset_idx"] == 0
    images = maps(arrays["image"])[rows]
    output = jax.jit(model_of(conversion.manifest).apply)(conversion.weights, images, jnp.zeros(len(images), jnp.int32))
    np.testing.assert_allclose(output, maps(arrays["heatmap_plain"])[rows], atol=TOLERANCE)


def test_mmposes_extras_are_left_out():
    state = mmpose()
    extras = {
        "data_preprocessor.mean": np.ones((3, 1, 1), np.float32),
        "backbone.cls_token": np.ones((1, 1, CONFIG["embed"]), np.float32),
        "ema_backbone_ln1_weight": np.ones(CONFIG["embed"], np.float32),
        "steps": np.asarray(7),
    }
    conversion = convert(state | extras, recorded_options(RECORDING))
    assert_same_weights(conversion.weights, convert(mmpose(), recorded_options(RECORDING)).weights)
    assert {name for name in conversion.converted.dropped if not name.endswith(COUNTER)} == set(extras)


@pytest.mark.parametrize("tokens", [192, 193])
def test_mmposes_input_size_is_told_by_the_positions(tokens):
    state = mmpose() | {POSITION: np.zeros((1, tokens, CONFIG["embed"]), np.float32)}
    assert convert(state, Options(num_heads=CONFIG["heads"])).manifest["input_size"] == [192, 256]


@pytest.mark.parametrize("names", [mmpose, hugging_face], ids=["mmpose", "hugging face"])
@pytest.mark.parametrize("kind", DAMAGES)
def test_every_damaged_entry_is_named(names, kind):
    for seed in range(8):
        state = dict(names())
        name = damage(state, kind, np.random.default_rng([seed, len(kind)]))
        with pytest.raises(ConversionError, match=re.escape(name)):
            convert(state, recorded_options(RECORDING))


@pytest.mark.parametrize(
    ("names", "decoder"),
    [
        (mmpose, r"head\.deconv_layers\..*"),
        (hugging_face, r"head\.(deconv|batchnorm)\d\..*"),
        (original, r"keypoint_head\.deconv_layers\..*"),
    ],
)
def test_the_simple_decoder_is_refused(names, decoder):
    state = {name: value for name, value in names().items() if not re.fullmatch(decoder, name)}
    with pytest.raises(ConversionError, match=r"recognised as [^\n]*\n *its decoder is the simple one"):
        convert(state, recorded_options(RECORDING))


def test_a_backbone_of_mmpose_alone_is_refused():
    state = {name: value for name, value in mmpose().items() if not name.startswith("head.")}
    with pytest.raises(ConversionError, match="MMPose 1.x .*: *\n *it has no head"):
        convert(state, recorded_options(RECORDING))


@pytest.mark.parametrize("layout", ["folder", "file", "shards", "index"])
def test_hugging_faces_folders(tmp_path, layout):
    state, names = hugging_face(), list(hugging_face())
    config_beside(tmp_path)
    source = tmp_path
    if layout in ("folder", "file"):
        write_state(tmp_path / "model.safetensors", state)
        source = tmp_path / "model.safetensors" if layout == "file" else tmp_path
    else:
        places = {}
        for i, part in enumerate((names[::2], names[1::2]), start=1):
            file = f"model-{i:05}-of-00002.safetensors"
            write_state(tmp_path / file, {name: state[name] for name in part})
            places |= dict.fromkeys(part, file)
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": places}))
        source = tmp_path / INDEX if layout == "index" else tmp_path
    conversion = read_weights(source, HF_OPTIONS)
    assert conversion.manifest["backbone"]["num_heads"] == CONFIG["heads"]
    expected = convert(dict(original()), recorded_options(RECORDING))
    assert_same_weights(conversion.weights, expected.weights)


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"backbone_config": 3}', '{"backbone_config": {"num_attention_heads": "4"}}', "[" * 200_000],
)
def test_a_damaged_config_is_named(tmp_path, text):
    write_state(tmp_path / "model.safetensors", hugging_face())
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "config.json"))):
        read_weights(tmp_path, HF_OPTIONS)


def test_heads_that_do_not_divide_the_width(tmp_path):
    write_state(tmp_path / "model.safetensors", hugging_face())
    config_beside(tmp_path, num_attention_heads=7)
    with pytest.raises(ConversionError, match=f"7 attention heads do not divide width {CONFIG['embed']}"):
        read_weights(tmp_path, HF_OPTIONS)


def test_the_command_takes_a_folder(tmp_path, capsys):
    source, folder = tmp_path / "vitpose", tmp_path / "weights"
    source.mkdir()
    assert convert_weights.main([str(source), f"--to={folder}"]) == 1
    assert f"{source}: a folder without weights" in capsys.readouterr().err
    write_state(source / "model.safetensors", hugging_face())
    config_beside(source)
    width, height = HF_OPTIONS.input_size
    assert convert_weights.main([str(source), f"--to={folder}", f"--input_size={width},{height}"]) == 0
    assert "Hugging Face VitPose, width" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "look"),
    [
        ("layer1.0.conv1.weight", "a ResNet or alike"),
        ("backbone.stage2.0.branches.0.0.conv1.weight", "an HRNet with a head that is not BoIR's"),
        ("vit.encoder.layer.0.output.dense.bias", "a Hugging Face transformer other than VitPose"),
        ("layers.0.blocks.0.attn.relative_position_bias_table", "a Swin transformer"),
        ("something.weight", "nothing that is known"),
    ],
)
def test_what_other_weights_look_like_is_said(tmp_path, capsys, name, look):
    write_state(tmp_path / "w.safetensors", {name: np.ones((2, 2), np.float32)})
    with pytest.raises(ConversionError, match=f"{name}.*look like {look}; accepted are PoseBH"):
        read_weights(tmp_path / "w.safetensors")
    assert convert_weights.main([str(tmp_path / "w.safetensors"), f"--to={tmp_path / 'out'}"]) == 1
    assert f"look like {look}" in capsys.readouterr().err


def test_a_model_beside_entries_of_the_object_around_it(tmp_path):
    """As Lightning saves a module whose loss has weights: which entries are the model's, nothing says."""
    state = {name: np.ones(2, np.float32) for name in ("net.backbone.pos_embed", "criterion.weight")}
    write_state(tmp_path / "w.safetensors", state)
    with pytest.raises(ConversionError, match="look like a model inside another object.* own state_dict; accepted are"):
        read_weights(tmp_path / "w.safetensors")
