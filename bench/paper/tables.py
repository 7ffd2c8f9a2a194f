"""
Make the paper's Tables 1 to 5 from any set of attack results: mean and standard deviation over seeds.

    python bench/paper/tables.py runs/voc-*
    python bench/paper/tables.py runs/ddcat-0/attack-paper runs/ddcat-0/attack-sea --out results/tables

White-box, black-box, ablation and clean tables of each data set that is among them, with the paper's own numbers where it has
some, and below each white-box table what SEA leaves of the same checkpoints. Markdown, CSV, JSON. Results that do not compare
(other images, protocols, suites) are refused, not averaged.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.paper.paper_tables import make_tables
from bench.paper.render_tables import tables_csv, tables_markdown
from bench.paper.runs import find_results
from ddcat.cli_support import run
from ddcat_bench.publish import claim, publish


def main() -> None:
    """Make the tables of the results that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="a result folder of ddcat attack, its attack.json, or a run directory"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("tables"), metavar="DIR", help="folder of the tables (default: tables)"
    )
    parser.add_argument("--force", action="store_true", help="replace an earlier result")
    given = parser.parse_args()
    with claim(given.out, "tables", force=given.force):
        made = make_tables(find_results(given.runs))
        publish(given.out, "tables", made, tables_markdown(made), {"tables.csv": tables_csv(made).encode()}, force=given.force)


if __name__ == "__main__":
    run(main)
