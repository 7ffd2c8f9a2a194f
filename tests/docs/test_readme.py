"""The README is short, and its figures are those of the committed results."""

import re
from pathlib import Path

from tests.files import script

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = ROOT / "docs/results/robustness-camvid"


def test_it_is_short() -> None:
    assert README.count("\n") <= 140


def test_its_table_and_its_picture_are_of_the_results() -> None:
    chart = script("examples/robustness_chart.py")
    rows = {
        name: [float(cell.strip("* ")) for cell in cells.split("|")]
        for name, cells in re.findall(r"^\| (undefended|DDC-AT|SAT|PGD-AT) \|(.*)\|$", README, re.MULTILINE)
    }
    scores = {name: chart.read_scores(RESULTS / f"{method}-sea.json") for method, name in chart.METHODS.items()}
    assert {name: cells[:2] for name, cells in rows.items()} == {
        name: [round(value, 3) for value in pair] for name, pair in scores.items()
    }
    picture = (ROOT / "docs/pictures/robustness.svg").read_bytes()
    assert picture == chart.draw(scores)
    kept = [pair[1] / pair[0] for name, pair in scores.items() if name != "undefended"]
    assert f"keep {100 * min(kept):.0f} to {100 * max(kept):.0f} % of their own clean score" in " ".join(README.split())
