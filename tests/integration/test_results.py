"""What docs/results says is what its files hold."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def seeds() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mean_over_seeds", ROOT / "examples/mean_over_seeds.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_methods_is_made_of_the_files_beside_it(seeds: ModuleType) -> None:
    files = sorted((ROOT / "docs/results/camvid-methods").glob("*.json"))
    assert seeds.table(seeds.read(files)) in (ROOT / "docs/results/camvid-methods.md").read_text(encoding="utf-8")


def test_the_training_steps_are_those_of_the_files() -> None:
    page = (ROOT / "docs/results/train-step.md").read_text(encoding="utf-8")
    files = sorted((ROOT / "docs/results/train-step").glob("*.json"))
    assert len(files) == page.count("](train-step/voc-")
    for file in files:
        result = json.loads(file.read_text(encoding="utf-8"))
        row = next(line for line in page.splitlines() if line.startswith(f"| [{result['preset']}]"))
        released, frugal = (ratio["median"] for ratio in result["ratios"])
        assert f"| **{released:.2f}** (" in row
        assert f") | {frugal:.2f} |" in row


def test_mean_and_deviation(seeds: ModuleType) -> None:
    found = seeds.table({"sat": {"clean": [0.25, 0.75], "n = 1": [0.1, 0.1]}, "ddcat": {"clean": [0.5], "n = 1": [0.25]}})
    assert found.splitlines()[2:] == [
        "| sat | 2 | 0.500 ± 0.354 | 0.100 ± 0.000 |",
        "| ddcat | 1 | 0.500 | 0.250 |",
    ]


def test_a_file_named_twice_counts_once(seeds: ModuleType) -> None:
    file = next(iter((ROOT / "docs/results/camvid-methods").glob("*.json")))
    assert seeds.read([file, file]) == seeds.read([file])
