"""Images of one, four and five bands and 16 bits: trained, exported, gated, predicted and served with PyTorch's labels."""

import io
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

import ddcat
from ddcat.choices import Precision
from ddcat.engines.errors import InputError
from ddcat.predict.run import predict
from ddcat.predict.sources import find_sources
from ddcat.preprocess import preprocess
from ddcat_serve.http.app import create_app
from ddcat_serve.inference.model_registry import load_models
from ddcat_serve.settings import Settings
from ddcat_train.config import ModelConfig, load_config
from ddcat_train.data import AUGMENTATIONS, Sample
from ddcat_train.errors import ConfigError
from ddcat_train.networks import build_segmenter
from tests.banded import bands_of, encoded, settings, trained, write_banded
from tests.serve.conftest import InProcess
from tests.train.test_whole import SEGFORMER


@pytest.fixture(scope="module", params=[1, 4, 5])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """A run of two steps of DDC-AT; five bands are of TIFF files."""
    count: int = request.param
    if count == 5:
        pytest.importorskip("rasterio", reason="rasterio is not installed")
    folder = tmp_path_factory.mktemp("bands")
    return count, trained(write_banded(folder / "data", count), folder / "run", count)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_bundle_of_bands_has_the_labels_of_pytorch(run: tuple[int, Path], precision: Precision, tmp_path: Path) -> None:
    check_bundle(*run, precision, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("count", [4, 5])
def test_a_whole_model_of_another_library_takes_bands(count: int, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    if count == 5:
        pytest.importorskip("rasterio", reason="rasterio is not installed")
    others = ["model.whole=hf", f"model.settings={json.dumps(SEGFORMER | {'num_channels': count})}"]
    folder = trained(write_banded(tmp_path / "data", count), tmp_path / "run", count, *others)
    check_bundle(count, folder, "fp32", tmp_path)
    result = ddcat.gate(tmp_path / "bundle", quick=True, repeats=10, out=tmp_path / "gate")
    assert result.verdict in ("pass", "inconclusive")


def test_a_whole_model_of_other_bands_is_refused() -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    model = ModelConfig(whole="hf", settings=SEGFORMER, mean=(0.5,) * 5, std=(0.25,) * 5)
    with pytest.raises(ConfigError, match=r"takes no images \(N, 5, H, W\) .* 3 channels, but got 5 .*num_channels"):
        build_segmenter(model, classes=4, heads=("main",))


def check_bundle(count: int, folder: Path, precision: Precision, tmp_path: Path) -> None:
    """A bundle of a run has the labels of PyTorch in Python, in `ddcat predict`, and over HTTP."""
    ddcat.export(folder, tmp_path / "bundle", precision=precision, calibration_images=2)
    pixels, _ = bands_of(count, 7)
    file = encoded(tmp_path / ("a.tif" if count == 5 else "a.png"), pixels)
    model = ddcat.load(folder, device="cpu")
    with ddcat.open_bundle(tmp_path / "bundle", threads=1) as opened:
        manifest = opened.bundle.manifest
        rule = manifest.preprocessing
        assert (rule.bands, rule.colour, rule.channels, len(rule.mean)) == (count, "bands", count, count)
        assert manifest.inputs[0].shape == ("batch", "height", "width", count)
        prepared = preprocess(file.read_bytes(), rule).pixels
        assert prepared.shape == pixels.shape
        labels = opened.predict(file)
        assert np.array_equal(opened.predict(prepared), labels)
        with pytest.raises(InputError, match=rf"expected a path or a uint8 array \(height, width, {count}\) of {count} band"):
            opened.predict(prepared[..., :0])
    share = float((labels == model.predict(prepared)).mean())
    assert share == 1 if precision == "fp32" else share > 0.9
    predict(tmp_path / "bundle", find_sources([str(file)]), tmp_path / "out", formats=["png", "overlay"])
    written = Image.open(next((tmp_path / "out/masks").iterdir()))
    assert np.array_equal(np.asarray(written), labels)
    check_served(tmp_path / "bundle", file, prepared, labels)


def check_served(bundle: Path, file: Path, prepared: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]) -> None:
    """The server gives the same labels for the file and for its tensor, and refuses other bands."""
    with load_models([bundle], settings=Settings(), threads=1) as models:
        client = httpx.Client(transport=InProcess(create_app(models, Settings())), base_url="http://test")
        answer = client.post("/v1/segment", content=file.read_bytes())
        assert answer.status_code == 200, answer.text
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), labels)
        shown = client.post("/v1/segment", content=file.read_bytes(), headers={"Accept": "image/png;view=overlay"})
        assert shown.status_code == 200, shown.text
        [name] = models
        tensor = {"name": "image", "datatype": "UINT8", "shape": [1, *prepared.shape], "data": prepared.ravel().tolist()}
        answer = client.post(f"/v2/models/{name}/infer", json={"inputs": [tensor], "outputs": [{"name": "labels"}]})
        assert answer.status_code == 200, answer.text
        assert np.array_equal(np.reshape(answer.json()["outputs"][0]["data"], labels.shape), labels)
        tensor |= {"shape": [1, *prepared.shape[:2], 2], "data": prepared[..., [0, 0]].ravel().tolist()}
        answer = client.post(f"/v2/models/{name}/infer", json={"inputs": [tensor]})
        assert (answer.status_code, f"takes [N, H, W, {prepared.shape[2]}]" in answer.text) == (400, True)
        jpeg = io.BytesIO()
        Image.fromarray(np.zeros((48, 56, 3), np.uint8)).save(jpeg, "JPEG")
        answer = client.post("/v1/segment", content=jpeg.getvalue())
        assert (answer.status_code, "8 bits a channel" in answer.text) == (415, True)
        assert client.get("/v1/models").json()["models"][0]["examples"] == 0


@pytest.mark.slow
def test_a_gate_judges_bands(run: tuple[int, Path], tmp_path: Path) -> None:
    _, folder = run
    ddcat.export(folder, tmp_path / "bundle")
    result = ddcat.gate(tmp_path / "bundle", quick=True, repeats=10, out=tmp_path / "gate")
    assert result.verdict in ("pass", "inconclusive")


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
