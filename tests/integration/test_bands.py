"""Images of one, four and five bands and 16 bits: trained, exported, gated, predicted and served with PyTorch's labels."""

from pathlib import Path

import numpy as np
import pytest

import ddcat
from ddcat.preprocess import preprocess
from tests.banded import bands_of, encoded, trained, write_banded

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
