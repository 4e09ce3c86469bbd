from __future__ import annotations

import functools
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.datasets import DATASETS
from pose_common.training.checks import ConfigError
from pose_common.training.mesh import make_mesh
from pose_common.training.state import TrainState
from pose_common.weights.folder import save_weights
from pose_common.weights.keys import COUNTER, ConversionError, flatten, own_weights, unflatten
from pose_common.weights.torch_files import write_state
from posebh_jax import configuration, sources
from posebh_jax.model import PoseBH
from posebh_jax.vit import SIZES, ViTSize
from posebh_jax.weights.convert import convert, read_weights, to_torch
from posebh_jax.weights.mae import cubic_matrix
from posebh_jax.weights.manifest import MIXTURES, Options, manifest_of, model_of, model_targets
from posebh_jax.weights.transfer import expand_experts, single_dataset, start_from
from scripts import convert_weights
from tests.golden_files import golden, golden_config
from tests.posebh_jax.conversion_cases import TOLERANCE, recorded_options, tiny_posebh, tokens_in_a_column
from tests.posebh_jax.golden_weights import golden_state, maps
from tests.weight_files import as_file, assert_same

BANK_SHAPE = golden("posebh/full_train.npz")["param:proto_head.kpt_prototype.prototypes"].shape[1:]
SPLIT_FILE = "posebh/model_split.npz"
SPLIT_OPTIONS = Options(num_heads=2, input_size=tokens_in_a_column(golden_state(SPLIT_FILE)))
SPLIT = tuple(name for name in MIXTURES[0] if name.removeprefix("coco_") in golden_config(SPLIT_FILE)["names"])


@functools.cache
def split_source():
    return convert(golden_state("posebh/model_split.npz"), SPLIT_OPTIONS)


def recorded_split(dataset: str) -> dict[str, np.ndarray]:
    """What the original's splitter changes for one dataset."""
    prefix = f"out:{dataset.removeprefix('coco_')}:"
    arrays = golden("posebh/model_split.npz")
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


@pytest.mark.parametrize("dataset", SPLIT)
def test_folding_an_expert_is_the_originals_split(dataset):
    source = split_source()
    weights, manifest = single_dataset(source.weights, source.manifest, dataset)
    folded = to_torch(weights, manifest)
    assert not [name for name in folded if "experts" in name or "associate" in name]
    for name, value in recorded_split(dataset).items():
        if not name.endswith(COUNTER):
            np.testing.assert_array_equal(folded[name], value, err_msg=name)


def test_a_split_file_is_recognised_by_its_name_and_content(tmp_path):
    """The released splitter leaves the experts in the file."""
    name, count = split_source().manifest["datasets"][1]
    state = golden_state(SPLIT_FILE) | recorded_split(name)
    state = {entry: value for entry, value in state.items() if "associate" not in entry}
    path = tmp_path / f"{name}.safetensors"
    write_state(path, state)
    conversion = read_weights(path, SPLIT_OPTIONS)
    assert conversion.title.startswith("single-dataset split of ViTPose++")
    assert conversion.manifest["datasets"] == [[name, count]]
    assert any("experts" in entry for entry in conversion.converted.dropped)
    source = split_source()
    weights, _ = single_dataset(source.weights, source.manifest, name)
    assert_same(flatten(conversion.weights), flatten(weights))


def test_a_folded_model_gives_the_experts_features():
    images = maps(golden("posebh/full_train.npz")["image"])
    source = convert(dict(tiny_posebh()), recorded_options())
    whole = jax.jit(functools.partial(model_of(source.manifest).apply, method="features"))
    for index, (name, _) in enumerate(source.manifest["datasets"]):
        weights, manifest = single_dataset(source.weights, source.manifest, name)
        folded = jax.jit(functools.partial(model_of(manifest).apply, method="features"))
        dataset = jnp.full(len(images), index)
        expected = whole({"params": source.weights["params"]}, images, dataset)
        output = folded({"params": weights["params"]}, images, dataset)
        np.testing.assert_allclose(output, expected, atol=TOLERANCE)
        assert weights["prototypes"]["bank"].shape[0] == manifest["datasets"][0][1]


def test_folding_a_dataset_that_is_not_there_lists_those_that_are():
    source = split_source()
    with pytest.raises(ValueError, match="no head for 'halpe'; these weights have .*'coco'"):
        single_dataset(source.weights, source.manifest, "halpe")


def mae_state(prefix: str) -> dict[str, np.ndarray]:
    arrays = golden("posebh/mae_init.npz")
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def test_a_plain_backbone_becomes_the_originals_initialisation(tmp_path):
    config = golden_config("posebh/mae_init.npz")
    path = as_file(tmp_path, mae_state("in:"))
    options = Options(num_heads=config["heads"], input_size=tuple(config["img"][::-1]))
    plain = read_weights(path, options)
    assert plain.title.startswith("vision transformer backbone (MAE or alike)")
    assert set(plain.converted.dropped) == {"cls_token", "norm.weight", "norm.bias"}
    assert set(plain.converted.initialised) == {"params/backbone/last_norm/scale", "params/backbone/last_norm/bias"}

    experts, manifest = expand_experts(plain.weights, plain.manifest, config["ne"], config["part"])
    for (weights, described), prefix in (
        ((plain.weights, plain.manifest), "out_plain:"),
        ((experts, manifest), "out_moe:"),
    ):
        state = to_torch(weights, described)
        for name, value in mae_state(prefix).items():
            # 1e-5 for the interpolated position embedding, everything else is copied.
            np.testing.assert_allclose(state[f"backbone.{name}"], value, atol=1e-5 if name == "pos_embed" else 0)


def test_the_cubic_kernel_reproduces_what_it_must():
    np.testing.assert_allclose(cubic_matrix(9, 9), np.eye(9), atol=1e-12)
    np.testing.assert_allclose(cubic_matrix(14, 12).sum(1), 1, atol=1e-12)


def initial_of(model: PoseBH, input_size: tuple[int, int] = recorded_options().input_size) -> dict:
    """Arrays like a newly initialised model's, all -1."""
    shapes = dict(model_targets(model, input_size))
    if model.embedding_dim:
        shapes["prototypes/bank"] = jax.ShapeDtypeStruct(
            (sum(count for _, count in model.datasets), *BANK_SHAPE), jnp.float32
        )
    return unflatten({name: np.full(shape.shape, -1, np.float32) for name, shape in shapes.items()})


@pytest.fixture(scope="module")
def weights_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "posebh"
    conversion = convert(dict(tiny_posebh()), recorded_options())
    save_weights(folder, conversion.weights, conversion.manifest)
    return folder, conversion


def tiny_model(**changes) -> PoseBH:
    manifest = convert(dict(tiny_posebh()), recorded_options()).manifest
    return model_of(manifest).clone(**changes)


def test_the_same_model_starts_whole(weights_folder):
    folder, conversion = weights_folder
    model = tiny_model()
    start = start_from(read_weights(folder), initial_of(model), model)
    assert (start.initialised, start.left_out) == ((), ())
    assert_same(flatten(start.tree), flatten(conversion.weights))


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_run_starts_from_weights_of_another_input_size(published_mixture, kind, tmp_path, caplog):
    """Bicubic along both sides; evaluation at another size than the weights' is refused."""
    path, conversion = published_mixture
    if kind == "folder":
        path = tmp_path / "folder"
        save_weights(path, conversion.weights, conversion.manifest)
    settings = [("init_from", str(path)), ("input_size", "192,192"), ("datasets", ",".join(MIXTURES[0]))]
    config = configuration.read("mdt:demo", settings)
    model = published_model()
    shapes = unflatten(dict(model_targets(model, (192, 192))))
    initial = jax.tree.map(lambda leaf: jnp.full(leaf.shape, -1.0), shapes)
    state = TrainState(0, initial["params"], initial["batch_stats"], {}, {}, None)
    caplog.set_level(logging.INFO)
    found = np.asarray(sources.make_start(config, model)(state).params["backbone"]["pos_embed"])
    assert "position embedding interpolated from crops of 96x128 to those of 192x192" in caplog.text
    given = flatten(conversion.weights)["params/backbone/pos_embed"][0]
    np.testing.assert_array_equal(found[0, 0], given[0])
    columns = cubic_matrix(8, 12) @ given[1:].reshape(8, 6 * 128)
    expected = cubic_matrix(6, 12) @ columns.reshape(12, 6, 128)
    np.testing.assert_allclose(found[0, 1:].reshape(12, 12, 128), expected, atol=1e-5)

    asked = [("mode", "evaluate"), ("checkpoint", str(path)), *settings[1:]]
    with pytest.raises(
        ConfigError, match=r"takes crops of 96x128 \(width x height\), not config.input_size=\(192, 192\)"
    ):
        sources.load(configuration.read("multi_head:demo", asked), make_mesh())


def test_a_multi_head_file_leaves_embedding_and_prototypes_fresh(tmp_path):
    state = {name: value for name, value in tiny_posebh().items() if "proto_head" not in name}
    model = tiny_model()
    initial = initial_of(model)
    start = start_from(read_weights(as_file(tmp_path, state), recorded_options()), initial, model)
    assert start.initialised == ("embedding", "prototypes/bank")
    assert start.left_out == ()
    np.testing.assert_array_equal(start.tree["prototypes"]["bank"], initial["prototypes"]["bank"])
    kernel = start.tree["params"]["backbone"]["blocks"]["attn"]["qkv"]["kernel"]
    np.testing.assert_array_equal(kernel[1], tiny_posebh()["backbone.blocks.1.attn.qkv.weight"].T)


def test_another_mixture_goes_by_the_names_of_the_datasets(weights_folder):
    folder, conversion = weights_folder
    counts = dict(conversion.manifest["datasets"])
    others = range(len(counts))[::-1]
    model = tiny_model(
        datasets=(("mine", 2), *((f"dataset_{i}", counts[f"dataset_{i}"]) for i in others)),
        num_experts=1 + len(counts),
    )
    initial = initial_of(model)
    start = start_from(read_weights(folder), initial, model)
    assert start.initialised == (
        "experts of mine (as that of dataset_0)",
        "heads/mine",
        "heads/mine/final",
        "prototypes of mine",
    )
    assert start.left_out == ()
    before, after = flatten(conversion.weights), flatten(start.tree)
    experts = "params/backbone/blocks/mlp/experts/kernel"
    np.testing.assert_array_equal(after[experts], before[experts][:, [0, *others]])
    bank, parts = after["prototypes/bank"], np.split(before["prototypes/bank"], np.cumsum([*counts.values()])[:-1])
    np.testing.assert_array_equal(bank, np.concatenate([initial["prototypes"]["bank"][:2], *parts[::-1]]))


def test_a_smaller_mixture_leaves_the_others_behind(weights_folder):
    folder, conversion = weights_folder
    name, count = conversion.manifest["datasets"][1]
    model = tiny_model(datasets=((name, count),), num_experts=1)
    start = start_from(read_weights(folder), initial_of(model), model)
    assert start.initialised == ()
    others = [other for other, _ in conversion.manifest["datasets"] if other != name]
    assert set(start.left_out) == {f"heads/{other}{part}" for other in others for part in ("", "/final")}
    experts = "params/backbone/blocks/mlp/experts/bias"
    np.testing.assert_array_equal(flatten(start.tree)[experts], flatten(conversion.weights)[experts][:, [1]])


def published_model() -> PoseBH:
    datasets = tuple((name, DATASETS[name].num_keypoints) for name in MIXTURES[0])
    return PoseBH(SIZES["tiny"], datasets, num_experts=len(datasets), embedding_dim=0, filters=(4, 4))


@pytest.fixture(scope="module")
def published_mixture(tmp_path_factory):
    """(file of the original names, conversion) of heads of the published datasets, each array of other numbers."""
    model = published_model()
    rng = np.random.default_rng(0)
    shapes = model_targets(model, (96, 128))
    weights = unflatten({name: rng.standard_normal(shape.shape, np.float32) for name, shape in shapes.items()})
    conversion = own_weights({"prototypes": {}, **weights}, manifest_of(model, (96, 128), "toy"))
    path = tmp_path_factory.mktemp("mixture") / "weights.safetensors"
    write_state(path, to_torch(weights, conversion.manifest))
    return path, conversion


def evaluated(path, datasets: str = ""):
    """The configuration, without --config, and the weights of an evaluation."""
    asked = [("mode", "evaluate"), ("checkpoint", str(path))] + [("datasets", datasets)] * bool(datasets)
    config = sources.read_configuration("", asked)
    return config, flatten(sources.load(config, make_mesh()).weights)


def test_heads_of_published_files_keep_their_names_in_another_order(published_mixture):
    path, conversion = published_mixture
    asked = ("coco", "aic", "mpii", "apt36k", "ap10k", "coco_wholebody")
    config, found = evaluated(path, ",".join(asked))
    assert config.datasets == asked
    given = flatten(conversion.weights)
    for name in asked:
        kernel = f"params/heads/{name}/upsampling/deconv1/kernel"
        np.testing.assert_array_equal(found[kernel], given[kernel], err_msg=name)
    experts = "params/backbone/blocks/mlp/experts/kernel"
    np.testing.assert_array_equal(found[experts], given[experts][:, [0, 1, 2, 4, 3, 5]])
    # Another file's heads have no order that is known: the caller's names are for its heads in turn.
    others = tuple(("mine" if name == "coco" else name, DATASETS[name].num_keypoints) for name in asked)
    named = read_weights(path, Options(expected=others)).manifest["datasets"]
    assert [name for name, _ in named] == ["mine", *asked[1:]]


def test_one_head_of_a_published_file_is_evaluated_without_a_configuration(published_mixture):
    path, conversion = published_mixture
    config, found = evaluated(path, "ap10k")
    assert config.datasets == ("ap10k",) and config.size == "tiny"
    assert {name.split("/")[2] for name in found if "/heads/" in name} == {"ap10k"}
    experts = "params/backbone/blocks/mlp/experts/kernel"
    np.testing.assert_array_equal(found[experts], flatten(conversion.weights)[experts][:, [3]])
    with pytest.raises(ConfigError, match="unknown dataset 'absent'"):
        evaluated(path, "absent")


def test_a_file_that_says_no_datasets_asks_for_them(tmp_path):
    """Of no published mixture's keypoints; the names that its heads are given in the meantime are nobody's datasets."""
    model = PoseBH(SIZES["tiny"], (("one", 5), ("two", 7)), num_experts=0, embedding_dim=0, filters=(4, 4))
    weights = {name: np.zeros(shape.shape, np.float32) for name, shape in model_targets(model, (96, 128)).items()}
    write_state(tmp_path / "mine.safetensors", to_torch(unflatten(weights), manifest_of(model, (96, 128), "toy")))
    asks = "mine.safetensors' does not say of which datasets its heads of 5 and 7 keypoints are: name them all"
    for datasets in ("", "coco"):
        with pytest.raises(ConfigError, match=asks):
            evaluated(tmp_path / "mine.safetensors", datasets)


@pytest.mark.parametrize("heads", [1, 0], ids=["VitPose-plus of Hugging Face", "backbone alone"])
def test_published_experts_go_by_name_where_they_have_no_heads(published_mixture, heads):
    conversion = published_mixture[1]
    weights = conversion.weights | {"batch_stats": {}}
    kept = conversion.manifest["datasets"][:heads]
    weights["params"] = {"backbone": weights["params"]["backbone"]}
    source = own_weights(weights, conversion.manifest | {"datasets": kept})
    size, kernel = SIZES["tiny"], "params/backbone/blocks/mlp/experts/kernel"
    given = flatten(weights)[kernel]
    for names, experts in (
        (("coco",), [0]),
        (("ap10k", "coco"), [3, 0]),
        (("mpii", "aic", "coco", "mine", "apt36k", "ap10k"), [2, 1, 0, 0, 4, 3]),
    ):
        model = PoseBH(size, tuple((name, 17) for name in names), len(names), embedding_dim=0, filters=(4, 4))
        start = start_from(source, initial_of(model, (96, 128)), model)
        np.testing.assert_array_equal(flatten(start.tree)[kernel], given[:, experts])
        assert ("experts of mine (as that of coco)" in start.initialised) == ("mine" in names)


def test_the_command_changes_own_weights_or_says_what_it_ignores(published_mixture, tmp_path, capsys):
    plain, six = tmp_path / "plain", tmp_path / "six"
    save_weights(plain, *single_dataset(published_mixture[1].weights, published_mixture[1].manifest, "coco"))
    assert convert_weights.main([str(plain), f"--to={six}", "--num_experts=6"]) == 0
    made, last = flatten(read_weights(six).weights), SIZES["tiny"].part_features
    fc2 = flatten(read_weights(plain).weights)["params/backbone/blocks/mlp/fc2/kernel"]
    experts = made["params/backbone/blocks/mlp/experts/kernel"]
    np.testing.assert_array_equal(experts, np.repeat(fc2[:, None, :, -last:], 6, axis=1))
    for option in ("--datasets=ap10k", "--input_size=192,256", "--num_heads=4", "--activation=relu"):
        assert convert_weights.main([str(plain), f"--to={tmp_path / 'none'}", option]) == 1
        assert f"{option.partition('=')[0]} is for files of another code" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        convert_weights.main([str(plain), f"--to={tmp_path / 'none'}", "--part_features=8"])
    assert not (tmp_path / "none").exists()


def test_transfer_folds_an_expert_and_keeps_the_head_but_for_its_last_convolution(weights_folder):
    folder, conversion = weights_folder
    model = tiny_model(datasets=(("mine", 9),), num_experts=0)
    start = start_from(read_weights(folder), initial_of(model), model, fold="dataset_1")
    assert start.initialised == ("heads/mine/final", "prototypes/bank")
    np.testing.assert_array_equal(
        start.tree["params"]["heads"]["mine"]["upsampling"]["deconv1"]["kernel"],
        conversion.weights["params"]["heads"]["dataset_1"]["upsampling"]["deconv1"]["kernel"],
    )


UNKNOWN = tuple((f"set{i}", 2 + i) for i in range(10))


def test_a_plain_backbone_fills_every_expert(tmp_path):
    config = golden_config("posebh/mae_init.npz")
    size = ViTSize(config["E"], config["depth"], config["heads"], config["part"])
    model = PoseBH(size, UNKNOWN[: config["ne"]], num_experts=config["ne"], embedding_dim=0, filters=(4, 4))
    options = Options(num_heads=config["heads"], input_size=tuple(config["img"][::-1]))
    conversion = read_weights(as_file(tmp_path, mae_state("in:")), options)
    start = start_from(conversion, initial_of(model, options.input_size), model)
    assert start.initialised[0] == "backbone/last_norm"
    state = to_torch(start.tree, {"datasets": model.datasets})
    for name, value in mae_state("out_moe:").items():
        np.testing.assert_allclose(state[f"backbone.{name}"], value, atol=1e-5)


def test_another_width_is_refused_with_every_shape(weights_folder):
    model = tiny_model(filters=(8, 8))
    with pytest.raises(ConversionError) as caught:
        start_from(read_weights(weights_folder[0]), initial_of(model), model)
    config = golden_config("posebh/full_train.npz")
    shapes = "has shape [4, 4, {embed}, {deconv[0]}], expected [4, 4, {embed}, 8]".format(**config)
    assert f"params/heads/dataset_0/upsampling/deconv1/kernel {shapes}" in caught.value.problems
    assert len(caught.value.problems) > 20


def test_a_manifest_is_json_and_describes_its_model(weights_folder):
    manifest = weights_folder[1].manifest
    assert json.loads(json.dumps(manifest)) == manifest
    assert manifest_of(model_of(manifest), tuple(manifest["input_size"]), manifest["family"]) == manifest
