"""Markdown that all results have in common: tables, and what was evaluated, where and with what."""

import re
from collections.abc import Sequence

from ddcat.text import printable
from ddcat_bench.result_schema import BundleEntry, CheckpointEntry, DataEntry, Environment

__all__ = [
    "bundle_line",
    "cell",
    "data_line",
    "environment_lines",
    "fixed",
    "literal",
    "machine_line",
    "number",
    "origin_lines",
    "provenance_lines",
    "signed",
    "table",
]

_MEANT = re.compile(r"([\\`*\[\]<>|~&])")  # what Markdown takes for more than a character; _ within a word is none
_OPEN = re.compile(r"(?<!\\)([|<])")  # of a cell: another column, or a tag


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int = 1) -> str:
    """Write a Markdown table; the first columns are texts, all others numbers. No cell is HTML, nor more than one cell."""
    lines = [head, [*["---"] * texts, *["---:"] * (len(head) - texts)], *([cell(text) for text in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def literal(text: str) -> str:
    """Write a text of others, such as the name of a class, so that Markdown shows it as it is."""
    return _MEANT.sub(r"\\\1", printable(text, None))


def cell(text: str) -> str:
    """Write a text as one cell of a table."""
    return _OPEN.sub(r"\\\1", printable(text, None))


def fixed(value: float, digits: int = 2) -> str:
    """Write a figure; what rounds to nothing has no sign."""
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def signed(value: float, digits: int = 2) -> str:
    """Write a difference with its sign; what rounds to nothing has none."""
    text = fixed(value, digits)
    return text if text.startswith("-") or float(text) == 0 else f"+{text}"


def provenance_lines(checkpoint: CheckpointEntry, environment: Environment) -> str:
    """Write the checkpoint, the machine and the versions."""
    attack = "none" if checkpoint.attack is None else ", ".join(f"{key} {value}" for key, value in checkpoint.attack.items())
    trained = "imported" if checkpoint.step is None else f"step {checkpoint.step}"
    return (
        f"- checkpoint: {literal(checkpoint.path)}, {trained}, SHA-256 {checkpoint.sha256}\n"
        f"- attack in training: {attack}\n"
        f"{environment_lines(environment)}"
    )


def machine_line(environment: Environment) -> str:
    """Name the machine: processor, cores, memory, system."""
    machine = environment.machine
    return f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}"


def environment_lines(environment: Environment) -> str:
    """Write the machine, date and versions of a measurement."""
    when = "" if environment.date is None else f"- date: {environment.date}\n"
    return (
        f"{when}- machine: {machine_line(environment)}; "
        f"PyTorch on {environment.device}, threads: {environment.threads}; {environment.seconds:.0f} s\n"
        f"- versions: {', '.join(f'{name} {version}' for name, version in environment.versions.items())}\n"
        f"- code: {environment.git_commit or 'not from a checkout'}\n"
    )


def bundle_line(bundle: BundleEntry) -> str:
    """Write the bundle and the description of its engine."""
    engine = ", ".join(f"{key} {value}" for key, value in bundle.engine.items())
    return f"- bundle: {literal(bundle.path)}, manifest SHA-256 {bundle.sha256}\n- engine: {literal(engine)}\n"


def origin_lines(checkpoint: CheckpointEntry | None, bundle: BundleEntry | None, environment: Environment) -> str:
    """Write what was evaluated, a checkpoint, an engine or both, and by what."""
    engine = "" if bundle is None else bundle_line(bundle)
    return engine + (environment_lines(environment) if checkpoint is None else provenance_lines(checkpoint, environment))


def number(value: float | None) -> str:
    """Write a figure, or that there is none."""
    return "-" if value is None else f"{value:.3f}"


def data_line(data: DataEntry) -> str:
    """Write which images were evaluated."""
    chosen = "all" if len(data.names) == data.split_images else f"{len(data.names)} of"
    other = "" if data.usual_split else " This is **not** the validation split that belongs to the checkpoint."
    return f"{literal(data.name)}, {literal(data.split)} split: {chosen} {data.split_images} images{data.resized}.{other}"
