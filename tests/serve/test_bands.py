"""A bundle whose classes depend on one band each: files and tensors of its bands are answered, others refused in a line."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

import ddcat
from ddcat.bundle import Bundle, write_bundle
from ddcat.engines.errors import InputError
from ddcat.manifest import TensorEntry
from ddcat.predict.run import predict
from ddcat.predict.sources import find_sources
from tests.banded import VALUES, bands_of, encoded
from tests.bundles import BIAS, small_graph, small_manifest
from tests.serve.payloads import refused
from tests.serve.tiled import TILES

U8 = npt.NDArray[np.uint8]
SIZE = (72, 80)  # two tiles each way


def banded(path: Path, count: int, **rule: Any) -> tuple[Bundle, Callable[[U8], U8]]:
    """A bundle of some bands, and its labels by numpy: class k + 1 looks at band k, class 0 wins where all are dark."""
    weights = np.eye(4, count, -1)
    content = small_graph(weights=weights)
    manifest = small_manifest(content)
    form = {"bands": count, "colour": "bands", "mean": (0.0,) * count, "std": (1.0,) * count}
    changed = manifest.model_copy(
        update={
            "preprocessing": manifest.preprocessing.model_copy(update=form | rule),
            "inputs": (TensorEntry(name="image", dtype="uint8", shape=("batch", "height", "width", count)),),
        }
    )
    bundle = write_bundle(path, changed, {"model.onnx": content})
    return bundle, lambda pixels: (pixels @ weights.T + BIAS).argmax(-1).astype(np.uint8)


@pytest.mark.parametrize("tiles", [None, TILES])
@pytest.mark.parametrize(("count", "suffix"), [(1, "png"), (4, "png"), (5, "tif")])
def test_files_and_tensors_of_bands_are_answered(
    count: int, suffix: str, tiles: object, serving: Callable[..., httpx.Client], tmp_path: Path
) -> None:
    if suffix == "tif":
        pytest.importorskip("rasterio", reason="rasterio is not installed")
    bundle, labels_of = banded(tmp_path / "bundle", count, values=VALUES, tiles=tiles)
    pixels, _ = bands_of(count, size=SIZE)
    file = encoded(tmp_path / f"a.{suffix}", pixels)
    with ddcat.open_bundle(bundle.path, threads=1) as opened:
        labels, of_array = opened.predict(file), opened.predict(pixels)
    exact = (2 * 255 * (pixels.astype(int) - VALUES[0]) + 4095) // (2 * 4095)  # rounded
    prepared = exact.clip(0, 255).astype(np.uint8)
    assert np.array_equal(labels, labels_of(prepared))
    assert np.array_equal(of_array, labels)
    predict(bundle.path, find_sources([str(file)]), tmp_path / "out", formats=["png", "overlay"])
    assert np.array_equal(np.asarray(Image.open(next((tmp_path / "out/masks").iterdir()))), labels)
    client = serving(bundle.path)
    for accept in ("image/png", "image/png;view=overlay", "image/tiff"):
        answer = client.post("/v1/segment", content=file.read_bytes(), headers={"Accept": accept})
        assert answer.status_code == 200, answer.text
        if "overlay" not in accept:
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), labels)
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, *prepared.shape], "data": prepared.ravel().tolist()}
    if tiles is None:
        answer = client.post("/v2/models/small/infer", json={"inputs": [tensor], "outputs": [{"name": "labels"}]})
        assert answer.status_code == 200, answer.text
        assert np.array_equal(np.reshape(answer.json()["outputs"][0]["data"], SIZE), labels)
    tensor |= {"shape": [1, *SIZE, 2], "data": prepared[..., [0, 0]].ravel().tolist()}
    status, message = refused(client.post("/v2/models/small/infer", json={"inputs": [tensor]}))
    assert (status, f"the model takes [N, H, W, {count}]" in message) == (400, True)
    described = client.get("/v1/models").json()["models"]
    assert described[0]["examples"] == 0


def test_files_of_other_bands_are_refused(serving: Callable[..., httpx.Client], tmp_path: Path) -> None:
    bundle, _ = banded(tmp_path / "bundle", 5)
    jpeg = io.BytesIO()
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(jpeg, "JPEG")
    deep = encoded(tmp_path / "deep.png", bands_of(4, size=SIZE)[0]).read_bytes()
    client = serving(bundle.path)
    assert refused(client.post("/v1/segment", content=jpeg.getvalue())) == (400, "it has 3 bands, expected 5")
    ready = client.post("/v1/segment?preprocessed=true", content=jpeg.getvalue())
    assert refused(ready) == (400, "it has 3 bands, expected 5")
    assert refused(client.post("/v1/segment", content=deep))[0] == 415
    (tmp_path / "a.jpg").write_bytes(jpeg.getvalue())
    summary = predict(bundle.path, find_sources([str(tmp_path / "a.jpg")]), tmp_path / "out", formats=["png"])
    assert [entry["reason"] for entry in summary["failed"]] == ["it has 3 bands, expected 5"]
    with ddcat.open_bundle(bundle.path, threads=1) as opened:
        with pytest.raises(InputError, match=r"a.jpg cannot be read: it has 3 bands, expected 5"):
            opened.predict(tmp_path / "a.jpg")
        with pytest.raises(InputError, match=r"expected a path or a uint8 array \(height, width, 5\) of 5 bands"):
            opened.predict(np.zeros((*SIZE, 3), np.uint8))
        with pytest.raises(InputError, match=r"got uint16 of shape .* no values that become 0 and 255: bring it to 8 bits"):
            opened.predict(np.zeros((*SIZE, 5), np.uint16))


def test_bands_are_taken_in_their_order(serving: Callable[..., httpx.Client], tmp_path: Path) -> None:
    """Bands 4, 1 and 2 of four are what a graph of three channels sees."""
    bundle, labels_of = banded(tmp_path / "bundle", 3, bands=(4, 1, 2))
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 4), np.uint8)
    file = encoded(tmp_path / "a.png", pixels)
    answer = serving(bundle.path).post("/v1/segment", content=file.read_bytes())
    assert answer.status_code == 200, answer.text
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), labels_of(pixels[..., [3, 0, 1]]))
