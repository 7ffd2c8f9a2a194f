"""The results of `train_step.py` as Markdown."""

from collections.abc import Sequence

from bench.paper.train_step_results import StepRatio, TrainStepResult
from ddcat_bench.markdown import environment_lines, table
from ddcat_bench.timing.results import Watched
from ddcat_bench.timing.speed import faster, mebibytes, neighbours

__all__ = ["train_step_markdown", "train_steps_markdown"]

_CONTENDERS = {"ours": "ours", "released": "(a) released", "frugal": "(b) frugal"}
_BASELINES = (
    "(a) released: the attack is on the whole batch, through all heads and with gradients of all parameters. (b) frugal: main "
    "head and input gradients alone in the attack. Neither reuses anything; both are of plain layers in contiguous memory, and "
    "take the same step as ours. Faster: seconds of the baseline / ours in the same turn, median and quartiles."
)


def train_step_markdown(result: TrainStepResult) -> str:
    """
    Write the speed and memory of our training step beside those of the baselines.

    Parameters
    ----------
    result : TrainStepResult
    """
    ratios: dict[str, StepRatio] = {ratio.baseline: ratio for ratio in result.ratios}
    rows = [
        [
            _CONTENDERS[entry.name],
            entry.precision,
            f"{entry.images_per_second:.4g}",
            f"{entry.times.median:.4g} ({entry.times.lower_quartile:.4g} to {entry.times.upper_quartile:.4g})",
            faster(ratios[entry.name]) if entry.name in ratios else "",
            mebibytes(entry.peak_memory),
            f"{entry.operations / 1e9:.4g}",
            f"{entry.peak_share:.0%}",
        ]
        for entry in result.contenders
    ]
    head = ["contender", "precision", "images/s", "seconds a step", "ours is faster by", "peak MiB", "GFLOP a step", "of peak"]
    peaks = ", ".join(f"{value / 1e9:.4g} GFLOP/s in {precision}" for precision, value in result.matrix_product_peak.items())
    environment = result.environment
    rounding = "" if environment.device == "cpu" else f"; TF32 {'on' if result.tf32 else 'off'}"
    return (
        f"# {result.preset}: our training step beside the released one\n\n"
        f"{result.method}, {result.architecture}, {result.classes} classes; {result.batch} x {result.height} x {result.width} "
        f"(images x height x width){rounding}; {len(result.contenders[0].times.seconds)} steps of each "
        f"in turns after {result.warm_up} to warm up. Brackets: quartiles.\n\n"
        f"{table(head, rows)}\n{quiet_note(result)}"
        f"{_BASELINES}\n\n"
        f"{result.boundary} {result.memory} Matrix-product peak, measured in the same process: {peaks}. "
        f"{neighbours(result)}\n\n"
        f"{environment_lines(environment)}"
    )


def train_steps_markdown(results: Sequence[TrainStepResult]) -> str:
    """
    Write the speed and memory of our training step on several presets, or in several precisions, under each other.

    Parameters
    ----------
    results : sequence of TrainStepResult
    """
    rows = []
    for result in results:
        ours, *baselines = result.contenders
        cuda = result.environment.device != "cpu"
        precision = f"{ours.precision} / {baselines[0].precision}" + (", TF32" if result.tf32 and cuda else "")
        rows.append(
            [
                result.preset,
                f"{result.batch} x {result.height} x {result.width}",
                precision,
                f"{ours.images_per_second:.4g}",
                *(faster(ratio) for ratio in result.ratios),
                *(mebibytes(entry.peak_memory) for entry in result.contenders),
                f"{ours.peak_share:.0%}",
                "**no**" if result.disturbed else "yes",
            ]
        )
    head = [
        "preset", "images x height x width", "precision: ours / baselines", "images/s", "faster than (a)", "than (b)",
        "peak MiB: ours", "(a)", "(b)", "of peak", "quiet machine",
    ]  # fmt: skip
    total = sum(result.environment.seconds for result in results)
    where = dict.fromkeys(environment_lines(r.environment.model_copy(update={"seconds": total})) for r in results)
    return f"# Our training step beside the released one\n\n{table(head, rows)}\n{_BASELINES}\n\n" + "\n".join(where)


def quiet_note(result: Watched) -> str:
    """Warn where others computed meanwhile, as a paragraph; empty where they did not."""
    if not result.disturbed:
        return ""
    return "**Not a quiet machine**: others computed on it at the same time, so take these figures with care.\n\n"
