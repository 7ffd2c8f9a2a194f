"""
The figure that opens the README, of what `make demo` has made: images, attacked images, what models say of them, and curves.

    python examples/readme_figure.py demo --out docs/pictures/attacked.png
"""

import argparse
import io
from pathlib import Path

import numpy as np
from demo_page import METHOD_NAMES
from matplotlib.figure import Figure
from panels import Panel, make_panels
from PIL import Image

from ddcat.atomic_files import write_bytes
from ddcat.cli_support import run
from ddcat_bench.attack.results import AttackResult
from ddcat_bench.inputs import main_branch, open_split, torch_device
from ddcat_bench.result_io import read_result
from ddcat_train.checkpoints import load_checkpoint

COLUMNS = {
    "Image": "image",
    "Attacked image": "attacked",
    "Undefended": "undefended says",
    "DDC-AT": "DDC-AT says, attacked too",
}


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="what `make demo` has made")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    cpu = torch_device("cpu")
    bare, robust = (load_checkpoint(arguments.demo / "runs" / method) for method in ("undefended", "ddcat"))
    panels = make_panels(
        main_branch(bare, cpu), main_branch(robust, cpu), open_split(bare), defence=METHOD_NAMES["ddcat"], images=3
    )
    attacks = {
        name: read_result(arguments.demo / f"results/{method}/attack.json", AttackResult)
        for method, name in METHOD_NAMES.items()
        if (arguments.demo / f"results/{method}").is_dir()
    }
    write_bytes(arguments.out, draw(panels, attacks))
    print(arguments.out)


def draw(panels: list[Panel], attacks: dict[str, AttackResult]) -> bytes:
    """Pictures at the left, a row for each image, curves over n at the right."""
    figure = Figure(figsize=(11, 4.1), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1.75, 1])
    for row, axes_of_row, panel in zip(range(len(panels)), left.subplots(len(panels), len(COLUMNS)), panels, strict=True):
        pictures = {picture.title: picture for picture in panel.pictures}
        for axes, (title, heading) in zip(axes_of_row, COLUMNS.items(), strict=True):
            axes.imshow(np.asarray(Image.open(io.BytesIO(pictures[title].png))), interpolation="nearest")
            axes.set_axis_off()
            if not row:
                axes.set_title(heading, fontsize=9)
    axes = right.subplots()
    for name, result in attacks.items():
        found = [result.find(label) for label in ("clean", *(f"n = {n}" for n in range(1, 8)))]
        axes.plot([attack.scores.miou for attack in found if attack is not None], marker="o", markersize=4, label=name)
    axes.set_xlabel("n, steps of BIM within 0.03; 0: clean")
    axes.set_ylabel("mIoU")
    axes.set_ylim(0, 0.8)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    picture = Image.open(buffer).convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    small = io.BytesIO()
    picture.save(small, "PNG", optimize=True)
    return small.getvalue()


if __name__ == "__main__":
    run(main)
