"""Markdown that all results have in common: tables, and what was judged, where and with what."""

from collections.abc import Sequence

from ddcat_bench.entries import BundleEntry, CheckpointEntry, DataEntry, Environment

__all__ = ["bundle_line", "data_line", "environment_lines", "number", "provenance_lines", "table"]


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int = 1) -> str:
    """Write a Markdown table; the first columns are texts, all others numbers."""
    lines = [head, [*["---"] * texts, *["---:"] * (len(head) - texts)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


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


def bundle_line(bundle: BundleEntry) -> str:
    """Say which bundle was judged, and how its engine runs."""
    engine = ", ".join(f"{key} {value}" for key, value in bundle.engine.items())
    return f"- bundle: {bundle.path}, manifest SHA-256 {bundle.sha256}\n- engine: {engine}\n"


def number(value: float | None) -> str:
    """Write a figure, or that there is none."""
    return "-" if value is None else f"{value:.3f}"


def data_line(data: DataEntry) -> str:
    """Say which images were judged."""
    chosen = "all" if len(data.names) == data.split_images else f"{len(data.names)} of"
    resized = "" if data.long_side is None else f", resized to a long side of {data.long_side}"
    other = "" if data.usual_split else " This is **not** the validation split that belongs to the checkpoint."
    return f"{data.name}, {data.split} split: {chosen} {data.split_images} images{resized}.{other}"
