"""Backbone, neck and heads against recorded numbers; initial values; what the inference model leaves out."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from boir_jax.aspp import ASPP
from boir_jax.heads import DenseHead, InstanceKeypointHead, box_head, clamped_sigmoid
from boir_jax.losses import focal_loss
from boir_jax.model import VARIANTS, BoIR
from boir_jax.weights.keys import HEADS
from data_pipelines.datasets import DATASETS
from pose_common.weights.keys import flatten
from tests.boir_jax.golden_weights import entries, group_shapes, load, slots, tiny, weights
from tests.golden_files import golden, golden_config

pytestmark = pytest.mark.slow  # compiles the whole backbone


def last(maps: np.ndarray) -> np.ndarray:
    """[B, C, h, w] -> [B, h, w, C]."""
    return np.moveaxis(maps, 1, -1)


@functools.cache
def backbone():
    model = tiny()
    variables = weights(model)

    def run(images, train):
        return model.apply(variables, images, train, method="features", mutable=["batch_stats"])

    return jax.jit(run, static_argnums=1)


def test_backbone_maps():
    """Square and oblong images. float32 noise of the recorded maps is 5e-5 at a scale of 10."""
    record = golden("boir/hrnet.npz")
    square, _ = backbone()(last(record["x_sq"]), False)
    np.testing.assert_allclose(square[:1], last(record["y_sq_eval_img0"]), atol=6e-4)
    oblong, _ = backbone()(last(record["x_rect"]), False)
    np.testing.assert_allclose(oblong, last(record["y_rect_eval"]), atol=2e-4)
    trained, _ = backbone()(last(record["x_sq"]), True)
    np.testing.assert_allclose(trained[:1], last(record["y_sq_train_img0"]), atol=2e-4)


def test_backbone_batch_statistics():
    """Running statistics after one step; the recorded variances are the unbiased ones."""
    record = golden("boir/hrnet.npz")
    _, updated = backbone()(last(record["x_sq"]), True)
    tree = flatten({"batch_stats": {"backbone": jax.device_get(updated["batch_stats"]["backbone"])}})
    places = slots(tree, tiny().dilations)
    assert len(places) == 2 * len(record["after_sq:names"])
    for kind in ("mean", "var"):
        names = [f"backbone.{name}.running_{kind}" for name in record["after_sq:names"]]
        ours = np.concatenate([places[name].view(tree[places[name].rule.target]) for name in names])
        np.testing.assert_allclose(ours, record[f"after_sq:running_{kind}"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_neck_and_dense_heads(train):
    """The largest dilations reach beyond the map for most cells, so many taps see the padding."""
    record, tag = golden("boir/aspp_heads.npz"), "train" if train else "eval"
    config = golden_config("boir/aspp_heads.npz")
    dilations = tuple(config["NECK"]["ATROUS_RATES"])
    state = entries("boir/aspp_heads.npz", prefix="multihead.")

    def run(group, part, x):
        targets = group_shapes(part, group, x, False)
        names = slots(targets, dilations)
        tree = load({name: state[name] for name in names}, targets, dilations=dilations)
        variables = {kind: tree[kind][group] for kind in tree}
        return part.apply(variables, x, train, mutable=["batch_stats"])

    sizes = config["NECK"]["MIDDLE_CHANNELS"], config["NECK"]["CHANNELS"]
    neck, after = run("neck", ASPP(*sizes, dilations), last(record["x"]))
    np.testing.assert_allclose(neck[:, ::2, ::2], last(record[f"neck_{tag}_s2"]), atol=3e-4)
    for group, torch_name in HEADS.items():
        name = torch_name.removesuffix("_head")
        maps, _ = run(group, DenseHead(config["HEADS"][f"{name.upper()}_OUT"], config["HEADS"]["CHANNELS"]), neck)
        if name == "center":
            np.testing.assert_allclose(maps, last(record[f"center_{tag}"]), atol=1e-4)
            if not train:
                np.testing.assert_allclose(clamped_sigmoid(maps), last(record["center_map_eval"]), atol=3e-5)
        else:
            np.testing.assert_allclose(maps[:, ::2, ::2], last(record[f"{name}_{tag}_s2"]), atol=3e-4)
    if train:
        pooled = after["batch_stats"]["pooled"]["norm"]
        for kind in ("mean", "var"):
            expected = record[f"after:neck.0.convs.{len(dilations) + 1}.2.running_{kind}"]
            np.testing.assert_allclose(pooled[kind], expected, rtol=1e-4, atol=1e-5)


def test_instance_head():
    """Maps, loss and gradients; both images in one group, and as groups of one image each."""
    record = golden("boir/inst_kpt_head.npz")
    config = golden_config("boir/inst_kpt_head.npz")
    head = InstanceKeypointHead(config["OUT_CHANNELS"], config["CHANNELS"], unit=config["rel_coord_div"])
    features = last(record["features"])
    image = record["instance_imgid"].astype(np.int32)
    cells = record["instance_coord_yx"][:, ::-1].astype(np.int32)
    targets = group_shapes(head, "instance_head", features[None], image[None], cells[None])
    weights, gradients = (
        load(entries("boir/inst_kpt_head.npz", kind, "kpt_head."), targets)["params"]["instance_head"]
        for kind in ("param", "grad")
    )

    def loss(weights, features):
        maps = clamped_sigmoid(head.apply({"params": weights}, features[None], image[None], cells[None]))[0]
        mask = last(record["instance_mask"])
        return focal_loss(maps, last(record["instance_heatmap"]), mask), maps

    step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (value, maps), (by_weight, by_feature) = step(weights, features)
    np.testing.assert_allclose(maps, last(record["heatmaps_eval"]), atol=2e-5)
    np.testing.assert_allclose(value, record["loss_train"], rtol=2e-5)
    # Gradients of biases in front of an instance norm are rounding noise: hence absolute, as for all.
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-5), by_weight, gradients)
    # The record treats each person's feature vector as an independent input.
    expected = last(record["grad_features"]).copy()
    np.add.at(expected, (image, cells[:, 1], cells[:, 0]), record["grad_param"])
    np.testing.assert_allclose(by_feature, expected, atol=2e-5)

    for i in np.unique(image):
        rows = image == i
        first = np.zeros_like(image[rows])[None]
        alone = head.apply({"params": weights}, features[i][None, None], first, cells[rows][None])
        np.testing.assert_allclose(clamped_sigmoid(alone)[0], maps[rows], atol=1e-5)


def test_instance_head_in_bfloat16():
    """Fresh weights: biases of -4.6 beside signals of 0.01, which must not drown in rounding."""
    x = jax.random.normal(jax.random.key(0), (1, 1, 12, 16, 32))
    rows, cells = jnp.zeros((1, 2), jnp.int32), jnp.array([[[3, 4], [9, 9]]])
    exact, rough = (InstanceKeypointHead(5, 8, dtype) for dtype in (jnp.float32, jnp.bfloat16))
    variables = exact.init(jax.random.key(1), x, rows, cells)

    weight = jax.random.normal(jax.random.key(2), (1, 2, 12, 16, 5))

    def run(head):
        def loss(params):
            maps = head.apply({"params": params}, x, rows, cells)
            return (maps * weight).mean(), maps

        gradient, maps = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
        return maps - maps.mean((2, 3), keepdims=True), gradient["reduce"]["kernel"]

    # bfloat16 keeps 3 digits; some ReLUs near zero turn over, which the gradient shows more. With the biases
    # inside the rounded sums the maps differ by more than their own deviation.
    for ours, expected, tolerance in zip(run(rough), run(exact), (0.02, 0.15), strict=True):
        assert np.linalg.norm(ours - expected) < tolerance * np.linalg.norm(expected)


def test_dense_head_in_bfloat16():
    """Fresh weights: the bias of -4.6 must not round away what is added to it (29 % of it, where it is in the sum)."""
    x = jax.nn.relu(jax.random.normal(jax.random.key(0), (2, 16, 16, 32)))
    exact, rough = (DenseHead(8, 16, dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16))
    variables = jax.jit(exact.init, static_argnums=2)(jax.random.key(1), x, False)
    maps, rounded = (jax.jit(head.apply, static_argnums=2)(variables, x, False) for head in (exact, rough))
    signal = np.asarray(maps) + np.log(99)
    # Three layers of 8 bits, 0.4 % each at most.
    assert np.linalg.norm(rounded - maps) < 0.02 * np.linalg.norm(signal - signal.mean())


def test_inference_model_has_no_training_heads():
    image = jnp.zeros((1, 64, 64, 3))

    def groups(training_heads):
        model = BoIR(num_keypoints=17, training_heads=training_heads, **VARIANTS["small"])
        return jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))

    full, slim = groups(True), groups(False)
    assert set(full["params"]) - set(slim["params"]) == {"keypoint_head", "embedding_head", "box_head"}
    assert set(slim["params"]) == {"backbone", "neck", "centre_head", "instance_head"}
    for kind in slim:
        for group in slim[kind]:
            assert jax.tree.map(jnp.shape, slim[kind][group]) == jax.tree.map(jnp.shape, full[kind][group])


def test_the_embedding_head_begins_without_prior_where_asked():
    x = jnp.zeros((1, 4, 4, 256))

    def biases(**given):
        model = BoIR(num_keypoints=17, **VARIANTS["w32"], **given).bind({})
        heads = {name: getattr(model, name).clone(parent=None) for name in ("embedding_head", "keypoint_head")}
        return {
            name: head.init(jax.random.key(0), x, False)["params"]["output"]["bias"] for name, head in heads.items()
        }

    released, without = biases(), biases(embedding_prior=False)
    np.testing.assert_allclose(released["embedding_head"], -np.log(99), rtol=1e-6)
    assert not without["embedding_head"].any()
    np.testing.assert_array_equal(without["keypoint_head"], released["keypoint_head"])


def test_initial_values():
    """Against statistics of a freshly made reference; the box head in its repaired form."""
    record = golden("boir/init_stats.json")
    stats = record["released"]["stats"] | record["fixed"]["stats"]
    # Part by part: drawing the backbone's values only to throw them away takes most of a minute.
    x, rows = jnp.zeros((1, 4, 4, 256)), jnp.zeros((1, 1), jnp.int32)
    dataset, size = record["config"].split("_")[:2]
    model = BoIR(num_keypoints=DATASETS[dataset].num_keypoints, **VARIANTS[size]).bind({})
    parts = {group: getattr(model, group).clone(parent=None) for group in ("neck", *HEADS, "instance_head")}
    arguments = dict.fromkeys(parts, (x, False))
    arguments["instance_head"] = (x[None], rows, rows[..., None].repeat(2, -1))
    key = jax.random.key(0)
    params = {group: part.init(key, *arguments[group])["params"] for group, part in parts.items()}

    pairs = [(params["neck"]["project"]["conv"]["kernel"], "multihead.neck.0.project.0.weight")]
    for ours, theirs in HEADS.items():
        prefix = f"multihead.{theirs}.head."
        block = params[ours]["block"]
        pairs += [(block[f"conv{k}"]["conv"]["kernel"], f"{prefix}0.conv{k}.weight") for k in (1, 2)]
        pairs += [(params[ours]["output"]["kernel"], prefix + "1.weight")]
        pairs += [(params[ours]["output"]["bias"], prefix + "1.bias")]
    head = params["instance_head"]
    for ours, theirs in (("reduce", "conv_down"), ("mask", "s_attn.conv"), ("output", "heatmap_conv")):
        pairs += [(head[ours]["kernel"], f"kpt_head.{theirs}.weight")]
        pairs += [(head[f"{ours}_bias"], f"kpt_head.{theirs}.bias")]
    pairs += [(head["channel_dense"]["kernel"], "kpt_head.c_attn.atn.0.weight")]
    pairs += [(head["channel_dense"]["bias"], "kpt_head.c_attn.atn.0.bias")]
    pairs += [(head["fuse_kernel"], "kpt_head.fuse_attn.0.weight")]
    pairs += [(head["fuse_bias"], "kpt_head.fuse_attn.0.bias")]
    for values, name in pairs:
        mean, std, low, _ = stats[name]
        values = np.asarray(values)
        if std == 0:
            np.testing.assert_allclose(values, low, atol=5e-4, err_msg=name)
        else:
            # Five standard errors of a sample of this size, for the deviation and for the mean.
            assert abs(values.std() / std - 1) < 5 / np.sqrt(2 * min(values.size, 75)), name
            assert abs(values.mean() - mean) < 5 * 2 * std / np.sqrt(values.size), name


def test_fresh_box_head_learns():
    """In the release every layer of the box head starts at zero and only the last bias has a gradient."""
    head = box_head(8)
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 4))
    initialised = head.init(jax.random.key(0), x, True)

    def loss(params):
        maps, _ = head.apply({**initialised, "params": params}, x, True, mutable=["batch_stats"])
        return jnp.square(maps - 3).sum()

    step = jax.grad(loss)(initialised["params"])
    assert np.abs(step["output"]["kernel"]).max() > 1
    moved = jax.tree.map(lambda p, g: p - 1e-3 * g, initialised["params"], step)
    assert np.abs(jax.grad(loss)(moved)["block"]["conv1"]["conv"]["kernel"]).max() > 1e-3
