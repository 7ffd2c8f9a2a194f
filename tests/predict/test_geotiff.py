"""GeoTIFFs: masks of the whole scene at its place on earth, at any size."""

import io
import json
import struct
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from ddcat.bundle import Bundle, write_bundle
from ddcat.classes import colour_table
from ddcat.errors import WriteError
from ddcat.geotiff import SceneError, opened_scene
from ddcat.predict import scenes as scenes_module
from ddcat.predict.run import predict
from ddcat.predict.sources import find_sources
from ddcat.predict.tiff_directories import has_more_directories
from tests.bundles import CLASSES
from tests.predict.test_tiled import abstaining, tiled

__all__ = ["abstaining", "tiled"]


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
@pytest.mark.parametrize("forms", [["png"], ["png", "coco"]])
def test_a_scene_abstains_as_the_same_png(
    forms: list[str], abstaining: Bundle, scene: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
    Image.fromarray(scene[1]).save(tmp_path / "same.png")
    of_scene, of_png = (
        predict(abstaining.path, find_sources([str(path)]), tmp_path / path.suffix, formats=forms, abstain=True)
        for path in (scene[0], tmp_path / "same.png")
    )
    with rasterio.open(tmp_path / ".tif/masks/scene.tif") as mask:
        assert np.array_equal(mask.read(1), np.asarray(Image.open(tmp_path / ".png/masks/same.png")))
    for name in ("classes", "abstained"):
        assert of_scene[name] == of_png[name]
    assert of_scene["confidence"]["tenths"] == of_png["confidence"]["tenths"]
    assert of_scene["confidence"]["mean"] == pytest.approx(of_png["confidence"]["mean"], abs=1e-6)


@pytest.mark.slow
def test_16_bits_have_the_labels_of_the_same_png(tiled: Bundle, scene: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
    rule = tiled.manifest.preprocessing.model_copy(update={"values": (100, 4195)})
    deep = write_bundle(tmp_path / "deep", tiled.manifest.model_copy(update={"preprocessing": rule}), tiled.files)
    pixels = np.random.default_rng(1).integers(0, 5000, (70, 130, 5)).astype(np.uint16)  # five bands, of which three are read
    (tmp_path / "in").mkdir()
    place = rasterio.transform.from_origin(500_000, 5_400_000, 2, 2)
    about = {"height": 70, "width": 130, "count": 5, "dtype": "uint16", "crs": "EPSG:32633", "transform": place}
    with rasterio.open(tmp_path / "in/a.tif", "w", driver="GTiff", **about) as file:
        file.write(pixels.transpose(2, 0, 1))
    cv2.imwrite(str(tmp_path / "in/b.png"), np.ascontiguousarray(pixels[..., 2::-1]))
    scene[0].rename(tmp_path / "in/shallow.tif")
    summary = predict(deep.path, find_sources([str(tmp_path / "in")]), tmp_path / "out", formats=["png"])
    assert [entry["reason"] for entry in summary["failed"]] == [
        "it is a TIFF of 3 bands of uint8: expected 3 or more, the first three of uint16"
    ]
    with rasterio.open(tmp_path / "out/masks/a.tif") as mask:
        assert np.array_equal(mask.read(1), np.asarray(Image.open(tmp_path / "out/masks/b.png")))
        assert len(np.unique(mask.read(1))) == 4


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


@pytest.mark.parametrize("limit", [1000, 60_000, 130_000])
def test_a_full_disk_is_said_and_leaves_no_mask(limit: int, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
    resource = pytest.importorskip("resource", reason="there are no limits of a file's size here")
    labels = np.random.default_rng(0).integers(0, 3, (900, 900)).astype(np.uint8)  # its file has about 190,000 bytes
    path, mask = tmp_path / "scene.tif", tmp_path / "mask.tif"
    with rasterio.open(path, "w", driver="GTiff", height=900, width=900, count=3, dtype="uint8") as file:
        file.write(np.zeros((3, 900, 900), np.uint8))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened_scene(str(path)) as scene:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(WriteError, match="MB are free there; free some space"):
                scene.write_mask(mask, [labels], CLASSES)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert list(tmp_path.iterdir()) == [path]
        scene.write_mask(mask, [labels], CLASSES)
    with rasterio.open(mask) as file:
        assert np.array_equal(file.read(1), labels)


def test_a_refusal_names_no_file(tmp_path: Path, scene: tuple[Path, np.ndarray]) -> None:
    content = scene[0].read_bytes()
    for number, damaged in enumerate((b"II*\0" + bytes(4), content[:20_000])):  # no directory; cut off
        file = tmp_path / "a folder" / f"{number}-image"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(damaged)
        for given in (str(file), damaged):
            with pytest.raises(SceneError) as caught, opened_scene(given) as opened:
                opened.read(0, 0, opened.height, opened.width)
            assert str(caught.value).startswith("it cannot be read: ")
            assert not any(name in str(caught.value) for name in ("folder", "image", "vsimem", ".tif"))


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_of_many_directories_is_refused_before_all_are_read(big: bool, order: str, tmp_path: Path) -> None:
    pytest.importorskip("rasterio", reason="rasterio is not installed")
    head, mark = (16, struct.pack(f"{order}HHHQ", 43, 8, 0, 16)) if big else (8, struct.pack(f"{order}HI", 42, 8))
    each = 16 if big else 6  # of a directory without entries

    def chain(count: int) -> bytes:
        form = f"{order}QQ" if big else f"{order}HI"
        places = [*range(head + each, head + each * count, each), 0]
        return (b"II" if order == "<" else b"MM") + mark + b"".join(struct.pack(form, 0, place) for place in places)

    assert not has_more_directories(io.BytesIO(chain(1000)), 1000)
    assert has_more_directories(io.BytesIO(chain(1001)), 1000)
    (tmp_path / "a.tif").write_bytes(chain(1001))
    for given in (chain(1001), str(tmp_path / "a.tif")):
        with pytest.raises(SceneError, match="more than 1000 directories"), opened_scene(given):
            pass
    for damaged in (chain(3)[:length] for length in range(head + 3 * each)):
        assert not has_more_directories(io.BytesIO(damaged), 1000)
