"""The command ddcat tables."""

from pathlib import Path
from typing import Annotated

import typer

from ddcat_bench.options import Force

__all__ = ["tables"]


def tables(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Result folders of ddcat attack, their attack.json, or run directories."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the result.")] = Path("tables"),
    force: Force = False,
) -> None:
    """
    Make the paper's Tables 1 to 5 from any set of attack results: mean and standard deviation over seeds.

    White-box, black-box, ablation and clean tables of each data set that is among them, with the paper's own numbers where it
    has some, and below each white-box table what SEA leaves of the same checkpoints. Markdown, LaTeX (booktabs), CSV, JSON.
    Results that do not compare (other images, protocols, suites) are refused, not averaged.

    For example:

    - `ddcat tables runs/voc-*`

    - `ddcat tables runs/ddcat-0/attack-paper runs/ddcat-0/attack-sea runs/ddcat-1/attack-paper --out results/tables`
    """
    from ddcat_bench.output import claim, publish
    from ddcat_bench.tables.files import tables_csv, tables_latex, tables_markdown
    from ddcat_bench.tables.paper_tables import make_tables
    from ddcat_bench.tables.runs import find_results

    with claim(out, "tables", force=force):
        made = make_tables(find_results(runs))
        files = {"tables.tex": tables_latex(made).encode(), "tables.csv": tables_csv(made).encode()}
        publish(out, "tables", made, tables_markdown(made), files, force=force)
