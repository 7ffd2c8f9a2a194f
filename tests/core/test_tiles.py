"""Tiles: weights that sum to one, the whole image's answer where the receptive field allows it, flat memory."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from ddcat.tiles import Tiles, blended_bands, enlarged, tile_starts, tile_weights

SIZES = st.integers(1, 400)
TILES = st.integers(64, 100).flatmap(lambda side: st.builds(Tiles, side=st.just(side), overlap=st.integers(0, side // 2)))


@settings(deadline=None)
@given(SIZES, TILES)
def test_tiles_cover_an_axis_and_their_weights_sum_to_one(size: int, tiles: Tiles) -> None:
    starts, weights = tile_starts(size, tiles), tile_weights(size, tiles)
    side = min(size, tiles.side)
    total = np.zeros(size)
    for start, weight in zip(starts, weights, strict=True):
        assert len(weight) == side
        assert weight.min() >= 0
        total[start : start + side] += weight
    assert np.allclose(total, 1, atol=1e-6)
    assert all(later - start <= side - (tiles.overlap if size > side else 0) for start, later in itertools.pairwise(starts))
    quarter = tiles.overlap // 4
    for weight in weights[1:]:
        assert (weight[:quarter] == 0).all()  # what a network sees without its surroundings has no say
    for weight in weights[:-1]:
        assert quarter == 0 or (weight[-quarter:] == 0).all()


def summed(planes: np.ndarray, tiles: Tiles) -> np.ndarray:
    """Weighted sums over the whole image at once: (K, H, W)."""
    height, width = planes.shape[1:]
    total = np.zeros(planes.shape)
    down, across = (list(zip(tile_starts(size, tiles), tile_weights(size, tiles), strict=True)) for size in (height, width))
    for (top, wy), (left, wx) in itertools.product(down, across):
        part = slice(top, top + len(wy)), slice(left, left + len(wx))
        total[:, *part] += crop(planes, top, left, tiles) * wy[:, None] * wx
    return total


def crop(planes: np.ndarray, top: int, left: int, tiles: Tiles) -> np.ndarray:
    """A network that sees its own tile: the answer differs from tile to tile."""
    part = planes[:, top : top + tiles.side, left : left + tiles.side]
    return (part + 0.3 * np.sin(top + 2 * left + np.arange(len(planes)))[:, None, None]).astype(np.float32)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 260), st.integers(1, 260), TILES, st.integers(1, 5))
def test_bands_are_the_labels_of_the_sums_over_the_whole_image(height: int, width: int, tiles: Tiles, batch: int) -> None:
    planes = np.random.default_rng(height).normal(size=(3, height, width)).astype(np.float32)
    bands = list(
        blended_bands(
            height, width, tiles, lambda places: np.stack([crop(planes, *place, tiles) for place in places]), batch=batch,
            temperature=1.7,
        )
    )  # fmt: skip
    total = summed(planes, tiles)
    labels = np.concatenate([band.labels for band in bands])
    confidence = np.concatenate([band.confidence for band in bands if band.confidence is not None])
    assert np.allclose(confidence, softmax(total / 1.7, 0).max(0), atol=1e-5)
    assert labels.shape == (height, width)
    best = np.sort(total, 0)
    clear = best[-1] - best[-2] > 1e-4  # a tie may fall either way
    assert np.array_equal(labels[clear], total.argmax(0)[clear])


def mean_around(planes: np.ndarray, reach: int) -> np.ndarray:
    """A network whose receptive field reaches so far: box sums with zeros beyond the edges, exact in float32."""
    padded = np.pad(planes, ((0, 0), (reach, reach), (reach, reach)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * reach + 1, 2 * reach + 1), (1, 2))
    return windows.sum((3, 4)).astype(np.float32)


@pytest.mark.parametrize(("reach", "equal"), [(0, True), (3, True), (8, True), (24, False)])
def test_tiled_is_whole_where_the_receptive_field_allows_it(reach: int, equal: bool) -> None:
    planes = np.random.default_rng(0).integers(0, 9, (3, 150, 210)).astype(np.float32)
    tiles = Tiles(side=64, overlap=32)
    bands = blended_bands(
        150, 210, tiles, lambda places: np.stack([mean_around(planes[:, y : y + 64, x : x + 64], reach) for y, x in places])
    )
    labels = np.concatenate([band.labels for band in bands])
    whole = mean_around(planes, reach)
    best = np.sort(whole, 0)
    clear = best[-1] > best[-2]
    assert np.array_equal(labels[clear], whole.argmax(0)[clear]) is equal


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(64, 64), (160, 208), (64, 208)])
def test_the_labels_are_those_of_monais_sliding_window(height: int, width: int) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    inferers = pytest.importorskip("monai.inferers", reason="monai is not installed")
    tiles = Tiles(side=64, overlap=16)
    planes = np.random.default_rng(1).normal(size=(3, height, width)).astype(np.float32)
    weights = np.maximum(tile_weights(64 + 2 * 48, tiles)[1], 1e-6)  # of a tile with neighbours; it divides by their sum
    found = inferers.sliding_window_inference(
        torch.from_numpy(planes)[None], (64, 64), 1, lambda part: part + 9 * part.mean((2, 3), keepdim=True), overlap=0.25,
        roi_weight_map=torch.from_numpy(weights[:, None] * weights),
    )[0].numpy()  # fmt: skip

    def network(places: list[tuple[int, int]]) -> np.ndarray:
        parts = np.stack([planes[:, y : y + 64, x : x + 64] for y, x in places])
        return (parts + 9 * parts.mean((2, 3), keepdims=True)).astype(np.float32)

    best = np.sort(found, 0)
    clear = best[-1] - best[-2] > 1e-3
    labels = np.concatenate([band.labels for band in blended_bands(height, width, tiles, network)])
    assert clear.mean() > 0.99
    assert np.array_equal(labels[clear], found.argmax(0)[clear])


@pytest.mark.parametrize("corners", [True, False])
@pytest.mark.parametrize(("small", "large"), [((5, 7), (40, 49)), ((1, 3), (9, 9)), ((6, 6), (6, 6))])
def test_logits_are_enlarged_as_pytorch_does(corners: bool, small: tuple[int, int], large: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    logits = np.random.default_rng(0).normal(size=(2, 3, *small)).astype(np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(logits), large, mode="bilinear", align_corners=corners)
    assert np.allclose(enlarged(logits, large, corners=corners), expected.numpy(), atol=1e-5)
