"""Scenarios for readers."""

from ddcat_bench.markdown import environment_lines, table
from ddcat_bench.timing.scenarios import BOUNDARIES, PERCENTILES, Scenario, ScenariosResult

__all__ = ["scenarios_markdown"]


def scenarios_markdown(result: ScenariosResult) -> str:
    """Write the table, and whether it may be believed."""
    heads = ["scenario", "boundary", "batch", "load", "images/s", "requests", "mean, ms", "p50", "p90", "p99", "longest"]
    unsteady = (
        "**Not steady**: the single stream was not the same before and after, or others computed meanwhile; measure again on a "
        "machine that does nothing else.\n\n"
    )
    calm = result.steady and (result.others or 0) <= 0.1
    boundaries = "; ".join(f"{name}: {meaning}" for name, meaning in BOUNDARIES.items())
    needs = ", ".join(f"p{100 * share:.0f} takes {count}" for share, count in PERCENTILES.items() if share > 0.5)
    return (
        f"# {result.bundle.name}: scenarios\n\n"
        f"Images of {result.height} x {result.width}, {result.seconds:g} s each; "
        f"{', '.join(f'{key} {value}' for key, value in result.bundle.engine.items())}.\n\n"
        f"{table(heads, [_cells(row) for row in result.rows], texts=2)}\n{'' if calm else unsteady}"
        "After MLPerf Inference. Single stream: a request comes when the one before is answered. Server: they come by a "
        "Poisson process, the load is a share of what the single stream reaches, and what a request waits for others counts. "
        f"Offline: all are there at once. Boundaries: {boundaries}. Milliseconds, none left out; a percentile that so few "
        f"requests do not tell is left out ({needs}).\n\n{environment_lines(result.environment)}"
    )


def _cells(row: Scenario) -> list[str]:
    first = [
        row.name, row.boundary, str(row.batch), "-" if row.load is None else f"{row.load:.0%}", f"{row.images_per_second:.2f}",
    ]  # fmt: skip
    if row.latencies is None:
        return [*first, *["-"] * 6]
    latency = row.latencies
    values = (latency.mean, latency.p50, latency.p90, latency.p99, latency.longest)
    return [*first, str(latency.requests), *("-" if value is None else f"{1000 * value:.1f}" for value in values)]
