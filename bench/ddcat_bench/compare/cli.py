"""The command `ddcat compare`."""

from pathlib import Path
from typing import Annotated

import typer

from ddcat.extras import needing
from ddcat_bench.cli_options import Force

__all__ = ["compare"]


def compare(
    bundles: Annotated[
        list[Path], typer.Argument(metavar="BUNDLE...", help="Bundles that the gate tested, or result folders of ddcat gate.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Write the result into this folder.")] = Path("compare"),
    force: Force = False,
) -> None:
    """
    Put engines and precisions side by side, from the gate's results, with a plot of latency over robustness.

    The gate's result of a bundle is BUNDLE-gate beside it. Results on different images are refused.

    For example:

    - `ddcat compare bundles/camvid-fp32 bundles/camvid-bf16 bundles/camvid-int8`

    - `ddcat compare gates/* --out results/engines`
    """
    from ddcat_bench.compare.comparison import compare as put_side_by_side
    from ddcat_bench.compare.comparison import find_reports, load_gate_results
    from ddcat_bench.publish import claim, publish

    with claim(out, "compare", force=force):
        result = put_side_by_side(load_gate_results(bundles), find_reports(bundles, out))
        with needing("bench"):
            from ddcat_bench.compare.report import compare_html, compare_markdown, pareto
        files = {"pareto.png": pareto(result), "compare.html": compare_html(result).encode()}
        publish(out, "compare", result, compare_markdown(result), files, force=force)
