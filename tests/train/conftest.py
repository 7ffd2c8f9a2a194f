import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from ddcat_train.data.generate import write_scenes


def beside(name: str) -> ModuleType:
    """A module of this folder, loaded by its path, since tests are no package."""
    spec = importlib.util.spec_from_file_location(f"ddcat_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def oracle() -> ModuleType:
    """The slow transcription of the paper's algorithms."""
    return beside("oracle")


@pytest.fixture(scope="session")
def released() -> ModuleType:
    """The files of others: keys, shapes, and what they compute."""
    return beside("released")


@pytest.fixture(scope="session")
def tiny_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten scenes to train on and four to judge with, 48 x 48."""
    root = tmp_path_factory.mktemp("tiny") / "scenes"
    write_scenes(root, train=10, val=4, size=(48, 48))
    return root


@pytest.fixture
def tiny_run(tiny_scenes: Path) -> list[str]:
    """Overrides that make the scenes presets steps of a fraction of a second: 3 epochs of 3 steps."""
    return [
        f"data.root={tiny_scenes}", "augment.crop=33", "model.width=4", "train.epochs=3", "train.batch_size=4",
        "train.evaluate_every=2",
    ]  # fmt: skip
