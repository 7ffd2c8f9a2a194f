"""The result of `ddcat speed` for readers."""

from ddcat_bench.markdown import bundle_line, provenance_lines, table
from ddcat_bench.timing.results import Ratio, SpeedResult, Watched

__all__ = ["faster", "mebibytes", "neighbours", "quiet_note", "speed_markdown"]


def speed_markdown(result: SpeedResult) -> str:
    """
    Write an engine's time and memory beside PyTorch's.

    Parameters
    ----------
    result : SpeedResult
    """
    ratios = {ratio.baseline: ratio for ratio in result.ratios}
    rows = [
        [
            "engine" if entry.name == "engine" else f"PyTorch, {entry.name}",
            *(f"{1000 * value:.2f}" for value in (t.lower_quartile, t.median, t.upper_quartile)),
            "yes" if t.stable else "**no**",
            faster(ratios[entry.name]) if entry.name in ratios else "",
            mebibytes(entry.peak_memory),
        ]
        for entry in result.contenders
        for t in (entry.times,)
    ]
    head = [
        "milliseconds a call",
        "lower quartile",
        "median",
        "upper quartile",
        "stable",
        "the engine is faster by",
        "peak MiB",
    ]
    note = (
        ""
        if result.stable
        else "**Unstable**: the medians of the last three windows differ by more than 10 %. Measure again on a machine that "
        "does nothing else, or with more --repeats.\n\n"
    )
    return (
        f"# {result.bundle.name}: the engine's time and memory beside PyTorch's\n\n"
        f"{result.batch} x {result.height} x {result.width} (images x height x width), threads of each: {result.threads}, "
        f"{len(result.contenders[0].times.seconds)} calls each in turns after {result.warm_up} to warm up; {result.inputs}.\n\n"
        f"{table(head, rows)}\n"
        "Faster by: seconds of PyTorch / the engine's in the same turn, median and quartiles. The engine's file has "
        f"{result.engine_bytes / 2**20:.1f} MiB, {result.engine_bytes / result.parameter_bytes:.3f} of the main branch's "
        f"parameters in fp32.\n\n{note}"
        f"{result.boundary} {result.memory} {neighbours(result)}\n\n"
        f"{bundle_line(result.bundle)}{provenance_lines(result.checkpoint, result.environment)}"
    )


def neighbours(result: Watched) -> str:
    """Write how busy other processes kept the machine."""
    if result.others is None:
        return f"Load average: {result.load_before:.2f} before, {result.load_after:.2f} after."
    return f"Others kept {result.others:.2f} cores busy meanwhile."


def quiet_note(result: Watched) -> str:
    """Warn where others computed meanwhile, as a paragraph; empty where they did not."""
    if not result.disturbed:
        return ""
    return "**Not a quiet machine**: others computed on it at the same time, so take these figures with care.\n\n"


def faster(ratio: Ratio) -> str:
    """Write how many times as fast: median and quartiles."""
    return f"**{ratio.median:.2f}** ({ratio.lower_quartile:.2f} to {ratio.upper_quartile:.2f})"


def mebibytes(size: int | None) -> str:
    """Write a size in MiB, or that it is not known."""
    return "-" if size is None else f"{size / 2**20:.0f}"
