"""
A picture of the server's page with an undefended and a defended model, side by side under attack: after `make demo`,

    python examples/page_picture.py demo --out docs/pictures/page.png

It exports the undefended model beside the demonstration's bundle, serves both, and looks at the page in Chromium.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import expect
from screenshot import opened_page, save
from server_process import served

from ddcat.cli_support import run

WIDTH, HEIGHT = 1000, 760


def main() -> None:
    """Take the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="what `make demo` has made")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    undefended = arguments.demo / "bundle-undefended"
    if not undefended.is_dir():
        command = [Path(sys.executable).with_name("ddcat"), "export", arguments.demo / "runs/undefended", "--engine", "ort"]
        subprocess.run([*map(str, command), "--out", str(undefended)], check=True)
    with served(f"undefended={undefended}", f"ddc-at={arguments.demo / 'bundle'}", "--demo") as address:
        look(address, arguments.out)


def look(address: str, out: Path) -> None:
    """Attack the first example with all its strength, and take the picture."""
    with opened_page(WIDTH, HEIGHT) as page:
        page.goto(address)
        for strength, text in (("0", "round trip"), ("1", "Agreement with the clean prediction")):
            page.locator("#strength").fill(strength)
            for result in page.locator(".result").all():
                expect(result).to_contain_text(text)
        save(page.screenshot(full_page=True), out)


if __name__ == "__main__":
    run(main)
