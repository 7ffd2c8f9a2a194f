"""Lines of a table: mean and standard deviation of each column over runs that differ in their seed alone."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, Self

from pydantic import Field

from ddcat.schema import StrictModel
from ddcat_bench.errors import BenchError
from ddcat_bench.tables.paper_numbers import PaperTable
from ddcat_bench.tables.runs import JudgedRun, Training, check_comparable

__all__ = ["Cell", "Figure", "Line", "mean_lines", "paper_lines"]


class Figure(NamedTuple):
    """
    One figure of one run, or of one pair of a target and a substitute.

    Attributes
    ----------
    training : Training
        Of the checkpoint that was judged.
    substitute : str
        What kind of network the attack was made on; nothing where it is the judged one.
    run : str
        Tells runs, or pairs, apart.
    judged : JudgedRun
    column : str
    attack : tuple
        All that must be equal in figures of one column.
    value : float
    """

    training: Training
    substitute: str
    run: str
    judged: JudgedRun
    column: str
    attack: tuple[object, ...]
    value: float


class Cell(StrictModel):
    """One figure of a line."""

    mean: float
    sd: float | None = Field(description="sample standard deviation; null: of one value, or not printed in the paper")
    values: tuple[float, ...] = Field(description="of each run or pair; none are known of the paper's")

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Compute mean and sample standard deviation; a single value has none."""
        return cls(
            mean=statistics.fmean(values),
            sd=statistics.stdev(values) if len(values) > 1 else None,
            values=tuple(values),
        )


class Line(StrictModel):
    """One method on one architecture: measured, or as the paper prints it."""

    source: Literal["ours", "paper"]
    architecture: str
    method: str
    settings: str = Field(description="what tells its training from that of another line of the same method")
    substitute: str = Field(description="architecture and method that the attack was made on; empty: the judged network itself")
    runs: tuple[str, ...] = Field(description="the checkpoints; of a black-box attack: target <- substitute")
    seeds: tuple[int | None, ...] = Field(description="of the judged checkpoints; null: not recorded")
    cells: dict[str, Cell] = Field(description="by column")


def mean_lines(figures: Iterable[Figure], *, complete: bool = True) -> tuple[Line, ...]:
    """
    Average the figures of each training, and of each kind of substitute, over the runs.

    Parameters
    ----------
    figures : iterable of Figure
    complete : bool
        Refuse runs of one line that do not have the same columns; otherwise a cell has the values that there are.

    Raises
    ------
    BenchError
        Naming two results that do not go together.
    """
    known = list(figures)
    check_comparable(list({figure.judged.path: figure.judged for figure in known}.values()))
    _check_attacks(known)
    groups: dict[tuple[Training, str], list[Figure]] = {}
    for figure in known:
        groups.setdefault((figure.training, figure.substitute), []).append(figure)
    return tuple(_line(group, complete) for group in groups.values())


def paper_lines(table: PaperTable | None) -> tuple[Line, ...]:
    """Give the lines that the paper prints; none where it has no such table."""
    if table is None:
        return ()
    return tuple(
        Line(
            source="paper",
            architecture=line.architecture,
            method=line.method,
            settings="",
            substitute="",
            runs=(),
            seeds=(),
            cells={
                column: Cell(mean=mean, sd=sd, values=())
                for column, mean, sd in zip(table.columns, line.mean, line.sd or [None] * len(line.mean), strict=True)
            },
        )
        for line in table.lines
    )


def _line(group: list[Figure], complete: bool) -> Line:
    runs: dict[str, dict[str, Figure]] = {}
    for figure in group:
        runs.setdefault(figure.run, {})[figure.column] = figure
    if complete:
        _check_columns(list(runs.values()))
    first = group[0]
    columns = dict.fromkeys(figure.column for figure in group)
    ours = [next(iter(run.values())).judged.result.checkpoint for run in runs.values()]
    return Line(
        source="ours",
        architecture=first.training.architecture,
        method=first.training.method,
        settings=first.training.settings,
        substitute=first.substitute,
        runs=tuple(runs),
        seeds=tuple(checkpoint.seed for checkpoint in ours),
        cells={c: Cell.of([run[c].value for run in runs.values() if c in run]) for c in columns},
    )


def _check_columns(runs: list[dict[str, Figure]]) -> None:
    one = runs[0]
    for other in runs[1:]:
        if odd := one.keys() ^ other.keys():
            first, second = (next(iter(run.values())).judged for run in (one, other))
            raise BenchError(
                f"{first.path} (suite {first.result.suite}) and {second.path} (suite {second.result.suite}) were not judged by "
                f"the same suite: only one of them has {min(odd)}; judge both alike, or leave one out"
            )


def _check_attacks(figures: list[Figure]) -> None:
    seen: dict[str, Figure] = {}
    for figure in figures:
        other = seen.setdefault(figure.column, figure)
        if other.attack != figure.attack:
            one, two = (" ".join(str(part) for part in f.attack) for f in (other, figure))
            raise BenchError(
                f"{other.judged.path} and {figure.judged.path}: {figure.column} is not the same attack in both ({one}; {two}): "
                "use results of the same attack"
            )
