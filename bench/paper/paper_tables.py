"""`tables.py`: the paper's tables from any set of results, and below them what stronger attacks leave."""

from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import Field

from bench.paper.collect_scores import Known, black_box, clean, sea_sets, white_box, without_sea
from bench.paper.paper_numbers import paper_numbers
from bench.paper.rows import Line, Score, mean_lines, paper_lines
from bench.paper.runs import EvaluatedRun, Training, place, trainings
from ddcat.schema import StrictModel
from ddcat_bench.errors import BenchError
from ddcat_bench.markdown import data_line

__all__ = ["RunAlarm", "StepClaim", "Table", "Tables", "make_tables"]

Kind = Literal["white-box", "black-box", "ablation", "clean", "stronger"]

_VARIANTS = ("ddcat-m", "ddcat-n")  # that Table 3 has beside DDC-AT and SAT
_ABLATION = (*_VARIANTS, "ddcat", "sat")
_MARGIN = 0.025  # by which, the paper says, n = 10 and 20 change the mean of n = 7 at most
_CAPTIONS: dict[Kind, str] = {
    "white-box": "mIoU under BIM, made on the attacked network itself",
    "black-box": "mIoU under BIM, made on another network",
    "ablation": "ablation of DDC-AT: mIoU under BIM, made on the attacked network itself",
    "clean": "clean images",
    "stronger": "what stronger attacks leave of the same checkpoints, mIoU",
}
_DIFFERENCE = (
    "What is strong under its own BIM may be nothing under SEA: BIM takes a few steps of one loss from the clean image, and a "
    "network that was trained on such steps has learnt to expect them; SEA is the worst, image by image, of three losses and "
    "of many more steps. At each bound, quote the lowest score."
)


class Table(StrictModel):
    """One table."""

    data: str
    kind: Kind
    paper_table: int | None = Field(description="its number in the paper; null: the paper has none")
    caption: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]


class StepClaim(StrictModel):
    """Whether more steps than 7 change the mean of a line by no more than the paper says: 0.025."""

    data: str
    architecture: str
    method: str
    settings: str
    steps: int
    difference: float = Field(description="mean mIoU at that many steps, less that at 7")
    held: bool


class RunAlarm(StrictModel):
    """An alarm of one of the results."""

    path: str
    name: str
    evidence: str
    meaning: str


class Tables(StrictModel):
    """The result of `tables.py`."""

    schema_version: Literal[1] = 1
    kind: Literal["tables"] = "tables"
    results: tuple[str, ...] = Field(description="the files")
    paper: str = Field(description="source of the paper's numbers")
    tables: tuple[Table, ...]
    claims: tuple[StepClaim, ...]
    alarms: tuple[RunAlarm, ...]
    unprobed: tuple[str, ...] = Field(description="the files of results that were never probed for masked gradients")


def make_tables(evaluated: Sequence[EvaluatedRun]) -> Tables:
    """
    Make all tables that a set of results has scores for.

    Parameters
    ----------
    evaluated : sequence of EvaluatedRun

    Raises
    ------
    BenchError
        If there is nothing to tabulate, or results that do not compare would be averaged: naming two of them.
    """
    tables: list[Table] = []
    for data in dict.fromkeys(one.result.data.name for one in evaluated):
        tables += _of_data(data, [one for one in evaluated if one.result.data.name == data])
    if not tables:
        raise BenchError("none of the results has an attack in it: `ddcat attack CHECKPOINT` makes one that has")
    return Tables(
        results=tuple(str(one.path) for one in evaluated),
        paper=paper_numbers().source,
        tables=tuple(tables),
        claims=tuple(claim for table in tables for claim in _claims(table)),
        alarms=tuple(
            RunAlarm(path=str(one.path), name=alarm.name, evidence=alarm.evidence, meaning=alarm.meaning)
            for one in evaluated
            for alarm in one.result.alarms
        ),
        unprobed=tuple(str(one.path) for one in evaluated if one.result.probe is None),
    )


def _of_data(data: str, evaluated: Sequence[EvaluatedRun]) -> Iterator[Table]:
    origins = [row.substitute for one in evaluated for row in one.result.rows if row.substitute is not None]
    known = trainings([*(one.result.checkpoint for one in evaluated), *origins])
    targets = {known[one.result.checkpoint.sha256] for one in evaluated}
    bim, sea, rest = white_box(evaluated, known), sea_sets(evaluated, known), without_sea(evaluated, known)

    def with_stronger(kind: Kind, chosen: set[Training]) -> Iterator[Table]:
        if own := _of(chosen, bim):
            yield _table(data, kind, own, _bim(own))
        for scores in sea:
            if shown := _of(chosen, scores):
                yield _table(
                    data, "stronger", shown, [_DIFFERENCE, *_lacking(shown, evaluated, known), *_bim(shown)], complete=False
                )
        if shown := _of(chosen, rest):
            table = _table(data, "stronger", shown, _bim(shown))
            yield table.model_copy(update={"notes": (_without(table), _DIFFERENCE, *table.notes)})

    yield from with_stronger("white-box", {training for training in targets if training.method not in _VARIANTS})
    if scores := black_box(evaluated, known):
        yield _table(data, "black-box", scores, _bim(scores))
    if any(training.method in _VARIANTS for training in targets):
        yield from with_stronger("ablation", {training for training in targets if training.method in _ABLATION})
    if scores := clean(evaluated, known):
        yield _table(data, "clean", scores, [])


def _of(chosen: set[Training], scores: Sequence[Score]) -> list[Score]:
    return [score for score in scores if score.training in chosen]


def _table(data: str, kind: Kind, scores: Sequence[Score], notes: Sequence[str], *, complete: bool = True) -> Table:
    ours = mean_lines(scores, complete=complete)
    printed = paper_numbers().find(data, kind)
    paper = paper_lines(printed)
    if kind == "ablation":  # its lines of SAT and DDC-AT are those of the white-box table
        paper += tuple(line for line in paper_lines(paper_numbers().find(data, "white-box")) if line.method in _ABLATION)
    first = min((score.source.result for score in scores), key=lambda result: result.data.usual_split)
    whole = first.protocol_name == "whole"
    images = (
        f"{data_line(first.data)} {'Whole images' if whole else 'Sliding windows'}; perturbed in floating point unless a "
        "column says 8-bit."
    )
    paper_note = (
        f"The paper's lines are as it prints them ({paper_numbers().source})"
        f"{'; its released code attacks each window of an image on its own, and these are attacks of whole images' * whole}."
    )
    return Table(
        data=data,
        kind=kind,
        paper_table=None if printed is None else printed.number,
        caption=_CAPTIONS[kind],
        columns=tuple(sorted(dict.fromkeys(c for line in (*ours, *paper) for c in line.cells), key=_column_place)),
        lines=tuple(sorted((*ours, *paper), key=lambda line: (*place(line.architecture, line.method), line.source))),
        notes=(*notes, images, _spread(ours), *([paper_note] if paper else [])),
    )


def _column_place(column: str) -> tuple[int, int]:
    """Clean images first, then BIM by its steps, then the others as they come."""
    steps = column.removeprefix("n = ")
    return (0, 0) if column == "clean" else (1, int(steps)) if steps.isdigit() else (2, 0)


def _bim(scores: Sequence[Score]) -> list[str]:
    bounds = next((score.attack[2:] for score in scores if score.column.startswith("n = ")), None)
    return [f"n is the number of steps of BIM: {', '.join(map(str, bounds))}."] if bounds else []


def _spread(ours: Sequence[Line]) -> str:
    pairs = any(line.substitute for line in ours)
    single = "One pair of target and substitute" if pairs else "One run, that is one seed,"
    if all(len(line.runs) == 1 for line in ours):
        return f"{single} in each line: there is no standard deviation."
    seeds = sorted({seed for line in ours for seed in line.seeds if seed is not None})
    over = "all pairs of a target and a substitute" if pairs else "runs that differ in their seed alone"
    named = f" (seeds {', '.join(map(str, seeds))})" if seeds else ""
    text = f"Mean ± sample standard deviation over {over}{named}."
    if any(seed is None for line in ours for seed in line.seeds):
        text += " Not all of the results record seed and training: that those differ in nothing else was not checked."
    return text + (f" {single} in a line has none." if any(len(line.runs) == 1 for line in ours) else "")


def _lacking(shown: Sequence[Score], evaluated: Sequence[EvaluatedRun], known: Known) -> Iterator[str]:
    """Name the trainings of which SEA was run on some checkpoints only."""
    done = {score.source.result.checkpoint.sha256 for score in shown}
    for training in dict.fromkeys(score.training for score in shown):
        all_of_it = {sha for one in evaluated if known[sha := one.result.checkpoint.sha256] == training}
        if all_of_it - done:
            yield f"SEA was run on {len(all_of_it & done)} of the {len(all_of_it)} runs of {training.name}."


def _without(table: Table) -> str:
    strongest: dict[str, list[str]] = {}
    for line in table.lines:
        column, _ = min(((c, cell) for c, cell in line.cells.items() if c != "clean"), key=lambda item: item[1].mean)
        strongest.setdefault(column, []).append(Training(line.architecture, line.method, line.settings).name)
    named = "; ".join(f"{column} for {' and '.join(names)}" for column, names in strongest.items())
    return (
        f"**SEA was not run on these checkpoints.** The strongest attack among their results is "
        f"{next(iter(strongest)) if len(strongest) == 1 else named}. SEA may leave far less: run "
        "`ddcat attack CHECKPOINT --suite sea` on each, and name its results as well."
    )


def _claims(table: Table) -> Iterator[StepClaim]:
    for line in table.lines:
        again = table.kind == "ablation" and line.method not in _VARIANTS  # the white-box table has it
        if table.kind not in ("white-box", "ablation") or line.source == "paper" or again:
            continue
        for steps in (10, 20):
            if {"n = 7", f"n = {steps}"} <= line.cells.keys():
                difference = line.cells[f"n = {steps}"].mean - line.cells["n = 7"].mean
                yield StepClaim(
                    data=table.data,
                    architecture=line.architecture,
                    method=line.method,
                    settings=line.settings,
                    steps=steps,
                    difference=difference,
                    held=abs(difference) <= _MARGIN,
                )
