"""What the page on serving shows in Python does what it says."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddcat.bundle import Bundle


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
