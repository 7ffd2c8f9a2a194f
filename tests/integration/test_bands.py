"""Images of one, four and five bands and 16 bits: trained, exported, gated, predicted and served with PyTorch's labels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ddcat
from ddcat.preprocess import preprocess
from ddcat_train.config import ModelConfig, load_config
from ddcat_train.data import AUGMENTATIONS, Sample
from ddcat_train.errors import ConfigError
from ddcat_train.networks import build_segmenter
from tests.banded import bands_of, encoded, settings, trained, write_banded

COUNTS = [
    pytest.param(1, id="grey"),
    pytest.param(4, id="rgba", marks=pytest.mark.slow),
    pytest.param(5, marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=COUNTS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    count: int = request.param
    if count == 5:
        pytest.importorskip("rasterio", reason="rasterio is not installed")
    folder = tmp_path_factory.mktemp("bands")
    return count, trained(write_banded(folder / "data", count), folder / "run", count)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_bundle_of_bands_has_the_labels_of_pytorch(run: tuple[int, Path], precision: str, tmp_path: Path) -> None:
    count, folder = run
    ddcat.export(folder, tmp_path / "bundle", precision=precision, calibration_images=2)
    pixels, _ = bands_of(count, 7)
    file = encoded(tmp_path / ("a.tif" if count == 5 else "a.png"), pixels)
    model = ddcat.load(folder, device="cpu")
    with ddcat.open_bundle(tmp_path / "bundle", threads=1) as opened:
        rule = opened.bundle.manifest.preprocessing
        assert (rule.bands, rule.colour, rule.channels, len(rule.mean)) == (count, "bands", count, count)
        assert opened.bundle.manifest.inputs[0].shape == ("batch", "height", "width", count)
        prepared = preprocess(file.read_bytes(), rule).pixels
        assert prepared.shape == pixels.shape
        labels = opened.predict(file)
    share = float((labels == model.predict(prepared)).mean())
    assert share == 1 if precision == "fp32" else share > 0.9
    assert np.abs(prepared.astype(int) - np.clip((pixels.astype(float) - 100) / 4095 * 255, 0, 255)).max() <= 0.5 + 1e-9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model.mean=[0.5, 0.5]", "model.std=[0.2, 0.2]"], "data has 5 bands: expected 5 numbers in model.mean and .*, got 2"),
        (["model.mean=null", "model.std=null"], "expected 5 numbers in model.mean and in model.std, got none"),
        (["model.std=[0.2]"], "model.mean has 5 numbers and model.std 1"),
        (["data.bands=17"], "data.bands"),
        (["data.name=camvid"], "data.bands is for the layout folder"),
        (["model.pretrained=x.safetensors"], "model.pretrained has weights for 3 bands, and data.bands has 5"),
        (["augment.corruptions=[snow]"], "augment.corruptions are made for 3 bands"),
        (["model.normalise=none"], "model.normalise none and model.mean exclude each other"),
        (["data.bands=null"], "data has 3 bands: expected 3 numbers"),
    ],
)  # fmt: skip
def test_a_configuration_of_bands_fits_together(changes: list[str], message: str, tmp_path: Path) -> None:
    load_config("scenes-ddcat", settings(tmp_path, 5))
    with pytest.raises(ConfigError, match=message):
        load_config("scenes-ddcat", [*settings(tmp_path, 5), *changes])


@pytest.mark.parametrize(
    "backbone",
    [
        {"backbone": "resnet10", "width": 8}, {"backbone": "mobilenet_v2"}, {"backbone": "efficientnet_lite0"},
        {"backbone": "convnext_tiny", "output_stride": 32, "align_corners": False}, {"backbone": "mit_b0", "output_stride": 32},
    ],
    ids=lambda backbone: backbone["backbone"],
)  # fmt: skip
def test_every_backbone_takes_five_bands(backbone: dict[str, Any]) -> None:
    model = ModelConfig(mean=(0.5,) * 5, std=(0.2,) * 5, **backbone)
    network = build_segmenter(model, classes=3).eval()
    assert network.bands == 5
    images = torch.rand(1, 5, 64, 64, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(images).square().sum(), images)
    assert (gradient.abs().amax((0, 2, 3)) > 0).all()


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("policy", ["paper", "plain"])
def test_augmentation_pads_with_the_mean_of_each_band(count: int, policy: str) -> None:
    means = tuple(0.1 * (band + 1) for band in range(count))
    pixels = np.stack([np.full((30, 30), round(255 * mean), np.uint8) for mean in means], -1)
    augment = AUGMENTATIONS[policy](crop=(64, 64), scale=(0.5, 1.5), mean=tuple(np.round(255 * np.array(means)) / 255))
    for seed in range(8):
        image, labels = augment(Sample(pixels, np.zeros((30, 30), np.uint8), "x"), np.random.default_rng(seed))
        assert image.shape == (64, 64, count)
        assert labels.shape == (64, 64)
        np.testing.assert_allclose(image, np.broadcast_to(pixels[0, 0] / 255, image.shape), atol=1e-3)
