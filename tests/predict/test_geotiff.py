"""GeoTIFFs: masks of the whole scene at its place on earth, at any size."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ddcat.bundle import Bundle
from ddcat.classes import colour_table
from ddcat.predict import scenes as scenes_module
from ddcat.predict.run import predict
from ddcat.predict.sources import find_sources
from tests.bundles import CLASSES
from tests.commands import call
from tests.predict.test_tiled import tiled

__all__ = ["tiled"]


@pytest.fixture
def scene(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A scene of 300 x 500 pixels of half a metre, in UTM."""
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
    pixels = np.random.default_rng(0).integers(0, 256, (300, 500, 3), np.uint8)
    path = tmp_path / "scene.tif"
    place = rasterio.transform.from_origin(500_000, 5_400_000, 0.5, 0.5)
    about = {"height": 300, "width": 500, "count": 3, "dtype": "uint8", "crs": "EPSG:32633", "transform": place}
    with rasterio.open(path, "w", driver="GTiff", **about) as file:
        file.write(pixels.transpose(2, 0, 1))
    return path, pixels


def test_without_rasterio_a_line_names_the_extra(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rasterio", None)
    (tmp_path / "a.tif").write_bytes(b"x")
    done = call("ddcat", "predict", bundle.path, tmp_path / "a.tif", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert 'pip install ".[geo]"' in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("cut", [True, False])
def test_a_mask_has_the_labels_the_crs_and_the_transform_of_its_scene(
    cut: bool, tiled: Bundle, bundle: Bundle, scene: tuple[Path, np.ndarray], oracle: Callable, tmp_path: Path
) -> None:
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
    path, pixels = scene
    labels = oracle(pixels[None])[0][0]
    engine = (tiled if cut else bundle).path
    summary = predict(engine, find_sources([str(path)]), tmp_path / "out", formats=["png", "coco"], batch=4)
    with rasterio.open(tmp_path / "out/masks/scene.tif") as mask, rasterio.open(path) as original:
        assert np.array_equal(mask.read(1), labels)
        assert (mask.crs, mask.transform) == (original.crs, original.transform)
        assert {label: colour[:3] for label, colour in mask.colormap(1).items()} == dict(
            enumerate(map(tuple, colour_table(CLASSES).tolist()))
        )
    assert [entry["pixels"] for entry in summary["classes"]] == np.bincount(labels.ravel(), minlength=4).tolist()
    areas = {part["category_id"]: part["area"] for part in json.loads((tmp_path / "out/coco.json").read_text())["annotations"]}
    assert areas == {label: int((labels == label).sum()) for label in np.unique(labels).tolist()}


@pytest.mark.slow
def test_what_is_no_scene_or_too_large_for_a_form_is_named(
    tiled: Bundle, scene: tuple[Path, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    scene[0].rename(folder / "scene.tif")
    (folder / "damaged.tif").write_bytes((folder / "scene.tif").read_bytes()[:5000])
    (folder / "text.tif").write_bytes(b"text")
    rows = "".join(
        f'<VRTRasterBand dataType="Byte" band="{n}"><SimpleSource><SourceFilename>{folder / "scene.tif"}</SourceFilename>'
        f"<SourceBand>{n}</SourceBand></SimpleSource></VRTRasterBand>"
        for n in (1, 2, 3)
    )
    (folder / "virtual.tif").write_text(f'<VRTDataset rasterXSize="500" rasterYSize="300">{rows}</VRTDataset>')
    summary = predict(tiled.path, find_sources([str(folder)]), tmp_path / "one", formats=["png"])
    assert summary["images"] == 1
    assert [entry["name"] for entry in summary["failed"]] == ["damaged.tif", "text.tif", "virtual.tif"]
    assert all(entry["reason"].startswith("it cannot be read: ") for entry in summary["failed"])
    monkeypatch.setattr(scenes_module, "_MOST_IN_MEMORY", 1000)
    assert predict(tiled.path, find_sources([str(folder / "scene.tif")]), tmp_path / "two", formats=["png"])["images"] == 1
    refused = predict(tiled.path, find_sources([str(folder / "scene.tif")]), tmp_path / "three")
    assert "use --format png alone" in refused["failed"][0]["reason"]
