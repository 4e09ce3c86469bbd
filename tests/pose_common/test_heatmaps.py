"""Heatmap codecs: recorded numbers of the original code, and properties."""

from __future__ import annotations

import functools
import re

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from pose_common import heatmaps
from tests.golden_files import golden, golden_config
from tests.settings import DARK_KERNEL, SIGMA

DECODE, FLIP, FUNCTIONS = "posebh/decode.npz", "posebh/flip_inference.npz", "data/pipeline_functions.npz"
# In heatmap cells (DARK), and in image pixels, ten to twenty of which make a cell here.
# Moving the recorded maps by an ulp moves image pixels by 8e-5 where no Newton step is taken.
DARK_TOLERANCE, UDP_IMAGE_TOLERANCE, IMAGE_TOLERANCE = 1e-4, 2e-3, 3e-4

_encode = functools.partial(
    jax.jit(heatmaps.encode, static_argnames=("input_size", "heatmap_size", "sigma")), sigma=SIGMA
)
_dark = functools.partial(jax.jit(heatmaps.decode_dark_udp, static_argnames="kernel"), kernel=DARK_KERNEL)
_quarter = jax.jit(heatmaps.decode_quarter_shift, static_argnames="per_axis")
_decode = functools.partial(
    jax.jit(heatmaps.decode, static_argnames=("udp", "input_size", "kernel")), kernel=DARK_KERNEL
)


def _last(maps: np.ndarray) -> np.ndarray:
    """Recorded [B, K, h, w] -> [B, h, w, K]."""
    return np.moveaxis(maps, 1, -1)


def _inverse_warp(centre: np.ndarray, scale: np.ndarray, udp: bool, size: tuple[int, int]) -> np.ndarray:
    """Crop -> image without rotation, of boxes of 200 x scale pixels."""
    extent = 200.0 * scale
    factor = extent / (np.array(size) - 1 if udp else np.array(size))
    warp = np.zeros((len(centre), 2, 3), np.float32)
    warp[:, [0, 1], [0, 1]] = factor
    warp[:, :, 2] = centre - extent / 2
    return warp


def _flip_index(pairs: np.ndarray, count: int) -> np.ndarray:
    index = np.arange(count)
    index[pairs[:, 0]], index[pairs[:, 1]] = pairs[:, 1].copy(), pairs[:, 0].copy()
    return index


@pytest.mark.parametrize("codec", ["udp", "msra"])
def test_targets_at_and_beyond_the_borders_equal_the_recorded_ones(codec):
    data = golden(FUNCTIONS)
    target, weight = _encode(
        data["edge/joints"][None],
        data["edge/visible"][None],
        codec == "udp",
        input_size=tuple(data["edge/image_size_wh"].tolist()),
        heatmap_size=tuple(data["edge/heatmap_size_wh"].tolist()),
    )
    recorded = np.moveaxis(data[f"edge/{codec}_target_sigma2"], 0, -1)
    # A position of 64 cells has steps of 4e-6, and the Gaussian a slope of up to 0.3 a cell.
    np.testing.assert_allclose(target[0], recorded, atol=1e-5)
    np.testing.assert_allclose(weight[0], data[f"edge/{codec}_weight_sigma2"], atol=1e-6)


def test_codec_may_differ_within_a_batch():
    rng = np.random.default_rng(0)
    points, visible = rng.uniform(0, [192, 256], (4, 5, 2)).astype(np.float32), np.ones((4, 5), np.float32)
    sizes = {"input_size": (192, 256), "heatmap_size": (48, 64)}
    udp = np.array([True, False, False, True])
    mixed, _ = _encode(points, visible, udp, **sizes)
    for sample, codec in enumerate(udp):
        alone, _ = _encode(points[sample : sample + 1], visible[:1], bool(codec), **sizes)
        np.testing.assert_array_equal(mixed[sample], alone[0])
    crop = heatmaps.to_crop(jnp.ones((4, 5, 2)), jnp.asarray(udp), **sizes)
    np.testing.assert_allclose(crop[0, 0], [191 / 47, 255 / 63], rtol=1e-6)
    np.testing.assert_allclose(crop[1, 0], [4, 4])


def test_what_is_no_number_draws_nothing_without_a_label():
    keypoints = jnp.array([[[jnp.nan, 3.0], [jnp.inf, jnp.nan], [3.0, 4.0]]])
    size = {"input_size": (8, 12), "heatmap_size": (8, 12)}
    for udp in (True, False):
        target, weight = heatmaps.encode(keypoints, jnp.array([[0.0, 0.0, 1.0]]), udp, **size, sigma=SIGMA)
        np.testing.assert_array_equal(weight, [[0, 0, 1]])
        assert not target[..., :2].any() and target[0, 4, 3, 2] == 1


def test_cells_do_not_ask_again_where_a_keypoint_lies():
    """A CPU's program rounds positions once for each keypoint, not for each cell of the loss and of its gradient."""
    maps, keypoints = jnp.ones((2, 12, 8, 5)), jnp.ones((2, 5, 2))

    def loss(maps, keypoints):
        size = {"input_size": (8, 12), "heatmap_size": (8, 12)}
        target, _ = heatmaps.encode(keypoints, jnp.ones((2, 5)), True, **size, sigma=SIGMA)
        return jnp.square(maps - target).sum()

    program = jax.jit(jax.value_and_grad(loss)).lower(maps, keypoints).compile().as_text()
    computations = [part for part in re.split(r"\n(?=\S)", program) if not part.startswith("ENTRY")]
    of_cells = [part for part in computations if "f32[2,12,8,5]" in part]
    assert "floor(" in program and of_cells and not any("floor(" in part for part in of_cells)


def test_peaks_equal_the_recorded_ones():
    data = golden(DECODE)
    coords, score = heatmaps.decode_argmax(_last(data["heatmaps"]))
    np.testing.assert_array_equal(coords, data["max_preds"])
    np.testing.assert_array_equal(score, data["max_vals"][..., 0])


@pytest.mark.parametrize("row", ["_row", "_row_by_mask"])
def test_a_peak_is_the_first_of_the_highest_cells(row, monkeypatch):
    """On every platform: among many ties, all of them, negative numbers and infinite ones."""
    maps = np.random.default_rng(0).integers(-3, 3, (5, 7, 6, 11)).astype(np.float32)
    maps[0], maps[1, ..., :5], maps[2, 3, 4] = -2, 0, np.inf
    monkeypatch.setattr(heatmaps, "_row", getattr(heatmaps, row))
    place, score = heatmaps._peaks(maps)
    flat = maps.reshape(5, 42, 11)
    np.testing.assert_array_equal(place, flat.argmax(1))
    np.testing.assert_array_equal(score, flat.max(1))


@pytest.mark.parametrize("kernel", [11, 5])
def test_dark_equals_the_recorded_one(kernel):
    data = golden(DECODE)
    coords = np.asarray(_dark(_last(data["heatmaps"]), kernel=kernel)[0])
    valid, expected = data["valid"], data[f"dark_coords_k{kernel}"]
    np.testing.assert_allclose(coords[valid], expected[valid], atol=DARK_TOLERANCE)
    # A map without a positive value has no peak; the reference reads beyond it, we say so.
    np.testing.assert_array_equal(coords[~valid], -1)


@pytest.mark.parametrize("size", [(16, 12), (7, 6)])
@pytest.mark.parametrize("kernel", [3, 5, 7, 11])
def test_the_blurs_are_opencvs_and_scipys(size, kernel):
    image = np.random.default_rng(0).random(size).astype(np.float32)
    expected = {
        "released": cv2.GaussianBlur(image, (kernel, kernel), 0),
        "transformers": scipy.ndimage.gaussian_filter(image, sigma=0.8, radius=kernel // 2),
    }
    for blur in heatmaps.BLURS:
        rows, columns = (heatmaps._blur_matrix(n, kernel, blur) for n in size)
        np.testing.assert_allclose(rows @ image @ columns.T, expected[blur], atol=1e-6)


@pytest.mark.parametrize("name, udp", [("udp_default", True), ("default", False)])
def test_decoding_to_the_image_equals_the_recorded_one(name, udp):
    data = golden(DECODE)
    warp = _inverse_warp(data["center"], data["scale"], udp, (192, 256))
    result = np.asarray(_decode(_last(data["heatmaps"]), warp, udp=udp, input_size=(192, 256)))
    tolerance, valid = UDP_IMAGE_TOLERANCE if udp else IMAGE_TOLERANCE, data["valid"]
    np.testing.assert_allclose(result[..., :2][valid], data[f"{name}/preds"][valid], atol=tolerance)
    np.testing.assert_array_equal(result[..., 2], data[f"{name}/maxvals"][..., 0])


@pytest.mark.parametrize("shift", [False, True])
def test_flip_equals_the_recorded_one(shift):
    data = golden(FLIP)
    raw = _last(data["heatmap_flipped_image_raw"])
    index = _flip_index(data["flip_pairs"], raw.shape[-1])
    expected = data["heatmap_flipped_back_shifted" if shift else "heatmap_flipped_back"]
    np.testing.assert_array_equal(heatmaps.flip_back(raw, index, shift), _last(expected))
    per_sample = heatmaps.flip_back(raw, index, jnp.array([shift] * len(raw)))
    np.testing.assert_array_equal(per_sample, _last(expected))


@pytest.mark.parametrize(
    "name, udp, flip, shift",
    [
        ("flip_udp", True, True, False),
        ("noflip_udp", True, False, False),
        ("flip_noudp", False, True, False),
        ("flip_shift_noudp", False, True, True),
    ],
)
def test_flip_test_predictions_equal_the_recorded_ones(name, udp, flip, shift):
    data, (height, width) = golden(FLIP), golden_config(FLIP)["img"]
    maps = _last(data["heatmap_plain"])
    if flip:
        index = _flip_index(data["flip_pairs"], maps.shape[-1])
        maps = heatmaps.flip_merge(maps, _last(data["heatmap_flipped_image_raw"]), index, shift)
    if name == "flip_udp":
        np.testing.assert_allclose(maps, _last(data["heatmap_average"]), atol=5e-7)
    warp = _inverse_warp(data["center"], data["scale"], udp, (width, height))
    result = _decode(maps, warp, udp=udp, input_size=(width, height))
    tolerance = UDP_IMAGE_TOLERANCE if udp else IMAGE_TOLERANCE
    np.testing.assert_allclose(result, data[f"{name}/preds"], atol=tolerance)


def test_flipping_twice_changes_nothing():
    maps = np.random.default_rng(0).random((2, 8, 6, 5)).astype(np.float32)
    back = functools.partial(heatmaps.flip_back, flip_index=np.array([0, 2, 1, 4, 3]), shift=False)
    np.testing.assert_array_equal(back(back(maps)), maps)


def _round_trip(udp: bool) -> np.ndarray:
    """Error in crop pixels of encode -> decode for points whose patch lies inside the map."""
    points = np.random.default_rng(0).uniform([32, 32], [160, 224], (1, 300, 2)).astype(np.float32)
    sizes = {"input_size": (192, 256), "heatmap_size": (48, 64)}
    target, weight = _encode(points, np.ones((1, 300), np.float32), udp, **sizes)
    assert weight.min() == 1
    coords, score = _dark(target) if udp else _quarter(target)
    assert score.max() <= 1 + 1e-6
    return np.abs(heatmaps.to_crop(coords, udp, **sizes) - points)


def test_round_trip_is_sub_pixel():
    # UDP keeps the position in the Gaussian; the cut patch and the clipped logarithm leave under a quarter
    # pixel.
    assert _round_trip(udp=True).max() < 0.25
    # The MSRA codec rounds to a cell of 4 pixels, so half a cell is lost (its peak is symmetric: no
    # quarter step).
    assert 1.0 < _round_trip(udp=False).max() <= 2.0 + 1e-4


def test_peaks_are_blurred_alike_on_every_platform():
    """Sums of 7 by 5 products, rounded in another order: within a few roundings of their size, below 35."""
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (2, 4, 3, 7), (2, 4, 3, 5), (2, 7, 5, 4)
    given = [jax.random.uniform(key, shape) for key, shape in zip(keys, shapes, strict=True)]
    sums, products = (jax.jit(f)(*given) for f in (heatmaps._blurred_by_sums, heatmaps._blurred_by_products))
    np.testing.assert_allclose(sums, products, rtol=1e-5)


def test_dark_decodes_an_untruncated_gaussian_exactly():
    """The logarithm of a (blurred) Gaussian is a quadratic, whose top one Newton step finds."""
    x, y = np.meshgrid(np.arange(48.0), np.arange(64.0))
    centres = np.array([[20.3, 30.8], [25.5, 31.2], [23.9, 28.6]])
    maps = np.stack([np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 8) for cx, cy in centres], -1)[None]
    coords, _ = _dark(maps.astype(np.float32))
    np.testing.assert_allclose(coords[0], centres, atol=5e-3)  # the blur is cut at 11 taps


@pytest.mark.parametrize("per_axis", [False, True])
def test_quarter_shift_rules(per_axis):
    height, width = 6, 7
    slope = 0.01 * np.add.outer(np.arange(height), np.arange(width))  # larger to the right and below
    for y, x in np.ndindex(height, width):
        maps = slope.copy()
        maps[y, x] = 1
        coords, _ = _quarter(maps[None, :, :, None].astype(np.float32), per_axis=per_axis)
        if per_axis:
            step = [0 < x < width - 1, 0 < y < height - 1]
        else:
            step = [1 < x < width - 1 and 1 < y < height - 1] * 2
        np.testing.assert_allclose(coords[0, 0] - np.array([x, y]), 0.25 * np.array(step))


def test_flat_and_empty_maps_stay_finite():
    flat = jnp.stack([jnp.zeros((16, 12)), jnp.ones((16, 12)), -jnp.ones((16, 12))], -1)[None]
    for decode in (_dark, _quarter):
        coords, score = decode(flat)
        assert np.isfinite(coords).all()
        np.testing.assert_array_equal(coords[0, [0, 2]], -1)
        np.testing.assert_array_equal(score[0], [0, 1, -1])


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_the_first_maximum(axis):
    """Many ties, all of them, negative numbers; NaNs end at the last place."""
    x = np.random.default_rng(0).integers(-3, 3, (5, 7, 6)).astype(np.float32)
    x[1], x[:, 2] = -2, 0
    maximum, place = heatmaps.first_maximum(x, axis)
    np.testing.assert_array_equal(maximum, x.max(axis))
    np.testing.assert_array_equal(place, x.argmax(axis))
    assert heatmaps.first_maximum(np.array([1, np.nan, 2, 0], np.float32), 0)[1] == 3


def test_a_maximum_that_was_rounded_otherwise_has_its_place():
    """Where it and the values that it is looked for among were compiled apart; an exact one is preferred to those about
    it."""
    x = np.array([[0.1, 0.7, 0.3], [-2, -1, -3], [0, 0, 0]], np.float32)
    maximum = x.max(1, keepdims=True)
    for end in (np.inf, -np.inf):
        np.testing.assert_array_equal(heatmaps.first_place(x, np.nextafter(maximum, np.float32(end)), 1), [1, 1, 0])
    below = np.nextafter(np.float32(0.7), np.float32(0))
    assert heatmaps.first_place(np.array([below, 0.7], np.float32), np.float32([0.7]), 0) == 1
