"""
A picture of the first screen of a gate's report, from its result file:

    python examples/report_picture.py docs/results/gates-cpu/ddcat-ort-int8-bad/gate.json --out docs/pictures/gate.png
"""

import argparse
from pathlib import Path

from screenshot import opened_page, save

from ddcat.cli_support import run
from ddcat_bench.gate.report import gate_html
from ddcat_bench.gate.results import GateResult
from ddcat_bench.result_io import read_result

WIDTH, HEIGHT = 1000, 1150


def main() -> None:
    """Make the report again, and take the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, help="gate.json, as `ddcat gate` has written it")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with opened_page(WIDTH, HEIGHT) as page:
        page.set_content(gate_html(read_result(arguments.result, GateResult)))
        save(page.screenshot(), arguments.out)


if __name__ == "__main__":
    run(main)
