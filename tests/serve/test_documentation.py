"""What the pages on serving show in Python does what it says."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddcat.bundle import Bundle
from tests.serve.payloads import as_png
from tests.serve.processes import server


def test_a_folder_is_labelled_without_a_server(
    bundle: Bundle, picture: np.ndarray, oracle: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs/serving.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "bundle").symlink_to(bundle.path)
    (tmp_path / "images").mkdir()
    Image.fromarray(picture).save(tmp_path / "images/one.jpg", "PNG")  # exact pixels, whatever the name
    monkeypatch.chdir(tmp_path)
    exec(script, {})
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "images/one.png")), oracle(picture[None])[0][0])


def test_a_job_is_sent_and_fetched(
    bundle: Bundle, picture: np.ndarray, oracle: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/serve.md").read_text(encoding="utf-8")
    (script,) = (found for found in re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL) if "jobs" in found)
    (tmp_path / "scene.tif").write_bytes(as_png(picture))  # rasterio may be missing here; the server looks at the bytes
    monkeypatch.chdir(tmp_path)
    with server(bundle.path, "--jobs", tmp_path / "jobs") as (_, address):
        assert "http://127.0.0.1:8000" in script
        exec(script.replace("http://127.0.0.1:8000", address), {})
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "mask.tif")), oracle(picture[None])[0][0])
    assert [file.name for file in (tmp_path / "jobs").glob("[!.]*")] == ["jobs.sqlite"]
