"""The figures that go into each of the tables, taken from the rows of results."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from ddcat.metrics import miou
from ddcat_bench.attack.results import AttackRow, WorstCase, grey
from ddcat_bench.entries import CheckpointEntry
from ddcat_bench.tables.mean_lines import Figure
from ddcat_bench.tables.runs import JudgedRun, Training, check_comparable, check_seeds

__all__ = ["Known", "black_box", "clean", "sea_sets", "white_box", "without_sea"]

Known = Mapping[str, Training]  # the training of each checkpoint, by its SHA-256, in the order of a table's lines

_PAPER_STEPS = 7
_STRONGEST_BOUND = 8 / 255 + 1e-9  # a larger change can be seen: what it leaves says little


def white_box(judged: Sequence[JudgedRun], known: Known) -> list[Figure]:
    """
    Take clean images and every n of BIM that was made on the judged network itself.

    Raises
    ------
    BenchError
        Where two results that have these were not judged on the same images, or are of one seed.
    """
    return _rows(_with_bim(judged), known, lambda row: row.name in ("clean", "BIM"))


def clean(judged: Sequence[JudgedRun], known: Known) -> list[Figure]:
    """Take all figures of clean images, of the results that have BIM: those of SEA may be of fewer images."""
    return [
        figure._replace(column=column, value=value)
        for figure in _rows(_with_bim(judged), known, lambda row: row.name == "clean")
        for scores in (next(row.scores for row in figure.judged.result.rows if row.name == "clean"),)
        for column, value in (
            ("mIoU", scores.miou),
            ("pixel accuracy", scores.pixel_accuracy),
            ("mean per-image mIoU", scores.mean_image_miou),
            ("foreground mIoU", scores.foreground_miou),
        )
        if value is not None
    ]


def black_box(judged: Sequence[JudgedRun], known: Known) -> list[Figure]:
    """Take what was made on another network: a run is a pair of a target and a substitute."""
    found: dict[tuple[str, ...], Figure] = {}
    for one in judged:
        target = one.result.checkpoint
        for row in one.result.rows:
            if (origin := row.substitute) is None or row.eight_bit:
                continue
            figure = _figure(one, known, f"n = {row.steps}", _attack(row), row.scores.miou)
            pair = figure._replace(substitute=known[origin.sha256].name, run=f"{figure.run} <- {_named(origin)}")
            found.setdefault((target.sha256, origin.sha256, pair.column), pair)
    return _in_order(found.values(), known)


def sea_sets(judged: Sequence[JudgedRun], known: Known) -> list[list[Figure]]:
    """
    Take the worst cases of the results that have SEA, and beside them clean images and BIM on the same images alone.

    Returns
    -------
    list of list of Figure
        One for each set of images that SEA was run on.
    """
    sets: dict[object, list[JudgedRun]] = {}
    for one in judged:
        if any(case.name == "SEA" for case in one.result.worst_cases):
            data = one.result.data
            sets.setdefault((data.list_sha256, data.long_side, data.names, one.result.protocol_name), []).append(one)
    return [_sea(of_set, judged, known) for of_set in sets.values()]


def without_sea(judged: Sequence[JudgedRun], known: Known) -> list[Figure]:
    """Take all white-box attacks up to 8/255, other than the paper's first seven steps, on trainings that have no SEA."""
    done = {known[one.result.checkpoint.sha256] for one in judged if any(c.name == "SEA" for c in one.result.worst_cases)}
    rest = [one for one in _with_bim(judged) if known[one.result.checkpoint.sha256] not in done]
    last = _last_step(rest)
    return _rows(rest, known, lambda row: row.epsilon <= _STRONGEST_BOUND and (row.name != "BIM" or row.steps >= last))


def _sea(of_set: Sequence[JudgedRun], judged: Sequence[JudgedRun], known: Known) -> list[Figure]:
    _check_seeds(of_set, known)
    last = _last_step(judged)
    found: dict[tuple[str, str], Figure] = {}
    for one in of_set:
        for column, attack, value in (*_on_the_same(one, judged, ("clean", f"n = {last}")), *_worst(one)):
            found.setdefault((one.result.checkpoint.sha256, column), _figure(one, known, column, attack, value))
    return _in_order(found.values(), known)


def _worst(one: JudgedRun) -> Iterator[tuple[str, tuple[object, ...], float]]:
    for case in one.result.worst_cases:
        yield _case_column(case, one.result.rows), (case.members, one.result.class_pixels), case.scores.miou


def _case_column(case: WorstCase, rows: Sequence[AttackRow]) -> str:
    steps = sorted({row.steps for row in rows if case.name == "SEA" and row.label in case.members})
    return f"{case.label}{''.join(f', {n} steps' for n in steps)}{', 8-bit' if case.eight_bit else ''}"


def _on_the_same(
    one: JudgedRun, judged: Sequence[JudgedRun], columns: Sequence[str]
) -> Iterator[tuple[str, tuple[object, ...], float]]:
    """Compute again what other results of the same checkpoint say, on the images of one alone."""
    data = one.result.data
    for other in (one, *judged):
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


def _rows(judged: Sequence[JudgedRun], known: Known, wanted: Callable[[AttackRow], bool]) -> list[Figure]:
    """Take rows on floating-point images; of suites that have the same rows for a checkpoint, the first."""
    check_comparable(judged)
    _check_seeds(judged, known)
    found: dict[tuple[str, str], Figure] = {}
    for one in judged:
        for row in one.result.rows:
            if _own(row) and wanted(row):
                figure = _figure(one, known, row.label, _attack(row), row.scores.miou)
                found.setdefault((one.result.checkpoint.sha256, row.label), figure)
    return _in_order(found.values(), known)


def _figure(one: JudgedRun, known: Known, column: str, attack: tuple[object, ...], value: float) -> Figure:
    checkpoint = one.result.checkpoint
    return Figure(known[checkpoint.sha256], "", _named(checkpoint), one, column, attack, value)


def _check_seeds(judged: Sequence[JudgedRun], known: Known) -> None:
    for training in dict.fromkeys(known.values()):
        check_seeds([one for one in judged if known[one.result.checkpoint.sha256] == training])


def _in_order(figures: Iterable[Figure], known: Known) -> list[Figure]:
    places = {training: index for index, training in enumerate(dict.fromkeys(known.values()))}

    def place(figure: Figure) -> tuple[int, int, str]:
        seed = figure.judged.result.checkpoint.seed
        return places[figure.training], -1 if seed is None else seed, figure.run

    return sorted(figures, key=place)  # stable: the columns stay in their order


def _with_bim(judged: Sequence[JudgedRun]) -> list[JudgedRun]:
    return [one for one in judged if any(row.name == "BIM" for row in one.result.rows)]


def _last_step(judged: Sequence[JudgedRun]) -> int:
    """Say which n stands for the paper's attack: 7, or the largest below it that was run."""
    return max(
        (row.steps for one in judged for row in one.result.rows if row.name == "BIM" and row.steps <= _PAPER_STEPS),
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
