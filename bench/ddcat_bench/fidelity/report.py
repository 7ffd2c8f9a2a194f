"""The result of `ddcat fidelity` for readers."""

from ddcat_bench.fidelity.results import FidelityResult
from ddcat_bench.markdown import bundle_line, data_line, provenance_lines, table

__all__ = ["fidelity_markdown"]


def fidelity_markdown(result: FidelityResult) -> str:
    """
    Write how an engine and the PyTorch main branch agree.

    Parameters
    ----------
    result : FidelityResult
    """
    rows = [
        [
            row.label,
            f"{row.agreement:.4%}",
            f"{row.counted_agreement:.4%}",
            f"{row.differing} of {row.pixels}",
            f"{row.engine.miou:.4f}",
            f"{row.pytorch.miou:.4f}",
            f"{100 * (row.engine.miou - row.pytorch.miou):+.3f}",
        ]
        for row in result.rows
    ]
    head = ["8-bit images", "agreement", "of counted pixels", "pixels that differ", "mIoU engine", "mIoU PyTorch", "points"]
    attacked = next(row for row in result.rows if row.steps)
    return (
        f"# {result.bundle.name}: the engine beside PyTorch\n\n"
        f"{data_line(result.data)}\n\n"
        f"{table(head, rows)}\n"
        f"n = N: BIM of N steps, epsilon {attacked.epsilon:.4g} ({attacked.grey_levels:.0f}/255 for 8-bit images), "
        f"alpha {attacked.alpha:.4g}.\n\n"
        f"{result.protocol}\n\n"
        f"{bundle_line(result.bundle)}{provenance_lines(result.checkpoint, result.environment)}"
    )
