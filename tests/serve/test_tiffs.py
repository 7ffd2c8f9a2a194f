"""`Accept: image/tiff`: masks as TIFF, with the place on earth of a GeoTIFF; and what of TIFFs is refused."""

import contextlib
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from PIL import Image

from ddcat.geotiff import SceneError
from ddcat.predict.run import predict
from ddcat.predict.sources import find_sources
from ddcat.preprocess import Resize
from ddcat_serve.http import tiffs
from ddcat_serve.http.app import create_app
from ddcat_serve.http.job_runner import JobRunner
from ddcat_serve.inference.model_registry import Models
from ddcat_serve.settings import Settings
from tests.bundles import CLASSES
from tests.serve.job_server import runner, store
from tests.serve.payloads import as_png, refused
from tests.serve.processes import wait_for
from tests.serve.tiled import geotiff, noise, tiled_bundle

__all__ = ["runner", "store"]  # fixtures

TIFF = {"Accept": "image/tiff"}


@pytest.fixture(scope="module")
def client(tiled_models: Models, client_of: Callable) -> httpx.Client:
    return client_of(create_app(tiled_models, Settings(max_pixels=100_000)))


@pytest.mark.parametrize("size", [(37, 53), (100, 150)])
def test_a_png_gets_a_plain_tiff(size: tuple[int, int], client: httpx.Client, oracle: Callable) -> None:
    image = noise(*size)
    response = client.post("/v1/segment", content=as_png(image), headers=TIFF)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/tiff"
    with Image.open(io.BytesIO(response.content)) as mask:
        assert (mask.format, mask.mode) == ("TIFF", "P")
        np.testing.assert_array_equal(np.asarray(mask), oracle(image[None])[0][0])
        assert mask.getpalette()[:12] == [value for colour in CLASSES.palette for value in colour]  # type: ignore[index]


@pytest.mark.parametrize("size", [(40, 50), (150, 200)])
def test_a_geotiff_gets_the_file_that_predict_writes(
    size: tuple[int, int], client: httpx.Client, tiled_path: Path, tmp_path: Path
) -> None:
    content = geotiff(noise(*size))
    (tmp_path / "a.tif").write_bytes(content)
    predict(tiled_path, find_sources([str(tmp_path / "a.tif")]), tmp_path / "out", formats=["png"])
    response = client.post("/v1/segment", content=content, headers=TIFF)
    assert response.status_code == 200, response.text
    rasterio = pytest.importorskip("rasterio")
    with rasterio.MemoryFile(response.content).open() as mask, rasterio.open(tmp_path / "out/masks/a.tif") as other:
        np.testing.assert_array_equal(mask.read(1), other.read(1))
        assert (mask.crs, mask.transform, mask.colormap(1)) == (other.crs, other.transform, other.colormap(1))
        assert (mask.crs.to_epsg(), mask.transform.a, mask.transform.c) == (32633, 0.5, 500_000)
    as_mask = client.post("/v1/segment", content=content)
    assert as_mask.headers["content-type"] == "image/png"


def test_other_tiffs_are_refused_in_a_line(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    three = geotiff(noise(40, 50))

    def answer(content: bytes) -> tuple[int, str]:
        return refused(client.post("/v1/segment", content=content, headers=TIFF))

    assert answer(three[:100])[0] == 415
    status, message = answer(geotiff(noise(40, 50)[..., :1]))
    assert (status, "expected 3 or more" in message) == (415, True)
    assert answer(geotiff(noise(40, 50).astype(np.uint16)))[0] == 415
    assert answer(geotiff(noise(400, 300)))[0] == 413
    monkeypatch.setattr(tiffs, "_MOST_BLOCK_BYTES", 1000)
    status, message = answer(three)
    assert (status, "write it in smaller tiles or strips" in message) == (415, True)
    monkeypatch.setitem(sys.modules, "rasterio", None)
    status, message = answer(three)
    assert (status, 'pip install ".[geo]"' in message) == (415, True)


def test_a_bundle_that_resizes_takes_no_tiff(serving: Callable, tmp_path: Path) -> None:
    bundle = tiled_bundle(tmp_path / "b", Resize(to=100))
    client, content = serving(bundle.path), geotiff(noise(50, 70))
    status, message = refused(client.post("/v1/segment", content=content, headers=TIFF))
    assert (status, "the bundle resizes" in message) == (415, True)
    ready = client.post("/v1/segment?preprocessed=true", content=content, headers=TIFF)
    assert ready.status_code == 200, ready.text


def by_pillow(mode: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise(40, 50)).convert(mode).save(file, "TIFF", **options)
    return file.getvalue()


def test_tiffs_that_need_a_guess_or_are_damaged_are_refused_in_plain_words(client: httpx.Client) -> None:
    whole = geotiff(noise(40, 50))
    several = by_pillow("RGB", save_all=True, append_images=[Image.fromarray(noise(30, 50))])
    expected = {
        "the TIFF: its colours are CMYK: expected RGB": by_pillow("CMYK"),
        "the TIFF: its colours are CIELAB: expected RGB": by_pillow("LAB"),
        "the TIFF: it has 4 bits a band, expected 8": geotiff(noise(40, 50) // 16, NBITS=4),
        "the TIFF: it has 2 images, expected one": several,
        "the TIFF: it is a TIFF of 1 band of uint8: expected 3 or more, the first three of uint8": by_pillow("L"),
        "the TIFF: it cannot be read: Cannot read TIFF header": whole[:4],
    }
    for message, content in expected.items():
        assert refused(client.post("/v1/segment", content=content)) == (415, message)
    status, message = refused(client.post("/v1/segment", content=whole[: len(whole) // 2]))
    assert (status, "previous exception" in message, "vsimem" in message) == (415, False, False)


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, SimpleNamespace]:
    """What rasterio would read from any TIFF: pixels, and the scene that has them."""
    pixels = noise(70, 90)

    def write_mask(path: Path, bands: Iterator[np.ndarray], classes: object) -> None:
        path.write_bytes(np.concatenate(list(bands)).tobytes())

    def read(top: int, left: int, height: int, width: int) -> np.ndarray:
        return pixels[top : top + height, left : left + width]

    made = SimpleNamespace(
        height=70, width=90, block_bytes=1, read=read, mask=lambda labels, classes: labels.tobytes(), write_mask=write_mask
    )
    monkeypatch.setattr(tiffs, "opened_scene", lambda *about: contextlib.nullcontext(made))
    return pixels, made


ANY = b"II*\0"


def test_a_scene_is_answered_in_a_request_and_in_a_job(
    scene: tuple[np.ndarray, SimpleNamespace], tiled_models: Models, runner: JobRunner, client_of: Callable, oracle: Callable
) -> None:
    expected = oracle(scene[0][None])[0][0].tobytes()
    client = client_of(create_app(tiled_models, Settings(job_pixels=10_000), jobs=runner))
    assert client.post("/v1/segment", content=ANY, headers=TIFF).content == expected
    job = client.post("/v1/jobs", content=ANY).headers["location"]
    wait_for(lambda: client.get(job).json()["state"] == "done")
    assert client.get(f"{job}/result").content == expected
    scene[1].height = 200
    said = "the image is 90 x 200 pixels; expected at most 10000 pixels in a job"
    assert refused(client.post("/v1/jobs", content=ANY)) == (413, said)


def test_scenes_that_are_refused(
    scene: tuple[np.ndarray, SimpleNamespace], runner: JobRunner, serving: Callable, tmp_path: Path, client_of: Callable,
    tiled_models: Models, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    client = client_of(create_app(tiled_models, Settings(), jobs=runner))
    scene[1].block_bytes = 2**27
    assert "write it in smaller tiles or strips" in refused(client.post("/v1/segment", content=ANY))[1]
    scene[1].block_bytes = 1

    def broken(*about: object) -> None:
        raise SceneError("it is cut off")

    monkeypatch.setattr(scene[1], "read", broken)
    assert refused(client.post("/v1/segment", content=ANY)) == (415, "the TIFF: it is cut off")
    monkeypatch.setattr(tiffs, "opened_scene", broken)
    assert refused(client.post("/v1/jobs", content=ANY)) == (415, "the TIFF: it is cut off")
    monkeypatch.undo()
    resizing = serving(tiled_bundle(tmp_path / "b", Resize(to=100)).path)
    monkeypatch.setattr(tiffs, "opened_scene", lambda *about: contextlib.nullcontext(scene[1]))
    assert "the bundle resizes" in refused(resizing.post("/v1/segment", content=ANY))[1]
