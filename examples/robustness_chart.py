"""
The chart that opens the README: mIoU on clean images and under the strongest attack, from committed results.

    python examples/robustness_chart.py docs/results/robustness-camvid --out docs/pictures/robustness.svg
"""

import argparse
import io
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from ddcat.atomic_files import write_bytes
from ddcat.cli_support import run
from ddcat_bench.attack.results import AttackResult
from ddcat_bench.result_io import read_result

METHODS = {"clean": "undefended", "ddcat": "DDC-AT", "sat": "SAT", "pgd-at-4": "PGD-AT"}
EPSILON = 4 / 255
COLOURS = ("#9aa5b1", "#c2410c")  # readable on white and on black


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder with METHOD-sea.json of each method")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures/robustness.svg"))
    arguments = parser.parse_args()
    scores = {name: read_scores(arguments.results / f"{method}-sea.json") for method, name in METHODS.items()}
    write_bytes(arguments.out, draw(scores))
    print(arguments.out)


def read_scores(file: Path) -> tuple[float, float]:
    """Return the mIoU on clean images, and what the worst of all attacks at 4/255 leaves."""
    result = read_result(file, AttackResult)
    clean = next(row.scores.miou for row in result.rows if row.steps == 0)
    (worst,) = (
        case.scores.miou
        for case in result.worst_cases
        if case.name == "all" and not case.eight_bit and abs(case.epsilon - EPSILON) < 1e-9
    )
    return clean, worst


def draw(scores: dict[str, tuple[float, float]]) -> bytes:
    """Return two bars for each method, as SVG."""
    mpl.rcParams["svg.hashsalt"] = "ddcat"  # the same file each time
    figure = Figure(figsize=(8, 2.9), layout="constrained")
    axes = figure.subplots()
    for place, (label, colour) in enumerate(zip(("clean images", "strongest attack, 4/255"), COLOURS, strict=True)):
        values = [pair[place] for pair in scores.values()]
        bars = axes.bar(
            [number + (place - 0.5) * 0.38 for number in range(len(scores))], values, 0.36, label=label, color=colour
        )
        axes.bar_label(bars, [f"{value:.3f}" for value in values], fontsize=9, padding=2)
    axes.set_xticks(range(len(scores)), list(scores), fontsize=11)
    axes.set_ylabel("mIoU")
    axes.set_ylim(0, 0.56)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=2, loc="upper right")
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None}, facecolor="white")
    return out.getvalue()


if __name__ == "__main__":
    run(main)
