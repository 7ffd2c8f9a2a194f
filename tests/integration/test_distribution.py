"""What `python -m build` makes: an sdist, and a wheel that needs no checkout and, to serve, no torch."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from ddcat import __version__
from ddcat_serve.settings import Settings

ROOT = Path(__file__).parents[2]


def call(where: Path, *words: object) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTEST_ADDOPTS")}
    done = subprocess.run([*map(str, words)], cwd=where, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_serves_where_there_is_neither_the_checkout_nor_torch(tmp_path: Path) -> None:
    call(tmp_path, sys.executable, "-m", "build", "--outdir", tmp_path / "dist", ROOT)
    made = {path.name for path in (tmp_path / "dist").iterdir()}
    assert made == {f"ddcat-{__version__}.tar.gz", f"ddcat-{__version__}-py3-none-any.whl"}
    venv.create(tmp_path / "venv", with_pip=True)
    python, wheel = tmp_path / "venv/bin/python", tmp_path / f"dist/ddcat-{__version__}-py3-none-any.whl"
    call(tmp_path, python, "-m", "pip", "install", "--quiet", f"{wheel}[serve,cpu]")
    assert "torch" not in call(tmp_path, python, "-m", "pip", "list").split()
    told = call(tmp_path, tmp_path / "venv/bin/ddcat-serve", "run", "--help")
    assert all(f"--{name.replace('_', '-')}"[:20] in told for name in Settings.model_fields)
    assert "scenes-ddcat" in call(tmp_path, tmp_path / "venv/bin/ddcat-train", "--list")
    call(
        tmp_path,
        python,
        "-c",
        "import ddcat_serve.http.app, ddcat_serve.inference.model_registry, ddcat_serve.server, ddcat_serve.rpc.service",
    )
