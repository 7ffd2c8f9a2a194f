"""Markdown of results, made from the results alone."""

from collections.abc import Sequence

from ddcat_bench.errors import BenchError
from ddcat_bench.results import (
    AttackResult,
    BundleEntry,
    CheckpointEntry,
    DataEntry,
    Environment,
    FidelityResult,
    Ratio,
    SpeedResult,
    StepRatio,
    TrainStepResult,
)

__all__ = [
    "attack_lines",
    "columns",
    "compare_markdown",
    "data_line",
    "environment_lines",
    "fidelity_markdown",
    "number",
    "provenance_lines",
    "run_names",
    "speed_markdown",
    "table",
    "train_step_markdown",
    "train_steps_markdown",
]

_CONTENDERS = {"ours": "ours", "released": "(a) released", "frugal": "(b) frugal"}
_BASELINES = (
    "(a) released: the attack is on the whole batch, through all heads and with gradients of all parameters. (b) frugal: main "
    "head and input gradients alone in the attack. Neither reuses anything; both are of plain layers in contiguous memory, and "
    "take the same step as ours. Faster: seconds of the baseline / ours in the same turn, median and quartiles."
)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int = 1) -> str:
    """Write a Markdown table; the first columns are texts, all others numbers."""
    lines = [head, [*["---"] * texts, *["---:"] * (len(head) - texts)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def columns(results: Sequence[AttackResult]) -> list[str]:
    """Labels of all attacks that occur, in their order: clean, n = 1, ..., PGD-20."""
    return list(dict.fromkeys(row.label for result in results for row in result.rows))


def compare_markdown(results: Sequence[AttackResult]) -> str:
    """
    Write the mIoU of several runs under each other, as floats and as 8-bit images.

    Raises
    ------
    BenchError
        Where they were not judged on the same images.
    """
    labels = columns(results)
    names = run_names(results)
    tables = [
        table(
            ["mIoU", *labels],
            [
                [name, *(_figure(r, label, "miou", eight_bit) for label in labels)]
                for name, r in zip(names, results, strict=True)
            ],
        )
        for eight_bit in (False, True)
    ]
    first = results[0]
    return (
        f"{data_line(first.data)}\n\n{tables[0]}\n{attack_lines(results)}\n"
        f"On 8-bit adversarial images, as a server would receive them:\n\n{tables[1]}\n{first.protocol}\n"
    )


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
        f"{_bundle_line(result.bundle)}{provenance_lines(result.checkpoint, result.environment)}"
    )


def speed_markdown(result: SpeedResult) -> str:
    """
    Write an engine's time and memory beside PyTorch's.

    Parameters
    ----------
    result : SpeedResult
    """
    faster = {ratio.baseline: ratio for ratio in result.ratios}
    rows = [
        [
            "engine" if entry.name == "engine" else f"PyTorch, {entry.name}",
            *(f"{1000 * value:.2f}" for value in (t.lower_quartile, t.median, t.upper_quartile)),
            "yes" if t.stable else "**no**",
            _faster(faster[entry.name]) if entry.name in faster else "",
            _mebibytes(entry.peak_memory),
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
        f"{result.boundary} {result.memory} {_neighbours(result)}\n\n"
        f"{_bundle_line(result.bundle)}{provenance_lines(result.checkpoint, result.environment)}"
    )


def _neighbours(result: SpeedResult) -> str:
    if result.others is None:
        return f"Load average: {result.load_before:.2f} before, {result.load_after:.2f} after."
    return f"Others kept {result.others:.2f} cores busy meanwhile."


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
            _faster(ratios[entry.name]) if entry.name in ratios else "",
            _mebibytes(entry.peak_memory),
            f"{entry.operations / 1e9:.4g}",
            f"{entry.peak_share:.0%}",
        ]
        for entry in result.contenders
    ]
    head = ["contender", "precision", "images/s", "seconds a step", "ours is faster by", "peak MiB", "GFLOP a step", "of peak"]
    peaks = ", ".join(f"{value / 1e9:.4g} GFLOP/s in {precision}" for precision, value in result.matrix_product_peak.items())
    environment = result.environment
    rounding = "" if environment.device == "cpu" else f"; TF32 {'on' if result.tf32 else 'off'}"
    note = (
        "**Not a quiet machine**: others computed on it at the same time, so take these figures with care.\n\n"
        if result.disturbed
        else ""
    )
    return (
        f"# {result.preset}: our training step beside the released one\n\n"
        f"{result.method}, {result.architecture}, {result.classes} classes; {result.batch} x {result.height} x {result.width} "
        f"(images x height x width){rounding}; {len(result.contenders[0].times.seconds)} steps of each "
        f"in turns after {result.warm_up} to warm up. Brackets: quartiles.\n\n"
        f"{table(head, rows)}\n{note}"
        f"{_BASELINES}\n\n"
        f"{result.boundary} {result.memory} Matrix-product peak, measured in the same process: {peaks}. "
        f"Load average: {result.load_before:.2f} before, {result.load_after:.2f} after.\n\n"
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
                *(_faster(ratio) for ratio in result.ratios),
                *(_mebibytes(entry.peak_memory) for entry in result.contenders),
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


def run_names(results: Sequence[AttackResult]) -> list[str]:
    """
    Name each run by its method, and by its checkpoint as well where the methods do not tell all apart.

    Raises
    ------
    BenchError
        Where there is no result, or they were not judged on the same images.
    """
    if not results:
        raise BenchError("no results to compare: name at least one")
    first = results[0].data
    for other in results[1:]:
        if (other.data.list_sha256, other.data.long_side, other.data.names) != (
            first.list_sha256,
            first.long_side,
            first.names,
        ):
            raise BenchError(
                f"{results[0].checkpoint.path} and {other.checkpoint.path} were not judged on the same images "
                f"({len(first.names)} of {first.name} {first.split}, {len(other.data.names)} of {other.data.name} "
                f"{other.data.split}): their numbers do not compare"
            )
    methods = [result.checkpoint.method for result in results]
    if len(set(methods)) == len(methods):
        return methods
    return [f"{result.checkpoint.method} ({result.checkpoint.path})" for result in results]


def provenance_lines(checkpoint: CheckpointEntry, environment: Environment) -> str:
    """Say which checkpoint was judged, and where and with what."""
    attack = "none" if checkpoint.attack is None else ", ".join(f"{key} {value}" for key, value in checkpoint.attack.items())
    trained = "imported" if checkpoint.step is None else f"step {checkpoint.step}"
    return (
        f"- checkpoint: {checkpoint.path}, {trained}, SHA-256 {checkpoint.sha256}\n"
        f"- attack in training: {attack}\n"
        f"{environment_lines(environment)}"
    )


def environment_lines(environment: Environment) -> str:
    """Say where and with what something was measured."""
    machine = environment.machine
    return (
        f"- machine: {machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}; "
        f"PyTorch on {environment.device}, threads: {environment.threads}; {environment.seconds:.0f} s\n"
        f"- versions: {', '.join(f'{name} {version}' for name, version in environment.versions.items())}\n"
        f"- code: {environment.git_commit or 'not from a checkout'}\n"
    )


def _bundle_line(bundle: BundleEntry) -> str:
    engine = ", ".join(f"{key} {value}" for key, value in bundle.engine.items())
    return f"- bundle: {bundle.path}, manifest SHA-256 {bundle.sha256}\n- engine: {engine}\n"


def _figure(result: AttackResult, label: str, key: str, eight_bit: bool) -> str:
    row = result.find(label, eight_bit=eight_bit)
    return number(getattr(row.scores, key)) if row else "-"


def _faster(ratio: Ratio) -> str:
    return f"**{ratio.median:.2f}** ({ratio.lower_quartile:.2f} to {ratio.upper_quartile:.2f})"


def _mebibytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**20:.0f}"


def number(value: float | None) -> str:
    """Write a figure, or that there is none."""
    return "-" if value is None else f"{value:.3f}"


def data_line(data: DataEntry) -> str:
    """Say which images were judged."""
    chosen = "all" if len(data.names) == data.split_images else f"{len(data.names)} of"
    resized = "" if data.long_side is None else f", resized to a long side of {data.long_side}"
    other = "" if data.usual_split else " This is **not** the validation split that belongs to the checkpoint."
    return f"{data.name}, {data.split} split: {chosen} {data.split_images} images{resized}.{other}"


def attack_lines(results: Sequence[AttackResult]) -> str:
    """Say what each column is: start, step, and bound, in floats and for 8-bit images."""
    bounds: dict[str, dict[bool, float]] = {}  # of each attack, as floats and in 8 bits
    for row in (row for result in results for row in result.rows if row.name != "clean"):
        name = row.label.replace(f"n = {row.steps}", "n = N") if row.name in ("BIM", "transfer") else row.label
        size = f", alpha {row.alpha:.4g}" if row.alpha else ""
        attack = f"{name}{': BIM of N steps' if row.name == 'BIM' else ''}, start: {row.start}{size}, epsilon {row.epsilon:.4g}"
        bounds.setdefault(attack, {})[row.eight_bit] = row.grey_levels
    return "".join(
        f"- {attack} ({levels[False]:.4g} grey levels; {levels[True]:.0f}/255 for 8-bit images)\n"
        for attack, levels in bounds.items()
    )
