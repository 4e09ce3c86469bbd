from __future__ import annotations

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pose_common import heatmaps
from pose_common.weights.folder import load_weights
from pose_common.weights.keys import COUNTER, ConversionError, expected_sources, flatten
from pose_common.weights.torch_files import StateFileError, write_state
from posebh_jax.vit import SIZES, ViTSize
from posebh_jax.weights.convert import PROTOTYPES, convert, read_weights, to_torch
from posebh_jax.weights.detect import grid
from posebh_jax.weights.keys import posebh_rules
from posebh_jax.weights.manifest import MIXTURES, Options, model_of, model_targets
from scripts import convert_weights
from tests.golden_files import golden, golden_config
from tests.posebh_jax.conversion_cases import TOLERANCE, WHOLE, published, recorded_options, tiny_posebh
from tests.posebh_jax.golden_weights import golden_state, maps
from tests.settings import DARK_KERNEL
from tests.weight_files import DAMAGES, FORMATS, as_file, assert_same, damage

pytestmark = pytest.mark.slow  # compiles networks of several forms

KEYS = "posebh/checkpoint_keys.json"
SIZE = f"width {golden_config(WHOLE)['embed']}, depth {golden_config(WHOLE)['depth']}"


def state_like(shapes: dict[str, list[int]], seed: int = 0) -> dict[str, np.ndarray]:
    """A state dict of these shapes; counters count 0."""
    rng = np.random.default_rng(seed)
    return {
        name: np.zeros((), np.int64) if name.endswith(COUNTER) else rng.standard_normal(shape, np.float32)
        for name, shape in shapes.items()
    }


SMALL = sorted(golden(KEYS), key=lambda name: golden(KEYS)[name]["n_parameters"])[:2]


@pytest.mark.parametrize("name", SMALL)
def test_published_checkpoints_convert_there_and_back(name):
    state = state_like(golden(KEYS)[name]["state_dict"])
    conversion = convert(dict(state))
    assert len(conversion.converted.used) + len(conversion.converted.dropped) == len(state)
    assert all(dropped.endswith(COUNTER) for dropped in conversion.converted.dropped)
    assert not conversion.converted.initialised
    assert_same(to_torch(conversion.weights, conversion.manifest), state)


def test_a_class_token_of_the_pretraining_is_left_out():
    """Some published files of ViTPose have one, which its network does not use."""
    state, width = tiny_posebh(), golden_config(WHOLE)["embed"]
    plain = convert(dict(state), recorded_options())
    more = convert(state | {"backbone.cls_token": np.ones((1, 1, width), np.float32)}, recorded_options())
    assert set(more.converted.dropped) - set(plain.converted.dropped) == {"backbone.cls_token"}
    assert_same(flatten(more.weights), flatten(plain.weights))


@pytest.mark.parametrize("name", golden(KEYS))
def test_every_published_name_and_shape_has_its_place(name):
    """Without the numbers, which would take gigabytes."""
    shapes, title, manifest, notes = published(name)
    family, _, size = name.rpartition("_")
    if size in SIZES:
        assert title == f"{'PoseBH' if family == 'posebh' else 'ViTPose++ multi-head'}, {size}"
        assert not notes
        assert manifest["input_size"] == [192, 256]
        assert ViTSize(**manifest["backbone"]) == SIZES[size]
        assert tuple(name for name, _ in manifest["datasets"]) in MIXTURES
    targets = dict(model_targets(model_of(manifest), tuple(manifest["input_size"])))
    for entry, path in PROTOTYPES.items():
        if entry in shapes:
            targets[path] = jax.ShapeDtypeStruct(shapes[entry], jnp.float32)
    slots = expected_sources(posebh_rules([name for name, _ in manifest["datasets"]]), targets)
    places = {
        name: slot.view(np.broadcast_to(np.float32(0), targets[slot.rule.target].shape)).shape
        for name, slot in slots.items()
    }
    assert places == {name: shape for name, shape in shapes.items() if not name.endswith(COUNTER)}
    assert {slot.rule.target for slot in slots.values()} == set(targets)


@functools.cache
def flip_case():
    arrays, config = golden("posebh/flip_inference.npz"), golden_config("posebh/flip_inference.npz")
    return arrays, config, maps(arrays["image"]), jnp.asarray(arrays["dataset_idx"], jnp.int32)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_gives_the_originals_heatmaps_and_keypoints(tmp_path, suffix):
    arrays, config, images, dataset = flip_case()
    path = as_file(tmp_path, golden_state("posebh/flip_inference.npz"), suffix)
    conversion = read_weights(path, recorded_options("posebh/flip_inference.npz"))
    model = model_of(conversion.manifest)

    apply = jax.jit(model.apply)
    plain, mirrored = (apply(conversion.weights, x, dataset) for x in (images, images[:, :, ::-1]))
    np.testing.assert_allclose(plain, maps(arrays["heatmap_plain"]), atol=TOLERANCE)
    flip_index = np.arange(plain.shape[-1])
    for a, b in arrays["flip_pairs"]:
        flip_index[[a, b]] = b, a
    merged = heatmaps.flip_merge(plain, mirrored, jnp.asarray(flip_index), shift=False)
    np.testing.assert_allclose(merged, maps(arrays["heatmap_average"]), atol=TOLERANCE)

    height, width = config["img"]
    box = arrays["scale"] * 200
    inverse_warp = np.zeros((len(box), 2, 3), np.float32)
    inverse_warp[:, 0, 0], inverse_warp[:, 1, 1] = box[:, 0] / (width - 1), box[:, 1] / (height - 1)
    inverse_warp[:, :, 2] = arrays["center"] - box / 2
    keypoints = heatmaps.decode(
        merged, jnp.asarray(inverse_warp), udp=True, input_size=(width, height), kernel=DARK_KERNEL
    )
    expected = arrays["flip_udp/preds"]
    valid = expected[..., 2] > 0
    # Image pixels: 2e-3 for sub-pixel decoding.
    np.testing.assert_allclose(np.asarray(keypoints)[valid], expected[valid], atol=2e-3)

    half = model.clone(dtype=jnp.bfloat16)
    # 8 bits an operation: three percent of the largest value through two blocks and a head.
    bound = 0.03 * float(jnp.abs(plain).max())
    np.testing.assert_allclose(jax.jit(half.apply)(conversion.weights, images, dataset), plain, atol=bound)


@pytest.mark.parametrize("name", ["vit_moe", "vit_plain", "vit_moe_grid"])
def test_a_file_with_a_backbone_gives_the_originals_features(tmp_path, name):
    arrays, config = golden(f"posebh/{name}.npz"), golden_config(f"posebh/{name}.npz")
    state = {f"backbone.{key}": value for key, value in golden_state(f"posebh/{name}.npz").items()}
    height, width = config["img_size"]
    options = Options(num_heads=config["num_heads"], input_size=(width, height))
    conversion = read_weights(as_file(tmp_path, state), options)
    images, dataset = maps(arrays["image"]), jnp.asarray(arrays["dataset_idx"], jnp.int32)
    features = jax.jit(functools.partial(model_of(conversion.manifest).apply, method="features"))
    output = features({"params": conversion.weights["params"]}, images, dataset)
    np.testing.assert_allclose(output, maps(arrays["output"]), atol=TOLERANCE)


def test_a_whole_model_goes_through_the_command_and_back(tmp_path, capsys):
    source, folder, back = (
        as_file(tmp_path, tiny_posebh()),
        tmp_path / "weights",
        tmp_path / "back.safetensors",
    )
    config = golden_config(WHOLE)
    names, (height, width) = "abcdefgh"[: len(config["K"])], config["img"]
    options = [f"--num_heads={config['heads']}", f"--datasets={','.join(names)}", f"--input_size={width},{height}"]
    assert convert_weights.main([str(source), f"--to={folder}", *options]) == 0
    printed = capsys.readouterr().out
    assert f"PoseBH, {SIZE}" in printed
    heads = ", ".join(f"{name} {count}" for name, count in zip(names, config["K"], strict=True))
    assert f"heads: {heads}; experts: {len(names)}" in printed
    assert f"left out: {sum(name.endswith(COUNTER) for name in tiny_posebh())} counters" in printed

    assert convert_weights.main([str(folder), f"--to={back}"]) == 0
    again = read_weights(back, recorded_options())
    weights, _ = load_weights(folder)
    for name, value in flatten(weights).items():
        other = flatten(again.weights)[re.sub(r"heads/([a-h])/", lambda m: f"heads/dataset_{names.index(m[1])}/", name)]
        np.testing.assert_array_equal(value, other)


def test_the_command_leaves_nothing_after_an_error(tmp_path, capsys):
    state = dict(tiny_posebh())
    del state["backbone.pos_embed"]
    folder = tmp_path / "weights"
    assert (
        convert_weights.main(
            [str(as_file(tmp_path, state)), f"--to={folder}", f"--num_heads={golden_config(WHOLE)['heads']}"]
        )
        == 1
    )
    assert "backbone.pos_embed" in capsys.readouterr().err
    assert not folder.exists()


@pytest.mark.parametrize("size", ["192", "192x256", "192,256,3", "0,256", "-192,256", ""])
def test_a_size_that_is_none_is_explained(size, tmp_path, capsys):
    with pytest.raises(SystemExit):
        convert_weights.main(["weights.pth", f"--to={tmp_path / 'folder'}", f"--input_size={size}"])
    assert f"--input_size: {size!r} is not width,height in pixels, such as 192,256" in capsys.readouterr().err


def test_attention_heads_of_an_unpublished_size_are_asked_for():
    asked = (
        f"{SIZE} is no published size: say the attention heads, by `python -m scripts.convert_weights .*--num_heads="
    )
    with pytest.raises(ConversionError, match=asked):
        convert(dict(tiny_posebh()))


@pytest.mark.parametrize(
    ("tokens", "patches"), [(192, (12, 16)), (48, (6, 8)), (256, (16, 16)), (49, (7, 7)), (0, None), (255, None)]
)
def test_crops_are_3_by_4_or_square(tokens, patches):
    """Hands and faces are cropped square: 256x256 has 256 positions of 16x16 pixels."""
    assert grid(tokens) == patches


def test_positions_of_no_known_shape_ask_for_the_size():
    state, position = dict(tiny_posebh()), "backbone.pos_embed"
    options, width = dataclasses.replace(recorded_options(), input_size=None), state[position].shape[-1]
    state[position] = np.zeros((1, 1 + 16, width), np.float32)
    assert convert(dict(state), options).manifest["input_size"] == [64, 64]
    state[position] = np.zeros((1, 1 + 15, width), np.float32)
    with pytest.raises(ConversionError, match="15 positions make no grid of 3:4 or square.*--input_size="):
        convert(dict(state), options)


def test_heads_of_unknown_datasets_are_numbered_and_the_guess_is_told():
    conversion = convert(dict(tiny_posebh()), recorded_options())
    counts = tuple(golden_config(WHOLE)["K"])
    assert conversion.manifest["datasets"] == [[f"dataset_{i}", count] for i, count in enumerate(counts)]
    assert f"heads of {counts} keypoints: which datasets was not said" in conversion.title


def test_a_backbone_alone_converts_there_and_back():
    state = {name: value for name, value in tiny_posebh().items() if name.startswith("backbone.")}
    conversion = convert(dict(state), recorded_options())
    assert conversion.title == f"backbone of ViTPose++, {SIZE}"
    assert_same(to_torch(conversion.weights, conversion.manifest), state)


def test_names_must_have_the_heads_keypoints():
    options, first, *others = recorded_options(), *golden_config(WHOLE)["K"]
    names = ("coco", *(f"dataset_{i}" for i in range(len(others))))
    with pytest.raises(ConversionError, match=f"coco has 17 keypoints, the head {first}"):
        convert(dict(tiny_posebh()), dataclasses.replace(options, datasets=names))
    with pytest.raises(ConversionError, match=f"{len(names)} heads, but 1 names"):
        convert(dict(tiny_posebh()), dataclasses.replace(options, datasets=("a",)))


def test_weights_of_something_else_are_not_recognised(tmp_path):
    state = {"layer1.0.conv1.weight": np.zeros((4, 3, 1, 1), np.float32)}
    assert convert(dict(state)) is None
    with pytest.raises(ConversionError, match="holds no weights of PoseBH"):
        read_weights(as_file(tmp_path, state))


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("seed", range(16))
def test_every_damaged_entry_is_named(kind, seed):
    state = dict(tiny_posebh())
    name = damage(state, kind, np.random.default_rng([seed, len(kind)]))
    with pytest.raises(ConversionError) as caught:
        convert(state, recorded_options())
    assert name in str(caught.value)


@pytest.mark.torch
@pytest.mark.parametrize("seed", range(8))
def test_damaged_torch_files_are_explained(tmp_path, seed):
    """Fifteen damages a seed: cuts, flipped bits anywhere in the archive, and damaged entries."""
    rng = np.random.default_rng(seed)
    path = as_file(tmp_path, tiny_posebh(), ".pth")
    raw, whole = path.read_bytes(), flatten(read_weights(path, recorded_options()).weights)
    for _ in range(5):
        path.write_bytes(raw[: rng.integers(len(raw))])
        with pytest.raises(StateFileError, match="weights.pth"):
            read_weights(path, recorded_options())
        flipped = bytearray(raw)
        flipped[rng.integers(len(raw))] ^= 1 << rng.integers(8)
        path.write_bytes(flipped)
        try:
            found = flatten(read_weights(path, recorded_options()).weights)
        except StateFileError as error:
            assert "weights.pth" in str(error)
        else:  # a date or padding
            assert_same(found, whole)
    for kind in DAMAGES:
        state = dict(tiny_posebh())
        name = damage(state, kind, rng)
        write_state(path, state)
        with pytest.raises(ConversionError, match=re.escape(name)):
            read_weights(path, recorded_options())
