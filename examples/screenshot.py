"""What the pictures of pages have in common: Chromium, and a small PNG."""

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from ddcat.errors import DdcatError

NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def opened_page(width: int, height: int) -> Iterator[Page]:
    """Open a page in the system's Chromium."""
    browser = next((found for name in NAMES if (found := shutil.which(name))), None)
    if browser is None:
        raise DdcatError("there is no Chromium: apt-get install chromium")
    with sync_playwright() as play:
        program = play.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        yield program.new_page(viewport={"width": width, "height": height})


def save(png: bytes, out: Path) -> None:
    """Write a screenshot with 256 colours, which a page has hardly more of."""
    out.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(out, optimize=True)
    print(out)
