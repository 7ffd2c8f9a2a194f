import asyncio
import os
import subprocess
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from fastapi import FastAPI

from ddcat.bundle import Bundle, entries, write_bundle
from ddcat.engines import build_engine
from ddcat.manifest import Precision
from ddcat_serve.app import create_app
from ddcat_serve.models import Models, load_models
from ddcat_serve.settings import Settings
from tests.serve.bundles import BIAS, WEIGHTS, small_graph, small_manifest

Oracle = Callable[[npt.NDArray[np.uint8]], tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path) -> Iterator[Path]:
    """Where engines keep what they compiled."""
    with pytest.MonkeyPatch.context() as patch:  # its own: the test's is to be undone before the models are closed
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        yield tmp_path / "cache"


@pytest.fixture
def make_graph() -> Callable[..., bytes]:
    return small_graph


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Bundle]:
    """Give a bundle whose engine is built as an export builds it."""

    def make(graph: bytes, engine: str, precision: Precision = "fp32", *, name: str = "built", **options: object) -> Bundle:
        manifest = small_manifest(graph)
        built = build_engine(engine, graph, precision=precision, shapes=manifest.shapes, **options)
        files = {"model.onnx": graph, **built.files}
        about = {"engine": built.entry, "inputs": built.inputs, "outputs": built.outputs, "files": entries(files)}
        return write_bundle(tmp_path / name, manifest.model_copy(update=about), files)

    return make


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Bundle]:
    def make(name: str = "small", height: int | str = "height", width: int | str = "width", *, logits: bool = True) -> Bundle:
        content = small_graph(height, width, logits=logits)
        manifest = small_manifest(content, name, height, width, logits=logits)
        return write_bundle(tmp_path / f"{name}.bundle", manifest, {"model.onnx": content})

    return make


@pytest.fixture
def bundle(make_bundle: Callable[..., Bundle]) -> Bundle:
    return make_bundle()


@pytest.fixture
def oracle() -> Oracle:
    """The small graph, in numpy: images (N, H, W, 3) to labels (N, H, W) and logits (N, 4, H, W)."""

    def answer(images: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        logits = np.einsum("nhwc,kc->nkhw", images.astype(np.float64), WEIGHTS) + BIAS[None, :, None, None]
        return logits.argmax(1).astype(np.uint8), logits.astype(np.float32)

    return answer


@pytest.fixture
def picture() -> npt.NDArray[np.uint8]:
    """An image of 37 x 53 in which every class occurs."""
    return np.random.default_rng(0).integers(0, 256, (37, 53, 3)).astype(np.uint8) // np.uint8(2) + np.uint8(20)


@pytest.fixture
def models(bundle: Bundle) -> Iterator[Models]:
    with load_models([bundle.path], settings=Settings(), threads=1) as loaded:
        yield loaded


class InProcess(httpx.BaseTransport):
    """Sends each request to an application in an event loop of its own."""

    def __init__(self, app: FastAPI) -> None:
        self._transport = httpx.ASGITransport(app, raise_app_exceptions=False)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        async def answer() -> httpx.Response:
            async with httpx.AsyncClient(transport=self._transport) as client:
                return await client.request(request.method, request.url, headers=request.headers, content=request.read())

        response = asyncio.run(answer())
        headers = {name: value for name, value in response.headers.items() if name != "content-encoding"}  # is decoded
        return httpx.Response(response.status_code, headers=headers, content=response.content)


@pytest.fixture
def client_of() -> Callable[[FastAPI], httpx.Client]:
    return lambda app: httpx.Client(transport=InProcess(app), base_url="http://test")


@pytest.fixture
def client(models: Models, client_of: Callable[[FastAPI], httpx.Client]) -> httpx.Client:
    """The server with small limits: 64 KiB and 5000 pixels."""
    return client_of(create_app(models, Settings(max_bytes=65536, max_pixels=5000)))


@pytest.fixture(scope="session")
def kserve(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with KServe's package; DDCAT_KSERVE_VENV names one that is ready."""
    folder = Path(os.environ.get("DDCAT_KSERVE_VENV") or tmp_path_factory.mktemp("kserve") / "venv")
    if not folder.exists():
        venv.create(folder, with_pip=True)
        line = [folder / "bin/pip", "install", "-q", "kserve==0.21.0"]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"kserve cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    return folder.absolute() / "bin/python"
