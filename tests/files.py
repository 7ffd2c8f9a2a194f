"""Files that tests use where they are: samples of real data sets and pretrained weights, in a folder beside the checkout."""

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(os.environ.get("DDCAT_TEST_FILES", Path(__file__).parents[2] / "shared"))


def needed(name: str) -> Path:
    """A file or folder of them; where it is not there the test is skipped."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"needs {path}: the environment variable DDCAT_TEST_FILES names another folder than {FOLDER}")
    return path


def script(path: str) -> ModuleType:
    """A script of the checkout as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, Path(__file__).parents[1] / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
