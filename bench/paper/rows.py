"""Lines of a table: mean and standard deviation of each column over runs that differ in their seed alone."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, Self

from pydantic import Field

from bench.paper.paper_numbers import PaperTable
from bench.paper.runs import EvaluatedRun, Training, check_comparable
from ddcat.schema import StrictModel
from ddcat_bench.errors import BenchError

__all__ = ["Cell", "Line", "Score", "mean_lines", "paper_lines"]


class Score(NamedTuple):
    """
    One score of one run, or of one pair of a target and a substitute.

    Attributes
    ----------
    training : Training
        Of the checkpoint that was attacked.
    substitute : str
        What kind of network the attack was made on; nothing where it is the attacked one.
    run : str
        Name of the run, or of the pair.
    source : EvaluatedRun
    column : str
    attack : tuple
        Everything that must be equal in the scores of one column.
    value : float
    """

    training: Training
    substitute: str
    run: str
    source: EvaluatedRun
    column: str
    attack: tuple[object, ...]
    value: float


class Cell(StrictModel):
    """One score of a line."""

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
    settings: str = Field(description="the settings that its training does not share with another line of the same method")
    substitute: str = Field(description="architecture and method the attack was made on; empty: the attacked network")
    runs: tuple[str, ...] = Field(description="the checkpoints; of a black-box attack: target <- substitute")
    seeds: tuple[int | None, ...] = Field(description="of the attacked checkpoints; null: not recorded")
    cells: dict[str, Cell] = Field(description="by column")


def mean_lines(scores: Iterable[Score], *, complete: bool = True) -> tuple[Line, ...]:
    """
    Average the scores of each training, and of each kind of substitute, over the runs.

    Parameters
    ----------
    scores : iterable of Score
    complete : bool
        Refuse runs of one line that do not have the same columns; otherwise a cell has the values that there are.

    Raises
    ------
    BenchError
        Naming two results that do not go together.
    """
    known = list(scores)
    check_comparable(list({score.source.path: score.source for score in known}.values()))
    _check_attacks(known)
    groups: dict[tuple[Training, str], list[Score]] = {}
    for score in known:
        groups.setdefault((score.training, score.substitute), []).append(score)
    return tuple(_line(group, complete) for group in groups.values())


def paper_lines(table: PaperTable | None) -> tuple[Line, ...]:
    """Return the lines that the paper prints; none where it has no such table."""
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


def _line(group: list[Score], complete: bool) -> Line:
    runs: dict[str, dict[str, Score]] = {}
    for score in group:
        runs.setdefault(score.run, {})[score.column] = score
    if complete:
        _check_columns(list(runs.values()))
    first = group[0]
    columns = dict.fromkeys(score.column for score in group)
    ours = [next(iter(run.values())).source.result.checkpoint for run in runs.values()]
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


def _check_columns(runs: list[dict[str, Score]]) -> None:
    one = runs[0]
    for other in runs[1:]:
        if odd := one.keys() ^ other.keys():
            first, second = (next(iter(run.values())).source for run in (one, other))
            raise BenchError(
                f"{first.path} (suite {first.result.suite}) and {second.path} (suite {second.result.suite}) were not "
                f"attacked with the same suite: only one of them has {min(odd)}; attack both alike, or leave one out"
            )


def _check_attacks(scores: list[Score]) -> None:
    seen: dict[str, Score] = {}
    for score in scores:
        other = seen.setdefault(score.column, score)
        if other.attack != score.attack:
            one, two = (" ".join(str(part) for part in f.attack) for f in (other, score))
            raise BenchError(
                f"{other.source.path} and {score.source.path}: {score.column} is not the same attack in both ({one}; {two}): "
                "use results of the same attack"
            )
