"""What docs/results says is what its files hold."""

import json
import re
from pathlib import Path

from ddcat_bench.judged import find_results
from ddcat_bench.paper_tables import make_tables
from ddcat_bench.table_files import tables_markdown

ROOT = Path(__file__).parents[2]


def test_the_tables_of_methods_are_made_of_the_files_beside_them() -> None:
    page = (ROOT / "docs/results/camvid-methods.md").read_text(encoding="utf-8")
    made = tables_markdown(make_tables(find_results(sorted((ROOT / "docs/results/camvid-methods").glob("*.json")))))
    tables = re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)
    assert len(tables) == 4
    assert all(table in made for table in tables)


def test_the_tables_of_robustness_are_made_of_the_files_beside_them() -> None:
    page = (ROOT / "docs/results/robustness-camvid.md").read_text(encoding="utf-8")
    folder = ROOT / "docs/results/robustness-camvid"
    files = [folder / f"{run}-{suite}.json" for run in ("clean", "sat", "ddcat", "pgd-at-4") for suite in ("paper", "sea")]
    made = tables_markdown(make_tables(find_results(files)))
    tables = re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)
    assert sum(table in made for table in tables) == 2


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
