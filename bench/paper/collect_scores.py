"""The scores that go into each of the tables, taken from the rows of results."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from bench.paper.rows import Score
from bench.paper.runs import EvaluatedRun, Training, check_comparable, check_seeds
from ddcat.metrics import miou
from ddcat_bench.attack.results import AttackRow, WorstCase, grey
from ddcat_bench.result_schema import CheckpointEntry

__all__ = ["Known", "black_box", "clean", "sea_sets", "white_box", "without_sea"]

Known = Mapping[str, Training]  # the training of each checkpoint, by its SHA-256, in the order of a table's lines

_PAPER_STEPS = 7
_STRONGEST_BOUND = 8 / 255 + 1e-9  # a larger change can be seen: what it leaves says little


def white_box(evaluated: Sequence[EvaluatedRun], known: Known) -> list[Score]:
    """
    Take clean images and every n of BIM that was made on the attacked network itself.

    Raises
    ------
    BenchError
        If two results that have these were not evaluated on the same images, or are of one seed.
    """
    return _rows(_with_bim(evaluated), known, lambda row: row.name in ("clean", "BIM"))


def clean(evaluated: Sequence[EvaluatedRun], known: Known) -> list[Score]:
    """Take all scores of clean images, of the results that have BIM: those of SEA may be of fewer images."""
    return [
        score._replace(column=column, value=value)
        for score in _rows(_with_bim(evaluated), known, lambda row: row.name == "clean")
        for scores in (next(row.scores for row in score.source.result.rows if row.name == "clean"),)
        for column, value in (
            ("mIoU", scores.miou),
            ("pixel accuracy", scores.pixel_accuracy),
            ("mean per-image mIoU", scores.mean_image_miou),
            ("foreground mIoU", scores.foreground_miou),
        )
        if value is not None
    ]


def black_box(evaluated: Sequence[EvaluatedRun], known: Known) -> list[Score]:
    """Take the attacks that were made on another network: a run is a pair of a target and a substitute."""
    scores: dict[tuple[str, ...], Score] = {}
    for one in evaluated:
        target = one.result.checkpoint
        for row in one.result.rows:
            if (origin := row.substitute) is None or row.eight_bit:
                continue
            score = _score(one, known, f"n = {row.steps}", _attack(row), row.scores.miou)
            pair = score._replace(substitute=known[origin.sha256].name, run=f"{score.run} <- {_named(origin)}")
            scores.setdefault((target.sha256, origin.sha256, pair.column), pair)
    return _in_order(scores.values(), known)


def sea_sets(evaluated: Sequence[EvaluatedRun], known: Known) -> list[list[Score]]:
    """
    Take the worst cases of the results that have SEA, and beside them clean images and BIM on the same images alone.

    Returns
    -------
    list of list of Score
        One for each set of images that SEA was run on.
    """
    sets: dict[object, list[EvaluatedRun]] = {}
    for one in evaluated:
        if any(case.name == "SEA" for case in one.result.worst_cases):
            data = one.result.data
            sets.setdefault((data.list_sha256, data.long_side, data.names, one.result.protocol_name), []).append(one)
    return [_sea(of_set, evaluated, known) for of_set in sets.values()]


def without_sea(evaluated: Sequence[EvaluatedRun], known: Known) -> list[Score]:
    """Take all white-box attacks up to 8/255, other than the paper's first seven steps, on trainings that have no SEA."""
    done = {known[one.result.checkpoint.sha256] for one in evaluated if any(c.name == "SEA" for c in one.result.worst_cases)}
    rest = [one for one in _with_bim(evaluated) if known[one.result.checkpoint.sha256] not in done]
    last = _last_step(rest)
    return _rows(rest, known, lambda row: row.epsilon <= _STRONGEST_BOUND and (row.name != "BIM" or row.steps >= last))


def _sea(of_set: Sequence[EvaluatedRun], evaluated: Sequence[EvaluatedRun], known: Known) -> list[Score]:
    _check_seeds(of_set, known)
    last = _last_step(evaluated)
    scores: dict[tuple[str, str], Score] = {}
    for one in of_set:
        for column, attack, value in (*_on_the_same(one, evaluated, ("clean", f"n = {last}")), *_worst(one)):
            scores.setdefault((one.result.checkpoint.sha256, column), _score(one, known, column, attack, value))
    return _in_order(scores.values(), known)


def _worst(one: EvaluatedRun) -> Iterator[tuple[str, tuple[object, ...], float]]:
    for case in one.result.worst_cases:
        yield _case_column(case, one.result.rows), (case.members, one.result.class_pixels), case.scores.miou


def _case_column(case: WorstCase, rows: Sequence[AttackRow]) -> str:
    steps = sorted({row.steps for row in rows if case.name == "SEA" and row.label in case.members})
    return f"{case.label}{''.join(f', {n} steps' for n in steps)}{', 8-bit' if case.eight_bit else ''}"


def _on_the_same(
    one: EvaluatedRun, evaluated: Sequence[EvaluatedRun], columns: Sequence[str]
) -> Iterator[tuple[str, tuple[object, ...], float]]:
    """Compute the scores of other results of the same checkpoint again, on the images of this one alone."""
    data = one.result.data
    for other in (one, *evaluated):
        theirs = other.result.data
        where = {name: index for index, name in enumerate(theirs.names)}
        if (
            other.result.checkpoint.sha256 != one.result.checkpoint.sha256
            or other.result.protocol_name != one.result.protocol_name
            or (theirs.list_sha256, theirs.long_side) != (data.list_sha256, data.long_side)
            or not where.keys() >= set(data.names)
        ):
            continue
        for row in other.result.rows:
            if _own(row) and row.label in columns:
                value = miou(row.scores.array()[[where[name] for name in data.names]].sum(0))
                if not np.isnan(value):
                    yield row.label, _attack(row), value


def _rows(evaluated: Sequence[EvaluatedRun], known: Known, chosen: Callable[[AttackRow], bool]) -> list[Score]:
    """Take rows on floating-point images; of suites that have the same rows for a checkpoint, the first."""
    check_comparable(evaluated)
    _check_seeds(evaluated, known)
    scores: dict[tuple[str, str], Score] = {}
    for one in evaluated:
        for row in one.result.rows:
            if _own(row) and chosen(row):
                score = _score(one, known, row.label, _attack(row), row.scores.miou)
                scores.setdefault((one.result.checkpoint.sha256, row.label), score)
    return _in_order(scores.values(), known)


def _score(one: EvaluatedRun, known: Known, column: str, attack: tuple[object, ...], value: float) -> Score:
    checkpoint = one.result.checkpoint
    return Score(known[checkpoint.sha256], "", _named(checkpoint), one, column, attack, value)


def _check_seeds(evaluated: Sequence[EvaluatedRun], known: Known) -> None:
    for training in dict.fromkeys(known.values()):
        check_seeds([one for one in evaluated if known[one.result.checkpoint.sha256] == training])


def _in_order(scores: Iterable[Score], known: Known) -> list[Score]:
    places = {training: index for index, training in enumerate(dict.fromkeys(known.values()))}

    def place(score: Score) -> tuple[int, int, str]:
        seed = score.source.result.checkpoint.seed
        return places[score.training], -1 if seed is None else seed, score.run

    return sorted(scores, key=place)  # stable: the columns stay in their order


def _with_bim(evaluated: Sequence[EvaluatedRun]) -> list[EvaluatedRun]:
    return [one for one in evaluated if any(row.name == "BIM" for row in one.result.rows)]


def _last_step(evaluated: Sequence[EvaluatedRun]) -> int:
    """Return the n that stands for the paper's attack: 7, or the largest below it that was run."""
    return max(
        (row.steps for one in evaluated for row in one.result.rows if row.name == "BIM" and row.steps <= _PAPER_STEPS),
        default=_PAPER_STEPS,
    )


def _own(row: AttackRow) -> bool:
    return row.substitute is None and not row.eight_bit


def _attack(row: AttackRow) -> tuple[object, ...]:
    return (
        row.name,
        row.steps,
        f"epsilon {row.epsilon:.4g} ({grey(row.epsilon)})",
        f"alpha {row.alpha:.4g}",
        f"start {row.start}",
    )


def _named(checkpoint: CheckpointEntry) -> str:
    return f"{checkpoint.path} ({checkpoint.sha256[:8]})"
