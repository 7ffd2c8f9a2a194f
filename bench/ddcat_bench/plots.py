"""Curves of attack results, drawn without pyplot, which keeps a state of its own."""

import io
from collections.abc import Sequence

from matplotlib.figure import Figure

from ddcat_bench.results import AttackResult
from ddcat_bench.tables import columns, run_names

__all__ = ["curves"]


def curves(results: Sequence[AttackResult]) -> bytes:
    """
    Draw mIoU over the attacks, one curve for each run; dashed: on 8-bit adversarial images.

    Clean images are n = 0. An attack of another family than BIM stands apart, as a single mark.

    Parameters
    ----------
    results : sequence of AttackResult
        Judged on the same images.

    Returns
    -------
    bytes
        A PNG.

    Raises
    ------
    BenchError
        Where they were not judged on the same images.
    """
    labels = columns(results)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for index, (name, result) in enumerate(zip(run_names(results), results, strict=True)):
        colour = f"C{index}"
        for eight_bit in (False, True):
            found = [(place, row) for place, label in enumerate(labels) if (row := result.find(label, eight_bit=eight_bit))]
            curve = [(place, row.scores.miou) for place, row in found if row.name in ("clean", "BIM")]
            marks = [(place, row.scores.miou) for place, row in found if row.name not in ("clean", "BIM")]
            alpha = 0.6 if eight_bit else 1.0
            axes.plot(
                *zip(*curve, strict=True),
                linestyle="--" if eight_bit else "-",
                marker="" if eight_bit else "o",
                label=f"{name}, 8-bit" if eight_bit else name,
                color=colour,
                alpha=alpha,
            )
            if marks:
                axes.plot(*zip(*marks, strict=True), linestyle="", marker="x" if eight_bit else "D", color=colour, alpha=alpha)
    data = results[0].data
    axes.set_xticks(range(len(labels)), labels)
    axes.set_ylim(-0.02, 1)
    axes.set_ylabel("mIoU")
    axes.set_title(f"{data.name} {data.split}, {len(data.names)} images")
    axes.grid(alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")  # a figure without pyplot draws with Agg
    return buffer.getvalue()
