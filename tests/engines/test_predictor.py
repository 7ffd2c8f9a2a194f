"""An opened bundle in Python: `ddcat.open_bundle`."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ddcat
from ddcat.bundle import TrustPolicy
from ddcat.engines import open_engine
from ddcat.engines.errors import EngineError, InputError
from ddcat.errors import BundleError
from tests.bundles import small_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("predictor") / "bundle"
    small_bundle(path)
    return path


@pytest.fixture(scope="module")
def pixels() -> Any:
    return np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)


def test_a_prediction_is_the_engines(bundle: Path, pixels: Any, tmp_path: Path) -> None:
    Image.fromarray(pixels).save(tmp_path / "image.png")
    with ddcat.open_bundle(str(bundle), threads=1) as opened, open_engine(opened.bundle) as engine:
        expected = engine.infer(pixels[None]).labels[0]
        for image in (pixels, tmp_path / "image.png", str(tmp_path / "image.png")):
            assert np.array_equal(opened.predict(image), expected)
        assert np.array_equal(opened.infer(pixels[None]).labels[0], expected)
        assert opened.classes.names == tuple(entry.name for entry in opened.bundle.manifest.classes)
    with pytest.raises(EngineError, match="closed"):
        opened.predict(pixels)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            np.zeros((40, 48), np.uint8),
            "expected a path or a uint8 array (height, width, 3) in RGB, got uint8 of shape (40, 48)",
        ),
        (np.zeros((40, 48, 3)), "got float64 of shape (40, 48, 3)"),
        ([1], "got a list"),
        (np.zeros((1, 1, 3), np.uint8), "Image is 1 x 1; this model needs at least"),
        ("no.png", "no.png cannot be read"),
        ("text.png", "text.png cannot be read: it is not an image: use JPEG, PNG or WebP"),
    ],
)
def test_what_is_no_image_is_told_in_a_line(
    image: Any, message: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.png").write_text("text")
    with ddcat.open_bundle(bundle) as opened, pytest.raises(InputError, match=re.escape(message)) as caught:
        opened.predict(image)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("threads", [0, -1, "2"])
def test_a_number_of_threads_that_is_none_is_refused(threads: Any, bundle: Path) -> None:
    with pytest.raises(EngineError, match=f"threads {threads!r}: expected a whole number of 1 or more"):
        ddcat.open_bundle(bundle, threads=threads)


def test_nothing_is_opened_that_is_not_trusted(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="digest"):
        ddcat.open_bundle(bundle, trust=TrustPolicy.from_options(None, ["0" * 64]))
    with pytest.raises(BundleError, match="is not a directory"):
        ddcat.open_bundle(tmp_path / "none")


def test_an_engine_that_answers_otherwise_is_refused_and_closed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []

    class Other:
        def infer(self, images: Any) -> Any:
            raise EngineError("does not answer as it did")

        def close(self) -> None:
            closed.append(True)

    monkeypatch.setattr("ddcat.engines.predictor.open_engine", lambda bundle, **options: Other())
    with pytest.raises(EngineError, match="does not answer"):
        ddcat.open_bundle(bundle)
    assert closed == [True]


def test_no_torch_and_no_server_is_loaded(bundle: Path) -> None:
    program = (
        "import sys, numpy, ddcat\n"
        f"with ddcat.open_bundle({str(bundle)!r}) as opened:\n    opened.predict(numpy.zeros((40, 48, 3), numpy.uint8))\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"torch", "fastapi", "uvicorn", "ddcat_serve", "ddcat_train"} & set(done.stdout.split())
